#!/usr/bin/env python3
"""Architecture search for object detectors on your own data.

python hello_nas.py                                     the default search; its data needs no download
python hello_nas.py run EXPERIMENT.yaml data=DATA.yaml  the same on yours
python hello_nas.py COMMAND --help                      what a command takes
"""

# This file is the table of contents: each command is a few lines that call the file where the work is done.

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from utils.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent
DEFAULT = ROOT / "experiments" / "yolov5_multitrial.yaml"

app = cyclopts.App(
    name="hello_nas.py",
    help=__doc__,
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(negative=()),
)


@app.default
@app.command
def run(
    *args: str,
    run_dir: Path | None = None,
    resume: bool = False,
    steps: str | None = None,
    port: int = 8083,
    host: str = "127.0.0.1",
    no_ui: bool = False,
) -> None:
    """Run an experiment: search, and whatever other steps its file names.

    Parameters
    ----------
    args: [EXPERIMENT.yaml] [key=value ...]; by default a YOLOv5 space is searched on handwritten digits.
    run_dir: where results go; default runs/<name>. An existing folder is never overwritten.
    resume: go on with that folder's run, keeping every finished trial.
    steps: comma-separated steps instead of the file's, e.g. search,report.
    port: of the NNI web UI.
    host: the address the web UI listens on. It has no password: leave it on loopback.
    no_ui: serve no web UI on a known port.
    """
    from experiments.run import WebUi, run_experiment

    path, overrides = _experiment_and_overrides(args)
    if steps:
        overrides.append(f"steps=[{steps}]")
    ui = WebUi(None if no_ui else port, host)
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
    n: Annotated[int, Parameter(["-n", "--number"])] = 10000,
    out: Path = Path("sample"),
    seed: int = 0,
) -> None:
    """Costs of random architectures without training: OUT/sample.csv and OUT/sample.png."""
    from experiments.sample import sample_costs

    print(sample_costs(experiment, overrides, n=n, out=out, seed=seed))


@app.command
def report(run_dir: Path) -> None:
    """report.html, pareto.png and results.csv of a run, from its history alone."""
    from utils.report import write_report

    print(f"written: {write_report(run_dir)}")


@app.command
def status(run_dir: Path) -> None:
    """One screen on a live, finished or killed run."""
    from utils.results import status as describe

    print(describe(run_dir))


@app.command
def view(run_dir: Path, port: int = 8083) -> None:
    """The NNI web UI of a finished run again, until Ctrl-C."""
    from experiments.nni_runtime import view as serve

    serve(run_dir, port)


@app.command
def data(src: Path, to: Path) -> None:
    """Pascal VOC, COCO or YOLO data -> a YOLO folder, with a summary of what was dropped and why."""
    import tempfile

    from data.dataset import open_dataset
    from data.yolo_format import export_yolo

    with tempfile.TemporaryDirectory() as cache:
        dataset = open_dataset(src, Path(cache))
        print(dataset.summary())
        print(f"written: {export_yolo(dataset, to)}")


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
    """0 on success, 2 with one line for a mistake of the user's, 130 on Ctrl-C."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except (UserError, cyclopts.CycloptsError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
