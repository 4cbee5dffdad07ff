"""Times network files on the machine that it runs on: `python timing.py request.json` prints JSON.

It stands alone: Python 3.9, numpy and the runtime (onnxruntime or openvino) are all it needs, so that it can
be copied to a board. request.json, whose files lie beside it:

    size, reference_size   [height, width] of the images of the files and of the reference network
    threads, seconds       of the runtime; for one file
    references             runtime -> file of the reference network
    files                  name -> [file, runtime]

The answer has `hardware`, `versions`, `reference` (runtime -> seconds of one run, a number a block) and
`timed` (name -> the `ratios` to the reference network beside it, block by block, and the reference's
`seconds` there). What goes wrong ends it with status 3 and one line on stderr.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Run = Callable[[], object]
Clock = Callable[[Run, int], float]  # seconds of n runs
BLOCK = 0.025  # seconds
WRONG = 3  # exit status


def warm_up(run: Run, clock: Clock) -> int:
    """Run until warm; returns the runs that make a block of about 25 ms."""
    clock(run, 3)
    return max(1, round(BLOCK / max(clock(run, 3) / 3, 1e-6)))


def blocks_in(block_seconds: float, seconds: float) -> int:
    """As many blocks as fit `seconds`, from 8 to 40."""
    return min(40, max(8, int(seconds / block_seconds)))


def alternate(candidate: Run, standard: Run, clock: Clock, seconds: float) -> tuple[list[float], list[float]]:
    """(ratios of their times, seconds of one run of `standard`), one of each a block; blocks alternate."""
    runs, runs_standard = warm_up(candidate, clock), warm_up(standard, clock)
    pair = clock(candidate, runs) + clock(standard, runs_standard)
    ratios, seen = [], []
    for block in range(blocks_in(pair, seconds)):
        if block % 2:  # neither of the two always finds the other's caches
            first = clock(candidate, runs) / runs
            second = clock(standard, runs_standard) / runs_standard
        else:
            second = clock(standard, runs_standard) / runs_standard
            first = clock(candidate, runs) / runs
        ratios.append(first / second)
        seen.append(second)
    return ratios, seen


def alone(run: Run, clock: Clock, seconds: float) -> list[float]:
    """Seconds of one run, a number a block."""
    runs = warm_up(run, clock)
    return [clock(run, runs) / runs for _ in range(blocks_in(runs * clock(run, 1), seconds))]


def cpu_clock(threads: int) -> Clock:
    """CPU time of the process with one thread, which other programs hardly change; wall time with more."""
    now = time.process_time if threads == 1 else time.perf_counter

    def clock(run: Run, n: int) -> float:
        start = now()
        for _ in range(n):
            run()
        return now() - start

    return clock


def onnx_run(file: str, size: Sequence[int], threads: int) -> Run:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    images = numpy.full((1, image.shape[1], *size), 0.5, numpy.float32)
    return lambda: session.run(None, {image.name: images})


def openvino_run(file: str, size: Sequence[int], threads: int) -> Run:
    import numpy
    import openvino

    model = openvino.Core().read_model(file)
    channels = model.input(0).partial_shape[1].get_length()
    model.reshape([1, channels, *size])
    how = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", how).create_infer_request()
    images = numpy.full((1, channels, *size), 0.5, numpy.float32)
    return lambda: request.infer([images])


RUNTIMES = {"onnx": ("onnxruntime", onnx_run), "openvino": ("openvino", openvino_run)}


def hardware() -> str:
    """The model of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        with_model = names[0] if names else ""
    except OSError:
        with_model = ""
    return with_model or platform.processor() or platform.machine()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for."""
    threads, seconds, clock = request["threads"], request["seconds"], cpu_clock(request["threads"])
    standards, versions = {}, {"python": platform.python_version(), "system": platform.platform()}
    for runtime, file in request["references"].items():
        package, load = RUNTIMES[runtime]
        standards[runtime] = load(file, request["reference_size"], threads)
        versions[package] = sys.modules[package].__version__
    timed = {}
    for name, (file, runtime) in request["files"].items():
        candidate = RUNTIMES[runtime][1](file, request["size"], threads)
        ratios, seen = alternate(candidate, standards[runtime], clock, seconds)
        timed[name] = {"ratios": ratios, "seconds": seen}
    reference = {} if timed else {name: alone(run, clock, seconds) for name, run in standards.items()}
    return {"hardware": hardware(), "versions": versions, "reference": reference, "timed": timed}


def main() -> int:
    try:
        with open(sys.argv[1]) as file:
            request = json.load(file)
        print(json.dumps(answer(request)))
        return 0
    except ImportError as error:
        print(f"{error}: pip install {error.name}", file=sys.stderr)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    return WRONG


if __name__ == "__main__":
    sys.exit(main())
