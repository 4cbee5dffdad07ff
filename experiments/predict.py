"""A trained network on pictures, folders and videos: the same with boxes, or the class, drawn into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.images import SUFFIXES, is_hidden, list_images, read_pixels
from utils.errors import UserError

# Formats that a drawn picture keeps; of others it becomes a PNG.
WRITTEN = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
GREY = 114  # of the padding, as in training
Mark = Callable[[np.ndarray], int]  # draws into a picture uint8 [H, W, 3] BGR, says how many things


@dataclass
class Predicted:
    """written: picture or video files; objects: boxes, or classes, drawn in all; unreadable: (file, why)."""

    written: list[Path] = field(default_factory=list)
    objects: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.written)} files written, {self.objects} objects"]
        lines += [f"  skipped {path}: {why}" for path, why in self.unreadable]
        return "\n".join(lines)


def predict(
    weights: Path,
    source: Path,
    out: Path,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    imgsz: int | None = None,
    device: str = "auto",
) -> Predicted:
    """Draw what the network in `weights` finds in `source`, a picture, video or folder of them, into `out`:
    boxes, or a classifier's class with its probability.

    weights: a file of ours (weights.pt, last.pt or a YOLO's top/N.pt), which says what its network is.
    conf, iou: least score of a box, or probability of a class, and the overlap above which the weaker of two
    boxes is dropped.
    imgsz: longer side of what the network sees, by default that of its training.
    UserError: `out` exists, weights of an unknown network, nothing in `source` that can be decoded.
    """
    if not source.exists():
        raise UserError(f"no picture, video or folder {str(source)!r}")
    if out.exists():
        raise UserError(f"{out} exists and is never overwritten; give another --out")
    if not 0 <= conf <= 1 or not 0 <= iou <= 1:
        raise UserError(f"conf and iou lie between 0 and 1, got {conf} and {iou}")
    files = _files(source)
    mark = marker(*open_network(weights, device, imgsz), conf, iou)

    done = Predicted()
    root = source if source.is_dir() else source.parent
    for path in files:
        target = out / path.relative_to(root)
        video = path.suffix.lower() in VIDEOS
        if video:
            target = target.with_suffix(".mp4")
        elif path.suffix.lower() not in WRITTEN:
            target = target.with_name(f"{target.name}.png")
        try:
            work = _draw_video if video else _draw_picture
            done.objects += work(mark, path, target)
            done.written.append(target)
        except UnreadableError as error:
            done.unreadable.append((path, str(error)))
    if not done.written:
        reasons = "; ".join(f"{p.name}: {why}" for p, why in done.unreadable[:3])
        raise UserError(f"nothing in {source} could be decoded ({len(done.unreadable)} files; {reasons})")
    print(done)
    print(f"written: {out}")
    return done


class UnreadableError(Exception):
    """A file that is no picture or video, or a damaged one."""


def open_network(weights: Path, device: str, imgsz: int | None) -> tuple[Any, int, str]:
    """The network that a weight file of ours describes, the image side to use, and its task."""
    from experiments.handover import trained
    from models.networks import open_any_space
    from models.weights import read_weights
    from utils.measure import resolve_device

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
    side = imgsz or file.imgsz or 640
    if side < 1 or side % net.stride:
        near = max(1, round(side / net.stride)) * net.stride
        raise UserError(f"imgsz {side} is not a multiple of {net.stride}; try {near}")
    return net.to(resolve_device(device)), side, space.task


def marker(net: Any, side: int, task: str, conf: float, iou: float) -> Mark:
    """What draws the network's findings into a picture."""

    def boxes(image: np.ndarray) -> int:
        found = find_objects(net, image, side, conf, iou)
        draw(image, found, net.names)
        return len(found["scores"])

    def label(image: np.ndarray) -> int:
        probabilities = classify(net, image, side)
        best = int(probabilities.argmax())
        if probabilities[best] < conf:
            return 0
        caption(image, (0, 0), net.names, best, probabilities[best])
        return 1

    return label if task == "classify" else boxes


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    videos = [p for p in source.rglob("*") if p.suffix.lower() in VIDEOS and not is_hidden(p.name)]
    files = sorted([*list_images(source), *videos])
    if not files:
        raise UserError(f"no pictures or videos in {source}; known: {' '.join(sorted(SUFFIXES | VIDEOS))}")
    return files


def _draw_picture(mark: Mark, path: Path, target: Path) -> int:
    import cv2

    image = read_pixels(path)
    if image is None:
        raise UnreadableError("not a picture that can be decoded" if path.stat().st_size else "empty file")
    objects = mark(image)
    target.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(target.suffix, image)
    assert encoded, target
    data.tofile(target)
    return objects


def _draw_video(mark: Mark, path: Path, target: Path) -> int:
    import cv2

    objects, writer = 0, None
    for frame, rate in _frames(path):
        if writer is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        objects += mark(frame)
        writer.write(frame)
    if writer is None:
        raise UnreadableError("not a video that can be decoded")
    writer.release()
    return objects


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


def find_objects(net: Any, image: np.ndarray, side: int, conf: float, iou: float) -> dict[str, Any]:
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


def classify(net: Any, image: np.ndarray, side: int) -> np.ndarray:
    """Probabilities [nc] of the classes for a picture, uint8 [H, W, 3] BGR, prepared as for validation."""
    images, _ = letterboxed(net, image, side, crop=True)
    return net.predict(images)[0].cpu().numpy()


def letterboxed(
    net: Any, image: np.ndarray, side: int, crop: bool = False
) -> tuple[Any, tuple[int, int, int, int]]:
    """(images [1, 3, side, side] float32 RGB 0..1 on the network's device, (left, top, width, height) of the
    picture in them). crop: interpolated as data.pixels cuts objects out."""
    import cv2
    import torch

    from data.pixels import resized_shape

    h, w = resized_shape((image.shape[0], image.shape[1]), side)
    shrinks = crop and h * w < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    canvas = np.full((side, side, 3), GREY, np.uint8)
    top, left = round((side - h) / 2 - 0.1), round((side - w) / 2 - 0.1)  # as Ultralytics' LetterBox
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
