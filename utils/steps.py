"""The steps of an experiment, one row each, and how far a run has come in them.

Whoever needs to know something of a step reads it here: an experiment, which names there are and what they
need; a run, what to call; a resumption, which settings may differ; `status`, what is done; reports, what came
out and where. A new step is its function, what says that it is done, and a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.history import History, read_lines
from utils.report.controls import controls_info
from utils.report.progress import block, count, supernet_info
from utils.report.runs import Run, read_json, run_state
from utils.run_files import Files

Parts = tuple[bool, int, int | None]  # done, and parts and of as StepState has them
UNKNOWN: Parts = (False, 0, None)  # a step of another version: listed, and not known to be done


@dataclass(frozen=True)
class Step:
    """What there is to know of a step.

    name:    as `steps:` lists it          what: it does, for people
    run:     `module:function` in experiments/, imported when it runs; called with the run folder
    done:    how far a run has come in it
    blocks:  of the experiment that it alone reads, so that a resumed run may have others
    needs:   the block of the experiment without which it cannot run
    folder:  of the run, with a sub-folder of last.pt and result.json for each trial that it trains
    record:  its key in top/N.json         column: the head of that in tables
    time:    what the time it took is called in a report
    """

    name: str
    what: str
    run: str
    done: Callable[[Run], Parts]
    blocks: tuple[str, ...] = ()
    needs: str | None = None
    folder: str | None = None
    record: str | None = None
    column: str = ""
    time: str = ""


@dataclass(frozen=True)
class StepState:
    """One step of a run. parts, of: how many of its pieces (epochs, archs, trials) are finished, of how many;
    `of` is None where nobody can say."""

    name: str
    done: bool
    parts: int = 0
    of: int | None = None

    def __str__(self) -> str:
        if self.done or not self.parts:
            return self.name
        return f"{self.name} ({self.parts}{f' of {self.of}' if self.of else ''})"


def steps_of(run: Run) -> list[StepState]:
    """The steps that the experiment lists, in its order; of a run that finished, all are done."""
    listed = run.experiment.get("steps")
    names = [s for s in listed if isinstance(s, str)] if isinstance(listed, list) else []
    finished = run_state(run) == "finished"
    states = [StepState(name, *(STEPS[name].done(run) if name in STEPS else UNKNOWN)) for name in names]
    return [StepState(s.name, finished or s.done, s.parts, s.of) for s in states]


def _pretrain(run: Run) -> Parts:
    folder, settings = Files(run.folder).pretrain, block(run, "pretrain")
    train = settings.get("train") if isinstance(settings.get("train"), dict) else {}
    of = train.get("epochs", count(run, "train", "epochs"))  # type: ignore[union-attr]
    logs = (folder / "alone" / "log.csv", folder / "log.csv")
    rows = sum(max(0, len(read_lines(log)) - 1) for log in logs)
    return Files(run.folder).pretrained.exists(), rows, of if type(of) is int else None


def _supernet(run: Run) -> Parts:
    info, weights = supernet_info(run), Files(run.folder).supernet_weights
    return weights.exists(), info.epochs if info else 0, info.planned if info else None


def _sample(run: Run) -> Parts:
    return (run.folder / "sample.csv").exists(), 0, None


def _sample_accuracy(run: Run) -> Parts:
    folder, of = Files(run.folder).sampled, count(run, "sample_accuracy", "n")
    parts = len(read_lines(folder / "history.jsonl"))
    rows = len(read_lines(folder / "results.csv")) - 1  # a range of costs may hold fewer than n
    return rows > 0 and (rows >= parts or (of is not None and rows >= of)), parts, of


def _search(run: Run) -> Parts:
    """Over by its budget, or by its time: then a later step has begun."""
    parts, of = len(run.trials), count(run, "search", "max_trials")
    if run.phases:
        return True, run.phases[0][1], of
    later = any(key in r for r in _top(run) for key in ("evaluated", "finetuned", "retrained", "exported"))
    return later or (of is not None and parts >= of), parts, of


def _phase(run: Run, step: str) -> Parts:
    """Trials beyond those of the search; over where the next phase began, or the budget is spent."""
    ends = [begun for _, begun in run.phases[1:]] + [len(run.trials)]
    mine = [end - begun for (name, begun), end in zip(run.phases, ends, strict=False) if name == step]
    each, parts = count(run, step, "max_trials"), sum(mine)
    of = None if each is None else each * max(1, len(mine))
    over = bool(mine) and run.phases[-1][0] != step
    return over or (of is not None and parts >= of), parts, of


def _parallel(run: Run) -> Parts:
    return _phase(run, "parallel")


def _reignition(run: Run) -> Parts:
    """Not needed where a later phase began, or the run ended, without it."""
    done, parts, of = _phase(run, "reignition")
    later = bool(run.phases) and run.phases[-1][0] != "reignition"
    return done or later, parts, of


def _baselines(run: Run) -> Parts:
    family = run.experiment.get("family")
    of = len(family) if isinstance(family, list) else None
    parts = sum(t.state == "complete" for t in History(run.folder / "baselines.jsonl").load())
    return of is not None and parts >= of > 0, parts, of


def _trainings(run: Run, folder: str, key: str, more: int = 0) -> Parts:
    """Of the top k, in folders of their own; `more` beside them. The records hear of them at the end."""
    records, of = _top(run), _wanted(run)
    parts = len(list(run.folder.glob(f"{folder}/*/result.json")))
    done = bool(records) and all(key in r for r in records)
    return done, parts, None if of is None else of + more


def _retrain(run: Run) -> Parts:
    baseline = run.has_baseline and all(r.get("trial") != 0 for r in _top(run))
    return _trainings(run, "retrain", "retrained", int(baseline))


def _finetune(run: Run) -> Parts:
    return _trainings(run, "finetune", "finetuned")


def _noted(run: Run, key: str) -> Parts:
    """What is written into the record of each of the top k."""
    records = _top(run)
    parts = sum(key in r for r in records)
    return bool(records) and parts == len(records), parts, _wanted(run)


def _evaluate(run: Run) -> Parts:
    return _noted(run, "evaluated")


def _export(run: Run) -> Parts:
    return _noted(run, "exported")


def _rank(run: Run) -> Parts:
    n, seeds = count(run, "rank", "n"), block(run, "rank").get("seeds")
    of = n * len(seeds) if n is not None and isinstance(seeds, list) else None
    trainings = History(Files(run.folder).rank / "trainings.jsonl").load()
    parts = len({(t.key, t.seed) for t in trainings})  # what failed has a line for each attempt
    written = (Files(run.folder).rank / "rank.json").exists()
    return written and (of is None or parts >= of), parts, of


def _controls(run: Run) -> Parts:
    info, seeds = controls_info(run), block(run, "controls").get("seeds")
    if info is None:
        return False, 0, None
    parts, of = sum(len(row.scores) for row in info.rows), len(info.rows) * len(info.seeds)
    return info.seeds == seeds and parts >= of, parts, of


def _report(run: Run) -> Parts:
    records, cards = _top(run), list((run.folder / "top").glob("[0-9]*.md"))
    return bool(records) and len(cards) >= len(records), 0, None


def _top(run: Run) -> list[dict[str, Any]]:
    return [read_json(p) for p in Files(run.folder).top]


def _wanted(run: Run) -> int | None:
    return len(_top(run)) or count(run, "search", "top_k")


# In the order in which they usually run.
STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step(
            "pretrain",
            "train the supernet's backbone as a classifier, of a folder or of crops of the data",
            "pretrain:pretrain",
            _pretrain,
            needs="pretrain",
        ),
        Step(
            "supernet",
            "train one set of weights for all architectures",
            "supernet:train_supernet",
            _supernet,
            needs="supernet",
        ),
        Step(
            "sample",
            "costs of many architectures: sample.csv, a histogram",
            "sample:sample_run",
            _sample,
            blocks=("sample",),
        ),
        Step(
            "sample_accuracy",
            "scores of slices, spread over the costs",
            "slices:sample_accuracy",
            _sample_accuracy,
            blocks=("sample_accuracy",),
            needs="supernet",
        ),
        Step("search", "any strategy; a trial is a training, or a slice", "search:search", _search),
        Step(
            "reignition",
            "backbones of a front that stalls trained as classifiers, and the search goes on (SP-NAS)",
            "serial:reignition",
            _reignition,
            blocks=("reignition",),
        ),
        Step(
            "parallel",
            "extra streams beside the stages of the serial codes found, as further trials (SP-NAS)",
            "serial:parallel",
            _parallel,
            blocks=("parallel",),
        ),
        Step(
            "baselines",
            "the unsearched networks of `family:`, trained as trials are",
            "baselines:train_baselines",
            _baselines,
            blocks=("family",),
        ),
        Step(
            "retrain",
            "the top k trained on all of train",
            "retrain:retrain_top",
            _retrain,
            blocks=("retrain",),
            folder="retrain",
            record="retrained",
            column="retrained",
            time="then retraining",
        ),
        Step(
            "finetune",
            "slices of the top k taken out and trained on for a short time",
            "retrain:finetune_top",
            _finetune,
            blocks=("finetune",),
            needs="supernet",
            folder="finetune",
            record="finetuned",
            column="fine-tuned",
            time="then fine-tuning",
        ),
        Step(
            "controls",
            "what the winner has to beat, trained as it is, with several seeds",
            "controls:controls",
            _controls,
            blocks=("controls",),
            time="then the controls",
        ),
        Step(
            "evaluate",
            "the winners and the unsearched network on val, with latency, curves and pictures",
            "findings:evaluate_top",
            _evaluate,
            record="evaluated",
        ),
        Step(
            "rank",
            "architectures trained from scratch; Kendall's tau to their slices",
            "rank:rank",
            _rank,
            blocks=("rank",),
            needs="supernet",
            time="comparing with training alone",
        ),
        Step(
            "export",
            "the top k for other tools, re-loaded and compared",
            "export:export_top",
            _export,
            record="exported",
        ),
        Step("report", "a report, and a model card for each of the top k", "run:report", _report),
    )
}


def steps_line(run: Run) -> str:
    """`done: supernet, sample; now: sample_accuracy (5 of 12); then: search, report`; "" without steps."""
    steps, alive = steps_of(run), run_state(run) == "running"
    done = [s.name for s in steps if s.done]
    left = [str(s) for s in steps if not s.done]
    parts = [f"done: {', '.join(done)}"] if done else []
    if left:
        parts.append(f"{'now' if alive else 'stopped in' if '(' in left[0] else 'next'}: {left[0]}")
    if left[1:]:
        parts.append(f"then: {', '.join(left[1:])}")
    return "; ".join(parts)
