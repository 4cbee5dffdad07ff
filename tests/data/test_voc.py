"""Pascal VOC as its exporters write it: encodings, names, folders, lists; each box on the image it is of."""

from pathlib import Path

import pytest

from data.dataset import read
from data.sample import Reading
from tests.data.make import image, voc_xml
from utils.errors import UserError

SQUARE = [("cat", 10, 10, 30, 30)]


def found(folder: Path) -> tuple[Reading, dict[str, dict[str, int]]]:
    """The reading, and per split how many boxes each image (by its path in the folder) has."""
    reading = read(folder, folder / "cache")
    boxes = {
        split: {s.image.relative_to(folder).as_posix(): len(s.cls) for s in samples}
        for split, samples in reading.splits.items()
    }
    return reading, boxes


def write_xml(root: Path, stem: str, **more) -> Path:
    """A 64 x 48 annotation with one cat, `more` as `voc_xml` takes it."""
    voc_xml(root, stem, (64, 48), more.pop("objects", SQUARE), **more)
    return root / more.get("folder", "Annotations") / f"{stem}.xml"


def lists(root: Path, folder: str = "ImageSets/Main", **texts: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / folder / f"{name}.txt").write_text(text)


# Encodings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "written", "name"),
    [
        ("gb2312", "gb2312", "猫"),
        ("gb2312", "gbk", "貓"),  # which only the wider encoding has
        ("GBK", "gbk", "猫"),
        ("Shift_JIS", "shift_jis", "猫"),
        ("euc-kr", "euc-kr", "개"),
        ("Big5", "big5", "貓"),
        ("iso-8859-1", "latin-1", "Käfer"),
        ("windows-1251", "cp1251", "кот"),
        ("utf-16", "utf-16", "猫"),
        ("utf-16", "utf-16-be", "猫"),
        ("utf-8", "utf-8-sig", "猫"),
        ("unicode", "utf-8", "Käfer"),  # no such encoding
        ("idna", "utf-8", "Käfer"),  # none of files
        ("gb2312", "utf-8-sig", "猫"),  # the mark knows better
        ("ascii", "utf-8", "猫"),
        ("", "utf-8", "猫"),
    ],
)
def test_names_come_out_of_any_encoding(tmp_path, declared, written, name):
    image(tmp_path / "JPEGImages" / "a.jpg")
    file = write_xml(tmp_path, "a", objects=[(name, 10, 10, 30, 30)])
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "\n  "
    file.write_bytes((head + file.read_text("utf-8")).encode(written))
    assert found(tmp_path)[0].names == [name]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'<?xml version="1.0" encoding="klingon"?><annotation>\xe9', "declares klingon, but cannot be read"),
        (
            b"<annotation>\xe9</annotation>",
            "declares no encoding, and cannot be read as UTF-8; save it as UTF-8",
        ),
        (b"<annotation>" * 50_000, "is not XML"),
        (b"", "is not XML"),
        (b"<annotation>\0</annotation>", "is not XML"),
        (b"<annotations><image/></annotations>", "expected <annotation>, got <annotations>"),
        (b'<!DOCTYPE a [<!ENTITY a "b">]><annotation>&a;</annotation>', "defines entities"),
        (b'<!DOCTYPE a [<!ENTITY a SYSTEM "a.jpg">]><annotation>&a;</annotation>', "defines entities"),
    ],
)
def test_a_file_that_cannot_be_read_is_counted_and_its_image_is_no_background(tmp_path, content, says):
    for stem in "abc":
        image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        file = write_xml(tmp_path, stem)
    file.write_bytes(content)
    reading, boxes = found(tmp_path)
    assert boxes == {"train": {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 1}}
    assert reading.account.counts == {"broken annotation": 1}
    assert "c.xml" in reading.account.lines()[0] and says in reading.account.lines()[0]
    for stem in "ab":
        (tmp_path / "Annotations" / f"{stem}.xml").write_bytes(content)
    with pytest.raises(UserError, match=r"3 of 3 XML files cannot be read; the first: \S+a\.xml"):
        found(tmp_path)


def test_an_entity_bomb_is_refused_before_it_is_parsed(tmp_path):
    image(tmp_path / "a.jpg")
    lines = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE annotation [<!ENTITY a0 "lol">{lines}]><annotation><object><name>&a11;</name></object>'
    (tmp_path / "a.xml").write_text(f"{bomb}</annotation>")
    with pytest.raises(UserError, match="defines entities"):
        found(tmp_path)


@pytest.mark.parametrize("written", ["utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("file", ["classes.txt", "labelmap.txt"])
def test_class_lists_in_any_encoding(tmp_path, written, file):
    image(tmp_path / "JPEGImages" / "a.jpg")
    write_xml(tmp_path, "a", objects=[("Käfer", 10, 10, 30, 30), ("ant", 0, 0, 9, 9)])
    text = "Käfer\r\nant\r\n"
    if file == "labelmap.txt":  # as CVAT writes it
        text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nKäfer:0,255,0::\nant:255,0,0::\n"
    (tmp_path / file).write_bytes(text.encode(written))
    reading, boxes = found(tmp_path)
    assert reading.names == ["Käfer", "ant"] and boxes == {"train": {"JPEGImages/a.jpg": 2}}
    assert reading.account.counts == {}


def test_a_class_list_in_the_encoding_of_its_country(tmp_path):
    image(tmp_path / "JPEGImages" / "a.jpg")
    write_xml(tmp_path, "a", objects=[("猫", 10, 10, 30, 30), ("狗", 0, 0, 9, 9)])
    (tmp_path / "classes.txt").write_bytes("猫\n狗\n".encode("gbk"))
    assert found(tmp_path)[0].names == ["猫", "狗"]


# Values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [("wide", 48), ("inf", 48), ("nan", "nan"), (0, 0), (-64, 48), ("1e999", 48)]
)
def test_a_size_that_is_no_number_is_taken_from_the_image(tmp_path, size):
    image(tmp_path / "JPEGImages" / "a.jpg", 100, 50)
    voc_xml(tmp_path, "a", size, [("cat", 0, 0, 50, 50)])
    reading, _ = found(tmp_path)
    assert reading.splits["train"][0].boxes.tolist() == [[0.25, 0.5, 0.5, 1]]
    assert reading.account.counts == {"no size": 1}


def test_a_bad_object_is_dropped_and_counted_beside_good_ones(tmp_path):
    image(tmp_path / "JPEGImages" / "a.jpg")
    bad = [("cat", "12,5", 0, 9, 9), ("cat", 0, "", 9, 9), ("cat", 0, 0, "inf", 9), ("", 0, 0, 9, 9)]
    write_xml(tmp_path, "a", objects=[*bad, *[("cat", i, i, 30, 30) for i in range(3)]])
    reading, boxes = found(tmp_path)
    assert boxes == {"train": {"JPEGImages/a.jpg": 3}}
    assert reading.account.counts == {"unreadable": 3, "unknown class": 1}
    assert "Annotations/a.xml (cat: xmin '12,5')" in reading.account.lines()[0]


# Which image an XML is of ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xml", "filename", "pictures", "meant"),
    [
        ("label_7", "a.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("person0", "person0.front-1.jpg", ["person0.front-1.jpg", "b.jpg"], "person0.front-1.jpg"),
        ("a", "a.png", ["a.png", "a.jpg"], "a.png"),
        ("a", "b.jpg", ["a.jpg", "b.jpg"], "b.jpg"),
        ("a", "gone.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("a", "%s", ["a.jpg", "b.jpg"], "a.jpg"),
        ("a", "", ["a.jpg", "b.jpg"], "a.jpg"),
        ("x", "a", ["a.jpg", "b.jpg"], "a.jpg"),  # without suffix
        ("x", "a.png", ["a.jpg", "b.jpg"], "a.jpg"),  # encoded anew
        ("x", "A.JPG", ["a.jpg", "b.jpg"], "a.jpg"),
        ("x", "C:\\pictures\\a.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("x", "/home/me/a.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("x", "Ka\u0308fer.jpg", ["K\u00e4fer.jpg", "b.jpg"], "K\u00e4fer.jpg"),  # as a Mac writes it
        ("a.jpg", "gone.jpg", ["a.jpg", "a.png"], "a.jpg"),  # a.jpg.xml
        ("my img 1", "img1.jpg", ["my img 1.jpg", "my img 2.jpg"], "my img 1.jpg"),
        ("s1/f0", "f0.jpg", ["s1/f0.jpg", "s2/f0.jpg"], "s1/f0.jpg"),
        ("s1/f0", "s1/f0.jpg", ["s1/f0.jpg", "s2/f0.jpg"], "s1/f0.jpg"),
        ("xmls/f0", "f0.jpg", ["f0.jpg", "b.jpg"], "f0.jpg"),
        ("f0", "gone", ["s1/f0.jpg", "b.jpg"], "s1/f0.jpg"),
        ("s1/f0", "f0.jpg", ["f0.jpg", "s2/f0.jpg"], "f0.jpg"),
        ("f0", "f0.jpg", ["f0.jpg", "s2/f0.jpg"], "f0.jpg"),
    ],
)
def test_the_image_of_an_xml(tmp_path, xml, filename, pictures, meant):
    for picture in pictures:
        image(tmp_path / "JPEGImages" / picture)
    file = write_xml(tmp_path, Path(xml).name, folder=str(Path("Annotations", xml).parent))
    text = file.read_text().replace(
        f"<filename>{Path(xml).name}.jpg</filename>", f"<filename>{filename}</filename>"
    )
    file.write_text(text)
    reading, boxes = found(tmp_path)
    assert boxes == {"train": {f"JPEGImages/{meant}": 1}}
    assert reading.account.counts == {"unlabelled": 1} | (
        {"named otherwise": 1} if filename == "b.jpg" else {}
    )


@pytest.mark.parametrize(
    ("xml", "filename", "pictures"),
    [
        ("f0", "f0.jpg", ["s1/f0.jpg", "s2/f0.jpg"]),  # whose?
        ("a", "", ["a.jpg", "a.png"]),
        ("x", "a", ["a.jpg", "a.png"]),
        ("s3/f0", "f0.jpg", ["s1/f0.jpg", "good/b.jpg"]),  # its own folder is not here
        ("x", "s3/f0.jpg", ["s1/f0.jpg", "good/b.jpg"]),
    ],
)
def test_an_xml_whose_image_cannot_be_told_gets_none(tmp_path, xml, filename, pictures):
    for picture in [*pictures, "ok/o.jpg"]:
        image(tmp_path / "JPEGImages" / picture)
    file = write_xml(tmp_path, Path(xml).name, folder=str(Path("Annotations", xml).parent))
    file.write_text(file.read_text().replace(f"<filename>{Path(xml).name}.jpg", f"<filename>{filename}"))
    write_xml(tmp_path, "o", folder="Annotations/ok")
    reading, boxes = found(tmp_path)
    assert boxes == {"train": {"JPEGImages/ok/o.jpg": 1}}
    why = "missing image" if "s3" in xml + filename else "ambiguous"
    assert reading.account.counts == {why: 1, "unlabelled": 2}


def test_copies_of_an_xml_that_name_one_image_go_by_their_own_names(tmp_path):
    for stem in "abcd":
        image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        file = write_xml(tmp_path, stem)
        file.write_text(file.read_text().replace(f"{stem}.jpg", "a.jpg"))
    assert found(tmp_path)[1] == {"train": {f"JPEGImages/{stem}.jpg": 1 for stem in "abcd"}}
    for stem in ("x", "y"):  # and these have no image of their own, so that nobody knows what is in e.jpg
        file = write_xml(tmp_path, stem)
        file.write_text(file.read_text().replace(f"{stem}.jpg", "e.jpg"))
    image(tmp_path / "JPEGImages" / "e.jpg")
    lists(tmp_path, train="a\nb\nc\nd\ne\n")
    reading, boxes = found(tmp_path)
    assert sorted(boxes["train"]) == [f"JPEGImages/{stem}.jpg" for stem in "abcd"]
    assert reading.account.counts == {"unread": 2, "ambiguous": 1}


# Lists and folders ----------------------------------------------------------------------------------------


def make_set(root: Path, names: list[str], pictures: str = "JPEGImages", xmls: str = "Annotations") -> None:
    """A picture and an XML for each name, which may have folders."""
    for number, name in enumerate(names):
        image(root / pictures / f"{name}.jpg", shade=number)
        write_xml(root, Path(name).name, folder=str(Path(xmls, name).parent))


@pytest.mark.parametrize(
    ("texts", "place"),
    [
        ({"train": "a\nb\n", "val": "c\n"}, "ImageSets/Main"),
        ({"Train": "a\nb\n", "Validation": "c\n"}, "ImageSets/Main"),
        ({"TRAINING": "a\nb\n", "valid": "c\n"}, "ImageSets/Main"),
        ({"train2024": "a\nb\n", "val2024": "c\n"}, "ImageSets/Main"),
        ({"trainval": "a\nb\n", "val": "c\n"}, "ImageSets"),
        ({"train": "a\nb\n", "val": "c\n", "cat_val": "c  1\na -1\n"}, "ImageSets/Main"),
        ({"cat_train": "a  1\nb -1\n", "dog_train": "a -1\nb  0\n", "cat_val": "c  1\n"}, "ImageSets/Main"),
        ({"train": "a.jpg\nb.jpg\n", "val": "c.jpg\n"}, "ImageSets/Segmentation"),
        (
            {"train": "JPEGImages/a.jpg\n./JPEGImages/b.jpg\n", "val": "/home/x/JPEGImages/c.jpg\n"},
            "ImageSets",
        ),
        ({"train": "images/a.jpg xml/a.xml\nimages/b.jpg xml/b.xml\n", "val": "c.xml\n"}, "ImageSets/Main"),
        ({"trainval": "a 1 1 1\nb 2 1 1\n", "val": "c 37 2 25\n", "list": "#Image CLASS\n"}, "Annotations"),
        ({"train": "\ufeffa\r\nb\r\n\r\n", "val": " c "}, "ImageSets/Main"),
        ({"train": "", "trainval": "a\nb\n", "val": "c\n", "test": ""}, "ImageSets/Main"),
        ({"default": "a\nb\n", "val": "c\n"}, "ImageSets/Main"),
        ({"val": "c\n"}, "ImageSets/Main"),  # the rest is train
    ],
)
def test_lists_of_names(tmp_path, texts, place):
    make_set(tmp_path, ["a", "b", "c"])
    if place == "Annotations":
        (tmp_path / "Annotations").rename(tmp_path / "annotations")
        place = "annotations"
    lists(tmp_path, place, **texts)
    reading, boxes = found(tmp_path)
    assert boxes == {"train": {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 1}, "val": {"JPEGImages/c.jpg": 1}}
    assert reading.account.counts == {}


def test_names_with_blanks_in_lists(tmp_path):
    make_set(tmp_path, ["my img 0", "my img 1", "my img 2", "img3", "img 4", "img"])
    lists(tmp_path, train="my img 0\nmy img 1.jpg\nmy img 2  1\nimg3 -1\nimg 4\nimg  1\n")
    reading, boxes = found(tmp_path)
    assert len(boxes["train"]) == 6 and reading.account.counts == {}


def test_what_lists_leave_out_is_named(tmp_path):
    make_set(tmp_path, ["a", "b", "c", "d"])
    image(tmp_path / "JPEGImages" / "empty.jpg")
    lists(tmp_path, train="a\nb\na\nempty\ngone\n", val="c\n", minority="d\n")
    reading, boxes = found(tmp_path)
    assert boxes["train"] == {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 1, "JPEGImages/empty.jpg": 0}
    assert reading.account.places == {
        "unread": {"ImageSets/Main/minority.txt": 1, "Annotations/d.xml": 1},
        "missing image": {"gone": 1},
        "listed twice": {"Annotations/a.xml": 1},
        "no annotation": {"JPEGImages/empty.jpg": 1},
    }


def test_a_list_of_images_finds_the_xml_that_names_them(tmp_path):
    for stem, picture in (("label_0", "a"), ("label_1", "b")):
        image(tmp_path / "JPEGImages" / f"{picture}.jpg")
        file = write_xml(tmp_path, stem)
        file.write_text(file.read_text().replace(f"{stem}.jpg", f"{picture}.jpg"))
    lists(tmp_path, train="a\n", val="b\n")
    assert found(tmp_path)[1] == {"train": {"JPEGImages/a.jpg": 1}, "val": {"JPEGImages/b.jpg": 1}}


@pytest.mark.parametrize(
    ("pictures", "xmls"),
    [
        ("JPEGImages", "Annotations"),
        ("images", "annotations/xmls"),
        ("Images", "Annotation"),
        ("images", "xml"),
        ("photos", "labels"),
        (".", "."),
        (".", "Annotations"),
    ],
)
def test_folders_within_folders_and_their_lists(tmp_path, pictures, xmls):
    make_set(tmp_path, [f"site{s}/frame_{n}" for s in "AB" for n in range(2)], pictures, xmls)
    (tmp_path / xmls / ".ipynb_checkpoints").mkdir()
    (tmp_path / xmls / ".ipynb_checkpoints" / "frame_0.xml").write_text("<annotation/>")
    reading, boxes = found(tmp_path)
    assert sorted(boxes["train"].values()) == [1] * 4 and reading.account.counts == {}
    lists(tmp_path, train="siteA/frame_0\nsiteA/frame_1\n", val="siteB/frame_0\nframe_1\n")
    reading, boxes = found(tmp_path)
    assert [len(boxes[s]) for s in ("train", "val")] == [2, 1]
    assert {split: {"siteA" in name for name in names} for split, names in boxes.items()} == {
        "train": {True}, "val": {False},
    }  # fmt: skip
    assert reading.account.places["ambiguous"] == {"frame_1": 1}


@pytest.mark.parametrize(
    ("pictures", "xmls"),
    [
        ("{}", "{}"),
        ("images/{}", "annotations/{}"),
        ("{}/images", "{}/annotations"),
        ("{}/JPEGImages", "{}/Annotations"),
        ("JPEGImages/{}", "Annotations/{}"),
    ],
)
@pytest.mark.parametrize("words", [("train", "valid", "test"), ("Train", "Validation", "Test")])
def test_a_folder_for_each_split(tmp_path, pictures, xmls, words):
    for word in words:  # the same names in each
        make_set(tmp_path, ["a", "b"], pictures.format(word), xmls.format(word))
    reading, boxes = found(tmp_path)
    assert {split: list(names) for split, names in boxes.items()} == {
        split: [f"{pictures.format(word)}/{stem}.jpg" for stem in "ab"]
        for split, word in zip(("train", "val", "test"), words, strict=True)
    }
    assert reading.account.counts == {}


def test_a_kit_of_years_is_read_as_one(tmp_path):
    for year, names in (("VOC2007", ["a", "b"]), ("VOC2012", ["a", "d"])):
        make_set(tmp_path / "VOCdevkit" / year, names)
        lists(tmp_path / "VOCdevkit" / year, train=names[0], val=names[1])
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        reading, boxes = found(root)
        assert {k: len(v) for k, v in boxes.items()} == {"train": 2, "val": 2}
        assert reading.account.counts == {}


def test_a_linked_folder_of_images_and_xmls(tmp_path):
    make_set(tmp_path / "real", ["more/a", "more/b"])
    make_set(tmp_path / "set", ["c"])
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / "set" / part / "more").symlink_to(tmp_path / "real" / part / "more")
    reading, boxes = found(tmp_path / "set")
    assert reading.account.counts == {"outside folder": 2}
    assert boxes == {"train": {f"JPEGImages/{n}.jpg": 1 for n in ("c", "more/a", "more/b")}}


def test_what_a_linked_list_holds_is_not_shown(tmp_path):
    make_set(tmp_path / "set", ["a", "b"])
    (tmp_path / "secret.txt").write_text("a\nmy password\n")
    lists(tmp_path / "set", val="b\n")
    (tmp_path / "set" / "ImageSets" / "Main" / "train.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "set" / "classes.txt").symlink_to(tmp_path / "secret.txt")
    reading, boxes = found(tmp_path / "set")
    assert boxes["train"] == {"JPEGImages/a.jpg": 1} and reading.names == ["cat"]
    assert reading.account.places == {"missing image": {"ImageSets/Main/train.txt line 2": 1}}
    assert not any("password" in line for line in reading.account.lines())
    assert "classes.txt is a link that leads out of the folder, and not read" in reading.account.notices


def test_a_long_line_is_cut_where_it_is_shown(tmp_path):
    make_set(tmp_path, ["a", "b"])
    lists(tmp_path, train=f"a\n{'x' * 50_000}\n", val="b\n")
    place = next(iter(found(tmp_path)[0].account.places["missing image"]))
    assert len(place) < 400 and place.startswith("xxx") and "..." in place
