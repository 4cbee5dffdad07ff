#!/usr/bin/env python3
"""Architecture search for object detectors on your own data.

python hello_nas.py                                     the default search; its data needs no download
python hello_nas.py run EXPERIMENT.yaml data=DATA.yaml  the same on yours
python hello_nas.py COMMAND --help                      what a command takes
"""

# This file is the table of contents: each command is a few lines that call the file where the work is done.

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from utils.errors import UserError, did_you_mean, printable

ROOT = Path(__file__).resolve().parent
DEFAULT = ROOT / "experiments" / "yolov5_multitrial.yaml"
RESUMABLE = ("run", "retrain", "finetune")


def whole(low: int, high: int | None = None) -> Parameter:
    """A whole number in a range; cyclopts by itself would round 1.5."""
    return Parameter(converter=lambda _, tokens: int(tokens[0].value), validator=Number(gte=low, lte=high))


def sides(_: object, tokens: Sequence[cyclopts.Token]) -> int | tuple[int, int]:
    """Of images: 640, or height and width, 384x640."""
    from utils.sides import pair, parse_sides

    imgsz = parse_sides(tokens[0].value)
    if not all(1 <= side <= 16_384 for side in pair(imgsz)):
        raise ValueError("sides are 1 to 16,384 pixels")
    return imgsz


Port = Annotated[int, whole(1, 65_535)]
Pixels = Annotated[int | tuple[int, int], Parameter(converter=sides, n_tokens=1)]

app = cyclopts.App(
    name="hello_nas.py",
    help=__doc__,
    help_format="plaintext",
    version_flags=[],
    suppress_keyboard_interrupt=False,  # `main` says how to go on, and ends with the status of the signal
    default_parameter=Parameter(negative=()),
)


@app.default
@app.command
def run(
    *args: str,
    data: str | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    steps: str | None = None,
    port: Port = 8083,
    host: str = "127.0.0.1",
    no_ui: bool = False,
) -> None:
    """Run an experiment: search, and whatever other steps its file names.

    Args:
        args: [EXPERIMENT.yaml] [key=value ...]; by default a YOLOv5 space is searched on handwritten digits.
        data: the same as data=...
        run_dir: where results go; default runs/<name>. An existing folder is never overwritten.
        resume: go on with that folder's run, keeping every finished trial.
        steps: comma-separated steps instead of the file's, e.g. search,report.
        port: of the NNI web UI.
        host: the address the web UI listens on. It has no password: leave it on loopback.
        no_ui: serve no web UI on a known port.
    """
    from experiments.run import WebUi, run_experiment

    path, overrides = _experiment_and_overrides(args)
    overrides = _with_data(overrides, data)
    if steps:
        overrides.append(f"steps=[{steps}]")
    ui = WebUi(None if no_ui else port, host)
    run_dir = _run_folder(run_dir) if resume and run_dir else run_dir
    stored = resume and run_dir  # then the run knows its experiment
    run_experiment(path or (None if stored else DEFAULT), overrides, run_dir=run_dir, resume=resume, ui=ui)


@app.command
def space(experiment: Path = DEFAULT, *overrides: str) -> None:
    """What an experiment may vary: its choices, how many architectures, the smallest and largest cost."""
    from experiments.sample import describe_space

    print(describe_space(experiment, overrides))


@app.command
def sample(
    experiment: Path = DEFAULT,
    *overrides: str,
    n: Annotated[int, Parameter(["-n", "--number"]), whole(1, 10_000_000)] = 10000,
    out: Path = Path("sample"),
    seed: Annotated[int, whole(0)] = 0,
    low: float | None = None,
    high: float | None = None,
    traverse: bool = False,
) -> None:
    """Costs of random architectures without training: OUT/sample.csv and OUT/sample.png.

    Args:
        experiment: whose space, data and image size.
        overrides: key=value of the experiment.
        n: how many architectures.
        out: a new folder.
        seed: of the draws.
        low: only architectures of so many GFLOPs or more.
        high: only architectures of so many GFLOPs or fewer.
        traverse: walk through the space in even strides instead of drawing.
    """
    from experiments.sample import sample_costs

    print(sample_costs(experiment, overrides, n=n, out=out, seed=seed, low=low, high=high, traverse=traverse))


@app.command
def evaluate(
    arch: Path,
    *overrides: str,
    data: str | None = None,
    weights: Path | None = None,
    split: str = "val",
    out: Path | None = None,
    space: Path | None = None,
) -> None:
    """mAP, parameters, GFLOPs and latency of one architecture with its weights.

    Args:
        arch: an architecture file, like runs/<name>/top/1.json.
        overrides: key=value for data, imgsz, device, seed, threads and train.*; else as its search had them.
        data: the same as data=...
        weights: default those of its trial.
        split: val, search_val, or test where the data have one.
        out: a JSON file for the result.
        space: detector YAML, where ARCH is the bare dict that NNI exports.
    """
    from experiments.evaluate import evaluate_arch

    evaluate_arch(arch, _with_data(overrides, data), weights=weights, split=split, out=out, space_file=space)


@app.command
def measure(
    arch: Path,
    *overrides: str,
    data: str | None = None,
    weights: Path | None = None,
    metrics: str = "",
    target: str | None = None,
    python: str = "python3",
    threads: Annotated[int, whole(1, 1024)] = 1,
    split: str = "val",
    out: Path | None = None,
    space: Path | None = None,
) -> None:
    """mAP and latency of the file that ships: exported as fp32 and as INT8, timed here or on another machine.

    INT8 is calibrated on training images. A latency that the machine was too busy for is void.

    Args:
        arch: an architecture file, like runs/<name>/top/1.json.
        overrides: as of `evaluate`.
        data: the same as data=...
        weights: default those of its trial.
        metrics: comma-separated, of onnx_ms, int8_ms, openvino_ms, openvino_int8_ms, int8_map50_95, ...; of
            each file that is named both are measured. Default: the ONNX file and its INT8.
        target: a host by ssh, without a password, like pi@board; default this machine.
        python: the host's, with numpy and onnxruntime.
        threads: of the runtime on the target.
        split: what the files are scored on.
        out: a JSON file for the result.
        space: detector YAML, where ARCH is the bare dict that NNI exports.
    """
    from experiments.config import target_settings
    from experiments.measures import measure_arch

    measure_arch(
        arch,
        _with_data(overrides, data),
        weights=weights,
        split=split,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        target=target_settings(host=target, python=python, threads=threads),
        out=out,
        space_file=space,
    )


@app.command
def retrain(
    arch: Path,
    *overrides: str,
    data: str | None = None,
    out: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
    space: Path | None = None,
) -> None:
    """Train one architecture on all of train: last.pt, best.pt, result.json, log.csv in OUT.

    Args:
        arch: an architecture file, like runs/<name>/top/1.json.
        overrides: key=value, e.g. train.epochs=100 imgsz=320 seed=1; else as its search had them.
        data: the same as data=...
        out: a new folder; default runs/retrain-<run>-<N>.
        weights: to start from, of any network that resembles this one; else as its search did.
        resume: go on with OUT after an interruption.
        space: detector YAML, where ARCH is the bare dict that NNI exports.
    """
    from experiments.retrain import retrain as train

    train(arch, _with_data(overrides, data), out=out, weights=weights, resume=resume, space_file=space)


@app.command
def finetune(
    arch: Path,
    *overrides: str,
    weights: Path,
    data: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    space: Path | None = None,
) -> None:
    """A short training from WEIGHTS at a tenth of the learning rate. See retrain.

    A quarter of the epochs, without mosaics; of weights that come from a supernet a tenth of its epochs. From
    the supernet itself (runs/<name>/supernet/weights.pt) the architecture is taken out first.
    """
    from experiments.retrain import finetune as train

    train(arch, weights, _with_data(overrides, data), out=out, resume=resume, space_file=space)


@app.command
def export(
    arch: Path,
    *,
    weights: Path | None = None,
    format: str = "onnx",
    out: Path | None = None,
    imgsz: Pixels | None = None,
    data: str | None = None,
    threads: Annotated[int, whole(1, 1024)] = 1,
    space: Path | None = None,
) -> None:
    """One architecture for other tools; re-loaded and compared before it is called saved.

    Args:
        arch: an architecture file, like runs/<name>/top/1.json.
        weights: default those of its trial.
        format: onnx, openvino, or pt: for stock Ultralytics, of other networks a .pt2 for plain torch.
        out: a new file; default beside ARCH.
        imgsz: side, or HEIGHTxWIDTH; default that of its search.
        data: for batch norm, where the weights are a supernet's; default those of its search.
        threads: of the runtime whose latency is printed.
        space: detector YAML, where ARCH is the bare dict that NNI exports.
    """
    from experiments.export import export_arch

    export_arch(
        arch, format, weights=weights, out=out, imgsz=imgsz, data=data, threads=threads, space_file=space
    )


@app.command
def predict(
    weights: Path,
    source: Path,
    *,
    out: Path = Path("predictions"),
    conf: float = 0.25,
    iou: float = 0.7,
    imgsz: Pixels | None = None,
    device: str = "auto",
    save: str = "pictures,json,txt",
) -> None:
    """Boxes, or a classifier's answer, in a picture, a video or a folder of them: drawn, as JSON and as text.

    OUT/predictions.json has everything with scores; OUT/labels/*.txt is YOLO's `class x y w h`. What nothing
    was found in is named.

    Args:
        weights: a .pt of ours: of a trial, of a retraining or fine-tuning, or exported for Ultralytics; or an
            architecture file, like runs/<name>/top/1.json, whose best weights are taken.
        source: a picture, a video or a folder.
        out: a new folder.
        conf: least score of a box that is drawn.
        iou: overlap above which the weaker of two boxes is dropped.
        imgsz: side, or HEIGHTxWIDTH; default that of the training.
        device: auto, cpu, cuda, cuda:1.
        save: what to write, any of pictures, json, txt.
    """
    from experiments.predict import predict as find

    find(weights, source, out, conf=conf, iou=iou, imgsz=imgsz, device=device, save=save)


@app.command
def report(run_dir: Path, /, *others: Path, baselines: Path | None = None, out: Path | None = None) -> None:
    """report.html, pareto.png and results.csv of a run, from its folder alone; of several comparison.html.

    Args:
        run_dir: of any run, finished or not; or its name below runs/.
        others: more runs, to compare with it on one page: fronts in one plot, winners and costs in a table.
        baselines: the run folder of experiments/baselines.yaml, to draw its line beside the trials.
        out: a new file for the comparison; default comparison.html in RUN_DIR.
    """
    from utils.report.compare import write_comparison
    from utils.report.report import write_report

    if others:
        if baselines is not None:
            raise UserError("--baselines is drawn in the report of one run; to compare, give it as a run")
        print(f"written: {write_comparison([_run_folder(d) for d in (run_dir, *others)], out)}")
        return
    if out is not None:
        raise UserError(f"--out {out} is for comparing several runs; a run's report is in its folder")
    print(f"written: {write_report(_run_folder(run_dir), baselines=baselines and _run_folder(baselines))}")


@app.command
def keys(block: str = "") -> None:
    """Every key of an experiment file, its default and its meaning.

    Args:
        block: only those of a block or key, e.g. train, search.strategy, supernet.distil.
    """
    from experiments.config import describe_keys

    print(describe_keys(block))


@app.command
def status(run_dir: Path) -> None:
    """One screen on a live, finished or killed run, given by its folder or its name below runs/."""
    from utils.report.results import status as describe

    print(describe(_run_folder(run_dir)))


@app.command
def view(run_dir: Path, port: Port = 8083) -> None:
    """The NNI web UI of a finished run again, until Ctrl-C. The run is given as to `status`."""
    from experiments.engine.nni_runtime import view as serve

    serve(_run_folder(run_dir), port)


@app.command
def data(src: Path, to: Path) -> None:
    """Pascal VOC, COCO or YOLO data -> a YOLO folder, with a summary of what was dropped and why."""
    import tempfile

    from data.dataset import open_dataset
    from data.yolo_export import export_yolo, too_small

    with tempfile.TemporaryDirectory() as cache:
        dataset = open_dataset(src, Path(cache))
        print(dataset.summary())
        print(f"written: {export_yolo(dataset, to)}")
        if n := too_small(dataset):
            print(
                f"note: Ultralytics passes over {n} of the images, which are less than 10 pixels wide or high"
            )


def _with_data(overrides: Sequence[str], data: str | None) -> list[str]:
    """`--data D` is `data=D`."""
    return [*overrides, *([f"data={json.dumps(data)}"] if data is not None else [])]


def _run_folder(given: Path) -> Path:
    """A run by its folder or file or, where there is none, by its name below runs/. UserError for neither."""
    runs = Path("runs")
    holds_run = ("experiment.yaml", "history.jsonl")
    if not given.is_file() and not any((given / name).exists() for name in holds_run):
        if any((runs / given / name).exists() for name in holds_run):
            return runs / given
        if not given.exists():
            names = [p.name for p in runs.iterdir() if p.is_dir()] if runs.is_dir() else []
            hint = did_you_mean(given.name, names) or "; give its folder, or its name below runs/"
            raise UserError(f"no run {str(given)!r}{hint}")
    return given


def _experiment_and_overrides(args: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """`x.yaml a=1 b=2` -> (x.yaml, [a=1, b=2]); both parts may be absent."""
    head = args[0] if args else "="
    if "=" in head:
        return None, list(args)
    if not head.endswith((".yaml", ".yml")):
        hint = did_you_mean(head, [name.replace("_", "-") for name in app if not name.startswith("-")])
        raise UserError(f"{head!r} is neither a command, an experiment .yaml nor key=value{hint}")
    return Path(head), list(args[1:])


def main(argv: list[str] | None = None) -> int:
    """0 on success, 2 with one line for a mistake of the user's, 130 on Ctrl-C, 143 on SIGTERM."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # line by line, so that `| tee` shows a search while it runs; whatever a name holds can be printed
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    try:
        for argument in argv:
            if not argument or "\0" in argument:
                raise UserError(f"an argument is {argument!r}: most likely a shell variable that is not set")
        app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except (UserError, cyclopts.CycloptsError) as error:
        said = printable(" ".join(str(error).split()))
        # A value that it shows may be of any length.
        print(f"error: {said if len(said) <= 2000 else said[:2000] + '...'}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENOSPC:
            said = f"the disk is full: {error}; what was finished is kept"
        elif error.filename is not None:  # a path that somebody gave, or no right to write there
            said = f"{error.filename}: {(error.strerror or type(error).__name__).lower()}"
        else:
            raise
        print(f"error: {printable(said)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        others = {name for name in app if name not in RESUMABLE}
        print("interrupted" + "; --resume goes on" * (not others & set(argv[:1])), file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args and interrupt.args[0] else signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
