"""Pascal VOC: one XML per image in Annotations/, images in JPEGImages/, lists of names in ImageSets/Main/.

(M. Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010.) Also what tools make of it: XML
files beside the images or one folder deeper, folders within folders, a folder for each split, a split in each
folder, and XML files that are named otherwise than their images.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.account import Account
from data.boxes import from_pixels, judge_boxes
from data.card import check_splits, how_to_get, licence_of, root_of
from data.images import Probe, count_outside, is_hidden, leads_out, list_images, probe, walk
from data.names import Index
from data.progress import progress
from data.sample import Reading, Sample, fail_if_most_is_bad
from data.text import SPLIT_WORDS, read_lines, read_text, split_of
from data.voc_xml import Page, read_xml
from utils.errors import UserError

ANNOTATIONS = ("annotations", "annotation", "xmls", "xml", "labels", "label")
IMAGES = ("jpegimages", "images", "image", "imgs", "img", "pictures")
LISTS = ("ImageSets/Main", "ImageSets", "ImageSets/Layout", "ImageSets/Segmentation", "annotations")
CLASSES = ("classes.txt", "labelmap.txt", "labels.txt")


@dataclass
class Folder:
    """One tree of annotations and images: what is in it, what was read of it, which belongs to which.

    broken: why an XML could not be read.
    image_of: the image of each XML read so far; absent where none is found, or none that is surely meant
    (the `unsure`). contested: the images that several XML files claim.
    """

    root: Path
    xmls: Index
    images: Index
    pages: dict[Path, Page] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)
    image_of: dict[Path, Path] = field(default_factory=dict)
    unsure: set[Path] = field(default_factory=set)
    contested: set[Path] = field(default_factory=set)

    def read(self, files: list[Path]) -> None:
        """Read XML files that were not read yet; those that cannot be are kept apart with the reason."""
        for file in progress(
            [f for f in files if f not in self.pages and f not in self.broken], "reading XML"
        ):
            try:
                self.pages[file] = read_xml(file)
            except UserError as e:
                self.broken[file] = str(e)

    def match(self, account: Account) -> None:
        """Find the image of each page: the one that <filename> names, else the one of the XML's own name.

        Where several pages name one image, as copies of a file do, it belongs to the one of its own name and
        the others go by theirs. What is still claimed by several belongs to none of them.
        """
        named, own = {}, {}
        for file in (*self.pages, *self.broken):
            told, mine = self._candidates(file)
            if len(told) == 1:
                named[file] = told[0]
            if len(mine) == 1:
                own[file] = mine[0]
            if max(len(told), len(mine)) > 1:
                self.unsure.add(file)
        claims = Counter(named.values())
        taken = {f: i for f, i in named.items() if claims[i] == 1 or own.get(f) in (None, i)}
        taken |= {f: i for f, i in own.items() if f not in taken}
        claims = Counter(taken.values())
        self.contested = {image for image, n in claims.items() if n > 1}
        self.image_of = {f: i for f, i in taken.items() if i not in self.contested}
        self.unsure = (self.unsure | set(taken)) - set(self.image_of)
        for file, image in self.image_of.items():
            if own.get(file, image) != image:
                account.note("named otherwise", self.shown(file))

    def _candidates(self, file: Path) -> tuple[list[Path], list[Path]]:
        """The images that an XML's <filename> may mean, and those that its own name may."""
        inner, page = self.xmls.inner[file], self.pages.get(file)
        told = self.images.find(page.filename, inner) if page else []
        if page and len(told) > 1 and page.folder:
            told = self.images.find(f"{page.folder}/{page.filename}", inner)
        own = self.images.find(str(inner.with_suffix("")), inner)
        return told, own or self.images.find(inner.stem, inner)

    def shown(self, file: Path) -> str:
        """How a file is called in messages."""
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else str(file)


@dataclass
class Part:
    """What one split has in one folder: XML files, images without one, lines that name neither or several."""

    folder: Folder
    xmls: list[Path] = field(default_factory=list)
    alone: list[Path] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    vague: list[str] = field(default_factory=list)


def looks_like(folder: Path) -> bool:
    """Whether a folder holds VOC annotations."""
    return any(_annotations(home) for home in _homes(folder))


def read_folder(folder: Path) -> Reading:
    """Read a VOC folder. Its splits are those of ImageSets/Main, or its subfolders, or there is only 'train'.

    Classes are those of classes.txt (or CVAT's labelmap.txt) if there is one, else all that occur, by name.
    A folder of such folders, as VOCdevkit is of years, is read as one. XML files that cannot be read are left
    out and counted; UserError where that is most of them. Objects marked difficult are dropped, as by
    Ultralytics.
    """
    account, parts, watch = Account(), defaultdict[str, list[Part]](list), list[Path]()
    unlisted = []
    for home in _homes(folder):
        one, lists = _open(home, account), _lists(home, account)
        mine = {split: _listed(one, files) for split, files in lists.items()} or _by_subfolder(one)
        rest = set(one.xmls.inner) - {file for part in mine.values() for file in part.xmls}
        if "train" not in mine:
            told = " or ".join(mine)
            account.say(f"no list for train: all that is not listed for {told} is taken for it")
            mine["train"], rest = Part(one, sorted(rest)), set()
        for file in sorted(rest):
            account.note("unread", one.shown(file))
        for split, part in mine.items():
            parts[split].append(part)
        watch += [file.parent for files in lists.values() for file in files]
        unlisted += [] if lists else [one]
    classes = next((folder / name for name in CLASSES if (folder / name).is_file()), None)
    watch += [classes] if classes else []
    if classes and leads_out(classes, folder):
        account.say(f"{classes.name} is a link that leads out of the folder, and not read")
        classes = None
    reading = _read(parts, classes, folder, folder.name, licence_of({}, folder), watch, account)
    for one in unlisted:
        for image in sorted(set(one.images.inner) - {*one.image_of.values(), *one.contested}):
            account.note("unlabelled", one.shown(image))
    return reading


def read_card(card: dict[str, Any], path: Path) -> Reading:
    """Read a card with `format: voc`, whose splits are lists like [VOC2012/trainval, VOC2007/trainval]."""
    check_splits(card, path)
    root, account = root_of(card, path), Account()
    folders: dict[Path, Folder] = {}
    parts: dict[str, list[Part]] = defaultdict(list)
    watch = [path]
    for split in ("train", "search_train", "search_val", "val", "test"):
        declared = card.get(split) or []
        for item in declared if isinstance(declared, list) else [declared]:
            inner, _, name = str(item).rpartition("/")
            folder = root / inner
            file = folder / "ImageSets" / "Main" / f"{name}.txt"
            if not os.path.isfile(file):
                raise UserError(f"data {path}: {split}: {file} does not exist{how_to_get(card, folder)}")
            if folder not in folders:
                folders[folder] = _open(folder, account)
            parts[split].append(_listed(folders[folder], [file]))
            watch.append(file.parent)
    name, licence = str(card.get("name") or path.stem), licence_of(card, root)
    return _read(parts, card["names"], root, name, licence, watch, account)


# Which files there are ------------------------------------------------------------------------------------


def _homes(folder: Path) -> list[Path]:
    """The folders that have Annotations and ImageSets of their own: this one, or those in it, a year each."""
    within = [p for sub in _subfolders(folder) for p in (sub, *_subfolders(sub))]
    homes = [p for p in within if _subfolders(p, ANNOTATIONS) and (p / "ImageSets").is_dir()]
    return [folder] if _subfolders(folder, ANNOTATIONS) or not homes else homes


def _annotations(folder: Path) -> Path | None:
    """The folder that all annotation files of `folder` are in, at any depth, or None where there are none."""
    for place in _subfolders(folder, ANNOTATIONS):
        if _files(place, ".xml"):
            return place
    inner = [p for sub in _subfolders(folder) for p in (sub, *_subfolders(sub, ANNOTATIONS))]
    for place in (folder, *inner):
        first = next((f for f in place.glob("*.xml") if not is_hidden(f.name) and f.is_file()), None)
        if first:
            with first.open("rb") as file:
                if b"<annotation" in file.read(4000).replace(b"\0", b""):
                    return folder
    return None


def _subfolders(folder: Path, called: tuple[str, ...] | None = None) -> list[Path]:
    """The folders in a folder, by name; or those `called` so, in that order."""
    try:
        with os.scandir(folder) as entries:  # asks no file what it is: a folder of a million images is quick
            found = sorted(
                Path(e.path)
                for e in entries
                if not is_hidden(e.name) and (os.path.isdir(e.path) if e.is_symlink() else e.is_dir())
            )
    except OSError:  # no folder, or none that can be opened
        return []
    if called is None:
        return found
    return sorted((p for p in found if p.name.lower() in called), key=lambda p: called.index(p.name.lower()))


def _files(folder: Path, suffix: str) -> list[Path]:
    """The files of a kind in a folder, at any depth, sorted."""
    if not folder.is_dir():
        return []
    found = (Path(entry.path) for entry, kind in walk(folder) if kind == "file")
    return sorted(p for p in found if p.suffix.lower() == suffix and p.is_file())


def _open(folder: Path, account: Account) -> Folder:
    """The tree of a data set; its images are those of JPEGImages or the like, else all there are."""
    annotations = _annotations(folder) or folder
    images = next((p for p in _subfolders(folder, IMAGES) if list_images(p)), folder)
    found = list_images(images, account, folder)
    return Folder(folder, Index(annotations, _files(annotations, ".xml")), Index(images, found))


# Which of them make a split -------------------------------------------------------------------------------


def _lists(folder: Path, account: Account) -> dict[str, list[Path]]:
    """split -> its lists: train.txt, trainval.txt, Validation.txt, or all those like cat_train.txt."""
    unread: dict[Path, None] = {}
    lists: dict[str, list[Path]] = {}
    for place in LISTS:
        whole, per_class = defaultdict(list), defaultdict(list)
        for file in _files(folder / place, ".txt"):
            word, last = _word(file.stem), _word(file.stem.rpartition("_")[2])
            if not read_lines(file):
                account.say(f"{file.relative_to(folder)} is empty and left out")
            elif word:
                whole[word].append(file)
            elif last:
                per_class[last].append(file)
            elif place != "annotations":
                unread[file] = None
        lists = whole or per_class
        if lists:
            break
    for file in unread:
        account.note("unread", file.relative_to(folder))
    if "train" not in lists and "trainval" in lists:
        lists["train"] = lists["trainval"]
    return {split: lists[split] for split in SPLIT_WORDS if split in lists}


def _word(name: str) -> str | None:
    """The split that a list is called after; CVAT calls the list of what has none `default`."""
    known = {word: split for split, words in SPLIT_WORDS.items() for word in words}
    known |= {"trainval": "trainval", "default": "train"}
    return known.get(re.sub(r"[\W\d_]+", "", name.lower()))


def _listed(folder: Folder, files: list[Path]) -> Part:
    """What the lines of some lists name; lists for one class each repeat each other.

    What a list holds that a link leads to elsewhere is nobody's business: its lines are named by number.
    """

    def known(text: str) -> int:
        return sum(len(_named(folder, line)) == 1 for line in map(str.strip, text.splitlines()) if line)

    part, seen = Part(folder), set[str | Path]()
    for file in files:
        foreign = leads_out(file, folder.root)
        for number, line in enumerate(read_lines(file, known), 1):
            found = _named(folder, line)
            if len(files) > 1 and (line in seen or any(one in seen for one in found)):
                continue
            seen.update([line, *found])
            shown = f"{folder.shown(file)} line {number}" if foreign else line
            if len(found) == 1:
                (part.xmls if found[0] in folder.xmls.inner else part.alone).append(found[0])
            else:
                (part.vague if found else part.lost).append(shown)
    return part


def _named(folder: Folder, line: str) -> list[Path]:
    """The XML that a line of a list names, else the image, else nothing; several where that is not clear.

    A line is a name, with or without folders and suffix; or a name and numbers (-1, 0 or 1: whether the class
    of the list is in the image; a class and a breed); or an image and its XML.
    """
    pair = re.match(r".+\.\w+\s+(\S.*\.xml)$", line, re.IGNORECASE)
    texts = [line]
    for _ in range(4):
        name, *number = texts[-1].rsplit(None, 1)
        if number and re.fullmatch(r"-?\d{1,9}", number[0]):
            texts.append(name)
    for text in (*texts, pair[1] if pair else ""):
        for index in (folder.xmls, folder.images):
            if found := index.find(text):
                return found
    return []


def _by_subfolder(home: Folder) -> dict[str, Part]:
    """A split for each folder called train, valid or test; all is train where there are no such folders."""
    found = defaultdict(list)
    for file, inner in home.xmls.inner.items():
        found[next(filter(None, map(split_of, inner.parts[:-1])), "")].append(file)
    if "train" not in found or set(found) == {"train", ""}:  # a folder `train` alone may hold trains
        return {"train": Part(home, sorted(home.xmls.inner))}
    return {split: Part(home, sorted(found[split])) for split in SPLIT_WORDS if split in found}


# What they say --------------------------------------------------------------------------------------------


def _read(
    parts: dict[str, list[Part]],
    classes: Path | list[str] | None,
    root: Path,
    name: str,
    licence: str,
    watch: list[Path],
    account: Account,
) -> Reading:
    folders = {id(p.folder): p.folder for some in parts.values() for p in some}.values()
    for folder in folders:  # of every split, before any sample: the class list must be known first
        mine = [p for some in parts.values() for p in some if p.folder is folder]
        listed = [f for p in mine for f in p.xmls]
        folder.read(list(folder.xmls.inner) if any(p.alone for p in mine) else listed)
        folder.match(account)
    _fail_if_most_are_broken(folders, root)
    names = _names(classes, [page for folder in folders for page in folder.pages.values()], root)
    ids = {n: i for i, n in enumerate(names)}
    splits = {}
    for split, some in parts.items():
        before = account.counts
        samples = [s for part in some for s in _samples(part, ids, split, account)]
        fail_if_most_is_bad(samples, split, account, before)
        splits[split] = sorted(samples, key=lambda s: str(s.image))
        count_outside([s.image for s in samples], [root], root, account)
    watch = watch + sorted({place for f in folders for place in (f.xmls.root, f.images.root)})
    return Reading(name, "Pascal VOC", names, splits, watch, account, licence)


def _fail_if_most_are_broken(folders: Iterable[Folder], root: Path) -> None:
    broken = [message for folder in folders for message in folder.broken.values()]
    good = sum(len(folder.pages) for folder in folders)
    if len(broken) > good == 0 and len(broken) == 1:
        raise UserError(f"data {broken[0]}")
    if len(broken) > good:
        n = f"{len(broken)} of {len(broken) + good}"
        raise UserError(f"data {root}: {n} XML files cannot be read; the first: {broken[0]}")


def _names(declared: Path | list[str] | None, pages: list[Page], root: Path) -> list[str]:
    """The class list: as given, or as a file lists it, or all that occur, by name."""
    seen = {thing.name for page in pages for thing in page.objects if thing.name}
    if isinstance(declared, list):
        return declared
    if declared is None:
        if not seen:
            raise UserError(
                f"data {root}: no labels at all: none of {len(pages)} XML files holds an object with a name"
            )
        return sorted(seen)

    def listed(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if declared.name == "labelmap.txt":  # of CVAT: name:colour:parts:actions, and a background always
            lines = [line.split(":")[0].strip() for line in lines if not line.startswith("#")]
            lines = [line for line in lines if line != "background" or line in seen]
        return lines

    names = listed(read_text(declared, lambda text: len(seen & set(listed(text)))))
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"data {declared}: class name {twice[0]!r} stands twice")
    if not names:
        raise UserError(f"data {declared}: no class in it; list their names, one a line, or remove it")
    return names


def _samples(part: Part, ids: dict[str, int], split: str, account: Account) -> list[Sample]:
    """The samples of one part; what of it cannot be used is counted."""
    folder, seen = part.folder, set()
    owner = {image: file for file, image in folder.image_of.items()}
    for reason, lines in (("missing image", part.lost), ("ambiguous", part.vague)):
        for line in lines:
            account.note(reason, line)
    samples = []
    entries: list[tuple[Path | None, Path | None]] = [(file, folder.image_of.get(file)) for file in part.xmls]
    entries += [(owner.get(image), image) for image in part.alone]
    for file, image in progress(entries, f"reading {split}"):
        one = file or image
        assert one is not None
        shown = folder.shown(one)
        if one in seen:
            account.note("listed twice", shown)
        elif file in folder.broken:
            account.note("broken annotation", folder.broken[file])
        elif file in folder.unsure or (file is None and image in folder.contested):
            account.note("ambiguous", shown)
        elif image is None:
            assert file is not None
            account.note("missing image", f"{shown} ({folder.pages[file].filename or 'no <filename>'})")
        elif (found := probe(image)) is None:
            account.note("corrupt image", folder.shown(image))
        else:
            if file is None:
                account.note("no annotation", shown)
            page = folder.pages[file] if file else None
            samples.append(_sample(image, found, page, ids, shown, account))
        seen.add(one)
    return samples


def _sample(
    image: Path, found: Probe, page: Page | None, ids: dict[str, int], shown: str, account: Account
) -> Sample:
    cls, corners = [], []
    for thing in page.objects if page else []:
        if thing.name not in ids:
            account.note("unknown class", f"{shown} ({thing.name or 'no name'})")
        elif thing.difficult:
            account.note("difficult", shown)
        elif thing.fault:
            account.note("unreadable", f"{shown} ({thing.name}: {thing.fault})")
        else:
            cls.append(ids[thing.name])
            corners.append(thing.box)
    if page and page.bad_size:
        account.note("no size", shown)
    fractions = from_pixels(corners, page.size if page else None, found, shown, account)
    boxes, labels = judge_boxes(fractions.tolist(), cls, found.upright, shown, account)
    return Sample(image, boxes, labels, found.upright)
