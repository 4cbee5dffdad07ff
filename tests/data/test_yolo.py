"""The YOLO layout as tools, Macs and other people's disks leave it: read as it was meant, or counted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.dataset import open_dataset
from data.images import fingerprint
from data.yolo_export import export_yolo, too_small
from tests.data.make import image, voc_xml, yolo_set
from utils.errors import UserError
from utils.offline import quiet_ultralytics

ROOT = Path(__file__).resolve().parents[2]
BOX = "0 0.5 0.5 0.5 0.5\n"
CARD = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def rows(data, split, name):
    """[[class, x, y, w, h], ...] of the image called `name`."""
    sample = next(s for s in data.splits[split] if s.image.name == name)
    return np.column_stack([sample.cls, sample.boxes]).tolist()


def opened(root, tmp_path):
    return open_dataset(root, tmp_path / "cache")


def fails(root, tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def card(root, text, encoding="utf-8"):
    (root / "data.yaml").write_bytes(text.encode(encoding))
    return root


# Pose -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("[4, 3]", " 0.1 0.1 1 0.9 0.1 1 0.1 0.9 0 0.9 0.9 1"),  # odd in number, as polygons are
        ("[3, 3]", " 0.1 0.1 2 0.9 0.1 2 0 0 0"),
        ("[2, 2]", " 0.1 0.1 0.9 0.9"),
        ("[1, 3]", " 1.4 -0.2 2"),  # a point outside is no fault of the box
    ],
)
def test_of_a_pose_the_box_is_taken(tmp_path, shape, points):
    labels = {
        "a": f"1 0.5 0.25 0.25 0.125{points}\n{BOX}",
        "b": f"0 0.5 0.5 0.25 0.25{points}\n0 0.5 0.5 0.1\n",
    }
    root = card(yolo_set(tmp_path, labels=labels), f"{CARD}kpt_shape: {shape}\nflip_idx: [0]\n")
    data = opened(root, tmp_path)
    assert rows(data, "train", "a.jpg") == [[1, 0.5, 0.25, 0.25, 0.125], [0, 0.5, 0.5, 0.5, 0.5]]
    assert rows(data, "train", "b.jpg") == [[0, 0.5, 0.5, 0.25, 0.25]]
    assert data.account.examples == {"unreadable": ["labels/train/b.txt line 2"]}


@pytest.mark.parametrize("number", [1, 2, 4, 17])
def test_a_pose_that_the_yaml_does_not_mention_is_no_polygon(tmp_path, number):
    text = "0 0.5 0.5 0.4 0.4" + " 0.45 0.55 2" * (number - 1) + " 0 0 0\n"
    root = yolo_set(tmp_path, labels=dict.fromkeys("abcd", text * 2))
    assert (
        f"boxes with {number} keypoints, not like polygons; say so in the YAML: kpt_shape: [{number}, 3]"
        in fails(root, tmp_path)
    )


def test_polygons_and_turned_boxes_become_bounding_boxes(tmp_path):
    corners = "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n"
    border = "1 0 0 1 0 1 1 0 1\n1 0 0 1 0 1 1 0 1 0 0\n"  # noughts and ones, as visibilities are
    sticking_out = "0 0.5 0.5 1.0371 0.5 0.75 0.75\n"
    root = yolo_set(tmp_path, labels={"a": corners + BOX, "b": border, "c": sticking_out})
    data = opened(root, tmp_path)
    assert rows(data, "train", "a.jpg") == [[0, 0.5, 0.5, 0.5, 0.5]] and data.account.counts["duplicate"] == 2
    assert rows(data, "train", "b.jpg") == [[1, 0.5, 0.5, 1, 1]]
    assert (
        rows(data, "train", "c.jpg") == [[0, 0.75, 0.625, 0.5, 0.25]] and data.account.counts["clipped"] == 1
    )


@pytest.mark.parametrize("shape", ["[4]", "[4, 4]", "[0, 3]", "4", "[4.0, 3]", "{a: 1}", "[true, 3]"])
def test_keypoints_that_cannot_be(tmp_path, shape):
    root = card(yolo_set(tmp_path), f"{CARD}kpt_shape: {shape}\n")
    assert "kpt_shape must be [keypoints, 2 or 3 numbers for each], got" in fails(root, tmp_path)


def test_what_ultralytics_and_tools_write_into_data_yamls_is_no_misspelling(tmp_path):
    keys = """nc kpt_names minival masks_dir author authors license version docs description url date download
        stuff roboflow channels task tasks type types tags source sources colors skeleton depth_range info
        bbox_interval yaml_file save_dir is_coco classes class_names categories flip_idx kpt_sigmas project"""
    for key in keys.split():
        root = card(yolo_set(tmp_path / key), f"{CARD}{key}: {2 if key == 'nc' else '{0: [nose]}'}\n")
        assert opened(root, tmp_path).nc == 2


# Bad lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 nan 0.5 0.5 0.5", "unreadable"),
        ("0 0.5 0.5 inf 0.5", "unreadable"),
        ("0 0.5 0.5 0.5 1e999", "unreadable"),
        ("cat 0.5 0.5 0.5 0.5", "unreadable"),
        ("0 0.5 0.5 0.5 wide", "unreadable"),
        ("0,0.5,0.5,0.5,0.5", "unreadable"),
        ("-1 0.5 0.5 0.5 0.5", "unreadable"),
        ("0.5 0.5 0.5 0.5 0.5", "unreadable"),
        ("nan 0.5 0.5 0.5 0.5", "unreadable"),
        ("0", "unreadable"),
        ("0 0.5 0.5 0.5", "unreadable"),
        ("0 0.5 0.5 0.5 0.5 0.9", "unreadable"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "unreadable"),
        ("0 0.1 0.1 0.2 nan 0.3 0.3", "unreadable"),
        ("0 1_0 0.5 0.5 0.5", "unreadable"),
        ("0 0.5 0.5 0 0.5", "degenerate"),
        ("0 0.5 0.5 -0.5 0.5", "degenerate"),
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "degenerate"),
        ("0 32 24 10 10", "outside"),
        ("0 -0.5 0.5 0.5 0.5", "outside"),
        ("0 1.05 0.5 0.2 0.2", "clipped"),
        ("0 0.5 1e300 0.5 0.5", "outside"),
    ],
)
def test_a_bad_line_is_counted_by_kind_and_file(tmp_path, line, reason):
    root = yolo_set(
        tmp_path, labels={"a": f"{BOX}\n{line}\n", "b": f"{line}\n{BOX}{line}\n1 0.25 0.25 0.1 0.1\n"}
    )
    data = opened(root, tmp_path)
    where = ["labels/train/a.txt line 3", "labels/train/b.txt line 1"]
    if reason != "unreadable":
        where = ["images/train/a.jpg", "images/train/b.jpg"]
    duplicate = {"duplicate": 1} if reason == "clipped" else {}
    assert data.account.counts == {reason: 3 - len(duplicate), **duplicate}
    assert data.account.examples[reason] == where
    assert len(rows(data, "train", "b.jpg")) == 2 + len(duplicate)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 32 24 10 10", "12 x outside (box entirely outside its image) in 4 places: images/train/a.jpg, "),
        ("0 0.5 0.5 0.5 0.5 0.9", "12 x unreadable"),
        ("0 0.5 0.5 0 0", "12 x degenerate"),
    ],
)
def test_most_lines_bad_is_an_error(tmp_path, line, says):
    root = yolo_set(tmp_path, labels=dict.fromkeys("abcd", f"{line}\n" * 3 + BOX * 2))
    message = fails(root, tmp_path)
    assert "12 of 16 boxes in split 'train' cannot be used; dropped: " + says in message
    assert ("fractions of the image" in message) is (says[5:12] == "outside")


def test_a_class_without_a_name_is_an_error(tmp_path):
    root = yolo_set(tmp_path, labels={"a": f"{BOX}2 0.5 0.5 0.5 0.5\n"})
    assert (
        f"{root}/labels/train/a.txt line 2: class id 2 is beyond names, which has 2 classes (0 to 1)"
        in fails(root, tmp_path)
    )


def test_nothing_left_says_why(tmp_path):
    root = yolo_set(tmp_path, labels=dict.fromkeys("abcd", ""))
    image(root / "images" / "train" / ".cache" / "x.jpg")
    (root / "labels" / "train" / "stray.txt").write_text(BOX)
    message = fails(root, tmp_path)
    assert "no labels at all in split 'train' (4 images without boxes); dropped: 1 x hidden" in message
    assert "1 x label alone (label file without an image): labels/train/stray.txt" in message


def test_label_files_in_other_encodings(tmp_path):
    root = yolo_set(tmp_path)
    for stem, raw in (("t0", BOX.encode("utf-8-sig")), ("t1", BOX.encode("utf-16"))):
        (root / "labels" / "train" / f"{stem}.txt").write_bytes(raw)
    assert [len(s.cls) for s in opened(root, tmp_path).splits["train"]] == [1] * 4


# Which images ---------------------------------------------------------------------------------------------


def test_a_test_split_that_is_not_there_is_left_out(tmp_path):
    for number, test in enumerate(("../test/images", "[images/gone, images/gone2]", "gone.txt")):
        root = card(yolo_set(tmp_path / str(number)), f"{CARD}test: {test}\n")
        data = opened(root, tmp_path)
        assert "test" not in data.splits and "note: split test is left out: test: " in data.summary()
    (root / "images" / "empty").mkdir()
    data = opened(card(root, f"{CARD}test: images/empty\n"), tmp_path)
    assert "note: split test is empty and left out" in data.summary()
    assert "val: " in fails(card(root, CARD.replace("images/val", "images/gone")), tmp_path)


@pytest.mark.parametrize(
    "words", [("Train", "Val", "Test"), ("training", "validation", "testing"), ("TRAIN", "valid", "test")]
)
def test_splits_by_other_names(tmp_path, words):
    root = yolo_set(tmp_path)
    values = ("images/train", "images/val", "images/val")
    card(root, "".join(f"{k}: {v}\n" for k, v in zip(words, values, strict=True)) + "names: [cat, dog]\n")
    assert {k: len(v) for k, v in opened(root, tmp_path).splits.items() if "search" not in k} == {
        "train": 4, "val": 2, "test": 2,
    }  # fmt: skip


@pytest.mark.parametrize("labels_in", ["the set", "the pool", "a link of their own"])
def test_linked_pictures_keep_their_labels(tmp_path, labels_in):
    root, pool = yolo_set(tmp_path), tmp_path / "pool"
    image(pool / "images" / "p.jpg", shade=9)
    labels = {"the set": root / "labels" / "more", "the pool": pool / "labels"}.get(
        labels_in, tmp_path / "txt"
    )
    labels.mkdir(parents=True)
    (labels / "p.txt").write_text("1 0.5 0.5 0.25 0.25\n")
    (root / "images" / "more").symlink_to(pool / "images")
    if labels_in == "a link of their own":
        (root / "labels" / "more").symlink_to(labels)
    (root / "images" / "train" / "q.jpg").symlink_to(pool / "images" / "p.jpg")  # a picture alone
    (root / "labels" / "train" / "q.txt").write_text(BOX)
    for train in ("[images/train, images/more]", "images"):
        data = opened(card(root, CARD.replace("images/train", train)), tmp_path)
        assert rows(data, "train", "p.jpg") == [[1, 0.5, 0.5, 0.25, 0.25]]
        assert rows(data, "train", "q.jpg") == [[0, 0.5, 0.5, 0.5, 0.5]]
        assert data.account.examples["outside folder"] == ["images/more/p.jpg", "images/train/q.jpg"]
    (labels / "p.txt").write_text("0 0.5 0.5 0.125 0.125\n")  # and the cache notices
    assert rows(opened(root, tmp_path), "train", "p.jpg") == [[0, 0.5, 0.5, 0.125, 0.125]]


def test_pictures_outside_are_counted_however_they_are_named(tmp_path):
    root = yolo_set(tmp_path / "set")
    for name in "abc":
        image(tmp_path / "away" / f"{name}.jpg", shade=ord(name))
    (root / "in").symlink_to(tmp_path / "away")
    (root / "val.txt").write_text(
        f"images/val/v0.jpg\n../../away/a.jpg\n{tmp_path}/away/b.jpg\nin/c.jpg\nimages/val/v1.jpg\n"
    )
    data = opened(card(root, CARD.replace("images/val", "val.txt")), tmp_path)
    assert data.account.counts == {"outside folder": 3} and len(data.splits["val"]) == 5
    assert data.summary().count("3 x outside folder (image outside the data's folder") == 1
    # a root of its own is no place outside
    elsewhere = card(tmp_path, f"path: {root}\n{CARD}")
    assert opened(elsewhere / "data.yaml", tmp_path).account.counts == {}


def test_no_line_of_a_file_that_a_link_leads_to_is_shown(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0:hidden words\n0 0.5 0.5 0.5 0.5 hidden words\n")
    root = yolo_set(tmp_path)
    for file in ("val.txt", "labels/train/t0.txt", "LICENSE", "classes.txt"):
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(secret)
    data = opened(root, tmp_path)
    assert "hidden" not in data.summary() and data.account.examples["unreadable"] == [
        "labels/train/t0.txt line 1"
    ]
    message = fails(card(root, CARD.replace("images/val", "val.txt")), tmp_path)
    assert "hidden" not in message and "missing image" in message and "val.txt line 1" in message
    (root / "data.yaml").unlink()
    assert "hidden" not in fails(root, tmp_path)
    (root / "data.yaml").symlink_to(secret)
    assert "hidden" not in fails(root / "data.yaml", tmp_path)


def test_a_link_that_was_unpacked_as_text_is_recognised(tmp_path):
    root = yolo_set(tmp_path)
    (root / "images" / "more").write_text("../labels")
    card(root, CARD.replace("images/train", "[images/train, images/more]"))
    message = fails(root, tmp_path)
    assert (
        "images/more is neither a folder of images nor a .txt list of them; it holds the path of a folder"
        in message
    )
    (root / "images" / "more").write_text("../gone")
    assert fails(root, tmp_path).endswith("nor a .txt list of them")


def test_what_belongs_to_no_split_is_counted(tmp_path):
    root = yolo_set(tmp_path)
    for file in ("images/extra/a.jpg", "images/extra/deep/b.jpg", "images/.thumbs/c.jpg"):
        image(root / file)
    (root / "labels" / "train" / "orphan.txt").write_text(BOX)
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    (root / "images" / "same").symlink_to(root / "images" / "train")
    assert opened(root, tmp_path).account.places == {"unread": {"images/extra": 2}, "label alone": {
        "labels/train/orphan.txt": 1}}  # fmt: skip
    (root / "train.txt").write_text("images/train/t0.jpg\nimages/train/t1.jpg\n")
    data = opened(card(root, CARD.replace("images/train", "train.txt")), tmp_path)
    assert data.account.places["unread"]["images/train"] == 2
    assert list(data.account.places["label alone"]) == ["labels/train/orphan.txt"]
    moved = tmp_path / "roboflow"
    for split, source in (("train", "train"), ("valid", "val"), ("test", "val")):
        for kind in ("images", "labels"):
            shutil.copytree(root / kind / source, moved / split / kind)
    (moved / "train" / "labels" / "orphan.txt").unlink()
    card(moved, "train: train/images\nval: valid/images\nnames: [cat, dog]\n")
    assert opened(moved, tmp_path).account.places == {"unread": {"test/images": 2}}


def test_lists_with_blanks_backslashes_and_other_roots(tmp_path):
    root = yolo_set(tmp_path, labels={"two words": BOX, "ü": BOX, "b": BOX, "c": BOX, "d e.f": BOX})
    lines = r"""
images/train/two words.jpg
./images/train/ü.jpg
images\train\b.jpg
data/images/train/c.jpg
../images/train/d e.f.jpg
images/train/gone away.jpg
"""
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        (root / "train.txt").write_bytes(lines.replace("\n", "\r\n").encode(encoding))
        data = opened(card(root, CARD.replace("images/train", "train.txt")), tmp_path)
        assert [s.image.stem for s in data.splits["train"]] == ["b", "c", "d e.f", "two words", "ü"]
        assert data.account.examples["missing image"] == ["images/train/gone away.jpg"]


def test_names_that_no_terminal_takes(tmp_path, capsys):
    root = yolo_set(tmp_path)
    odd = [b"sur\xe9.jpg", b"esc\x1b[31m.jpg", b"new\nline.jpg"]
    for number, name in enumerate(odd):
        path = os.path.join(os.fsencode(root), b"images", b"train", name)
        shutil.copyfile(image(tmp_path / "x.jpg", shade=50 + number), path)
        label = path.replace(b"/images/", b"/labels/")[:-4] + b".txt"
        with open(label, "wb") as file:
            file.write(f"{BOX}0 1.2 0.5 0.5 0.5\n".encode())
    data = opened(root, tmp_path)
    text = data.summary()
    text.encode("utf-8")
    assert "\x1b" not in text and r"images/train/sur\udce9.jpg" in text and r"esc\x1b[31m.jpg" in text
    again = open_dataset(export_yolo(data, tmp_path / "out"), tmp_path / "cache")
    assert len(again.splits["train"]) == 7
    root = card(root, 'train: images/train\nnames: ["a\\e[31mb", "c\\td"]\n')
    assert r"a\x1b[31mb" in opened(root, tmp_path).summary()


def test_a_terminal_of_few_letters_and_a_folder_of_broken_bytes(tmp_path):
    root = yolo_set(tmp_path / os.fsdecode(b"sur\xe9"))
    card(root, CARD.replace("cat", "grün"))
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, str(ROOT / "hello_nas.py"), "data", root, "--to", tmp_path / "out"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"sur\udce9" in done.stdout and r"gr\xfcn" in done.stdout
    again = subprocess.run(command, env=env, capture_output=True, text=True)  # OUT is there by now
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1


# The YAML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_class_names_in_any_encoding_and_as_written(tmp_path, encoding):
    root = card(yolo_set(tmp_path), CARD.replace("cat, dog", "grün, no, 007, 1e3, ~"), encoding)
    assert opened(root, tmp_path).names == ["grün", "no", "007", "1e3", "~"]
    card(root, CARD.replace("[cat, dog]", "{1: blå, 0: on}"), encoding)
    assert opened(root, tmp_path).names == ["on", "blå"]


def bomb(key: str) -> str:
    """Nine lists, each of nine times the one before."""
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(levels) + f"\n{CARD}".replace(f"{key}:", f"was_{key}:") + f"{key}: *a9\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb("names"), "its aliases (*) stand for more than 1,000,000 values"),
        (bomb("train"), "its aliases (*) stand for more than 1,000,000 values"),
        (f"{CARD}deep: " + "[" * 100_000, "nested too deeply"),
        (f"{CARD}deep: " + "{a: " * 100_000, "nested too deeply"),
        (CARD + "me: &me [*me]\n", "its aliases (*) stand for"),
        (CARD + "day: 2024-13-45\n", "is not YAML"),
        (CARD + "odd: !!int x\n", "is not YAML"),
        (CARD + "odd: !!bool x\n", "is not YAML"),
        (CARD + "odd: !!python/object:os.system {}\n", "is not YAML"),
        (CARD + "? [a, b]\n: 1\n", "is not YAML"),
        (CARD + "\0", "is not YAML"),
        (CARD.replace("[cat, dog]", "[cat, [dog]]"), "names must be texts, but that of class 1 is ['dog']"),
        (CARD.replace("[cat, dog]", "[cat, '']"), "names must be texts, but that of class 1 is ''"),
        (CARD.replace("[cat, dog]", "{.5: cat}"), "keys of names must be class ids 0, 1, ..., got ['.5']"),
        (
            CARD.replace("[cat, dog]", "{.inf: cat}"),
            "keys of names must be class ids 0, 1, ..., got ['.inf']",
        ),
        (CARD.replace("[cat, dog]", ""), "names is missing"),
        (CARD + "nc: 1e400\n", "nc must be a whole number of classes from 1, got '1e400'"),
        (CARD + "nc: .inf\n", "nc must be a whole number of classes from 1, got inf"),
        (
            CARD.replace("images/train", "{a: b}"),
            "train: expected a folder, a .txt list, or several of them, got",
        ),
        (
            CARD.replace("images/train", "5"),
            "train: expected a folder, a .txt list, or several of them, got 5",
        ),
        (CARD.replace("images/train", '"a\\0b"'), "does not exist"),
        (CARD.replace("images/train", "a" * 300), "does not exist"),
        (CARD + "path: [a]\n", "path must be a text, got ['a']"),
        (CARD + "path: ~nosuchuser/x\n", "folder path '~nosuchuser/x' not found"),
        (CARD + "format: [yolo]\n", "['yolo']"),
        (CARD.replace("train", ".5"), "train is missing"),
    ],
)
def test_yamls_that_cannot_be_read(tmp_path, text, says):
    root = card(yolo_set(tmp_path), text)
    message = fails(root / "data.yaml", tmp_path)
    assert says in message and len(message) < 1000


def test_odd_keys_are_nobodys_business(tmp_path):
    odd = "\n".join(f"{key}: 1" for key in (".5", "~", "2024-01-01", "true", ".nan", "-7", "'\\ud800'"))
    assert opened(card(yolo_set(tmp_path), CARD + odd), tmp_path).nc == 2


# A folder without a YAML ----------------------------------------------------------------------------------


def cvat(root):
    for part, n in (("obj_train_data", 3), ("obj_val_data", 2)):
        for i in range(n):
            image(root / part / f"{part}{i}.jpg", shade=len(part) + i)
            (root / part / f"{part}{i}.txt").write_text(BOX)
    (root / "obj.names").write_text("rød\nno\n")
    return "{train: obj_train_data, val: obj_val_data, names: [rød, 'no']}"


def label_studio(root):
    for i in range(4):
        image(root / "images" / f"{i}.jpg", shade=i)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{i}.txt").write_text(BOX)
    (root / "notes.json").write_text(
        '{"categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}], "info": {}}'
    )
    return "{train: images, names: [cat, dog]}"


def labelimg(root):
    for split in ("Train", "Validation"):
        for i in range(3):
            image(root / split / f"{split}{i}.jpg", shade=len(split) + i)
            (root / split / f"{split}{i}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    return "{train: Train, val: Validation, names: [name of 0, name of 1]}"


@pytest.mark.parametrize("tool", [cvat, label_studio, labelimg])
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_without_a_yaml_the_error_says_what_to_write(tmp_path, tool, task):
    root = tmp_path / "set"
    line = tool(root)
    with pytest.raises(
        UserError, match=r"holds YOLO labels but no data YAML; write .*data\.yaml with"
    ) as caught:
        open_dataset(root, tmp_path / "cache", task=task)
    assert str(caught.value).endswith(line)
    (root / "data.yaml").write_text(line, encoding="utf-8")
    data = opened(root, tmp_path)
    assert data.names == yaml.load(line, yaml.BaseLoader)["names"] and data.account.counts == {}


# Export ---------------------------------------------------------------------------------------------------


def test_ultralytics_reads_what_we_export(tmp_path):
    quiet_ultralytics()
    from ultralytics.data.utils import IMG_FORMATS, verify_image_label

    root = tmp_path / "voc"
    boxes = [(-0.4, 3, 20, 40.4), (10, -0.4, 40.4, 30), (-3, 3, 50, 50), (39.5, 1, 45, 9), (0, 0, 40, 40)]
    for stem in "abcdef":
        image(root / "JPEGImages" / f"{stem}.jpg", 40, 40, shade=ord(stem))
        voc_xml(root, stem, (40, 40), [("dog", *box) for box in boxes])
    (root / "JPEGImages" / "g.gif").write_bytes(image(tmp_path / "g.gif", 40, 40).read_bytes())
    voc_xml(root, "g", (40, 40), [("dog", *box) for box in boxes])
    data = opened(root, tmp_path)
    assert data.account.counts == {"clipped": 14}
    out = export_yolo(data, tmp_path / "out").parent
    again = opened(out, tmp_path)
    for split in ("train", "val"):
        for a, b in zip(data.splits[split], again.splits[split], strict=True):
            assert np.array_equal(a.boxes, b.boxes) and a.shape == b.shape
        for sample in again.splits[split]:
            file = str(sample.image)
            assert sample.image.suffix[1:] in IMG_FORMATS
            found = verify_image_label(
                (file, file.replace("/images/", "/labels/")[:-3] + "txt", "", False, 1, 0, 0, 0)
            )
            assert found[0] == file and found[9] == "" and found[2] == sample.shape
            assert np.array_equal(found[1][:, 1:], sample.boxes)


def test_an_export_writes_in_its_folder_alone(tmp_path):
    root = yolo_set(tmp_path / "set")
    image(tmp_path / "away" / "a.jpg", 5, 5)
    (root / "val.txt").write_text("images/val/v0.jpg\n../../away/a.jpg\n../../set/yolo/images/val/v1.jpg\n")
    data = opened(card(root, CARD.replace("images/val", "val.txt")), tmp_path)
    before = fingerprint([root, tmp_path / "away"])
    (tmp_path / "work").mkdir()
    export_yolo(data, tmp_path / "work" / "out")
    assert fingerprint([root, tmp_path / "away"]) == before and too_small(data) == 1
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["out"]
    (tmp_path / "link").symlink_to(tmp_path / "away")
    for taken in ("link", "away", "away/a.jpg"):
        with pytest.raises(UserError, match="exists and is not empty; give a new folder"):
            export_yolo(data, tmp_path / taken)
    again = opened(tmp_path / "work" / "out", tmp_path)
    assert all(s.image.is_relative_to(tmp_path / "work") for split in again.splits.values() for s in split)
