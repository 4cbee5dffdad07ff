"""What can be measured of the file that ships: names of metrics, and what each of them is.

`onnx_ms`, `int8_ms`: latency of the ONNX file in onnxruntime, as it was exported and quantised to INT8;
`openvino_ms`, `openvino_int8_ms`: the same in OpenVINO. `onnx_map50_95`, `int8_map50_95`, ... (of a
classifier `onnx_top1`, `int8_top1`, ...): the quality of what that very file finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from utils.errors import UserError


@dataclass(frozen=True)
class FileKind:
    """A kind of exported file. stem: of its metrics; runtime: of utils/timing.py; int8: quantised;
    packages: that make and run it here."""

    stem: str
    runtime: str
    int8: bool
    packages: tuple[str, ...]

    @property
    def ms(self) -> str:
        """The metric of its latency."""
        return f"{self.stem}_ms"

    def quality(self, metric: str) -> str:
        """The metric of its quality: `int8_map50_95` for map50_95."""
        return f"{self.stem}_{metric}"


KINDS = (
    FileKind("onnx", "onnx", False, ("onnxruntime",)),
    FileKind("int8", "onnx", True, ("onnxruntime",)),
    FileKind("openvino", "openvino", False, ("openvino",)),
    FileKind("openvino_int8", "openvino", True, ("openvino", "nncf")),
)
FILE_COSTS = tuple(kind.ms for kind in KINDS)


def file_qualities(metric: str) -> tuple[str, ...]:
    """The metrics of files whose network is scored by `metric`."""
    return tuple(kind.quality(metric) for kind in KINDS)


def kinds_of(metrics: Iterable[str], quality: str) -> list[FileKind]:
    """The kinds of files that these metrics speak of; `quality` is the task's."""
    wanted = set(metrics)
    return [kind for kind in KINDS if {kind.ms, kind.quality(quality)} & wanted]


def check_packages(kinds: Iterable[FileKind]) -> None:
    """UserError, with what to install, for a kind whose packages are not here."""
    for kind in kinds:
        missing = [package for package in kind.packages if find_spec(package) is None]
        if missing:
            what = f"{kind.ms} and {kind.stem}_map50_95 need"
            raise UserError(f"{what} a package that is not installed: pip install {' '.join(kind.packages)}")
