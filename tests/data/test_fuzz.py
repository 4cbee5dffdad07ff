"""Every reader on data sets that are broken at random: a data set comes out, or the one line of a UserError.

A small valid data set of each format is a dict of files. Hypothesis breaks some of it, in bytes, values or
names; then it is opened, shown and exported, and nothing outside the export's folder may have changed.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.dataset import open_dataset
from data.yolo_export import export_yolo
from tests.data.make import coco_json, image, voc_xml, yolo_set
from utils.errors import UserError

Files = dict[str, bytes]

# What programs trip over, as values of a JSON or YAML and as texts in a label, an XML or a name.
VALUES = [
    None, True, 0, -1, 0.5, 1e999, float("nan"), 10**400, -(10**30), 2**63, "", " ", "1", "nan", "1e999",
    "a\0b", "a\nb", "\ud800", "\u202eabc", "x" * 5000, "/", ".", "..", "../..", "/etc/passwd", "~nobody",
    "~", "C:\\a", "<", "&", "[]", [], {}, [[]], [None], {"a": 1}, {"0": "cat"}, {1: "a", "1": "b"}, [1, "1"],
    list(range(4)),
]  # fmt: skip
TEXTS = [
    b"", b" ", b"\0", b"\n", b"\r", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"nan", b"inf", b"-", b"1e999",
    b"9" * 500, b"0" * 5000, b"../", b"/", b"\\", b"'", b'"', b"<", b">", b"&lt;", b"&x;",
    b"<!ENTITY x 'y'>", b"[", b"[" * 20000, b"{", b"}", b":", b"- ", b"*a", b"&a ",
    b"!!python/object:os.system ", b"!!binary x", b"<<: ", b"? ", b"%", b'encoding="utf-7"',
    b'encoding="punycode"', b"\xc3\xa4", b"\xd0\xcf", b"train", b"val", b"1", b",", b"#",
]  # fmt: skip
NAMES = [
    "a.jpg", "A.JPG", "data.yaml", "train", "x.xml", "x.json", ".hidden.jpg", "a b.jpg", "a\nb.jpg", "ä.jpg",
    "a\udcff.jpg", "images", "labels", "classes.txt", "labelmap.txt", "train.txt", "x" * 250, "images/train",
    "images.jpg", "-1", "\\.jpg", "ImageSets/Main/val.txt", "annotations/instances_val.json",
    "val/cat/a.jpg", "labels/train/t0.txt", "obj.names",
]  # fmt: skip


LINKS = [
    ".",
    "..",
    "x",
    "linked",
    "data.yaml",
    "../outside",
    "../outside/a.jpg",
    "nowhere",
]


def files_of(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def yolo(root: Path) -> Path:
    folder = yolo_set(
        root, {"t0": "0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.2 0.2\n", "t1": "1 0.2 0.2 0.6 0.2 0.4 0.8\n"}
    )
    (folder / "val.txt").write_text("images/val/v0.jpg\n./images/val/v1.jpg\n")
    card = {"path": ".", "train": ["images/train"], "val": "val.txt", "nc": 2, "names": {0: "cat", 1: "dog"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(card))
    return folder


def voc(root: Path, subfolder: str = "") -> Path:
    for i, stem in enumerate("abcdef"):
        image(root / "JPEGImages" / subfolder / f"{stem}.jpg", 16, 12, shade=i)
        objects = [("cat", 1, 1, 9, 9), ("dog", 2, 2, 8, 8, i % 2)]
        voc_xml(root, stem, (16, 12), objects, folder=f"Annotations/{subfolder}")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb 1\nc.jpg\nd\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("e\nf\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def coco(root: Path) -> Path:
    for split, ids in (("train", (1, 2, 3, 4)), ("val", (5, 6))):
        for i in ids:
            image(root / "images" / split / f"{i}.jpg", 16, 12, shade=i)
        rows = [(i, f"{i}.jpg", 16, 12) for i in ids]
        boxes = [(i, 1 + i % 2, [1, 1, 8, 8]) for i in ids]
        coco_json(root / "annotations" / f"instances_{split}.json", rows, boxes, {1: "cat", 2: "dog"})
    return root


def image_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for cls in ("cat", "dog"):
            for i in range(2):
                image(root / split / cls / f"{i}.jpg", 16, 12, shade=i + 7 * len(split + cls))
    return root


def card(root: Path, text: str, make: Callable[[Path], Path]) -> Path:
    root.mkdir(parents=True)
    make(root)
    (root / "data.yaml").write_text(text)
    return root


FORMATS: dict[str, Callable[[Path], Path]] = {
    "yolo": yolo,
    "voc": voc,
    "voc folders": lambda root: voc(root, "train"),
    "coco": coco,
    "image folder": image_folder,
    "voc card": lambda root: card(
        root, "format: voc\ntrain: [./train]\nval: ./val\nnames: [cat, dog]\n", voc
    ),
    "coco card": lambda root: card(
        root,
        "format: coco\ntrain: annotations/instances_train.json\nval: annotations/instances_val.json\n",
        coco,
    ),
}


# Breaking -------------------------------------------------------------------------------------------------


def break_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """Some bytes cut out and something else put there; or the rest cut off."""
    start = draw(st.integers(0, len(content)))
    if draw(st.booleans()):
        tokens = [m.span() for m in re.finditer(rb"[^\s<>,:\[\]{}\"]+", content[:20_000])]
        start, end = draw(st.sampled_from(tokens)) if tokens else (0, 0)
    else:
        end = start + draw(st.sampled_from([0, 0, 1, 7, len(content)]))
    return content[:start] + draw(st.sampled_from(TEXTS)) + content[end:]


def break_value(draw: Callable[..., Any], value: Any) -> Any:
    """The same lists and dicts with one of them, or something inside, replaced, left out or doubled."""
    if not isinstance(value, list | dict) or not value or not draw(st.integers(0, 4)):
        return draw(st.sampled_from(VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    way = draw(st.sampled_from(["inside", "inside", "inside", "gone", "more"]))
    out: Any = dict(value) if isinstance(value, dict) else list(value)
    if way == "inside":
        out[key] = break_value(draw, value[key])
    elif way == "gone":
        del out[key]
    elif isinstance(out, dict):
        out[draw(st.sampled_from([k for k in VALUES if not isinstance(k, list | dict)]))] = value[key]
    else:
        out.append(break_value(draw, value[key]))
    return out


def break_structure(draw: Callable[..., Any], name: str, content: bytes) -> bytes:
    """A JSON or YAML with another value in it; everything else with other bytes."""
    try:
        if name.endswith(".json"):
            return json.dumps(break_value(draw, json.loads(content))).encode()
        if name.endswith(".yaml"):
            return yaml.dump(break_value(draw, yaml.safe_load(content))).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, yaml.YAMLError, RecursionError):
        pass  # it is broken already
    return break_bytes(draw, content)


@dataclass
class Broken:
    """A data set after some faults: its files, and links (name -> target). It prints what was changed."""

    files: Files
    links: dict[str, str]
    whole: Files

    def __repr__(self) -> str:
        changed = {n: c[:300] for n, c in self.files.items() if self.whole.get(n) != c}
        return f"Broken(changed={changed}, gone={sorted(self.whole.keys() - self.files)}, links={self.links})"


@st.composite
def broken(draw: Callable[..., Any], whole: Files) -> Broken:
    """A data set after one to four faults."""
    files, links = dict(whole), dict[str, str]()
    for _ in range(draw(st.integers(1, 4))):
        texts = [n for n in files if not n.endswith((".jpg", "LICENSE"))]
        name = draw(st.sampled_from(sorted(draw(st.sampled_from([texts or list(files), list(files)])))))
        way = draw(
            st.sampled_from(["structure"] * 4 + ["bytes"] * 4 + ["name", "copy", "gone", "link", "swap"])
        )
        if way == "structure":
            files[name] = break_structure(draw, name, files[name])
        elif way == "bytes":
            files[name] = break_bytes(draw, files[name])
        elif way in ("name", "copy"):
            new = draw(st.sampled_from(NAMES))
            new = os.path.join(os.path.dirname(name), new) if draw(st.booleans()) else new
            files[new] = files.pop(name) if way == "name" else files[name]
        elif way == "link":
            del files[name]
            place = name if draw(st.booleans()) else os.path.dirname(name) + "/linked"
            links[place] = draw(st.sampled_from(LINKS))
        elif way == "swap":
            other = draw(st.sampled_from(sorted(files)))
            files[name], files[other] = files[other], files[name]
        else:
            del files[name]
        if not files:
            break
    return Broken(files, links, whole)


def lay_out(data: Broken, root: Path) -> None:
    """Write what can be written; what a file name cannot be, or lies in another file, is left out."""
    root.mkdir(parents=True)
    for name, content in data.files.items():
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        except OSError:
            continue
    for name, target in data.links.items():
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(target, root / name)
        except OSError:
            continue


def tree(root: Path) -> dict[str, Any]:
    """All that is in a folder, links not followed: path -> bytes, target of a link, or None for a folder."""
    found: dict[str, Any] = {}
    for place, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            else:
                found[path] = None if os.path.isdir(path) else Path(path).read_bytes()
    return found


def check(broken: Broken, task: str, by_card: bool) -> None:
    """Open, show and export a broken data set, given as its folder or as the YAML in it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = root / "deep" / "source"
        image(root / "deep" / "outside" / "a.jpg", 8, 8)
        lay_out(broken, source)
        before = tree(root / "deep")
        card = source / "data.yaml"
        try:
            data = open_dataset(card if by_card and card.is_file() else source, root / "cache", task=task)
            lines = data.summary().split("\n")
            assert all(line.isprintable() for line in lines)
            for samples in data.splits.values():
                for sample in samples:
                    assert np.isfinite(sample.boxes).all() and (sample.boxes[:, 2:] > 0).all()
                    assert ((sample.cls >= 0) & (sample.cls < data.nc)).all()
            if task == "detect":
                written = export_yolo(data, root / "out")
                again = open_dataset(written, root / "cache")
                assert sum(len(s.cls) for s in again.splits["train"]) == sum(
                    len(s.cls) for s in data.splits["train"]
                )
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 20_000
        assert tree(root / "deep") == before
        assert {p.name for p in root.iterdir()} <= {"deep", "cache", "out"}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """The unbroken files of each format."""
    found = {}
    for name, make in FORMATS.items():
        found[name] = files_of(make(tmp_path_factory.mktemp(name.replace(" ", "_")) / "s"))
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_the_unbroken_data_sets_are_fine(valid, form, tmp_path):
    lay_out(Broken(valid[form], {}, {}), tmp_path / "s")
    task = "classify" if form == "image folder" else "detect"
    data = open_dataset(tmp_path / "s", tmp_path / "cache", task=task)
    assert {"train", "val"} <= data.splits.keys() and data.nc >= 2


def fuzz(valid: dict[str, Files], form: str, **how: Any) -> None:
    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **how)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        tasks = ["classify"] * 3 + ["detect"] if form == "image folder" else ["detect"] * 4 + ["classify"]
        check(
            data.draw(broken(valid[form])),
            data.draw(st.sampled_from(tasks)),
            data.draw(st.booleans()),
        )

    run()


@pytest.mark.parametrize("form", FORMATS)
def test_broken_data_sets(valid, form):
    fuzz(valid, form, max_examples=25, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", FORMATS)
def test_many_broken_data_sets(valid, form):
    fuzz(valid, form, max_examples=1000)
