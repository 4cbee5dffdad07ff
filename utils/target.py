"""The machine that a network is for: this one, or another by ssh. Times files there, by utils/timing.py.

As all latencies here, one is the median ratio to a fixed reference network, measured in blocks that
alternate, times what the reference takes on that machine, which is found out once. Where the machine was too
busy or was throttled meanwhile, the latency is void: it has no figure, but a reason.
"""

from __future__ import annotations

import io
import json
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_text import parse_json
from utils.sides import Sides, pair
from utils.timing import WRONG

SCRIPT = Path(__file__).with_name("timing.py")
UNSTEADY = 0.15  # distance between the quartiles of the ratios, as a share of their median
SLOWED = 2.0  # the reference's time, as a multiple of what it took when it was found out
ANSWER_SECONDS = 120.0  # that a target may need beyond the time that its files are timed
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")


@dataclass(frozen=True)
class Target:
    """A machine. host: as ssh takes it, None for this one; python: its interpreter there, with numpy and the
    runtime; threads: of the runtime; seconds: for one file."""

    host: str | None = None
    python: str = "python3"
    threads: int = 1
    seconds: float = 4.0

    @property
    def name(self) -> str:
        return self.host or "this machine"


@dataclass(frozen=True)
class Calibration:
    """A target's reference: `reference_ms` by runtime, for images of `side`; what the machine is."""

    reference_ms: dict[str, float]
    side: Sides
    hardware: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Latency:
    """ms and spread, the distance between the quartiles of the blocks; None, and `void` says why, where the
    machine could not be trusted."""

    ms: float | None
    spread: float
    void: str = ""


def calibrate(target: Target, references: Mapping[str, Path], side: Sides) -> Calibration:
    """Find out what the reference network takes on a target. UserError when it does not answer."""
    told = ask(target, references, {}, side, side)
    ms = {runtime: 1000 * statistics.median(seen) for runtime, seen in told["reference"].items()}
    return Calibration(ms, side, told["hardware"], told["versions"])


def check_answers(target: Target) -> None:
    """UserError when a target does not answer; takes as long as reaching it does."""
    ask(target, {}, {}, 32, 32)


def time_files(
    target: Target,
    files: Mapping[str, tuple[Path, str]],
    side: Sides,
    references: Mapping[str, Path],
    calibration: Calibration,
) -> dict[str, Latency]:
    """Latency of one image of `side` for each of `files`: name -> (file or folder, runtime).

    UserError when the target does not answer, or cannot run a file.
    """
    told = ask(target, references, files, side, calibration.side)
    return {
        name: verdict(seen["ratios"], seen["seconds"], calibration.reference_ms[files[name][1]])
        for name, seen in told["timed"].items()
    }


def verdict(ratios: Sequence[float], seconds: Sequence[float], reference_ms: float) -> Latency:
    """The latency that blocks say. ratios: to the reference beside each; seconds: of one run of that."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    spread, slowed = (high - low) / middle, 1000 * statistics.median(seconds) / reference_ms
    void = ""
    if slowed > SLOWED:
        void = f"busy or throttled: the reference network takes {slowed:.2g} times what it took before"
    elif spread > UNSTEADY:
        void = f"busy: the middle half of the blocks is {spread:.0%} of their median apart"
    return Latency(None if void else middle * reference_ms, (high - low) * reference_ms, void)


def ask(
    target: Target,
    references: Mapping[str, Path],
    files: Mapping[str, tuple[Path, str]],
    side: Sides,
    reference_side: Sides,
) -> dict[str, Any]:
    """The answer of utils/timing.py on a target. UserError, one line, when there is none."""
    with tempfile.TemporaryDirectory(prefix="timing-") as scratch:
        request: dict[str, Any] = {"size": pair(side), "reference_size": pair(reference_side)}
        request |= {"threads": target.threads, "seconds": target.seconds}
        sent: dict[str, Path] = {}

        def placed(path: Path, name: str) -> str:
            if path.is_dir():  # OpenVINO: an .xml with its weights beside it
                model = next(path.glob("*.xml"))
                sent.update({f"{name}.xml": model, f"{name}.bin": model.with_suffix(".bin")})
                return f"{name}.xml"
            sent[name + path.suffix] = path
            return name + path.suffix

        named = {runtime: placed(path, f"reference_{runtime}") for runtime, path in references.items()}
        request["references"] = named
        request["files"] = {k: [placed(path, k), runtime] for k, (path, runtime) in files.items()}
        (Path(scratch) / "request.json").write_text(json.dumps(request))
        sent |= {"request.json": Path(scratch) / "request.json", SCRIPT.name: SCRIPT}
        limit = ANSWER_SECONDS + 3 * target.seconds * (len(files) + len(references))
        return _said(target, _call(target, sent, limit))


def _call(target: Target, sent: Mapping[str, Path], limit: float) -> subprocess.CompletedProcess[bytes]:
    """Unpack the files in a new folder of the target and run the script there; the folder goes again."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, path in sent.items():
            archive.add(path.resolve(), name)
    python = sys.executable if target.host is None else target.python
    there = (
        'd=$(mktemp -d) && trap "rm -rf $d" EXIT && cd "$d" && tar -xf - && '
        f"{shlex.quote(python)} {SCRIPT.name} request.json"
    )
    command = ["sh", "-c", there] if target.host is None else [*SSH, "--", target.host, there]
    try:
        return subprocess.run(command, input=packed.getvalue(), capture_output=True, timeout=limit)
    except FileNotFoundError:
        raise UserError(f"target {target.name}: there is no {command[0]} here to reach it by") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"target {target.name}: no answer within {limit:.0f} seconds") from None


def _said(target: Target, done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else f"exit status {done.returncode}"
    if done.returncode == 0:
        try:
            return dict(parse_json(done.stdout))
        except ValueError:
            last = f"it answered {done.stdout[:80]!r} instead of figures"
    elif done.returncode == 255 and target.host is not None:
        last = f"ssh cannot reach it: {last}; `ssh {target.host}` should work without a question"
    elif done.returncode == 127:
        last = f"it has no {target.python}: {last}; give target.python"
    elif done.returncode == WRONG:
        last = f"its Python says {last}"
    raise UserError(f"target {target.name} does not answer: {last}")
