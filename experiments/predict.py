"""A trained network on pictures, folders and videos: the same with boxes, or the class, drawn into them, and
all it found as JSON and as YOLO's text files.

    OUT/<as in the source>      with boxes drawn in; a video becomes an .mp4
    OUT/predictions.json        {"weights", "names", "imgsz", "conf", "iou", "images": [{"file", "width",
                                "height", "frame", "objects": [{"label", "name", "score", "box"}]}]}: box is
                                [x1, y1, x2, y2] in pixels (none of a classifier); a frame counts from 0
    OUT/labels/<as there>.txt   a line an object, `class x y w h` as shares of the picture: labels as YOLO
                                trains on, so without the score; empty where nothing was found. Of a video
                                `<name>_<frame>.txt`, of a classifier `probability name`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.images import SUFFIXES, is_hidden, list_images, read_pixels
from experiments.arch_file import open_arch_file
from utils.errors import UserError, unknown
from utils.files import write_text
from utils.sides import Sides, pair

# Formats that a drawn picture keeps; of others it becomes a PNG.
WRITTEN = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
GREY = 114  # of the padding, as in training
SAVES = ("pictures", "json", "txt")
SHOWN = 10  # names of files in a printed list
Objects = list[dict[str, Any]]  # as predictions.json has them
Find = Callable[[np.ndarray], Objects]  # in a picture uint8 [H, W, 3] BGR, into which it also draws them


@dataclass
class Predicted:
    """written: picture or video files; images: as predictions.json has them; unreadable: (file, why)."""

    written: list[Path] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def objects(self) -> int:
        return sum(len(image["objects"]) for image in self.images)

    @property
    def empty(self) -> list[str]:
        """Files in which nothing was found, of a video in no frame."""
        files = dict.fromkeys(image["file"] for image in self.images)
        return list(files.keys() - {image["file"] for image in self.images if image["objects"]})

    def __str__(self) -> str:
        files, empty = len({image["file"] for image in self.images}), sorted(self.empty)
        lines = [f"{files} file{'s' * (files != 1)}, {self.objects} object{'s' * (self.objects != 1)}"]
        if empty:
            names = ", ".join(empty[:SHOWN])
            more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
            lines.append(f"  nothing found in {len(empty)} of them: {names}{more}")
        lines += [f"  skipped {path}: {why}" for path, why in self.unreadable]
        return "\n".join(lines)


def predict(
    weights: Path,
    source: Path,
    out: Path,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    imgsz: Sides | None = None,
    device: str = "auto",
    save: str = ",".join(SAVES),
) -> Predicted:
    """Find objects, or the class, in `source`, a picture, video or folder of them, and write into `out` what
    `save` lists of pictures, json and txt.

    weights: a file of ours (weights.pt, last.pt or a YOLO's top/N.pt), which says what its network is, or an
    architecture file (top/N.json), whose best weights are taken.
    conf, iou: least score of a box, or probability of a class, and the overlap above which the weaker of two
    boxes is dropped.
    imgsz: side of what the network sees, or (height, width); by default that of its training.
    UserError: `out` exists, weights of an unknown network, nothing in `source` that can be decoded.
    """
    if not source.exists():
        raise UserError(f"no picture, video or folder {str(source)!r}")
    if out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    if not 0 <= conf <= 1 or not 0 <= iou <= 1:
        raise UserError(f"conf and iou lie between 0 and 1, got {conf} and {iou}")
    saves, files = _saves(save), _files(source)
    if weights.suffix == ".json":
        weights = open_arch_file(weights).weights()
    net, side, task = open_network(weights, device, imgsz)
    seen = finder(net, side, task, conf, iou)

    done = Predicted()
    root = source if source.is_dir() else source.parent
    for path in files:
        drawn = _drawing_of(path, out / path.relative_to(root)) if "pictures" in saves else None
        look = _in_video if path.suffix.lower() in VIDEOS else _in_picture
        try:
            for image in look(seen, path, drawn):
                done.images.append({"file": str(path.relative_to(root)), **image})
        except UnreadableError as error:
            done.unreadable.append((path, str(error)))
            continue
        done.written += [drawn] if drawn else []
    if not done.images:
        reasons = "; ".join(f"{p.name}: {why}" for p, why in done.unreadable[:3])
        raise UserError(f"nothing in {source} could be decoded ({len(done.unreadable)} files; {reasons})")
    if "json" in saves:
        about = {"weights": str(weights), "names": list(net.names), "imgsz": side, "conf": conf, "iou": iou}
        write_text(out / "predictions.json", json.dumps(about | {"images": done.images}, indent=1) + "\n")
    if "txt" in saves:
        write_labels(out / "labels", done.images)
    print(done)
    print(f"written: {out}")
    return done


def _saves(save: str) -> list[str]:
    """`pictures,json` as a list. UserError for what is none of SAVES."""
    saves = [item.strip() for item in save.split(",") if item.strip()]
    for item in saves:
        if item not in SAVES:
            raise unknown("thing to save", item, SAVES)
    return saves


def _drawing_of(path: Path, target: Path) -> Path:
    """Where a picture or video with its boxes goes: `target`, in a format that can be written."""
    if path.suffix.lower() in VIDEOS:
        return target.with_suffix(".mp4")
    return target if path.suffix.lower() in WRITTEN else target.with_name(f"{target.name}.png")


def write_labels(folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """A text file an image, as the head of this file says. Of pictures that differ in their suffix alone the
    later keep it: `a.txt` and `a.png.txt`."""
    taken: set[Path] = set()
    for image in images:
        path = folder / image["file"]
        plain = path.with_suffix(".txt")
        if "frame" in image:
            plain = path.with_name(f"{path.stem}_{image['frame']:06d}.txt")
        elif plain in taken:
            plain = path.with_name(f"{path.name}.txt")
        taken.add(plain)
        write_text(plain, "".join(_label_line(o, image["width"], image["height"]) for o in image["objects"]))


def _label_line(found: dict[str, Any], width: int, height: int) -> str:
    if "box" not in found:
        return f"{found['score']:.4f} {found['name']}\n"
    x1, y1, x2, y2 = found["box"]
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return f"{found['label']} {' '.join(f'{v:.6f}' for v in shares)}\n"


class UnreadableError(Exception):
    """A file that is no picture or video, or a damaged one."""


def open_network(weights: Path, device: str, imgsz: Sides | None) -> tuple[Any, Sides, str]:
    """The network that a weight file of ours describes, the image size to use, and its task."""
    from experiments.trained import trained
    from models.networks import open_any_space
    from models.space import check_side
    from models.weights import read_weights
    from utils.training.measure import resolve_device

    file = read_weights(weights)
    if file.arch is None or file.space is None:
        raise UserError(
            f"{weights} ({file.kind}) does not say what its network is; give weights of ours, or export them "
            "with their architecture first (export ARCH.json --weights W --format pt)"
        )
    if file.meta.get("supernet"):
        raise UserError(
            f"{weights} is a supernet's, of no one architecture; give the weights of one "
            "(trials/NNNN/weights.pt or finetune/NNNN/last.pt of its run), or make some "
            "(finetune ARCH.json --weights W)"
        )
    space = open_any_space(file.space, nc=file.nc, ch=file.ch)
    net, _ = trained(space, space.canonical(file.arch), weights, file.names)
    size = imgsz or file.imgsz or 640
    check_side(size, net.stride)
    return net.to(resolve_device(device)), size, space.task


def finder(net: Any, side: Sides, task: str, conf: float, iou: float) -> Find:
    """What finds the network's objects in a picture, and draws them into it."""

    def boxes(image: np.ndarray) -> Objects:
        found = find_objects(net, image, side, conf, iou)
        draw(image, found, net.names)
        return [
            {"label": int(label), "name": net.names[int(label)], "score": float(score), "box": box.tolist()}
            for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True)
        ]

    def label(image: np.ndarray) -> Objects:
        probabilities = classify(net, image, side)
        best = int(probabilities.argmax())
        if probabilities[best] < conf:
            return []
        caption(image, (0, 0), net.names, best, probabilities[best])
        return [{"label": best, "name": net.names[best], "score": float(probabilities[best])}]

    return label if task == "classify" else boxes


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    videos = [p for p in source.rglob("*") if p.suffix.lower() in VIDEOS and not is_hidden(p.name)]
    files = sorted([*list_images(source), *videos])
    if not files:
        raise UserError(f"no pictures or videos in {source}; known: {' '.join(sorted(SUFFIXES | VIDEOS))}")
    return files


def _in_picture(seen: Find, path: Path, target: Path | None) -> Iterator[dict[str, Any]]:
    """What is in a picture; drawn into a copy at `target`."""
    import cv2

    image = read_pixels(path)
    if image is None:
        raise UnreadableError("not a picture that can be decoded" if path.stat().st_size else "empty file")
    objects = seen(image)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        encoded, data = cv2.imencode(target.suffix, image)
        assert encoded, target
        data.tofile(target)
    yield {"width": image.shape[1], "height": image.shape[0], "objects": objects}


def _in_video(seen: Find, path: Path, target: Path | None) -> Iterator[dict[str, Any]]:
    """What is in each frame; drawn into a copy at `target`."""
    import cv2

    writer, frames = None, 0
    for number, (frame, rate) in enumerate(_frames(path)):
        height, width = frame.shape[:2]
        if writer is None and target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
        objects, frames = seen(frame), number + 1
        if writer is not None:
            writer.write(frame)
        yield {"width": width, "height": height, "frame": number, "objects": objects}
    if not frames:
        raise UnreadableError("not a video that can be decoded")
    if writer is not None:
        writer.release()


def _frames(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """uint8 [H, W, 3] BGR frames, with the frames a second of the video."""
    import cv2
    from tqdm.auto import tqdm

    video = cv2.VideoCapture(str(path))
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        with tqdm(total=total if total > 0 else None, desc=path.name, leave=False, disable=None) as bar:
            while True:
                read, frame = video.read()
                if not read:
                    return
                yield frame, rate
                bar.update()
    finally:
        video.release()


def find_objects(net: Any, image: np.ndarray, side: Sides, conf: float, iou: float) -> dict[str, Any]:
    """What is in one picture, uint8 [H, W, 3] BGR of any size, prepared as for validation.

    Returns boxes float64 [n, 4] xyxy in pixels of the picture, scores [n] falling, labels [n] int64.
    """
    height, width = image.shape[:2]
    images, (left, top, w, h) = letterboxed(net, image, side)
    found = net.predict(images, conf=conf, iou=iou)[0]
    boxes = found["boxes"].double().cpu().numpy() - [left, top, left, top]
    boxes = boxes / [w / width, h / height, w / width, h / height]
    return {
        "boxes": boxes.clip(0, [width, height, width, height]),
        "scores": found["scores"].cpu().numpy(),
        "labels": found["labels"].cpu().numpy(),
    }


def classify(net: Any, image: np.ndarray, side: Sides) -> np.ndarray:
    """Probabilities [nc] of the classes for a picture, uint8 [H, W, 3] BGR, prepared as for validation."""
    images, _ = letterboxed(net, image, side, crop=True)
    return net.predict(images)[0].cpu().numpy()


def letterboxed(
    net: Any, image: np.ndarray, side: Sides, crop: bool = False
) -> tuple[Any, tuple[int, int, int, int]]:
    """(images [1, 3, H, W] of this size, float32 RGB 0..1 on the network's device, (left, top, width, height)
    of the picture in them). crop: interpolated as data.pixels cuts objects out."""
    import cv2
    import torch

    from data.pixels import resized_shape

    h, w = resized_shape((image.shape[0], image.shape[1]), side)
    shrinks = crop and h * w < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    height, width = pair(side)
    canvas = np.full((height, width, 3), GREY, np.uint8)
    top, left = round((height - h) / 2 - 0.1), round((width - w) / 2 - 0.1)  # as Ultralytics' LetterBox
    canvas[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=how)
    rgb = np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1))
    device = next(net.parameters()).device
    return torch.from_numpy(rgb)[None].to(device).float() / 255, (left, top, w, h)


def draw(image: np.ndarray, found: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    """Boxes with name and score, drawn into `image`, which is returned."""
    import cv2

    line = _line(image)
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), _colour(int(label)), line)
        caption(image, (x1, y1), names, int(label), float(score))
    return image


def caption(image: np.ndarray, at: tuple[int, int], names: Sequence[str], label: int, score: float) -> None:
    """A class and its score, written above the point `at`, or below it where there is no room."""
    import cv2

    line, (x, y), colour = _line(image), at, _colour(label)
    size = max(0.35, sum(image.shape[:2]) / 2400)
    # OpenCV's own letters are ASCII only.
    text = f"{names[label]} {score:.2f}".encode("ascii", "replace").decode()
    (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, line)
    base = y - below if y > high + 2 * below else y + high + below
    cv2.rectangle(image, (x, base - high - below), (x + wide, base + below), colour, -1)
    ink = (255, 255, 255) if sum(colour) < 380 else (0, 0, 0)
    cv2.putText(image, text, (x, base), cv2.FONT_HERSHEY_SIMPLEX, size, ink, line, cv2.LINE_AA)


def _line(image: np.ndarray) -> int:
    return max(1, round(sum(image.shape[:2]) / 600))


def _colour(label: int) -> tuple[int, int, int]:
    """A BGR colour for a class; neighbouring classes are far apart on the colour wheel (golden angle)."""
    import colorsys

    r, g, b = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.85, 0.9)
    return round(255 * b), round(255 * g), round(255 * r)
