"""Every layout against numbers worked out by hand, and a user's folder that nobody writes into."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.dataset import open_dataset
from data.images import fingerprint
from data.sample import Dataset
from data.yolo_export import export_yolo
from tests.data.make import coco_json, image, voc_xml, yolo_set
from utils.errors import UserError

BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd"


def boxes(dataset: Dataset, split: str, name: str) -> list[list[float]]:
    """[[class, x, y, w, h], ...] of the image called `name`."""
    sample = next(s for s in dataset.splits[split] if s.image.name == name)
    assert sample.boxes.dtype == np.float32 and sample.cls.dtype == np.int64
    return np.column_stack([sample.cls, sample.boxes]).tolist()


# YOLO -----------------------------------------------------------------------------------------------------
# -------


def test_yolo_labels_come_out_as_written(tmp_path):
    root = yolo_set(tmp_path, labels={"a": "1 0.5 0.25 0.5 0.125\n\n0 0.1 0.2 0.05 0.1\n", "b": ""})
    data = open_dataset(root / "data.yaml", tmp_path / "cache")
    assert data.names == ["cat", "dog"] and data.nc == 2
    assert boxes(data, "train", "a.jpg") == [
        [1, 0.5, 0.25, 0.5, 0.125],
        pytest.approx([0, 0.1, 0.2, 0.05, 0.1]),
    ]
    assert boxes(data, "train", "b.jpg") == []  # an empty label file is a background image
    assert data.splits["train"][0].shape == (48, 64)


def test_polygons_become_their_bounding_boxes(tmp_path):
    root = yolo_set(tmp_path, labels={"a": "0 0.25 0.5 0.75 0.5 0.5 1.0\n"})
    data = open_dataset(root / "data.yaml", tmp_path / "cache")
    assert boxes(data, "train", "a.jpg") == [[0, 0.5, 0.75, 0.5, 0.5]]


def test_what_is_dropped_is_counted_and_named(tmp_path):
    # 64 pixels wide: half a pixel is 1/128 of the width
    lines = [
        "0 0.5 0.5 0.25 0.25",
        "0 0.5 0.5 0.25 0.25",  # again
        "1 0.5 0.5 0.0 0.25",  # no width
        "1 1.0 0.5 0.5 0.5",  # a quarter outside: 0.75..1.25 becomes 0.75..1.0
        "0 0.499 0.5 1.002 0.5",  # outside by less than half a pixel: cut without a word
    ]
    root = yolo_set(tmp_path, labels={"a": "\n".join(lines)})
    (root / "images" / "train" / "broken.jpg").write_bytes(b"not a picture")
    data = open_dataset(root / "data.yaml", tmp_path / "cache")
    assert data.account.counts == {"degenerate": 1, "duplicate": 1, "clipped": 1, "corrupt image": 1}
    assert boxes(data, "train", "a.jpg") == [
        [0, 0.5, 0.5, 0.25, 0.25],
        [1, 0.875, 0.5, 0.25, 0.5],
        [0, 0.5, 0.5, 1.0, 0.5],
    ]
    text = data.summary()
    assert "dropped: 1 x degenerate (box without width or height): images/train/a.jpg" in text
    assert "kept: 1 x clipped" in text and "1 x corrupt image" in text and "broken.jpg" in text


def test_splits_as_lists_of_folders_and_of_paths(tmp_path):
    root = yolo_set(tmp_path)
    image(root / "images" / "more" / "z.png")
    (root / "val.txt").write_text(
        "./images/val/v0.jpg\nimages/val/v1.jpg\n" + str(root / "images/more/z.png") + "\n"
    )
    (root / "data.yaml").write_text(
        "train: [images/train, images/more]\nval: val.txt\nnames: {0: cat, 1: dog}\n"
    )
    data = open_dataset(root / "data.yaml", tmp_path / "cache")
    assert [s.image.name for s in data.splits["val"]] == ["z.png", "v0.jpg", "v1.jpg"]
    assert "z.png" in [s.image.name for s in data.splits["train"]]
    assert "1 images of val are also in train" in data.summary()


def test_roboflow_paths_that_point_one_folder_too_high(tmp_path):
    root = yolo_set(tmp_path)
    (root / "data.yaml").write_text("train: ../images/train\nval: ../images/val\nnc: 2\nnames: [cat, dog]\n")
    assert (
        len(open_dataset(root, tmp_path / "cache").splits["val"]) == 2
    )  # the folder will do for its data.yaml


# Pascal VOC
# ------------------------------------------------------------------------------------------------------


def test_voc_by_hand(tmp_path):
    root = tmp_path / "voc"
    image(root / "JPEGImages" / "a.jpg", 200, 100)
    image(root / "JPEGImages" / "b.png", 50, 50)
    voc_xml(root, "a", (200, 100), [("dog", 20, 10, 120, 60), ("cat", 0, 0, 200, 100), ("cat", 5, 5, 5, 9)])
    voc_xml(
        root, "b", (50, 50), [("dog", 10, 10, 20, 20, 1), ("dog", -10, 10, 20, 20), ("dog", 60, 0, 70, 9)]
    )
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nmissing\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\nb\n")
    with pytest.raises(UserError, match="1 image is too few"):  # no part of one image can be set aside
        open_dataset(root, tmp_path / "cache")
    image(root / "JPEGImages" / "c.jpg", 8, 8)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nmissing\nc\n")
    data = open_dataset(root, tmp_path / "cache")
    assert data.names == ["cat", "dog"]
    # dog: x 20..120 of 200, y 10..60 of 100
    assert boxes(data, "train", "a.jpg") == [pytest.approx([1, 0.35, 0.35, 0.5, 0.5]), [0, 0.5, 0.5, 1, 1]]
    assert boxes(data, "train", "c.jpg") == []
    assert boxes(data, "val", "b.png") == [pytest.approx([1, 0.2, 0.3, 0.4, 0.2])]  # -10..20 cut to 0..20
    assert data.account.counts == {
        "degenerate": 1, "missing image": 1, "no annotation": 1, "listed twice": 1, "difficult": 1,
        "clipped": 1, "outside": 1,
    }  # fmt: skip


def test_the_challenges_own_files_count_pixels_from_one(tmp_path):
    root = tmp_path / "voc"
    for stem in "ab":
        image(root / "JPEGImages" / f"{stem}.jpg", 100, 100, shade=ord(stem))
        voc_xml(root, stem, (100, 100), [("car", 1, 1, 50, 100)], database="The VOC2007 Database")
    for stem in "cd":
        image(root / "JPEGImages" / f"{stem}.jpg", 100, 100, shade=ord(stem))
        voc_xml(root, stem, (100, 100), [("car", 0, 0, 50, 100)])
    data = open_dataset(root, tmp_path / "cache")
    rows = [row for s in data.splits["train"] + data.splits["val"] for row in boxes_of(s)]
    assert rows == [[0, 0.25, 0.5, 0.5, 1.0]] * 4
    assert "no val split declared: 1 of the images set aside for it" in data.summary()


def boxes_of(sample) -> list[list[float]]:
    return np.column_stack([sample.cls, sample.boxes]).tolist()


def test_voc_classes_file_decides_order_and_unknown_classes(tmp_path):
    root = tmp_path / "voc"
    for stem in "abc":
        image(root / "JPEGImages" / f"{stem}.jpg", 10, 10, shade=ord(stem))
        voc_xml(root, stem, (10, 10), [("dog", 0, 0, 5, 5), ("emu", 0, 0, 5, 5)])
    (root / "classes.txt").write_text("dog\ncat\n")
    data = open_dataset(root, tmp_path / "cache")
    assert data.names == ["dog", "cat"] and data.account.counts == {"unknown class": 3}
    assert "no box in train for 1 of 2 classes: cat" in data.summary()


def test_xml_beside_images_in_split_folders(tmp_path):
    root = tmp_path / "export"
    for split, stems in (("train", "abc"), ("valid", "d")):
        for stem in stems:
            image(root / split / f"{stem}.jpg", 10, 10, shade=ord(stem))
            voc_xml(root / split, stem, (10, 10), [("dog", 0, 0, 5, 5)], folder=".")
    data = open_dataset(root, tmp_path / "cache")
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 3,
        "search_train": 2,
        "search_val": 1,
        "val": 1,
    }


def test_voc_card_joins_years(tmp_path):
    for year, stems in (("VOC2007", "ab"), ("VOC2012", "cd")):
        for stem in stems:
            image(tmp_path / "kit" / year / "JPEGImages" / f"{stem}.jpg", 10, 10, shade=ord(stem))
            voc_xml(tmp_path / "kit" / year, stem, (10, 10), [("dog", 0, 0, 5, 5)])
        (tmp_path / "kit" / year / "ImageSets" / "Main").mkdir(parents=True)
        (tmp_path / "kit" / year / "ImageSets" / "Main" / "trainval.txt").write_text(
            f"{stems[0]}\n{stems[1]} 1\n"
        )
    card = tmp_path / "card.yaml"
    card.write_text(
        "format: voc\npath: kit\ntrain: [VOC2007/trainval, VOC2012/trainval]\nval: VOC2007/trainval\n"
        "names: [cat, dog]\n"
    )
    data = open_dataset(card, tmp_path / "cache")
    assert len(data.splits["train"]) == 4 and boxes(data, "val", "a.jpg") == [[1, 0.25, 0.25, 0.5, 0.5]]


def test_our_cards_read_what_their_downloads_hold(tmp_path, monkeypatch):
    datasets = tmp_path / "datasets"
    for year in ("VOC2007", "VOC2012"):
        kit = datasets / "VOCdevkit" / year
        (kit / "ImageSets" / "Main").mkdir(parents=True)
        for part in ("trainval", "test")[: 1 + (year == "VOC2007")]:
            (kit / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}0\n{part}1\n")
            for i in range(2):
                image(kit / "JPEGImages" / f"{part}{i}.jpg", 10, 10, shade=i)
                voc_xml(
                    kit, f"{part}{i}", (10, 10), [("tvmonitor", 1, 1, 5, 5)], database=f"The {year} Database"
                )
    for split in ("train", "val"):
        image(datasets / "coco" / f"{split}2017" / "1.jpg", 10, 10, shade=1)
        image(datasets / "coco" / f"{split}2017" / "2.jpg", 10, 10, shade=2)
        file = datasets / "coco" / "annotations" / f"instances_{split}2017.json"
        coco_json(
            file, [(1, "1.jpg", 10, 10), (2, "2.jpg", 10, 10)], [(1, 90, [0, 0, 5, 5])], {90: "toothbrush"}
        )
    for i in range(2):
        image(datasets / "coco128" / "images" / "train2017" / f"{i}.jpg", shade=i)
    (datasets / "coco128" / "labels" / "train2017").mkdir(parents=True)
    (datasets / "coco128" / "labels" / "train2017" / "1.txt").write_text("79 0.5 0.5 0.5 0.5\n")
    monkeypatch.chdir(tmp_path)
    voc, coco, coco128 = (
        open_dataset(f"data/{c}.yaml", tmp_path / "cache") for c in ("VOC", "coco", "coco128")
    )
    assert (voc.nc, coco128.nc, coco128.names[79]) == (20, 80, "toothbrush")
    assert [len(voc.splits[s]) for s in ("train", "val")] == [4, 2]
    assert boxes(voc, "val", "test0.jpg") == [pytest.approx([19, 0.25, 0.25, 0.5, 0.5])]
    assert boxes(coco, "val", "1.jpg") == [[0, 0.25, 0.25, 0.5, 0.5]]
    assert "2 images of val are also in train" in coco128.summary()


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD data set is not here")
def test_bccd(tmp_path):
    data = open_dataset(BCCD, tmp_path)
    assert {s: len(data.splits[s]) for s in ("train", "val", "test")} == {"train": 205, "val": 87, "test": 72}
    counts = {s: data.boxes_per_class(s) for s in ("train", "val", "test")}
    assert counts == {
        "train": {"Platelets": 209, "RBC": 2381, "WBC": 214},
        "val": {"Platelets": 83, "RBC": 967, "WBC": 87},
        "test": {"Platelets": 69, "RBC": 805, "WBC": 71},
    }
    assert data.account.counts == {"degenerate": 2}
    assert data.licence == "MIT License"
    share = data.boxes_per_class("search_val")["WBC"] / 214
    assert 0.15 < share < 0.25  # the rarer classes are dealt out evenly


# COCO -----------------------------------------------------------------------------------------------------
# -------


def test_coco_by_hand(tmp_path):
    root = tmp_path / "coco"
    image(root / "images" / "a.jpg", 200, 100)
    image(root / "images" / "b.jpg", 100, 100)
    image(root / "images" / "empty.jpg", 100, 100, shade=1)
    annotations = [
        (1, 7, [20, 10, 100, 50]),
        (1, 90, [0, 0, 200, 100]),
        (1, 90, [0, 0, 0, 10]),  # no width
        (2, 7, [90, 90, 20, 20]),  # cut to 90..100
        (2, 7, [0, 0, 50, 50], 1),  # crowd
        (2, 8, [0, 0, 50, 50]),  # no such category
        (9, 7, [0, 0, 50, 50]),  # no such image
        (3, 7, [0, 0, 5, 5]),  # its image is missing
    ]
    images = [
        (1, "a.jpg", 200, 100),
        (2, "b.jpg", 100, 100),
        (3, "gone.jpg", 10, 10),
        (4, "empty.jpg", 100, 100),
    ]
    coco_json(root / "annotations" / "instances_train.json", images, annotations, {90: "zebra", 7: "ant"})
    data = open_dataset(root, tmp_path / "cache")
    assert data.names == ["ant", "zebra"]
    every = data.splits["train"] + data.splits["val"]
    found = {s.image.name: boxes_of(s) for s in every}
    assert found["a.jpg"] == [pytest.approx([0, 0.35, 0.35, 0.5, 0.5]), [1, 0.5, 0.5, 1, 1]]
    assert found["b.jpg"] == [pytest.approx([0, 0.95, 0.95, 0.1, 0.1])]
    assert data.account.counts == {
        "crowd": 1, "unknown class": 1, "no image": 1, "missing image": 1, "degenerate": 1, "clipped": 1,
    }  # fmt: skip
    assert "category ids 7 to 90 (2 of them) renumbered 0 to 1" in data.summary()


def test_coco_splits_by_file_name_and_by_folder(tmp_path):
    for split, n in (("train", 3), ("valid", 2), ("test", 1)):
        for i in range(n):
            image(tmp_path / "rf" / split / f"{split}{i}.jpg", 10, 10, shade=i)
            image(tmp_path / "co" / "images" / f"{split}2017" / f"{split}{i}.jpg", 10, 10, shade=i)
        rows = [(i, f"{split}{i}.jpg", 10, 10) for i in range(n)]
        boxes_ = [(i, 1, [0, 0, 5, 5]) for i in range(n)]
        coco_json(tmp_path / "rf" / split / "_annotations.coco.json", rows, boxes_, {1: "x"})
        coco_json(tmp_path / "co" / "annotations" / f"instances_{split}2017.json", rows, boxes_, {1: "x"})
    for root in ("rf", "co"):
        data = open_dataset(tmp_path / root, tmp_path / "cache")
        assert [len(data.splits[s]) for s in ("train", "val", "test")] == [3, 2, 1]


# EXIF -----------------------------------------------------------------------------------------------------
# -------

# The object fills the left half of the top quarter, as the picture is stored (64 wide, 32 high): x 0..32, y
# 0..8. Where it is seen after the turn that each orientation asks for (EXIF 2.3, tag 0x0112), as x, y, w, h
# fractions:
TURNED = {
    5: [0.125, 0.25, 0.25, 0.5],  # transposed: left edge, upper half
    6: [0.875, 0.25, 0.25, 0.5],  # clockwise: the top goes right, the left goes up
    7: [0.875, 0.75, 0.25, 0.5],
    8: [0.125, 0.75, 0.25, 0.5],  # counter-clockwise: the top goes left, the left goes down
}


@pytest.mark.parametrize("orientation", TURNED)
def test_boxes_drawn_on_a_stored_picture_turn_with_it(tmp_path, orientation):
    from data.pixels import decode

    root = tmp_path / "voc"
    for stem in "ab":
        image(root / "JPEGImages" / f"{stem}.jpg", 64, 32, orientation=orientation, mark=(0, 0, 32, 8))
        voc_xml(root, stem, (64, 32), [("x", 0, 0, 32, 8)])
    (root / "ImageSets" / "Main").mkdir(parents=True)
    image(root / "JPEGImages" / "c.jpg", 64, 32)
    voc_xml(root, "c", (64, 32), [("x", 0, 0, 32, 8)])
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nc\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    data = open_dataset(root, tmp_path / "cache")
    sample = data.splits["val"][0]
    assert sample.shape == (64, 32) and boxes_of(sample) == [[0, *TURNED[orientation]]]
    pixels = decode(sample, 64).astype(int).mean(-1)  # and the bright patch is where the box says
    x, y, w, h = sample.boxes[0] * [32, 64, 32, 64]
    inside = pixels[int(y - h / 2) : int(y + h / 2), int(x - w / 2) : int(x + w / 2)]
    assert inside.mean() > 200 and pixels.sum() - inside.sum() < 0.15 * pixels.sum()
    assert data.account.counts == {"turned": 2}


# The cache and the user's folder
# ---------------------------------------------------------------------------------


def test_the_source_is_not_touched_and_the_cache_notices_changes(tmp_path, monkeypatch):
    root, cache = yolo_set(tmp_path), tmp_path / "cache"
    before = fingerprint([root])
    first = open_dataset(root / "data.yaml", cache)
    assert fingerprint([root]) == before

    from data import dataset

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read", lambda *_: pytest.fail("the source was read again"))
        again = open_dataset(root / "data.yaml", cache)
    assert again.summary() == first.summary()
    for split, samples in first.splits.items():
        for a, b in zip(samples, again.splits[split], strict=True):
            assert (a.image, a.shape, a.content) == (b.image, b.shape, b.content)
            assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.cls, b.cls)

    (root / "labels" / "train" / "t0.txt").write_text("1 0.5 0.5 0.125 0.125\n")
    changed = open_dataset(root / "data.yaml", cache)
    assert boxes(changed, "train", "t0.jpg") == [[1, 0.5, 0.5, 0.125, 0.125]]
    image(root / "images" / "train" / "new.jpg")
    assert len(open_dataset(root / "data.yaml", cache).splits["train"]) == len(first.splits["train"]) + 1
    next(cache.glob("*.npz")).write_bytes(b"torn")
    assert len(open_dataset(root / "data.yaml", cache).splits["train"]) == len(first.splits["train"]) + 1


def test_a_cache_file_of_another_version_or_with_odd_parts_is_read_again(tmp_path):
    root, cache = yolo_set(tmp_path), tmp_path / "cache"
    first = open_dataset(root / "data.yaml", cache)
    memory = next(cache.glob("*.npz"))
    with np.load(memory) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    for change in (
        {"account": {"counts": {"clipped": 2}, "examples": {}, "notices": []}},  # as an older version had it
        {"account": {"places": {"no such reason": {"a.jpg": 1}}, "notices": []}},
        {"account": {"places": [], "notices": 3}},
        {"version": 2},
        {"names": ["one"]},
        {"splits": {"train": 1}},
        {"contents": []},
        {"images": None},
    ):
        text = np.frombuffer(json.dumps(header | change).encode(), np.uint8)
        np.savez(memory, **(arrays | {"header": text}))
        assert open_dataset(root / "data.yaml", cache).summary() == first.summary(), change
    for change in ({"boxes": np.zeros((1, 3))}, {"counts": np.array([7])}, {"shapes": np.zeros(3)}):
        np.savez(memory, **(arrays | change))
        assert open_dataset(root / "data.yaml", cache).summary() == first.summary(), change


# Carving
# ---------------------------------------------------------------------------------------------------------


def test_carved_parts_are_disjoint_repeatable_and_hold_rare_classes(tmp_path):
    labels = {
        f"t{i:02d}": "0 0.5 0.5 0.5 0.5\n" + ("1 0.5 0.5 0.2 0.2\n" if i in (3, 17) else "")
        for i in range(40)
    }
    root = yolo_set(tmp_path, labels=labels)
    parts = {}
    for seed in (0, 1):
        data = open_dataset(root / "data.yaml", tmp_path / "cache", seed=seed, val_fraction=0.25)
        a, b = ({s.image.name for s in data.splits[k]} for k in ("search_train", "search_val"))
        assert not a & b and a | b == {s.image.name for s in data.splits["train"]} and len(b) == 10
        assert data.boxes_per_class("search_val")["dog"] == data.boxes_per_class("search_train")["dog"] == 1
        parts[seed] = b
    assert parts[0] != parts[1]
    again = open_dataset(root / "data.yaml", tmp_path / "elsewhere", seed=1, val_fraction=0.25)
    assert {s.image.name for s in again.splits["search_val"]} == parts[1]


def test_a_carved_val_does_not_move_with_the_search(tmp_path):
    root = yolo_set(tmp_path, labels={f"t{i}": "0 0.5 0.5 0.5 0.5\n" for i in range(20)})
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    sets = [open_dataset(root, tmp_path / "cache", seed=s, val_fraction=f) for s, f in ((0, 0.2), (1, 0.4))]
    names = [{k: {s.image.name for s in data.splits[k]} for k in data.splits} for data in sets]
    assert names[0]["val"] == names[1]["val"] and len(names[0]["val"]) == 4
    assert len(names[0]["search_val"]) == 3 and len(names[1]["search_val"]) == 6
    for parts in names:
        assert not parts["val"] & parts["train"]


def test_copies_of_an_image_stay_on_one_side(tmp_path):
    root = yolo_set(tmp_path, labels={f"t{i}": "0 0.5 0.5 0.5 0.5\n" for i in range(12)}, same_pixels=6)
    data = open_dataset(root / "data.yaml", tmp_path / "cache", val_fraction=0.3)
    a, b = ({s.content for s in data.splits[k]} for k in ("search_train", "search_val"))
    assert not a & b


# Export
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
def test_an_exported_set_reads_back_to_the_same_numbers(tmp_path, link):
    root = tmp_path / "voc"
    for stem in "abc":
        image(root / "JPEGImages" / f"{stem}.jpg", 97, 61, shade=ord(stem))
        voc_xml(root, stem, (97, 61), [("dog", 3, 7, 41.5, 60), ("cat: 'é", 1, 2, 3, 4)])
    first = open_dataset(root, tmp_path / "cache")
    card = export_yolo(first, tmp_path / "out", link=link)
    again = open_dataset(card, tmp_path / "cache")
    assert again.names == first.names
    for split in ("train", "val"):
        for a, b in zip(first.splits[split], again.splits[split], strict=True):
            assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.cls, b.cls)
            assert a.image.read_bytes() == b.image.read_bytes() and b.image.is_symlink() == link
    with pytest.raises(UserError, match="out exists and is not empty; give a new folder"):
        export_yolo(first, tmp_path / "out")
