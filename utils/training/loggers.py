"""Where the numbers of a training go, by name: `csv` always, `tensorboard`, `wandb` and `mlflow` on request.

with open_loggers(["tensorboard"], folder, name="demo") as log:
    log.log(epoch, {"loss": 1.2, "map50_95": 0.31})
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from utils.errors import UserError, unknown
from utils.report.drawing import is_number


class Logger(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """step: epoch or trial number, rising; metrics: name -> value, names may differ between steps."""

    def close(self) -> None: ...


class CsvLogger:
    """`<folder>/log.csv`, a row a step. Goes on with an existing file; a new metric becomes a new column."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.columns = list(self.rows[0]) if self.rows else ["step"]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        kept = [r for r in self.rows if int(r["step"]) < step]  # a resumed training repeats its last steps
        new = [k for k in row if k not in self.columns]
        again = new or not kept or len(kept) < len(self.rows)
        self.rows = [*kept, row]
        if again:
            self.columns += new
            self._write(self.rows, "w")
        else:
            self._write([row], "a")

    def _write(self, rows: Sequence[Mapping[str, Any]], mode: str) -> None:
        with open(self.path, mode, newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoardLogger:
    """Event files in `<folder>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self.writer = _need("tensorboard.summary", "tensorboard").Writer(str(folder / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """A Weights & Biases run. It sends to their server unless WANDB_MODE=offline."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        wandb = _need("wandb", "wandb")
        self.run = wandb.init(project="hello-nas", name=name, dir=str(folder), config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowLogger:
    """An MLflow run, at MLFLOW_TRACKING_URI or MLflow's own default."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        mlflow = _need("mlflow", "mlflow")
        mlflow.set_experiment("hello-nas")
        self.client = mlflow.MlflowClient()
        self.run_id = mlflow.start_run(run_name=name).info.run_id
        self.end = mlflow.end_run
        mlflow.log_params({k: str(v)[:500] for k, v in config.items()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            # MLflow's names may not hold every character that a class name can
            safe = "".join(c if c.isalnum() or c in "_-./ " else "_" for c in key)
            self.client.log_metric(self.run_id, safe, value, step=step)

    def close(self) -> None:
        self.end()


class Loggers:
    """Several loggers as one; a context manager."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Finite numbers only go on; anything else (None, NaN, a text) is left out."""
        numbers = {k: v for k, v in metrics.items() if is_number(v)}
        for logger in self.loggers:
            logger.log(step, numbers)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Build = Callable[[Path, str, Mapping[str, Any]], Logger]
LOGGERS: dict[str, Build] = {
    "csv": lambda folder, name, config: CsvLogger(folder),
    "tensorboard": lambda folder, name, config: TensorBoardLogger(folder),
    "wandb": WandbLogger,
    "mlflow": lambda folder, name, config: MlflowLogger(name, config),
}


def open_loggers(
    names: Sequence[str], folder: Path, *, name: str = "run", config: Mapping[str, Any] | None = None
) -> Loggers:
    """CSV and the named ones. Raises UserError for an unknown name or a package that is not installed."""
    check_loggers(names)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = dict.fromkeys(["csv", *names])
    return Loggers([LOGGERS[wanted](folder, name, config or {}) for wanted in chosen])


def check_loggers(names: Sequence[str]) -> None:
    """UserError for an unknown name or a package that is not installed; imports none of them."""
    for wanted in names:
        if wanted not in LOGGERS:
            raise unknown("logger", wanted, LOGGERS)
        if wanted != "csv" and wanted not in sys.modules and find_spec(wanted) is None:
            raise UserError(f"logger {wanted!r} needs a package that is not installed: pip install {wanted}")


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            f"logger {package!r} needs a package that is not installed: pip install {package}"
        ) from None
