"""NSGA-II on toy problems: who survives, where children come from, and whether it beats drawing at random."""

import numpy as np
import pytest

from experiments.strategies.pareto import ParetoEvolution
from models.space import Choice, LabelledSpace
from utils.errors import UserError
from utils.history import Trial, arch_key
from utils.limits import parse_limits, violation
from utils.pareto import hypervolume

BOTH = {"map50_95": "max", "gflops": "min"}


class Line(LabelledSpace):
    """`n` labels, each 0..values-1."""

    def __init__(self, n=12, values=4):
        self._label([Choice(f"x{i:02}", tuple(range(values))) for i in range(n)])

    def canonical(self, arch):
        return dict(arch)

    _canonical = canonical

    def random(self, rng):
        return {k: int(rng.integers(len(v))) for k, v in self.choices.items()}

    def biased(self, rng, tilt):
        return self.random(rng)

    def size(self):
        n = int(np.prod([len(v) for v in self.choices.values()]))
        return n, n


def searcher(space=None, population_size=4, seed=0, **kwargs):
    return ParetoEvolution(space or Line(), BOTH, seed=seed, population_size=population_size, **kwargs)


def point(number, map50_95, gflops, state="complete"):
    return Trial(number, {"x00": number}, {"map50_95": map50_95, "gflops": gflops}, map50_95, state)


def numbers(found):
    return [p.trial.number for p in found.population]


def test_survivors_by_rank_then_by_crowding():
    found = searcher()
    # front 0: 0, 1, 2, 3; of the inner two, 2 has the nearer neighbours. 4 is dominated by 1.
    for trial in [
        point(0, 0.9, 10),
        point(1, 0.5, 4),
        point(4, 0.4, 5),
        point(2, 0.45, 3.5),
        point(3, 0.1, 1),
    ]:
        found.tell(trial)
    assert sorted(numbers(found)) == [0, 1, 2, 3]
    found = searcher(population_size=3)
    for trial in [point(0, 0.9, 10), point(1, 0.5, 4), point(2, 0.45, 3.5), point(3, 0.1, 1)]:
        found.tell(trial)
    assert sorted(numbers(found)) == [0, 1, 3]


def test_a_limit_outranks_every_objective():
    found = searcher(population_size=3, limits=parse_limits({"gflops": "<= 4"}))
    found.tell(point(0, 0.99, 8))  # complete, but breaks the limit by 100 %, like a baseline may
    found.tell(Trial(-1, {"x00": 7}, {"gflops": 6.0}, None, "infeasible"))  # by 50 %
    found.tell(point(1, 0.01, 4))
    assert numbers(found) == [1, -1, 0]
    found.tell(point(2, 0.02, 3.9))
    assert numbers(found) == [2, 1, -1]


def test_a_stopped_trial_loses_against_all_that_ended():
    found = searcher(population_size=2)
    found.tell(point(0, 0.9, 0.1, state="stopped"))
    found.tell(point(1, 0.1, 9))
    assert numbers(found) == [1, 0]
    found.tell(point(2, 0.05, 9))
    assert numbers(found) == [1, 2]


def test_failed_repeated_and_unscored_trials_change_nothing():
    found = searcher()
    found.tell(point(0, 0.5, 1))
    found.tell(point(0, 0.5, 1))
    found.tell(point(1, 0.9, 0.1, state="failed"))
    found.tell(point(2, float("nan"), 0.1))
    assert numbers(found) == [0]
    with pytest.raises(UserError, match="objective 'gflops' was not measured; trial 3 has map50_95"):
        found.tell(Trial(3, {"x00": 3}, {"map50_95": 0.5}, 0.5))
    with pytest.raises(UserError, match="direction of objective 'gflops'"):
        ParetoEvolution(Line(), {"gflops": "less"}, seed=0, population_size=4)


def test_without_mutation_every_gene_comes_from_a_parent():
    found = searcher(population_size=6, mutation_prob=0.0, crossover_prob=1.0)
    told = {}
    for number in range(30):
        arch = found.ask()
        parents = [told[p] for p in found.parents]
        if number < 6:
            assert not parents
        elif parents:
            assert len(parents) == 2
            assert all(value in {p[label] for p in parents} for label, value in arch.items())
        told[number] = arch
        total = float(sum(arch.values()))
        found.tell(Trial(number, arch, {"map50_95": total, "gflops": total}, total))
    assert any(found.parents)


def test_the_first_population_fans_out_from_the_baseline_or_is_drawn():
    default = Line().default()
    near = [searcher(population_size=8).ask() for _ in range(2)]
    assert near == [default, default]  # the first of n is redrawn with probability 0
    found = searcher(population_size=10)
    apart = [sum(v != default[k] for k, v in found.ask().items()) for _ in range(10)]
    assert apart[0] == 0 and sum(apart[:3]) <= 4 and sum(apart[-3:]) >= 12  # 12 labels of 4 values
    sixth = []
    for seed in range(60):
        found = searcher(population_size=10, seed=seed)
        sixth.append([sum(v != default[k] for k, v in found.ask().items()) for _ in range(6)][-1])
    assert np.mean(sixth) == pytest.approx(12 * (5 / 10) ** 2 * 3 / 4, abs=0.6)
    drawn = searcher(start="random")
    rng = np.random.default_rng(0)
    assert [drawn.ask() for _ in range(3)] == [drawn.space.random(rng) for _ in range(3)]


def test_once_begun_it_draws_when_children_bring_nothing_new(monkeypatch):
    monkeypatch.setattr("experiments.strategies.pareto.VARIATIONS", 0)
    found = searcher(population_size=4)
    for number in range(4):
        arch = found.ask()
        found.tell(Trial(number, arch, *scored(arch)))
    monkeypatch.setattr(found.space, "random", lambda rng: {"drawn": 1}, raising=False)
    assert found.ask() == {"drawn": 1} and found.parents == ()


def test_crossover_takes_each_gene_from_either_with_equal_chances():
    space, rng = Line(), np.random.default_rng(0)
    mother, father = dict.fromkeys(space.choices, 0), dict.fromkeys(space.choices, 1)
    children = np.array([list(space.cross(mother, father, rng).values()) for _ in range(1000)])
    assert np.all(abs(children.mean(0) - 0.5) < 0.06)  # of each label, four standard deviations
    assert np.all(abs(np.corrcoef(children.T) - np.eye(12)) < 0.15)  # one by one, not all at once


def test_the_better_of_two_becomes_a_parent():
    found = searcher(population_size=4)
    for trial in [point(0, 0.9, 1), point(1, 0.5, 4), point(2, 0.3, 5), point(3, 0.1, 9)]:
        found.tell(trial)  # each dominates the next
    assert numbers(found) == [0, 1, 2, 3]
    won = [found._tournament().trial.number for _ in range(300)]
    # Of the six pairs 0 is the better of three, 1 of two, 2 of one.
    assert [won.count(n) / 300 for n in range(4)] == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.1)


def test_children_have_one_parent_where_nothing_is_crossed():
    found = searcher(population_size=4, crossover_prob=0.0)
    for number in range(12):
        arch = found.ask()
        assert len(found.parents) == (number >= 4)
        found.tell(Trial(number, arch, *scored(arch)))


def test_asking_several_times_before_telling():
    found, open_trials, seen = searcher(), [], set()
    for number in range(40):
        arch = found.ask()
        assert arch_key(arch) not in seen
        seen.add(arch_key(arch))
        open_trials.append((number, arch))
        if len(open_trials) == 5:
            number, arch = open_trials.pop(number % 5)
            found.tell(Trial(number, arch, *scored(arch)))


def test_a_small_space_is_exhausted():
    found = searcher(Line(n=2, values=3))
    archs = []
    while (arch := found.ask()) is not None:
        found.tell(Trial(len(archs), arch, *scored(arch)))
        archs.append(arch_key(arch))
    assert len(archs) == len(set(archs)) == 9


def scored(arch):
    """Each gene adds another amount of quality, at another price."""
    values = np.array(list(arch.values()), dtype=float)
    gains = 1 + np.arange(len(values)) % 4
    prices = 1 + np.arange(len(values))[::-1] % 3
    quality = float(1 - np.exp(-(values * gains).sum() / 30))
    return {"map50_95": quality, "gflops": float((values * prices).sum())}, quality


def test_pareto_beats_random_in_hypervolume():
    space, reference = Line(), {"map50_95": 0.0, "gflops": 75.0}
    won = []
    for seed in range(5):
        found, rng = searcher(space, population_size=16, seed=seed), np.random.default_rng(seed)
        ours, drawn = [], []
        for number in range(200):
            arch = found.ask()
            ours.append(Trial(number, arch, *scored(arch)))
            found.tell(ours[-1])
            arch = space.random(rng)
            drawn.append(Trial(number, arch, *scored(arch)))
        won.append(hypervolume(ours, BOTH, reference) / hypervolume(drawn, BOTH, reference))
    assert min(won) > 1.0 and np.mean(won) > 1.05


def test_limits_are_approached_without_a_single_feasible_start():
    limits = parse_limits({"gflops": "<= 6"})
    found, feasible = searcher(population_size=8, limits=limits), 0
    for number in range(300):
        arch = found.ask()
        metrics, reward = scored(arch)
        broken = violation(limits, metrics) > 0
        feasible += not broken
        if broken:
            found.tell(Trial(-1, arch, {"gflops": metrics["gflops"]}, None, "infeasible"))
        else:
            found.tell(Trial(number, arch, metrics, reward))
    assert feasible > 50
