"""Whatever a user can get wrong ends in one line that names it, the value, and what would be right."""

import json
import re
from pathlib import Path

import pytest

from data.dataset import open_dataset
from data.hyp import KEYS, hyp_of, load_hyp, shipped
from data.text import read_text
from tests.data.make import coco_json, image, voc_xml, yolo_set
from utils.errors import UserError


def fails(tmp_path: Path, source, *says: str) -> str:
    """The message of the UserError that opening `source` must end in; one line holding all of `says`."""
    with pytest.raises(UserError) as caught:
        open_dataset(source, tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    for text in says:
        assert text in message, message
    return message


def test_sources_that_are_not_there_or_nothing_we_know(tmp_path):
    fails(tmp_path, "nowhere/data.yaml", "data 'nowhere/data.yaml' does not exist", "data/digits.yaml")
    (tmp_path / "odd").mkdir()
    fails(tmp_path, tmp_path / "odd", "none of the known layouts", "data.yaml", "Annotations/*.xml", "*.json")
    (tmp_path / "a.csv").write_text("1,2")
    fails(tmp_path, tmp_path / "a.csv", "expected a .yaml, a .json or a folder, got a .csv")
    with pytest.raises(UserError, match=r"val_fraction must lie between 0 and 1, got 1\.5"):
        open_dataset(tmp_path, tmp_path, val_fraction=1.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: [images", ["is not YAML: expected ',' or ']'"]),
        ("just words", ["is not a data set YAML: expected keys like train, val, names"]),
        ("train: images/train\nval: images/val\n", ["names is missing"]),
        ("train: images/train\nnmaes: [cat, dog]", ["unknown key 'nmaes'; did you mean 'names'?"]),
        ("tarin: images/train\nnames: [cat, dog]", ["unknown key 'tarin'; did you mean 'train'?"]),
        ("val: images/val\nnames: [cat, dog]", ["train is missing"]),
        ("train: images/train\nnames: [cat, dog]\nnc: 3", ["nc is 3 but names lists 2 classes"]),
        (
            "train: images/train\nnames: [cat, dog]\nnc: two",
            ["nc must be a whole number of classes from 1, got 'two'"],
        ),
        ("train: images/train\nnames: [cat, cat]", ["class name 'cat' stands twice"]),
        (
            "train: images/train\nnames: {0: cat, 2: dog}",
            ["names must number the classes 0 to 1, not [0, 2]"],
        ),
        ("train: images/train\nnames: {a: cat}", ["keys of names must be class ids"]),
        ("train: images/train\nnames: cat", ["names must be a list of class names, got 'cat'"]),
        ("train: images/train\nval: images/vla\nnames: [cat, dog]", ["val: ", "images/vla does not exist"]),
        ("train: images/train\nval: images/none\nnames: [cat, dog]", ["no images in split 'val'"]),
        ("train: data.yaml\nnames: [cat, dog]", ["neither a folder of images nor a .txt list"]),
        (
            "path: elsewhere\ntrain: images/train\nnames: [cat, dog]",
            ["folder path 'elsewhere' not found (looked for"],
        ),
        (
            "path: elsewhere\ntrain: i\nnames: [a]\ndownload: https://example.org/a.zip",
            ["get https://example.org/a.zip and unpack it so that", "elsewhere exists"],
        ),
        (
            "train: images/train\nsearch_val: images/val\nnames: [cat, dog]",
            ["search_val alone cannot be used"],
        ),
        (
            "format: yolov5\ntrain: i\nnames: [a]",
            ["'yolov5'; did you mean 'yolo'? known: yolo, voc, coco, digits"],
        ),
        (
            "format: voc\ntrain: VOC2007/trainval\nnames: [a]",
            ["VOC2007/ImageSets/Main/trainval.txt does not exist"],
        ),
        ("format: coco\ntrain: a.json\nnames: [a]", ["train: ", "a.json does not exist"]),
        (f"format: coco\ntrain: {'x' * 5000}", ["train: ", "x does not exist"]),
        (f"format: voc\ntrain: {'x' * 5000}", ["train: ", "x.txt does not exist"]),
        ('train: images/train\nval: "a\\nb"\nnames: [cat, dog]', ["val: ", "a\\nb does not exist"]),
    ],
)
def test_cards(tmp_path, text, says):
    root = yolo_set(tmp_path)
    (root / "images" / "none").mkdir()
    (root / "data.yaml").write_text(text)
    fails(tmp_path, root / "data.yaml", str(root), *says)


def test_no_labels_at_all_and_mostly_corrupt_images(tmp_path):
    root = yolo_set(tmp_path)
    for file in (root / "labels" / "val").iterdir():
        file.unlink()
    fails(tmp_path, root, "no labels at all in split 'val' (2 images without boxes)")
    for i in range(3):
        (root / "images" / "val" / f"bad{i}.jpg").write_bytes(b"")
    fails(tmp_path, root, "3 of 5 images in split 'val' cannot be decoded (first: images/val/bad0.jpg)")


def test_truncated_pictures_are_corrupt_and_trailing_bytes_are_not(tmp_path):
    root = yolo_set(tmp_path)
    whole = image(root / "images" / "train" / "t9.jpg", 64, 64, shade=9).read_bytes()
    (root / "images" / "train" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "images" / "train" / "tail.jpg").write_bytes(whole + b"\0" * 1000)
    png = image(tmp_path / "x.png", 64, 64).read_bytes()
    (root / "images" / "train" / "cut.png").write_bytes(png[: len(png) // 2])
    data = open_dataset(root, tmp_path / "cache")
    assert data.account.examples == {"corrupt image": ["images/train/cut.jpg", "images/train/cut.png"]}
    assert "tail.jpg" in [s.image.name for s in data.splits["train"]]


def test_voc(tmp_path):
    root = tmp_path / "voc"
    image(root / "JPEGImages" / "a.jpg", 10, 10)
    (root / "Annotations").mkdir()
    file = root / "Annotations" / "a.xml"
    file.write_text("<annotation><object>")
    fails(tmp_path, root, str(file), "is not XML")
    voc_xml(root, "a", (10, 10), [("dog", "zero", 0, 5, 5)])
    fails(tmp_path, root, "1 of 1 boxes in split 'train' cannot be used", "a.xml (dog: xmin 'zero')")
    voc_xml(root, "a", (10, 10), [("", 0, 0, 5, 5)])
    fails(tmp_path, root, "no labels at all: none of 1 XML files holds an object with a name")
    voc_xml(root, "a", (10, 10), [("dog", 0, 0, 5, 5)])
    (root / "classes.txt").write_text("dog\ncat\ndog\n")
    fails(tmp_path, root, "classes.txt: class name 'dog' stands twice")


def test_a_text_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Is a directory"):
        read_text(tmp_path)


def test_coco(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"images": [')
    fails(tmp_path, file, f"data {file} is not JSON")
    file.write_text('{"images": []}')
    fails(tmp_path, file, "it has no annotations and no categories")
    coco_json(file, [(1, "gone.jpg", 10, 10)], [(1, 1, [0, 0, 5, 5])], {1: "a"})
    fails(tmp_path, file, "image 'gone.jpg' not found; looked in")
    image(tmp_path / "gone.jpg", 10, 10)
    coco_json(file, [(1, "gone.jpg", 10, 10)], [(1, 1, [0, 0, 5])], {1: "a"})
    fails(tmp_path, file, "1 of 1 boxes in split 'train' cannot be used", "annotation 0 (bbox [0, 0, 5])")
    coco_json(file, [(1, "gone.jpg", 10, 10)], [], {1: "a", 2: "a"})
    fails(tmp_path, file, "category 'a' stands twice")
    file.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []}))
    fails(tmp_path, file, "entry 0 of images has no 'file_name'")
    for name in ("x.json", "y.json"):
        coco_json(tmp_path / "two" / name, [(1, "a.jpg", 10, 10)], [], {1: "a"})
    fails(tmp_path, tmp_path / "two", "none of x.json, y.json is named for 'train'")
    for name in ("train_a.json", "train_b.json"):
        coco_json(tmp_path / "twice" / name, [(1, "a.jpg", 10, 10)], [], {1: "a"})
    fails(tmp_path, tmp_path / "twice", "both look like train")


def test_cards_that_come_with_us_say_what_to_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they are found from any folder, their data is not
    for card in ("data/coco128.yaml", "data/coco.yaml", "data/VOC.yaml"):
        fails(tmp_path, card, "not found (looked for", "; get ", "http", "and unpack it so that")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("digitz: [2, 4]", "did you mean 'digits'?"),
        ("digits: [4, 2]", "digits must be [fewest, most], whole numbers from 1, got [4, 2]"),
        ("imgsz: 16", "a digit enlarged 4 times needs imgsz of at least 32, got 16"),
        ("imgsz: large", "imgsz must be a whole number from 0, got 'large'"),
        ("scenes: {train: 5}", "'train'"),
        ("scenes: {val: 0}", "scenes of val must be a whole number from 1, got 0"),
        ("scenes: 5", "scenes must say how many per split"),
        ("scenes: {val: 1000000000}", "scenes of val may be 100000 at most, got 1000000000"),
        ("digits: [1, 1000000000]", "digits may be 1000 at most, got 1000000000"),
        ("imgsz: 1000000", "imgsz may be 4096 at most, got 1000000"),
        ("noise: 99999999999999999999", "noise may be 255 at most, got 99999999999999999999"),
    ],
)
def test_digit_recipes(tmp_path, line, says):
    (tmp_path / "d.yaml").write_text(f"format: digits\n{line}\n")
    fails(tmp_path, tmp_path / "d.yaml", says)


def test_a_card_names_the_augmentation_of_its_data(tmp_path):
    hyps = Path(read_text.__code__.co_filename).parent / "hyps"
    assert hyp_of("data/digits.yaml") == str(hyps / "default.yaml")
    card = tmp_path / "data.yaml"
    card.write_text("train: images\nhyp: mine.yaml\n")
    with pytest.raises(UserError, match=r"hyp must name a file of augmentation settings, got 'mine\.yaml'; "):
        hyp_of(card)
    (tmp_path / "mine.yaml").write_text("fliplr: 0.5\n")
    assert hyp_of(card) == hyp_of(tmp_path) == str(tmp_path / "mine.yaml")
    for text, file in (
        ("train: images\n", None),
        ("train: images\nhyp: hyps/scratch-med.yaml\n", hyps / "scratch-med.yaml"),
        ("train: images\nhyp: data/hyps/default.yaml\n", hyps / "default.yaml"),
        ("format: digits\n", hyps / "default.yaml"),  # whoever drew them
        ("format: digits\nhyp: mine.yaml\n", tmp_path / "mine.yaml"),
        ("[a, list]", None),
    ):
        card.write_text(text)
        assert hyp_of(card) == (file and str(file)), text
    card.write_text("train: images\nhyp: [0.5]\n")
    with pytest.raises(UserError, match="hyp must name a file"):
        hyp_of(card)
    for kind in ("folder", "instances.json"):
        assert hyp_of(tmp_path / kind) is None


def test_hyp_files(tmp_path):
    file = tmp_path / "h.yaml"
    for text, says in (
        ("moasic: 1.0", r"unknown key in hyp file .*h\.yaml: 'moasic'; did you mean 'mosaic'\?"),
        ("mosaic: 2", "mosaic must be a number from 0 to 1, got 2"),
        ("mosaic: yes", "mosaic must be a number from 0 to 1, got True"),
        ("- 1", "must hold lines like 'mosaic: 1.0', got list"),
        ("a: [", "is not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            load_hyp(file)
    with pytest.raises(UserError, match=re.escape("does not exist; data/hyps/ holds default.yaml")):
        load_hyp("nope.yaml")
    file.write_text("mosaic: 1\n")
    assert load_hyp(file) == {**{k: v for k, (_, _, v) in KEYS.items()}, "mosaic": 1.0}
    for name in shipped():
        assert load_hyp(f"data/hyps/{name}").keys() == KEYS.keys()
