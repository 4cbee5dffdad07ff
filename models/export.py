"""A trained network as a file for other people's tools. Each is loaded again and compared before it counts.

The door: which formats there are is the space's to say. YOLO's become Ultralytics files
(models/yolo/export.py), all others `.pt2` and `.onnx` (models/export_plain.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.exported import Exported
from models.space import Space
from models.weights import identity
from utils.errors import UserError, unknown
from utils.sides import Sides


def export(
    detector: Any,
    path: Path,
    format: str,
    *,
    space: Space,
    arch: Mapping[str, Any],
    imgsz: Sides,
    names: Sequence[str] | None = None,
    data: str | None = None,
    threads: int = 1,
) -> Exported:
    """Write `detector`, any network of `space`, in one of its `formats` to `path`, which must not exist.

    names: of the classes, by default the detector's own. data: what to tell Ultralytics it was trained on.
    threads: of onnxruntime, for its latency. The detector is left as it is.
    Raises UserError for an unknown format, one that these networks do not have, a path that is taken, a
    package that is missing.
    """
    check_format(format, space)
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; give another name or folder by --out")
    about = identity(detector, space, arch, imgsz, names)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename: nothing has the final name before it was checked.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
        checked = space.exporters()[format](detector, Path(scratch), about, data, threads)
        os.replace(checked.path, path)
    return Exported(path, format, checked.max_difference, checked.sizes, checked.notes, checked.values)


def check_format(format: str, space: Space) -> None:
    """Raises UserError unless networks of this space can become files of this format."""
    if format not in space.formats:
        if format == "openvino":
            raise UserError(
                f"format 'openvino' is for YOLO detectors; {space.name} is exported as pt or onnx, and "
                "OpenVINO reads the latter"
            )
        raise unknown("export format", format, space.formats)


def file_name(stem: str, format: str, space: Space) -> str:
    """What an export is called by default: 1.pt (YOLO), 1.pt2 (a torch.export program), 1.onnx, ..."""
    return stem + space.formats[format]
