"""Pictures with classes: from folders, or cut out of detection data; batches of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.class_loader import make_class_loader
from data.dataset import open_dataset
from data.hyp import load_hyp
from data.images import fingerprint
from data.pixels import Crops, region
from data.sample import Dataset, Sample, mixed
from tests.data.make import coco_json, image, voc_xml, yolo_set
from utils.errors import UserError

EVERYTHING = {
    "hsv_h": 0.1, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10, "translate": 0.1, "scale": 0.5, "shear": 2,
    "flipud": 0.5, "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.3, "cutmix": 0.2, "bgr": 0.2,
}  # fmt: skip


def folders(root: Path, **counts: int) -> Path:
    """`train__cat=3` writes three images into root/train/cat."""
    for number, (key, n) in enumerate(counts.items()):
        place = root.joinpath(*key.split("__"))
        place.mkdir(parents=True)
        for i in range(n):
            image(place / f"{i}.jpg", 30 + i, 20, shade=100 * number + i)
    return root


def classify(source, tmp_path: Path, **more) -> Dataset:
    return open_dataset(source, tmp_path / "cache", task="classify", **more)


def fails(source, tmp_path: Path, *says: str, task: str = "classify") -> None:
    with pytest.raises(UserError) as caught:
        open_dataset(source, tmp_path / "cache", task=task)
    assert "\n" not in str(caught.value)
    for text in says:
        assert text in str(caught.value)


def shown(samples) -> list[tuple]:
    return [(s.image.parent.name, s.image.name, s.cls.tolist(), s.boxes.tolist(), s.shape) for s in samples]


# ImageFolder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid"])
def test_image_folder_with_splits(tmp_path, val):
    root = folders(
        tmp_path / "pets", train__dog=4, train__cat=3, train__bird=2, test__dog=1,
        **{f"{val}__dog": 1, f"{val}__cat": 1, "train__empty": 0, f"{val}__horse": 1},
    )  # fmt: skip
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"no picture")
    data = classify(root, tmp_path)
    assert (data.names, data.nc, data.task, data.format) == (
        ["bird", "cat", "dog"],
        3,
        "classify",
        "ImageFolder",
    )
    assert shown(data.splits["val"]) == [
        ("cat", "0.jpg", [1], [[0.5, 0.5, 1, 1]], (20, 30)),
        ("dog", "0.jpg", [2], [[0.5, 0.5, 1, 1]], (20, 30)),
    ]
    assert {split: len(s) for split, s in data.splits.items()} == {
        "train": 9, "search_train": 7, "search_val": 2, "val": 2, "test": 1,
    }  # fmt: skip
    assert data.account.counts == {"empty class": 1, "corrupt image": 1, "unknown class": 1}
    lines = [line.split() for line in data.summary().splitlines()]
    assert lines[1] == ["split", "images", "objects", "bird", "cat", "dog"]
    assert lines[2] == ["train", "9", "9", "2", "3", "4"]
    assert "dropped: 1 x empty class (class folder without images): train/empty" in data.summary()
    assert shown(classify(root, tmp_path).splits["train"]) == shown(data.splits["train"])  # from the cache


def test_image_folder_without_splits_sets_aside_a_part_of_each_class(tmp_path):
    root = folders(tmp_path / "pets", cat=10, dog=10, train=5)  # the last is a vehicle
    data = classify(root, tmp_path, seed=3)
    assert data.names == ["cat", "dog", "train"]
    assert data.boxes_per_class("val") == {"cat": 2, "dog": 2, "train": 1}
    assert data.boxes_per_class("train") == {"cat": 8, "dog": 8, "train": 4}
    assert {s.image for s in data.splits["val"]}.isdisjoint(s.image for s in data.splits["train"])


def test_what_lies_beside_the_classes_is_counted_and_splits_go_by_other_names(tmp_path):
    root = folders(tmp_path / "pets", Training__cat=3, Training__dog=3, Validation__cat=1, dev__dog=2)
    image(root / "Training" / "loose.jpg", 30, 20)
    image(root / "Training" / ".ipynb_checkpoints" / "cat-checkpoint.jpg", 30, 20)
    image(tmp_path / "pool" / "a.jpg", 30, 20)
    (root / "Training" / "emu").symlink_to(tmp_path / "pool")
    (root / "Training" / "cat" / "film.mp4").write_bytes(b"")
    data = classify(root, tmp_path)
    assert data.names == ["cat", "dog", "emu"]
    assert {split: len(data.splits[split]) for split in ("train", "val")} == {"train": 7, "val": 1}
    assert data.account.places == {
        "unread": {"dev": 2, "Training/loose.jpg": 1},
        "hidden": {"Training/.ipynb_checkpoints/cat-checkpoint.jpg": 1},
        "other file": {"Training/cat/film.mp4": 1},
        "outside folder": {"Training/emu/a.jpg": 1},
    }


def test_image_folders_that_cannot_be_used(tmp_path):
    one = folders(tmp_path / "one", cat=4)
    fails(one, tmp_path, "everything in train is of one class, 'cat'; a classifier needs two")
    both = folders(tmp_path / "both", train__cat=2, train__dog=2, val__Cat=1)
    fails(both, tmp_path, "no folder of val is a class of train: Cat there, cat, dog in train")
    flat = folders(tmp_path / "flat", train=2, val=2)
    fails(flat, tmp_path, "none of the known layouts", "a folder of images for each class (ImageFolder)")
    fails(folders(tmp_path / "yolo", images__train=2), tmp_path, "none of the known layouts")
    fails(folders(tmp_path / "deep", pets__train__cat=2), tmp_path, "none of the known layouts")
    bad = folders(tmp_path / "bad", cat=1, dog=1)
    for i in range(3):
        (bad / "cat" / f"bad{i}.png").write_bytes(b"")
    fails(bad, tmp_path, "3 of 5 images in split 'train' cannot be decoded (first: cat/bad0.png)")
    fails(tmp_path / "bad", tmp_path, "unknown task 'clasify'; did you mean 'classify'?", task="clasify")


def test_a_detector_cannot_learn_from_an_image_folder(tmp_path):
    root = folders(tmp_path / "pets", cat=4, dog=4)
    says = "is an ImageFolder (cat, dog): images with classes but without boxes"
    fails(root, tmp_path, says, "YOLO, VOC or COCO", task="detect")
    classify(root, tmp_path)
    fails(root, tmp_path, says, task="detect")  # nor from what the cache remembers of it


# Objects of detection data ----------------------------------------------------------------------------------


def test_every_box_becomes_a_sample_and_an_image_stays_in_one_split(tmp_path):
    labels = {f"t{i}": "0 0.25 0.5 0.25 0.5\n1 0.75 0.5 0.25 0.5\n0 0.5 0.5 0.1 0.1\n" for i in range(8)}
    # 64 x 48: the first is a pixel wide, the second a pixel high
    labels |= {"tiny": "0 0.5 0.5 0.015625 0.5\n1 0.5 0.5 0.5 0.0208333333\n", "none": ""}
    root = yolo_set(tmp_path, labels)
    before = fingerprint([root])
    data = classify(root, tmp_path)
    assert data.format == "objects of YOLO" and data.names == ["cat", "dog"]
    assert shown(data.splits["train"])[:3] == [
        ("train", "t0.jpg", [0], [[0.25, 0.5, 0.25, 0.5]], (48, 64)),
        ("train", "t0.jpg", [1], [[0.75, 0.5, 0.25, 0.5]], (48, 64)),
        ("train", "t0.jpg", [0], [pytest.approx([0.5, 0.5, 0.1, 0.1])], (48, 64)),
    ]
    assert data.boxes_per_class("train") == {"cat": 16, "dog": 8}
    train, val = ({s.image for s in data.splits[k]} for k in ("search_train", "search_val"))
    assert len(train) == 6 and len(val) == 2 and train.isdisjoint(val)
    assert data.account.counts == {"tiny": 2, "no object": 2}
    assert "dropped: 2 x tiny (box of a pixel or less, nothing to crop): tiny.jpg" in data.summary()
    assert ["train", "8", "24", "16", "8"] in [line.split() for line in data.summary().splitlines()]
    detection = open_dataset(root, tmp_path / "cache")  # the same memory of the labels serves both tasks
    assert (len(detection.splits["train"]), detection.task) == (10, "detect")
    assert fingerprint([root]) == before


def test_objects_of_voc_coco_and_the_digits(tmp_path):
    for i in range(4):
        image(tmp_path / "voc" / "JPEGImages" / f"{i}.jpg", 40, 40, shade=i)
        voc_xml(tmp_path / "voc", str(i), (40, 40), [("a", 0, 0, 20, 20), ("b", 10, 10, 30, 40)])
        image(tmp_path / "coco" / f"{i}.jpg", 40, 40, shade=i)
    coco_json(
        tmp_path / "coco" / "all.json", [(i, f"{i}.jpg", 40, 40) for i in range(4)],
        [(i, c, [0, 0, 20, 10 * c]) for i in range(4) for c in (1, 2)], {1: "a", 2: "b"},
    )  # fmt: skip
    (tmp_path / "d.yaml").write_text("format: digits\nscenes: {search_train: 6, search_val: 2, val: 3}\n")
    for source, kind in (("voc", "Pascal VOC"), ("coco", "COCO")):
        data = classify(tmp_path / source, tmp_path)
        assert data.format.startswith("objects of ") and data.boxes_per_class("train") == {"a": 3, "b": 3}, (
            kind
        )
    data = classify(tmp_path / "d.yaml", tmp_path)
    assert data.format == "objects of digits" and data.nc == 10
    assert [len({s.image for s in data.splits[k]}) for k in ("search_train", "search_val", "val")] == [
        6,
        2,
        3,
    ]
    assert all(len(s.cls) == 1 for samples in data.splits.values() for s in samples)


def test_detection_data_that_show_nothing_to_classify(tmp_path):
    one = "0 0.5 0.5 0.5 0.5\n"
    fails(yolo_set(tmp_path / "a"), tmp_path, "everything in train is of one class, 'cat'")
    root = yolo_set(tmp_path / "b", {f"t{i}": "0 0.5 0.5 0.01 0.01\n" for i in range(4)})
    fails(root, tmp_path, "no labels at all in split 'train' (4 images without boxes)")
    root = yolo_set(tmp_path / "c", {f"t{i}": one + "1 0.2 0.2 0.1 0.1\n" for i in range(4)})
    image(root / "images" / "test" / "x.jpg")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "test: images/test\n")
    data = classify(root, tmp_path)
    assert "test" not in data.splits and "split test is empty and left out" in data.summary()


# Batches ----------------------------------------------------------------------------------------------------


def test_region_of_an_object_by_hand():
    # 100 wide, 50 high: x 20..40, y 10..30; a tenth of 20 px more on each side
    assert region(np.array([0.3, 0.4, 0.2, 0.4]), (50, 100)) == (18, 8, 42, 32)
    assert region(np.array([0.5, 0.5, 1, 1]), (50, 100)) == (0, 0, 100, 50)
    assert region(np.array([0.05, 0.5, 0.1, 1]), (50, 100)) == (0, 0, 11, 50)
    assert region(np.array([1.0, 1.0, 0.001, 0.001]), (50, 100)) == (99, 49, 100, 50)


def test_the_object_fills_the_picture_and_grey_the_rest(tmp_path):
    file = image(tmp_path / "a.png", 100, 80, mark=(20, 10, 40, 50))
    box = np.array([[0.3, 0.375, 0.2, 0.5]], np.float32)
    sample = Sample(file, box, np.array([1]), (80, 100))
    batch = next(iter(make_class_loader([sample], ["x", "y"], 48, 4, train=False, pixels=Crops())))
    # 20 x 40 with its margin is 24 x 48, at x 18..42, y 6..54: as it is, twelve columns of grey on each side
    picture = batch["img"][0]
    assert (picture[:, :, :12] == 114).all() and (picture[:, :, 36:] == 114).all()
    expected = torch.zeros(48, 24)
    expected[4:44, 2:22] = 255
    assert torch.equal(picture[0, :, 12:36].float(), expected)
    assert batch["img"].dtype == torch.uint8 and batch["img"].shape == (1, 3, 48, 48)
    assert batch["cls"].tolist() == [[1.0]] and batch["im_file"] == (str(file),)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Nine objects of odd shapes on three images."""
    root = tmp_path_factory.mktemp("crops")
    for i, (w, h) in enumerate([(97, 61), (61, 97), (640, 480), (64, 64)]):
        image(root / "voc" / "JPEGImages" / f"{i}.png", w, h, shade=i)
        objects = [("a", 1, 1, w / 2, h / 2), ("b", w / 3, h / 3, w, h), ("a", 0, 0, w, 5)]
        voc_xml(root / "voc", str(i), (w, h), objects)
    return open_dataset(root / "voc", root / "cache", task="classify")


def same(a: dict, b: dict) -> bool:
    parts = ("img", "cls", "batch_idx")
    return all(torch.equal(a[k], b[k]) for k in parts) and a["im_file"] == b["im_file"]


def epoch(data: Dataset, number: int, **more) -> list[dict]:
    options = {"batch": 4, "train": True, "hyp": EVERYTHING, "epochs": 10, "pixels": Crops()} | more
    loader = make_class_loader(data.splits["train"], data.names, 32, **options)
    loader.set_epoch(number)
    return list(loader)


def test_plain_batches_come_in_order(crops):
    batches = epoch(crops, 0, train=False, batch=8)
    assert [len(b["img"]) for b in batches] == [8, 1]  # to score, a single picture is no trouble
    assert [b["cls"].dtype for b in batches] == [torch.float32] * 2 and batches[0]["cls"].shape == (8, 1)
    assert torch.cat([b["cls"] for b in batches]).flatten().tolist() == [0, 1, 0] * 3
    assert batches[0]["batch_idx"].tolist() == list(range(8))
    assert [f for b in batches for f in b["im_file"]] == [str(s.image) for s in crops.splits["train"]]


def test_an_epoch_depends_on_seed_and_number_alone(crops):
    straight = [epoch(crops, number) for number in range(2)]
    loader = make_class_loader(
        crops.splits["train"], crops.names, 32, 4, train=True, hyp=EVERYTHING, epochs=10
    )
    for number in (1, 0):
        loader.set_epoch(number)
        assert all(same(a, b) for a, b in zip(loader, straight[number], strict=True))
    assert all(same(a, b) for a, b in zip(epoch(crops, 1, workers=2), straight[1], strict=True))
    assert not any(same(a, b) for a, b in zip(*straight, strict=True))
    assert not any(same(a, b) for a, b in zip(epoch(crops, 0, seed=1), straight[0], strict=True))


def test_a_lone_last_picture_gets_company(crops):
    """Nine pictures by fours: batch norm on 1x1 maps has no variance of one."""
    batches = epoch(crops, 0)
    assert [len(b["img"]) for b in batches] == [4, 4, 2]
    first, company = batches[0]["img"][0], batches[2]["img"][1]
    assert torch.equal(first, company) and batches[2]["cls"][1] == batches[0]["cls"][0]
    assert [len(b["img"]) for b in epoch(crops, 0, batch=1)] == [1] * 9
    assert [len(b["img"]) for b in epoch(crops, 0, batch=3)] == [3] * 3


def test_the_default_augmentation_mirrors_nothing(crops):
    plain, default = (epoch(crops, 0, hyp=h) for h in ({}, load_hyp("data/hyps/default.yaml")))
    assert all(same(a, b) for a, b in zip(plain, default, strict=True))
    mirrored = epoch(crops, 0, hyp={"fliplr": 1.0})
    assert all(torch.equal(a["img"].flip(3), b["img"]) for a, b in zip(plain, mirrored, strict=True))


def test_an_image_is_decoded_once_for_all_its_objects(crops, monkeypatch):
    import data.pixels

    reads, imread = [], data.pixels._imread
    monkeypatch.setattr(data.pixels, "_imread", lambda path: reads.append(path) or imread(path))
    samples, memory = crops.splits["train"], Crops()
    apart = [memory.get(s, 32) for s in samples]
    assert len(reads) == 9
    assert not memory.preload(samples, 32, budget=100) and memory.preload(samples, 32)
    assert len(reads) == 9 + 3
    assert all(np.array_equal(memory.get(s, 32), a) for s, a in zip(samples, apart, strict=True))
    assert len(reads) == 9 + 3


def test_a_few_samples_of_a_folder_sorted_by_class_hold_all_classes_by_their_share():
    samples = [sample_of(cls) for cls in range(4) for _ in range(100)]
    few = mixed(samples, 64)
    assert few == mixed(samples, 100)[:64]
    counts = np.bincount([int(sample.cls[0]) for sample in few])
    assert counts.sum() == 64 and counts.min() >= 8 and len(counts) == 4
    assert len({id(sample) for sample in mixed(samples, 1000)}) == 400


def sample_of(cls):
    return Sample(Path("any.jpg"), np.array([[0.5, 0.5, 1, 1]], np.float32), np.array([cls]), (8, 8))
