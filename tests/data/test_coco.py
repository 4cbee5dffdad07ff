"""COCO JSON as its exporters write it, and as no exporter should: each box on its image, or counted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.dataset import read
from data.sample import Reading
from tests.data.make import image
from utils.errors import UserError


def content(n: int = 4, **more: Any) -> dict[str, Any]:
    """A JSON of `n` images with ids from 1, a box each, and classes 1 cat, 2 dog; `more` replaces parts."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(1, n + 1)],
        "annotations": [
            {"id": 10 + i, "image_id": i, "category_id": 1 + i % 2, "bbox": [0, 0, 32, 24]}
            for i in range(1, n + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    } | more


def write(root: Path, what: Any, name: str = "a.json", pictures: int = 4, folder: str = "images") -> Path:
    """`what` as JSON (or the text or bytes that it is) beside pictures 1.jpg, 2.jpg, ..."""
    for i in range(1, pictures + 1):
        image(root / folder / f"{i}.jpg", shade=i)
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(
        what if isinstance(what, bytes) else (what if isinstance(what, str) else json.dumps(what)).encode()
    )
    return file


def found(source: Path) -> tuple[Reading, dict[str, int]]:
    """The reading, and how many boxes each image of train has."""
    reading = read(source, source.parent / "cache")
    return reading, {s.image.name: len(s.cls) for s in reading.splits["train"]}


ALL = {f"{i}.jpg": 1 for i in range(1, 5)}

# Ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [str, float, lambda i: f" {i} ", lambda i: f"x{i}", lambda i: i + 0.5, lambda i: -i]
)
@pytest.mark.parametrize("both", [True, False])
def test_ids_are_compared_whatever_they_are_written_as(tmp_path, kind, both):
    data = content()
    if not both and not isinstance(kind(1), str | float):
        both = True
    for entry in data["annotations"]:
        entry |= {"image_id": kind(entry["image_id"]), "category_id": kind(entry["category_id"])}
    if both or kind(1) not in (1.0, "1", " 1 "):
        for entry in (*data["images"], *data["categories"]):
            entry["id"] = kind(entry["id"])
    reading, boxes = found(write(tmp_path, data))
    assert boxes == ALL and reading.account.counts == {}
    names = [reading.names[s.cls[0]] for s in reading.splits["train"]]
    assert names == ["dog", "cat", "dog", "cat"]


def test_category_ids_of_mixed_kinds(tmp_path):
    categories = [{"id": "b", "name": "emu"}, {"id": "2", "name": "dog"}, {"id": 1.0, "name": "cat"}]
    reading, boxes = found(write(tmp_path, content(categories=categories)))
    assert reading.names == ["cat", "dog", "emu"] and boxes == ALL


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, True, "", float("nan"), float("inf")])
def test_an_id_that_cannot_be_one(tmp_path, value):
    data = content()
    data["images"][0]["id"] = value
    reading, boxes = found(write(tmp_path, data))
    assert boxes == {f"{i}.jpg": 1 for i in (2, 3, 4)}  # and not 1.jpg as a background
    assert reading.account.counts == {"broken entry": 1, "no image": 1}
    data = content()
    data["annotations"][0]["image_id"] = data["annotations"][1]["category_id"] = value
    reading, boxes = found(write(tmp_path, data))
    assert list(boxes.values()) == [0, 0, 1, 1]
    assert reading.account.counts == {"no image": 1, "unknown class": 1}
    data["categories"][1]["id"] = value
    with pytest.raises(UserError, match="entry 1 of categories has an id that cannot be one"):
        found(write(tmp_path, data))


def test_images_that_share_an_id_get_none_of_its_boxes(tmp_path):
    data = content(5)
    data["images"][1]["id"] = 1
    reading, boxes = found(write(tmp_path, data, pictures=5))
    assert boxes == {f"{i}.jpg": 1 for i in (3, 4, 5)}
    assert reading.account.places == {
        "shared id": {"1.jpg": 1, "2.jpg": 1},
        "no owner": {"image_id 1": 1},
        "no image": {"image_id 2": 1},
    }
    data["images"][3]["id"] = "3"  # now four of five
    with pytest.raises(
        UserError, match="id 1 stands for '1.jpg' and for '2.jpg', and 4 of 5 images share an id"
    ):
        found(write(tmp_path, data))
    data = content()
    data["categories"][1]["id"] = 1
    with pytest.raises(UserError, match="category id 1 stands for 'cat' and for 'dog'"):
        found(write(tmp_path, data))


def test_several_entries_of_one_image_are_one_image_with_all_boxes(tmp_path):
    data = content()
    data["images"] += [
        {"id": 20, "file_name": "./1.jpg", "width": 128, "height": 96},
        dict(data["images"][2]),
    ]
    data["annotations"].append({"id": 99, "image_id": 20, "category_id": 1, "bbox": [64, 48, 64, 48]})
    reading, boxes = found(write(tmp_path, data))
    assert boxes == ALL | {"1.jpg": 2}
    assert reading.splits["train"][0].boxes.tolist() == [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
    assert reading.account.counts == {"several entries": 1, "listed twice": 1, "other size": 1}


# Values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [[], None, [1, 2, 3], [1, 2, 3, 4, 5], "1,2,3,4", [1, 2, 3, "w"], [1, 2, 3, None], {"x": 1}, 7,
            [[1], 2, 3, 4], [1, 2, float("nan"), 4], [float("inf"), 2, 3, 4], [0, 0, 10**400, 5],
            [1e308, 0, 1e308, 5]],
)  # fmt: skip
def test_one_bad_box_is_counted_and_left_out(tmp_path, box):
    data = content()
    data["annotations"][0]["bbox"] = box
    reading, boxes = found(write(tmp_path, data))
    assert boxes == ALL | {"1.jpg": 0} and reading.account.counts == {"unreadable": 1}
    for entry in data["annotations"][1:3]:
        entry["bbox"] = box
    with pytest.raises(
        UserError, match="3 of 4 boxes in split 'train' cannot be used; dropped: 3 x unreadable"
    ):
        found(write(tmp_path, data))


def test_a_class_without_a_name_takes_no_box_of_an_unknown_one(tmp_path):
    data = content(categories=[{"id": 1, "name": ""}, {"id": 3, "name": "emu"}])
    reading, boxes = found(write(tmp_path, data))
    assert list(boxes.values()) == [0, 1, 0, 1]
    assert reading.account.places == {"unknown class": {"category_id 2 (not in categories)": 2}}


@pytest.mark.parametrize("entry", [None, 3, "x", [], {}, [1, 2], {"bbox": []}])
def test_one_bad_entry_is_counted_and_left_out(tmp_path, entry):
    data = content()
    data["annotations"].append(entry)
    data["images"].append(entry)
    reading, boxes = found(write(tmp_path, data))
    assert boxes == ALL and reading.account.counts == {"broken entry": 1, "unreadable": 1}
    with pytest.raises(
        UserError, match="entry 0 of images (has no 'file_name'|is .*, not an object); 3 of 4 cannot"
    ):
        found(write(tmp_path, data | {"images": [entry] * 3 + data["images"][:1]}))
    with pytest.raises(UserError, match="entry 2 of categories (has no 'id'|is .*, not an object)"):
        found(write(tmp_path, data | {"categories": [*data["categories"], entry]}))


def test_numbers_in_quotes_are_numbers(tmp_path):
    data = content()
    data["images"][0] |= {"width": "128.0", "height": "96"}
    data["annotations"][0] |= {"bbox": ["64", "0.0", "64", "48"], "iscrowd": "0"}
    data["annotations"][1]["iscrowd"] = "1"
    reading, boxes = found(write(tmp_path, data))
    assert reading.splits["train"][0].boxes.tolist() == [[0.75, 0.25, 0.5, 0.5]]
    assert reading.account.counts == {"crowd": 1, "other size": 1}


@pytest.mark.parametrize(
    "size", ["wide", 0, -1, [64], {}, True, float("nan"), float("inf"), 10**400, "1e999"]
)
def test_a_size_that_cannot_be_one_is_taken_from_the_image(tmp_path, size):
    data = content()
    data["images"][0]["width"] = size
    if size is True:
        data["images"][0]["width"] = "True"
    reading, boxes = found(write(tmp_path, data))
    assert reading.splits["train"][0].boxes.tolist() == [[0.25, 0.25, 0.5, 0.5]]
    assert reading.account.counts == {"no size": 1}


TEXT, DEEP = json.dumps(content()), "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(content(annotations={"1": {}})), "annotations must be a list, got dict \"{'1': {}}\""),
        (TEXT.replace('"images": [', '"images": 1e999, "more": ['), "images must be a list, got float"),
        (json.dumps(content(categories=None)), "categories must be a list, got NoneType"),
        ("[]", "is not a COCO detection file: it has no images and no annotations and no categories"),
        ("3", "is not a COCO detection file"),
        ("", "is not JSON: EOF"),
        ('{"images": [', "is not JSON: EOF"),
        (TEXT.replace("{", f'{{"extra": {DEEP},', 1), "is not JSON: recursion limit"),
        ('{"images":' * 100_000, "is not JSON: recursion limit"),
        (json.dumps(content(images=[])), "no images in it"),
        (json.dumps(content(categories=[])), "categories is empty"),
        (TEXT.replace("1.jpg", "\\ud800.jpg"), "is not JSON"),
        (TEXT.replace("cat", "Käfer", 1).encode("latin-1"), "save it as UTF-8"),
        (b"\xff\xfe{", "save it as UTF-8"),
        (TEXT.replace('"id": 1,', '"id": 1' + "0" * 5000 + ",", 1), "is not JSON: number out of range"),
    ],
)
def test_a_file_that_is_no_coco_json_is_one_line(tmp_path, text, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        found(write(tmp_path, text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and "a.json" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_with_a_byte_order_mark(tmp_path, encoding):
    data = content()
    data["categories"][0]["name"] = "Käfer"
    text = json.dumps(data, ensure_ascii=False).encode(encoding)
    assert found(write(tmp_path, text))[0].names == ["Käfer", "dog"]


# Where images are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "json_file", "folder"),
    [
        ("{}.jpg", "a.json", "."),
        ("{}.jpg", "annotations/instances_default.json", "images"),
        ("{}.jpg", "annotations/instances_Train.json", "images/Train"),
        ("{}.jpg", "annotations/person_train.json", "train"),
        ("{}.jpg", "labels.json", "data"),
        ("{}.jpg", "ds0/annotations/instances.json", "ds0/images"),
        ("images/{}.jpg", "result.json", "images"),
        ("images\\{}.jpg", "result.json", "images"),
        ("./{}.jpg", "a.json", "images"),
        ("/home/me/pictures/{}.jpg", "a.json", "images"),
        ("C:\\me\\{}.jpg", "a.json", "images"),
        ("../../storage/me/{}.jpg", "a.json", "images"),
        ("https://example.org/{}.jpg", "a.json", "images"),
    ],
)
def test_images_are_found_where_exporters_put_them(tmp_path, name, json_file, folder):
    data = content()
    for entry in data["images"]:
        entry["file_name"] = name.format(entry["id"])
    write(tmp_path / "set", data, json_file, folder=folder)
    assert found(tmp_path / "set")[1] == ALL


def test_names_that_end_alike_are_not_mixed_up(tmp_path):
    data = content()
    for entry in data["images"]:
        entry["file_name"] = f"/home/me/{entry['id']}/1.jpg"
    with pytest.raises(UserError, match=r"image '/home/me/1/1.jpg' not found; looked in"):
        found(write(tmp_path, data))


def test_the_first_images_may_be_missing(tmp_path):
    data = content(500)
    reading, boxes = found(write(tmp_path, data, pictures=3))
    assert boxes == {f"{i}.jpg": 1 for i in (1, 2, 3)} and reading.account.counts == {"missing image": 497}
    data["images"] = data["images"][3:] + data["images"][:3]
    assert found(write(tmp_path, data, pictures=3))[1] == boxes
    data["images"] = data["images"][:-3] + [{"id": 1, "file_name": "9.jpg"}]
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "images" / "9.jpg")
    assert found(write(tmp_path, data, pictures=0))[1] == {"9.jpg": 1}


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a\nb", "", ".", "..", "/", "images", "\u202e"])
def test_names_that_no_file_can_have_are_missing(tmp_path, name):
    data = content()
    data["images"][0]["file_name"] = name
    reading, boxes = found(write(tmp_path, data))
    assert boxes == {f"{i}.jpg": 1 for i in (2, 3, 4)} and reading.account.counts == {"missing image": 1}
    assert not any("\n" in line for line in reading.account.lines())


def test_images_outside_the_folder_are_read_and_named(tmp_path):
    data = content()
    data["images"][0]["file_name"] = str(image(tmp_path / "elsewhere" / "far.jpg"))
    data["images"][1]["file_name"] = "../../elsewhere/far2.jpg"
    image(tmp_path / "elsewhere" / "far2.jpg")
    reading, boxes = found(write(tmp_path / "set", data))
    assert boxes == {"far.jpg": 1, "far2.jpg": 1, "3.jpg": 1, "4.jpg": 1}
    assert reading.account.counts == {"outside folder": 2}


# Which files ----------------------------------------------------------------------------------------------


def test_files_that_are_not_read_are_named(tmp_path):
    for name in ("instances_Train", "instances_Validation", "instances_minival", "captions_train", "other"):
        write(tmp_path, content(), f"annotations/{name}.json")
    write(tmp_path, content(), "all.json")
    reading, boxes = found(tmp_path)
    assert list(reading.splits) == ["train", "val"] and boxes == ALL
    assert reading.account.places == {
        "unread": dict.fromkeys(
            [
                "all.json",
                *(f"annotations/{n}.json" for n in ("captions_train", "instances_minival", "other")),
            ],
            1,
        )
    }


@pytest.mark.parametrize("pattern", ["{}/_annotations.coco.json", "{}/annotations/coco.json", "{}/{}.json"])
@pytest.mark.parametrize("words", [("train", "valid", "test"), ("Train", "Validation", "Test")])
def test_a_folder_for_each_split(tmp_path, pattern, words):
    for word in words:
        write(tmp_path, content(), pattern.format(word, word), folder=f"{word}/images")
    reading, boxes = found(tmp_path)
    assert list(reading.splits) == ["train", "val", "test"] and boxes == ALL
    assert {s.image.parts[-3] for s in reading.splits["val"]} == {words[1]}
    assert reading.account.counts == {}
