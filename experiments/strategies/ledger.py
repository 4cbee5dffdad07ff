"""Between any NNI strategy and any NNI engine: what is new, what is known already, what is not allowed.

    Search = Chain(strategy, Filter, Ledger) -> engine

The strategy proposes; NNI's Filter drops what breaks a limit; the Ledger numbers what is new, writes it to
asked.jsonl and hands it to the engine, answers repeats from what is known, and tells the strategy what
became of each.

Resume is replay. The strategy runs again from the same seed; what history.jsonl knows is answered without a
trial, in the order in which it was told the first time (asked.jsonl holds, with each proposal, what the
strategy had been told since the one before). So no strategy saves any state, and at concurrency 1 a resumed
search is exactly the uninterrupted one.

Engines report from a thread of their own. Here that thread only puts its event on a queue; everything else,
the strategy's callbacks included, happens in the strategy's thread whenever it looks for a free worker.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni.nas.space import ModelStatus
from nni.nas.strategy.middleware import Chain, Filter, StrategyMiddleware

from utils.errors import UserError
from utils.history import Arch, History, Trial, append_line, arch_key, is_real, read_lines
from utils.json_text import parse_json
from utils.limits import Limit, broken, violation

if TYPE_CHECKING:
    from models.space import Space

log = logging.getLogger(__name__)

POLL = 0.02  # seconds between two looks at the engine
RETRIES = 2  # of a trial that is killed from outside
BUDGET_POLL = 1.0  # seconds between two questions to NNI's server whether it still takes trials


@dataclass(frozen=True)
class Asked:
    """A line of asked.jsonl. after: numbers of the trials the strategy was told of since the line before."""

    number: int
    arch: Arch
    parents: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class Ledger(StrategyMiddleware):
    """See `build_strategy` for the arguments.

    first:    number of the first trial that this strategy asked for; those before it were another's
    penalise: give the strategy a reward of 0 for a failed arch, what a stopped one had reached, and
              -violation for an infeasible one (for PolicyBasedRL, which learns nothing from silence; the
              others skip them or read the trial)
    """

    def __init__(
        self,
        space: Space,
        run_dir: Path,
        *,
        max_trials: int,
        limits: Sequence[Limit],
        cost: Callable[[Arch], Mapping[str, float]],
        patience: int,
        quick_cost: Callable[[Arch], Mapping[str, float]] | None = None,
        penalise: bool = False,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.space = space
        self.max_trials = max_trials
        self.limits = list(limits)
        self.cost = cost
        self.patience = patience
        self.quick_cost = quick_cost
        self.penalise = penalise
        self.first = first
        self.repeats = 0  # proposals in a row that were tried before
        self.fruitless = 0  # proposals in a row that brought nothing new
        self.fruitless_reason = ""
        self.history = History(run_dir / "history.jsonl")
        self._asked_path = run_dir / "asked.jsonl"
        self._distinct = space.size()[1]

        self.results: dict[str, Trial] = {}  # complete, stopped and failed, by arch
        self.infeasible: dict[str, Trial] = {}
        self._read_bytes = 0
        self.read_history()
        self._asked = _read_asked(self._asked_path)
        self._restore_asked(run_dir)
        numbers = [asked.number for asked in self._asked.values()] + [t.number for t in self.results.values()]
        self._next_number = 1 + max(numbers, default=-1)

        before = [item for item in self._asked.items() if item[1].number >= first]
        self._script = deque(sorted(before, key=lambda item: item[1].number))  # still to be replayed
        self._flight: dict[str, list[Any]] = {}  # models that wait for the result of an arch
        self._recorded: list[str] = []  # those of them whose result is in the history already
        self._told: set[str] = set()
        self._told_since: list[int] = []
        self._answers: list[tuple[Any, Trial]] = []  # to repeats
        self._started: dict[str, float] = {}
        self._killed: dict[str, int] = {}  # how often each arch's trial was killed and started again
        self._events: deque[tuple[Any, ModelStatus]] = deque()  # filled by the engine's thread
        self._reported: dict[Any, Any] = {}  # filled by the engine's thread: model -> final metric

    def _restore_asked(self, run_dir: Path) -> None:
        """Write down anew what asked.jsonl has lost and the history knows, so that trials keep their numbers.

        What the strategy had been told of before it asked is taken from the times: what had ended by then.
        """
        lost = [trial for trial in self.results.values() if trial.key not in self._asked]
        told: set[int] = set()
        for trial in sorted(self.results.values(), key=lambda t: t.number) if lost else ():
            earlier = [t for t in self.results.values() if t.number < trial.number and t.number not in told]
            ends = sorted((t.started + t.seconds, t.number) for t in earlier)
            after = tuple(number for end, number in ends if end <= trial.started + 1e-3)  # floats lose bits
            told |= set(after)
            if trial.key not in self._asked:
                asked = Asked(trial.number, trial.arch, trial.parents, after)
                append_line(self._asked_path, json.dumps(asked.__dict__))
                self._asked[trial.key] = asked
        if lost:
            log.warning("asked.jsonl lacked %d trials of the history; they are written down anew", len(lost))
            known = {asked.number for asked in self._asked.values()}
            for path in run_dir.glob("trials/[0-9]*/checkpoint.pt"):  # of trials whose arch nobody knows now
                if path.parent.name.isdigit() and int(path.parent.name) not in known:
                    path.unlink()

    # What the engine reports, in its thread.

    def _initialize_engine(self, engine: Any) -> None:
        engine.register_model_event_callback("final_metric", self._on_metric)
        engine.register_model_event_callback("training_end", self._on_end)

    def _on_metric(self, event: Any) -> None:
        self._reported[event.model] = event.metric

    def _on_end(self, event: Any) -> None:
        # The status reaches the model when the strategy is told of it, not now: PolicyBasedRL looks at its
        # models whenever it likes, and from another thread than this one.
        event.prevent_default()
        self._events.append((event.model, event.status))

    # What the strategy does, in its thread.

    def submit_models(self, *models: Any) -> None:
        for model in models:
            arch = self._settle(model)
            key = arch_key(arch)
            if key in self._flight or key in self._told:
                self.repeats += 1
                self.note_fruitless("was tried already")
            else:
                self.repeats = self.fruitless = 0
            if key in self._flight:
                self._flight[key].append(model)
            elif key in self._told:
                self._answers.append((model, self.results[key]))
            else:
                self._take(model, arch, key)

    def _settle(self, model: Any) -> Arch:
        """The arch of a proposal. NNI's strategies know no order between values: a sample that breaks one
        becomes the nearest that keeps it, in the model too, which is what the strategy will learn from."""
        arch = self.space.repair(model.sample)
        if self.space.ordered:
            model.sample = {**model.sample, **arch}
        return arch

    def _take(self, model: Any, arch: Arch, key: str) -> None:
        """A proposal that is new, or new since the start of this process."""
        self._flight[key] = [model]
        if key in self._asked:
            self._follow_script(key)
        else:
            if self._script:
                log.warning(
                    "the strategy proposes other archs than before the interruption; going on from here"
                )
                self._script.clear()
            asked = Asked(
                self._next_number, arch, tuple(getattr(model, "parents", ())), tuple(self._told_since)
            )
            append_line(self._asked_path, json.dumps(asked.__dict__))
            self._asked[key] = asked
            self._next_number += 1
        if self._asked[key].number >= self.first:  # of another search: its line says nothing of this one
            self._told_since = []
        if key in self.results:
            self._recorded.append(key)
        else:
            self._started[key] = time.time()
            self.engine.submit_models(model)

    def _follow_script(self, key: str) -> None:
        if self._script and self._script[0][0] == key:
            self._script.popleft()
        else:
            self._script = deque(item for item in self._script if item[0] != key)

    def feasible(self, model: Any) -> bool:
        """For NNI's Filter. Writes an arch that breaks a limit to the history, once, as trial -1."""
        arch = self._settle(model)
        key = arch_key(arch)
        if key in self._asked or key in self.results:
            return True  # it was let in before, or is the baseline
        if key not in self.infeasible:
            metrics, reason = self._price(arch)
            if reason is None:
                return True
            parents = tuple(getattr(model, "parents", ()))
            self.infeasible[key] = Trial(
                -1, arch, metrics, None, "infeasible", reason, parents=parents, started=time.time()
            )
            self.history.append(self.infeasible[key])
        model.trial = self.infeasible[key]
        self.repeats = 0
        if self.penalise:
            penalty = -violation(self.limits, model.trial.metrics)
            self.dispatch_model_event("final_metric", model=model, metric=penalty)
        self.note_fruitless(f"breaks a limit: {model.trial.reason}")
        return False

    def _price(self, arch: Arch) -> tuple[dict[str, float], str | None]:
        """Costs of an arch and the limits it breaks; what needs measuring is not measured in vain."""
        if not self.limits:
            return {}, None
        for price in filter(None, (self.quick_cost, self.cost)):
            metrics = dict(price(arch))
            reason = broken(self.limits, metrics)
            if reason is not None:
                break
        return metrics, reason

    def note_fruitless(self, reason: str) -> None:
        self.fruitless += 1
        self.fruitless_reason = reason

    def idle_worker_available(self) -> bool:
        """Wait for a free worker; False when none will come. (NNI's strategies sleep a second between two
        looks.)
        """
        asked_budget = time.monotonic()
        while True:
            self._tell()
            if not self._may_start():
                return False
            if self._script and self._script[0][0] in self.results:
                return True  # a replay needs no worker
            if self.engine.idle_worker_available():
                self._tell()  # of what has freed the worker
                return True
            if time.monotonic() - asked_budget > BUDGET_POLL:
                asked_budget = time.monotonic()
                if not self.engine.budget_available():
                    return False
            time.sleep(POLL)

    def budget_available(self) -> bool:
        return self._may_start() and self.engine.budget_available()

    def wait_models(self, *models: Any) -> None:
        """Wait until the strategy has been told of everything that runs."""
        self._script.clear()
        asked_budget = time.monotonic()
        self._tell()
        while self._flight or self._answers:
            time.sleep(POLL)
            if time.monotonic() - asked_budget > BUDGET_POLL:
                asked_budget = time.monotonic()
                self.engine.budget_available()  # raises when NNI's server is gone, so nobody waits for ever
            self._tell()

    def list_models(self, status: ModelStatus | None = None) -> Any:
        return self.engine.list_models(status)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is restored: resume is replay."""

    def exhausted(self) -> bool:
        return self._trials() + len(self.infeasible) >= self._distinct

    def finished_budget(self) -> bool:
        return self._trials() >= self.max_trials

    def _trials(self) -> int:
        """Finished and running ones."""
        return len(self.results) + sum(key not in self.results for key in self._flight)

    def _may_start(self) -> bool:
        return not (self.finished_budget() or self.exhausted() or self.fruitless >= self.patience)

    # What the strategy is told.

    def _tell(self) -> None:
        """Tell the strategy what has ended since it last looked."""
        while self._events:
            model, status = self._events.popleft()
            key = arch_key(self.space.canonical(model.sample))
            if key not in self._flight:
                continue  # told already
            self.read_history()
            if key not in self.results and status == ModelStatus.Interrupted:
                self._flight.pop(key)  # the search was stopped: it runs again on resume
                continue
            if key not in self.results and self._runs_again(model, key):
                continue
            if key not in self.results:
                self._write_result(model, key, status)
            self._reported.pop(model, None)
            self._finish(key)
        for key in self._due():
            self._recorded.remove(key)
            self._finish(key)
        answers, self._answers = self._answers, []
        for model, trial in answers:
            self._answer(model, trial)

    def _runs_again(self, model: Any, key: str) -> bool:
        """Whether a trial that ended without a line of history starts again: one that was killed from
        outside (out of memory, a lost worker), not one that failed by what it did."""
        again = self._killed.get(key, 0) + 1
        if not getattr(model, "killed", False) or again > RETRIES:
            return False
        self._killed[key] = again
        log.warning("trial %d %s; it runs again", self._asked[key].number, model.failure_reason[3:])
        self.engine.submit_again(model)
        return True

    def _due(self) -> list[str]:
        """Replays to be told now: as the script says; where it ends, all, in the order of the history."""
        if not self._recorded:
            return []
        if not self._script:
            return [key for key in self.results if key in self._recorded]
        numbers = {self.results[key].number: key for key in self._recorded}
        return [numbers[number] for number in self._script[0][1].after if number in numbers]

    def _finish(self, key: str) -> None:
        trial = self.results[key]
        self._told.add(key)
        self._told_since.append(trial.number)
        for model in self._flight.pop(key, []):
            self._answer(model, trial)

    def _answer(self, model: Any, trial: Trial) -> None:
        model.trial = trial
        good = trial.state == "complete" and trial.reward is not None
        model.metrics.clear()  # what the history says counts, in a replay as in the first run
        if good:
            self.dispatch_model_event("final_metric", model=model, metric=trial.reward)
        elif self.penalise:
            so_far = trial.reward if trial.state == "stopped" else None
            self.dispatch_model_event("final_metric", model=model, metric=so_far or 0.0)
        status = ModelStatus.Trained if good else ModelStatus.Failed
        self.dispatch_model_event("training_end", model=model, status=status)

    def _write_result(self, model: Any, key: str, status: ModelStatus) -> None:
        """For a trial that left no line of its own: it was killed, or its evaluator leaves the writing to
        us.
        """
        reported = self._reported.get(model)
        values = reported if isinstance(reported, dict) else {"default": reported}
        metrics = {name: float(v) for name, v in values.items() if is_real(v)}
        reward = metrics.pop("default", None)
        reason = None
        if status != ModelStatus.Trained:
            reason = getattr(model, "failure_reason", None) or f"it ended with status {status.value}"
        elif reward is None:
            reason = f"the trial reported {reported!r}, which holds no finite reward"
        asked = self._asked[key]
        started = self._started.get(key, 0.0)
        trial = Trial(
            asked.number,
            asked.arch,
            metrics,
            reward if reason is None else None,
            "complete" if reason is None else "failed",
            reason,
            seconds=time.time() - started,
            parents=asked.parents,
            started=started,
        )
        self.history.append(trial)
        self.results[key] = trial

    def read_history(self) -> None:
        """Take in the lines that were appended since the last look, by this process or by trials."""
        if not self.history.path.exists():
            return
        with open(self.history.path, "rb") as file:
            file.seek(self._read_bytes)
            chunk = file.read()
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            try:
                trial = Trial.from_json(line)
            except (ValueError, TypeError):
                continue  # torn by a crash
            (self.infeasible if trial.state == "infeasible" else self.results)[trial.key] = trial


class Search(Chain):
    """What `build_strategy` gives to NNI. After `run`, `message` says why it ended early, and what the
    strategy has to say at the end, or is None."""

    def __init__(self, strategy: Any, ledger: Ledger, *, baseline: bool) -> None:
        limits = Filter(ledger.feasible, patience=ledger.patience)
        # NNI's looks at the models' status once a second, which does not change unless the ledger looks.
        limits.wait_models = ledger.wait_models
        super().__init__(strategy, limits, ledger)
        self.ledger = ledger
        self.baseline = baseline
        self.message: str | None = None

    def run(self) -> None:
        self.ledger.read_history()  # trials of a killed start may have ended since the ledger was made
        before = len(self.ledger.results)
        if self.baseline:
            model = self.model_space.freeze(self.ledger.space.complete(self.ledger.space.default()))
            if hasattr(self._strategy, "adopt"):
                self._strategy.adopt(model)
            self.ledger.submit_models(model)
        super().run()
        self.ledger.wait_models()
        early = self._why_it_ended()
        if early:
            log.warning(early)
        closing = None
        if len(self.ledger.results) > before:  # else it was told nothing, and has said all before
            closing = getattr(getattr(self._strategy, "searcher", None), "closing", lambda: None)()
        self.message = "\n".join(filter(None, (early, closing))) or None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is restored: resume is replay."""

    def _why_it_ended(self) -> str | None:
        """Raises UserError when limits left nothing to search."""
        ledger = self.ledger
        if ledger.finished_budget() or not self.engine.budget_available():
            return None
        trials, rejected = len(ledger.results), len(ledger.infeasible)
        tried = f"{trials} trial{'s' if trials != 1 else ''} and {rejected} infeasible"
        if ledger.exhausted():
            ended = f"every architecture of the space was tried ({tried})"
        elif ledger.fruitless >= ledger.patience:
            why = ledger.fruitless_reason
            ended = f"the last {ledger.fruitless} proposals brought nothing new ({tried}), the last one {why}"
        else:
            ended = f"the strategy has nothing more to propose ({tried})"
        if rejected and trials <= self.baseline:
            limits = ", ".join(f"{limit.key} {limit}" for limit in ledger.limits)
            raise UserError(f"no architecture within the limits {limits} was found: {ended}")
        return f"search ended before its budget: {ended}"


def _read_asked(path: Path) -> dict[str, Asked]:
    """The lines of asked.jsonl by arch, in the order of submission; a torn one is left out."""
    asked: dict[str, Asked] = {}
    for line in read_lines(path):
        try:
            raw = parse_json(line)
            entry = Asked(
                int(raw["number"]),
                dict(raw["arch"]),
                tuple(raw.get("parents", ())),
                tuple(raw.get("after", ())),
            )
        except (ValueError, TypeError, KeyError):
            continue
        asked[arch_key(entry.arch)] = entry
    return asked
