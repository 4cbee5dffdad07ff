"""DetNAS's evolution: what a generation is made of, that all of them are scored, and that it resumes."""

import logging

import numpy as np
import pytest

from experiments.strategies import build_strategy
from experiments.strategies.contract import Setup
from experiments.strategies.generations import Generations
from tests.experiments.test_strategies import OBJECTIVES, Space, search, trials
from tests.experiments.test_strategies_ledger import Workers, let_time_pass, model_space
from utils.history import Trial, arch_key
from utils.limits import parse_limits, violation

OPTIONS = {
    "population_size": 10,
    "parents": 3,
    "mutants": 4,
    "crossovers": 4,
    "mutation_prob": 0.3,
    "generations": 3,
}


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def scored(searcher, score, number=1):
    """One generation, told in reverse; (arch, parents) of its members."""
    found, told = [], []
    while (arch := searcher.ask()) is not None:
        found.append((arch, searcher.parents))
        told.append(Trial(number + len(told), arch, {}, score(arch)))
    assert searcher.waiting == bool(found)
    for trial in reversed(told):
        searcher.tell(trial)
    return found


def test_a_generation_is_mutants_crossovers_and_the_rest_at_random():
    space = Space()
    setup = Setup(space, 0, 100, OBJECTIVES)
    searcher = Generations(setup, **OPTIONS)
    values = iter(np.random.default_rng(0).uniform(0, 1e-6, 100).tolist())  # .00 where they are rounded
    scores, first = {}, []

    def score(arch):
        scores[arch_key(arch)] = next(values)
        return scores[arch_key(arch)]

    first = scored(searcher, score)
    assert [parents for _, parents in first] == [()] * 10
    best = sorted(range(1, 11), key=lambda i: -scores[arch_key(first[i - 1][0])])[:3]
    assert [t.number for t in searcher.best] == best
    second = scored(searcher, score, 11)
    assert [len(parents) for _, parents in second] == [1] * 4 + [2] * 4 + [0] * 2
    assert {p for _, parents in second for p in parents} <= set(best)
    assert all(len(set(parents)) == 2 for _, parents in second[4:8])
    for arch, (mother, father) in second[4:8]:
        genes, both = space.complete(arch), [space.complete(first[i - 1][0]) for i in (mother, father)]
        assert all(genes[k] in {b[k] for b in both} for k in space.canonical(genes))
    third = scored(searcher, score, 21)
    keys = [arch_key(arch) for arch, _ in first + second + third]
    assert len(set(keys)) == len(keys) == 30
    assert scored(searcher, score, 31) == []  # the end: three were scored


def test_failed_ones_have_no_children_and_equal_ones_keep_their_order():
    searcher = Generations(Setup(Space(), 0, 100, OBJECTIVES), **OPTIONS)
    archs = [arch for arch, _ in scored(searcher, lambda arch: None)]
    assert searcher.best == []
    assert all(parents == () for _, parents in scored(searcher, lambda arch: 0.5, 11)) and len(archs) == 10
    assert [t.number for t in searcher.best] == [11, 12, 13]


def same_members(one, other, sizes=(1, 10, 10, 10)):
    at = 0
    for size in sizes:
        assert {arch_key(t.arch) for t in one[at : at + size]} == {
            arch_key(t.arch) for t in other[at : at + size]
        }
        at += size


@pytest.mark.parametrize("kill_at", [13, 17, 22])
def test_killed_in_the_second_generation_and_resumed_is_the_uninterrupted_run(tmp_path, kill_at):
    space, given = Space(6), {"options": OPTIONS, "budget": 99, "seed": 5}
    whole = search(tmp_path / "whole", "evolution", space=space, **given)
    search(tmp_path / "killed", "evolution", space=space, kill_at=kill_at, **given)
    assert len(trials(tmp_path / "killed")) == kill_at - 1
    again = search(tmp_path / "killed", "evolution", space=space, **given)
    ours, theirs = trials(tmp_path / "killed"), trials(tmp_path / "whole")
    facts = [[(t.number, t.arch, t.reward, t.parents) for t in ts] for ts in (ours, theirs)]
    assert facts[0] == facts[1] and len(ours) == 31  # the baseline and three generations, the last one too
    assert len(again.ran) == 31 - (kill_at - 1)
    assert "nothing more to propose" in whole.message


@pytest.mark.parametrize("kill_at", [None, 16])
def test_several_workers_find_what_one_does(tmp_path, kill_at):
    space = Space(6)

    def run(count, kill_at=None):
        folder = tmp_path / str(count)
        strategy = build_strategy(
            "evolution", OPTIONS, space, seed=5, budget=99, run_dir=folder, objectives=OBJECTIVES
        )
        engine = Workers(folder, space, count, kill_at)
        let_time_pass(strategy, engine)
        try:
            strategy(model_space(space), engine)
        except KeyboardInterrupt:
            assert kill_at
        return sorted(trials(folder), key=lambda t: t.number)

    if kill_at:
        run(3, kill_at)
    one, three = run(1), run(3)
    same_members(one, three)
    assert [t.number for t in three] == list(range(31))


def test_all_are_within_a_range_of_costs(tmp_path):
    space, limits = Space(6), {"gflops": ">= 7, <= 9"}
    found = search(
        tmp_path,
        "evolution",
        space=space,
        options=OPTIONS,
        budget=99,
        limits=limits.items(),
        quick_cost=space.cost,
    )
    asked = [t for t in trials(tmp_path) if t.number > 0]
    assert len(asked) == 30 and not found.ledger.infeasible
    assert all(violation(parse_limits(limits), space.cost(t.arch)) == 0 for t in asked)
