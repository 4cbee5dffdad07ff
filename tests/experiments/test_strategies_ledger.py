"""What the ledger does between a strategy and an engine with several workers, and what it leaves on disk."""

import json
import logging

import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import ExecutionEngine
from nni.nas.space import ModelStatus, SimplifiedModelSpace

from experiments.strategies import STRATEGIES, build_strategy
from tests.experiments.test_strategies import (
    OBJECTIVES,
    QUICK,
    Net,
    Space,
    archs,
    asked,
    scores,
    search,
    trials,
)
from utils.history import History, Trial, arch_key
from utils.limits import parse_limits

GENERAL = [name for name in STRATEGIES if name != "streams"]  # that one wants serial codes


class Workers(ExecutionEngine):
    """`count` workers in virtual time: trials overtake each other, and write their own lines of history."""

    def __init__(self, run_dir, space, count, kill_at=None):
        super().__init__()
        self.run_dir, self.space, self.count, self.kill_at = run_dir, space, count, kill_at
        self.now, self.running, self.submitted, self.ended = 0.0, [], [], 0
        self.most = 0

    def submit_models(self, *models):
        for model in models:
            arch = self.space.canonical(model.sample)
            seconds = 1 + sum(map(ord, arch_key(arch))) % 7
            self.running.append((self.now + seconds, len(self.submitted), model))
            self.submitted.append(model)
            self.most = max(self.most, len(self.running))

    def idle_worker_available(self):
        if len(self.running) >= self.count:
            self.end_one()
        return True

    def end_one(self):
        self.ended += 1
        if self.ended == self.kill_at:
            raise KeyboardInterrupt
        self.now, _, model = min(self.running, key=lambda r: r[:2])
        self.running = [r for r in self.running if r[2] is not model]
        arch = self.space.canonical(model.sample)
        metrics = scores(arch)
        entry = next(a for a in asked(self.run_dir) if a["arch"] == arch)
        parents = tuple(entry["parents"])
        trial = Trial(entry["number"], arch, metrics, metrics["map50_95"], parents=parents, seed=7)
        History(self.run_dir / "history.jsonl").append(trial)
        self.dispatch_model_event("final_metric", model=model, metric={"default": metrics["map50_95"]})
        self.dispatch_model_event("training_end", model=model, status=ModelStatus.Trained)

    def budget_available(self):
        return True

    def list_models(self, status=None):
        return [m for m in self.submitted if status in (None, m.status)]


def let_time_pass(strategy, engine):
    """Waiting ends the trials that run; nothing else would in virtual time."""
    wait = strategy.ledger.wait_models

    def wait_models(*models):
        while engine.running:
            engine.end_one()
        wait(*models)

    for middleware in strategy._middlewares:
        middleware.wait_models = wait_models


def model_space(space):
    return SimplifiedModelSpace.from_model(Net(space.choices), FunctionalEvaluator(print))


def run(run_dir, name, *, count=3, kill_at=None, budget=20, space=None, limits=None, **kwargs):
    space = space or Space()
    strategy = build_strategy(
        name,
        QUICK.get(name),
        space,
        seed=3,
        budget=budget,
        run_dir=run_dir,
        objectives=OBJECTIVES,
        limits=parse_limits(limits or {}),
        cost=space.cost,
        **kwargs,
    )
    engine = Workers(run_dir, space, count, kill_at)
    let_time_pass(strategy, engine)
    try:
        strategy(model_space(space), engine)
    except KeyboardInterrupt:
        assert kill_at
    return engine, strategy


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of lines; no power fails here


@pytest.mark.parametrize("name", GENERAL)
def test_several_at_a_time(name, tmp_path):
    engine, _ = run(tmp_path, name)
    assert engine.most == 3
    assert [t.number for t in trials(tmp_path)] == list(range(20))
    assert len(set(archs(tmp_path))) == 20
    assert all(t.seed == 7 for t in trials(tmp_path))  # the trials' own lines, none of ours beside them
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 20


@pytest.mark.parametrize("name", GENERAL)
def test_killed_with_several_in_flight(name, tmp_path):
    run(tmp_path / "whole", name)
    run(tmp_path / "cut", name, kill_at=9)
    before, done = asked(tmp_path / "cut"), {t.number for t in trials(tmp_path / "cut")}
    assert before == asked(tmp_path / "whole")[: len(before)]
    assert len(done) == 8 and len(before) - len(done) == 3
    engine, _ = run(tmp_path / "cut", name)
    assert asked(tmp_path / "cut")[: len(before)] == before
    # The strategy was led through the same proposals, so the three that were cut short ran first, again.
    reran = [arch_key(engine.space.canonical(m.sample)) for m in engine.submitted[:3]]
    assert reran == [arch_key(line["arch"]) for line in before if line["number"] not in done]
    assert [t.number for t in trials(tmp_path / "cut")] == list(range(20))
    assert len(engine.submitted) == 12


def test_the_script_of_a_replay_is_on_disk(tmp_path):
    run(tmp_path, "pareto", count=1, budget=4)
    assert [line["after"] for line in asked(tmp_path)] == [[], [0], [1], [2]]


def test_a_resumed_run_keeps_the_sizes_it_began_with(tmp_path):
    _, first = run(tmp_path, "evolution", budget=9)
    _, second = run(tmp_path, "evolution", budget=30)
    assert first[0].population_size == second[0].population_size == 3
    assert json.loads((tmp_path / "strategy.json").read_text()) == {"name": "evolution", "budget": 9}
    assert len(trials(tmp_path)) == 30


def test_evolution_and_pareto_know_the_parents(tmp_path):
    for name, most in [("evolution", 1), ("pareto", 2)]:
        run(tmp_path / name, name)
        parents = [t.parents for t in trials(tmp_path / name)]
        assert any(parents) and max(map(len, parents)) == most
        for trial in trials(tmp_path / name):
            assert all(0 <= p < trial.number for p in trial.parents)
        assert [tuple(line["parents"]) for line in asked(tmp_path / name)] == parents


def test_evolution_begins_with_the_baseline_in_its_population(tmp_path):
    _, strategy = run(tmp_path, "evolution", budget=2, count=1)
    assert strategy[0]._population[0].x == Space().complete(Space().default())


def test_the_reason_of_a_failure_is_kept(tmp_path):
    class Failing(Workers):
        def end_one(self):
            _, _, model = self.running.pop(0)
            model.failure_reason = "RuntimeError: out of memory"
            self.dispatch_model_event("training_end", model=model, status=ModelStatus.Failed)

    space = Space()
    found = build_strategy("random", None, space, seed=0, budget=3, run_dir=tmp_path, objectives=OBJECTIVES)
    engine = Failing(tmp_path, space, 1)
    let_time_pass(found, engine)
    found(model_space(space), engine)
    assert [t.reason for t in trials(tmp_path)] == ["RuntimeError: out of memory"] * 3


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_a_trial_that_was_killed_runs_again_twice_at_most_and_is_counted_once(tmp_path, kills):
    class Killing(Workers):
        def submit_again(self, model):
            assert not model.status.completed()
            self.submit_models(model)
            self.end_one()  # nobody else ends it, once the search waits for the last ones

        def end_one(self):
            _, _, model = min(self.running, key=lambda r: r[:2])
            if sum(m is model for m in self.submitted) > kills or self.submitted[0] is model:
                return super().end_one()
            self.running = [r for r in self.running if r[2] is not model]
            model.failure_reason, model.killed = "it was killed", True
            self.dispatch_model_event("training_end", model=model, status=ModelStatus.Failed)

    space, ends = Space(), []
    for folder, kind in ((tmp_path / "calm", Workers), (tmp_path / "rough", Killing)):
        folder.mkdir()
        found = build_strategy("random", None, space, seed=0, budget=6, run_dir=folder, objectives=OBJECTIVES)
        engine = kind(folder, space, 1)
        let_time_pass(found, engine)
        found(model_space(space), engine)
        ends.append([(t.number, t.arch, t.state) for t in trials(folder)])
    calm, rough = ends
    assert len(engine.submitted) == 6 + 5 * min(kills, 2)
    if kills < 3:
        assert rough == calm
    else:
        assert [state for _, _, state in rough] == ["complete"] + ["failed"] * 5
        assert [t[:2] for t in rough] == [t[:2] for t in calm]


def test_a_trial_cut_short_by_the_end_of_the_search_is_no_failure(tmp_path):
    class Stopping(Workers):
        stopped = False

        def idle_worker_available(self):
            if len(self.submitted) == 3 and not self.stopped:
                self.stopped = True
                for _, _, model in self.running:
                    self.dispatch_model_event("training_end", model=model, status=ModelStatus.Interrupted)
            return not self.stopped

        def budget_available(self):
            return not self.stopped

    space = Space()
    found = build_strategy("random", None, space, seed=0, budget=9, run_dir=tmp_path, objectives=OBJECTIVES)
    found(model_space(space), Stopping(tmp_path, space, 9))
    assert found.message is None
    assert trials(tmp_path) == [] and len(asked(tmp_path)) == 3
    assert len(search(tmp_path, "random", budget=9).ran) == 9
    assert len(asked(tmp_path)) == 9


def test_torn_lines_are_left_out(tmp_path):
    search(tmp_path, "random", budget=4)
    for name in ("history.jsonl", "asked.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"number": 4, "arch": {"ac')
    search(tmp_path, "random", budget=6)
    assert [t.number for t in trials(tmp_path)] == list(range(6))


@pytest.mark.parametrize("name", ["random", "evolution", "pareto", "tpe"])
@pytest.mark.parametrize("lost", [slice(None), slice(2, 4)], ids=["all", "some"])
def test_what_asked_jsonl_has_lost_is_rebuilt_from_the_history(tmp_path, caplog, name, lost):
    """The resumed search is the uninterrupted one, with the same numbers."""
    search(tmp_path / "whole", name, budget=12)
    search(tmp_path / "cut", name, budget=12, kill_at=8)
    path = tmp_path / "cut" / "asked.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    known = len(trials(tmp_path / "cut"))
    kept = [line for i, line in enumerate(lines[:known]) if i not in range(known)[lost]]
    path.write_text("".join(kept))
    stale = tmp_path / "cut" / "trials" / "0099" / "checkpoint.pt"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an arch that nobody knows")
    search(tmp_path / "cut", name, budget=12)
    whole, cut = ([(t.number, t.arch) for t in trials(tmp_path / run)] for run in ("whole", "cut"))
    assert cut == whole
    assert f"asked.jsonl lacked {known - len(kept)} trials" in caplog.text
    assert "proposes other archs" not in caplog.text and not stale.exists()
    assert sorted(line["number"] for line in asked(tmp_path / "cut")) == list(range(12))


@pytest.mark.parametrize("garbage", [b"{", b"[1]", b"\xff\xfe", b'{"budget": "x"}', b"[" * 100_000])
def test_a_damaged_strategy_json_counts_as_missing(tmp_path, caplog, garbage):
    search(tmp_path, "evolution", budget=4)
    (tmp_path / "strategy.json").write_bytes(garbage)
    search(tmp_path, "evolution", budget=6)
    assert [t.number for t in trials(tmp_path)] == list(range(6))
    assert "strategy.json is damaged and counts as missing" in caplog.text
    assert (tmp_path / "strategy.json.damaged").read_bytes() == garbage


def test_without_a_baseline(tmp_path):
    search(tmp_path, "random", baseline=False, budget=5)
    assert len(trials(tmp_path)) == 5
