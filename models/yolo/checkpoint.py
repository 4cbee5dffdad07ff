"""A space around somebody's own trained network: what lies in an Ultralytics checkpoint, made smaller.

    text = space_around("best.pt", imgsz=160)

The checkpoint is read without executing anything in it (models/weights.py). The YAML inside says the network,
which is the default of the space and its largest; every row that may vary gets narrower, shorter and leaner
values, all of which stock Ultralytics can say, and the images get smaller sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.weights import FORMAT, WeightFile, read_weights
from models.yolo.blocks import VARIES, arguments
from models.yolo.parse import KEYS, Network, parse
from models.yolo.rows import StockOptions
from utils.errors import UserError
from utils.sides import Sides, longer, pair, read_sides

# What may become of a row, its own value first: factors of its channels out and of its hidden share, repeats.
SMALLER: dict[str, Any] = {"width": [1.0, 0.75, 0.5], "depth": "1..n", "e": [1.0, 0.75, 0.5]}
SIDES = (1.0, 0.8, 0.6)  # of the images, as shares of the side
LEAST_SIDE = 2  # of the largest stride
ATTENTION = ("PSA", "C2PSA", "A2C2f")


def space_around(path: str | Path, imgsz: Sides | None = None) -> tuple[str, WeightFile]:
    """(YAML of a space around the network in a checkpoint, the checkpoint).

    imgsz: of the images, pixels; by default that of the training. Sides are a choice where it is known.

    Raises UserError for what is no whole file, holds no network, or holds one that is no detector.
    """
    file = read_weights(path)
    if file.kind == FORMAT:
        raise UserError(
            f"space {path} is a file of ours: slim what stock Ultralytics trained, or give the YAML in "
            "`space/` of its run as space, and this as weights"
        )
    if not file.model:
        raise UserError(
            f"space {path} ({file.kind}) holds weights without the network that they are of; give "
            f"space=DETECTOR.yaml weights={path}, or an Ultralytics checkpoint (.pt)"
        )
    model = {key: value for key, value in file.model.items() if key in KEYS and key != "nc"}
    try:
        network = parse(model, nc=max(1, len(file.names)))
        model = _held(model | {"name": Path(path).stem, "choices": _choices(network)})
        if towers := _towers(file):
            model["towers"] = towers
        sides = _sides(imgsz or side_of(file), network.max_stride)
        if len(sides) > 1:
            model["resolution"] = sides
        parse(model, nc=max(1, len(file.names)))
    except UserError as error:
        raise UserError(f"space {path} is no detector to slim: {error}") from None
    return _text(model, file), file


def _towers(file: WeightFile) -> int:
    """For how many classes the class towers of the head were made, where that is more than there are."""
    last = re.compile(r"model\.\d+\.cv3\.0\.2\.weight"), re.compile(r"model\.\d+\.cv2\.0\.0\.conv\.weight")
    widths = [next((v.size(1) for k, v in file.state.items() if name.fullmatch(k)), 0) for name in last]
    return widths[0] if widths[0] > max(widths[1], min(len(file.names), 100)) else 0


def side_of(file: WeightFile) -> Sides | None:
    """Pixels of the images that a checkpoint was trained on; None where it does not say."""
    try:
        imgsz = read_sides(file.settings.get("imgsz"))
    except ValueError:
        return None
    return imgsz if min(pair(imgsz)) > 0 else None


def _choices(network: Network) -> dict[str, dict[str, Any]]:
    """What the rows of each module may become."""
    modules = [m for m in dict.fromkeys(row.module for row in network.rows) if m in VARIES]
    return {module: {option: SMALLER[option] for option in VARIES[module]} for module in modules}


def _held(model: dict[str, Any]) -> dict[str, Any]:
    """The YAML in which what attention reads and makes stays as wide.

    The channels of attention keep their order, so none can be chosen to go: narrower they would be fresh.
    """
    rows, kept = parse(model, nc=1).rows, dict[int, tuple[str, ...]]()
    for row in rows:
        if row.module not in ATTENTION and not dict(zip(arguments(row.module), row.args, strict=False)).get(
            "attn"
        ):
            continue
        kept[row.index] = ("width", "e")
        above = row
        while isinstance(above.options, StockOptions) and above.options.follows:
            above = rows[above.source % above.index]  # type: ignore[operator]
            kept.setdefault(above.index, ("width",))
    backbone = len(model["backbone"])
    held = {"backbone": list(model["backbone"]), "head": list(model["head"])}
    for index, options in kept.items():
        part, place = ("backbone", index) if index < backbone else ("head", index - backbone)
        fixed = {option: [1.0] for option in options if option in VARIES.get(rows[index].module, ())}
        if fixed:
            source, number, module, args = held[part][place]
            held[part][place] = [source, number, module, [*args, fixed]]
    return model | held


def _sides(imgsz: Sides | None, stride: int) -> list[int]:
    """Longer sides of images, the largest first; [] where none is known or fits the stride."""
    if imgsz is None or any(side % stride for side in pair(imgsz)):
        return []
    side = longer(imgsz)
    found = [max(LEAST_SIDE, round(side * share / stride)) * stride for share in SIDES]
    return [s for s in dict.fromkeys(found) if s <= side]


def _text(model: Mapping[str, Any], file: WeightFile) -> str:
    """The YAML for people: a row a line."""
    lines = [
        f"# Around the network in {file.path.name}, which is the default and the largest. `choices` says",
        "# what rows may become; edit a copy and give it as space=THAT.yaml weights=THE_CHECKPOINT.pt.",
    ]
    for key, value in model.items():
        if key in ("backbone", "head"):
            lines += [f"{key}:", *(f"  - {json.dumps(row)}" for row in value)]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
