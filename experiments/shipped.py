"""The file that ships: a network exported, quantised, scored as a file, and timed on the machine it is for.

How: models/quantise.py, models/file_network.py, utils/target.py. In the `target` folder of a run:

    reference.onnx     the network that all latencies are multiples of
    calibration.json   what it takes there
    measured.jsonl     what was timed: {"arch": ..., "metrics": ...}
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.export import export
from models.export_plain import OPSET
from models.file_network import FileNetwork
from models.networks import build
from models.quantise import QUANTISERS, openvino_of, runs_of, suffix
from models.space import Arch, Space
from utils.errors import UserError
from utils.file_measures import FileKind
from utils.files import own_json, write_text
from utils.history import append_line, arch_key, read_lines
from utils.json_text import parse_json
from utils.sides import Sides, pair
from utils.target import Calibration, Target, calibrate, time_files
from utils.training.measure import reference_net

TRIES, PAUSE = 3, 2.0  # times that a void latency is measured, and seconds between
NOISE = 4  # images without content that quantise what is only timed: weights change no INT8 latency


@dataclass(frozen=True)
class Timer:
    """A target and the folder of what is known of it. side: of the reference's images."""

    target: Target
    folder: Path
    side: Sides

    def references(self, runtimes: Sequence[str]) -> dict[str, Path]:
        """runtime -> the file of the reference network, made once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = {r: self.folder / f"reference{'.onnx' if r == 'onnx' else f'.{r}'}" for r in runtimes}
        with tempfile.TemporaryDirectory(prefix=".reference-", dir=self.folder) as scratch:
            made = Path(scratch) / "reference.onnx"
            for runtime, path in paths.items():
                if path.exists():
                    continue
                if not made.exists():
                    image = torch.rand(1, 3, *pair(self.side))
                    torch.onnx.export(reference_net(), (image,), str(made), dynamo=False, opset_version=OPSET)
                if runtime == "onnx":
                    shutil.copyfile(made, path)
                else:
                    openvino_of(made, Path(scratch) / runtime).rename(path)
        return paths

    def calibration(self, runtimes: Sequence[str]) -> Calibration:
        """What the references of these runtimes take, found out once. UserError without an answer."""
        path = self.folder / "calibration.json"
        told = own_json(path, lambda value: isinstance(value.get("reference_ms"), dict))
        if told and set(runtimes) <= set(told["reference_ms"]) and told.get("target") == asdict(self.target):
            return Calibration(**{k: told[k] for k in ("reference_ms", "side", "hardware", "versions")})
        found = calibrate(self.target, self.references(runtimes), self.side)
        write_text(path, json.dumps(asdict(found) | {"target": asdict(self.target)}, indent=1) + "\n")
        return found

    def latencies(
        self, files: Mapping[FileKind, Path], side: Sides
    ) -> tuple[dict[str, float], dict[str, str]]:
        """(`onnx_ms`, `onnx_ms_spread`, ... of files at `side`; metric -> why it is void).

        A void one is measured again, three times in all.
        """
        runtimes = sorted({kind.runtime for kind in files})
        found, void = dict[str, float](), dict[str, str]()
        left = {kind.ms: (path, kind.runtime) for kind, path in files.items()}
        references, calibration = self.references(runtimes), self.calibration(runtimes)
        for attempt in range(TRIES):
            time.sleep(PAUSE * (attempt > 0))
            for name, one in time_files(self.target, left, side, references, calibration).items():
                if one.ms is None:
                    void[name] = one.void
                    continue
                found |= {name: one.ms, f"{name}_spread": one.spread}
                void.pop(name, None)
            left = {name: left[name] for name in void}
            if not left:
                break
        return found, void

    def known(self) -> list[tuple[Arch, dict[str, float]]]:
        """(arch, metrics) of what `remember` was told; torn lines are left out."""
        found = []
        for line in read_lines(self.folder / "measured.jsonl"):
            try:
                row = parse_json(line)
                found.append((row["arch"], row["metrics"]))
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def remember(self, arch: Arch, metrics: Mapping[str, float]) -> None:
        append_line(self.folder / "measured.jsonl", json.dumps({"arch": arch, "metrics": dict(metrics)}))


@contextmanager
def files_of(
    net: Any, space: Space, arch: Arch, side: Sides, kinds: Sequence[FileKind], images: np.ndarray
) -> Iterator[dict[FileKind, Path]]:
    """kind -> the file of a network, for as long as the context lasts. `net` is left as it is.

    images: float32 [N, C, H, W] of this size, 0..1, that quantisation is calibrated on
    """
    with tempfile.TemporaryDirectory(prefix="shipped-") as scratch:
        plain = Path(scratch) / "plain.onnx"
        export(copy.deepcopy(net).cpu(), plain, "onnx", space=space, arch=arch, imgsz=side)
        files = {}
        for kind in kinds:
            path = Path(scratch) / f"{kind.stem}{suffix(kind.runtime)}"
            if kind.int8:
                files[kind] = QUANTISERS[kind.runtime](plain, path, images)
            else:
                files[kind] = plain if kind.runtime == "onnx" else openvino_of(plain, path)
        yield files


def scores_of(
    files: Mapping[FileKind, Path], net: Any, quality: str, score: Callable[[Any], dict[str, float]]
) -> dict[str, float]:
    """`int8_map50_95`, ...: `quality` of what each file finds. score: network -> metrics."""
    threads = torch.get_num_threads()
    return {
        kind.quality(quality): score(FileNetwork(runs_of(path, kind.runtime, threads), net))[quality]
        for kind, path in files.items()
    }


def timed(
    space: Space, arch: Arch, side: Sides, kinds: Sequence[FileKind], timer: Timer
) -> tuple[dict[str, float], dict[str, str]]:
    """As `Timer.latencies`, for the arch with fresh weights; what is known already is not timed again."""
    known = {arch_key(a): m for a, m in timer.known()}.get(arch_key(arch), {})
    if all(kind.ms in known for kind in kinds):
        return {k: v for k, v in known.items() if k.removesuffix("_spread") in {x.ms for x in kinds}}, {}
    net = build(space, arch)
    noise = np.random.default_rng(0).random((NOISE, channels_of(net), *pair(side)), dtype=np.float32)
    with files_of(net, space, arch, side, kinds, noise) as files:
        found, void = timer.latencies(files, side)
    timer.remember(arch, found)
    return found, void


def channels_of(net: Any) -> int:
    """Of the images of a network: what its first convolution takes."""
    return next(m.in_channels for m in net.modules() if isinstance(m, torch.nn.Conv2d))


class Void(UserError):
    """A latency that a search needs was void each time."""

    def __init__(self, target: Target, void: Mapping[str, str]) -> None:
        said = "; ".join(f"{name} is void: {why}" for name, why in void.items())
        super().__init__(f"target {target.name}: {said} ({TRIES} times); leave it to itself, then go on")
