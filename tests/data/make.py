"""Tiny data sets, written by the tests that read them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def image(
    file: Path,
    width: int = 64,
    height: int = 48,
    shade: int = 60,
    orientation: int = 1,
    mark: tuple[int, int, int, int] | None = None,
) -> Path:
    """A picture of noise that differs by `shade`, or black with a white rectangle `mark` (x1, y1, x2, y2)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    if mark is None:
        pixels[:] = np.random.default_rng(shade).integers(0, 256, (height, width, 3))
    else:
        pixels[mark[1] : mark[3], mark[0] : mark[2]] = 255
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    return file


def yolo_set(tmp_path: Path, labels: dict[str, str] | None = None, same_pixels: int = 0) -> Path:
    """A YOLO layout: `labels` (by stem) in train, at least four images there, two in val; names cat, dog."""
    root = tmp_path / "yolo"
    train = dict(labels or {})
    train |= {f"t{i}": "0 0.5 0.5 0.5 0.5\n" for i in range(max(0, 4 - len(train)))}
    for split, texts in (("train", train), ("val", {f"v{i}": "1 0.5 0.5 0.25 0.25\n" for i in range(2)})):
        (root / "labels" / split).mkdir(parents=True)
        for number, (stem, text) in enumerate(texts.items()):
            shade = 500 + number if split == "val" else max(0, number - same_pixels)
            image(root / "images" / split / f"{stem}.jpg", shade=shade)
            (root / "labels" / split / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def voc_xml(
    root: Path,
    stem: str,
    size: tuple[int, int],
    objects: list,
    database: str = "Unknown",
    folder: str = "Annotations",
) -> None:
    """One annotation; size (width, height); objects (name, xmin, ymin, xmax, ymax[, difficult])."""
    body = "".join(
        f"<object><name>{name}</name><difficult>{(*rest, 0)[0]}</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, *rest in objects
    )
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename><source><database>{database}</database></source>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{body}</annotation>",
        encoding="utf-8",
    )


def coco_json(file: Path, images: list, annotations: list, categories: dict[int, str]) -> None:
    """images (id, file_name, width, height); annotations (image_id, category_id, [x, y, w, h][, iscrowd])."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f, "width": w, "height": h} for i, f, w, h in images],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "iscrowd": (*rest, 0)[0]}
            for n, (i, c, box, *rest) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": n} for i, n in categories.items()],
    }
    file.write_text(json.dumps(content))
