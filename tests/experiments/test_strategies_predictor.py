"""Evolution with a predictor: what it encodes, how honest its figures are, and what it proposes."""

import json
import math

import numpy as np
import pytest

from experiments.strategies import check_strategy
from experiments.strategies.contract import Setup
from experiments.strategies.pareto import ParetoEvolution
from experiments.strategies.predictor import Candidate, Predictor
from experiments.strategies.surrogate import Encoder, Surrogate, held_out, skill
from tests.experiments.test_strategies import OBJECTIVES, Space, asked, search, trials
from tests.experiments.test_strategies_pareto import Line, scored
from utils.errors import UserError
from utils.history import Trial, arch_key
from utils.limits import parse_limits
from utils.pareto import hypervolume


def setup(space=None, objectives=OBJECTIVES, budget=30, seed=0, **kwargs):
    return Setup(space or Line(), seed, budget, objectives, **kwargs)


def predictor(given, *, startup=10, batch=4, evaluations=200, exploration=0.5):
    return Predictor(given, startup=startup, batch=batch, evaluations=evaluations, exploration=exploration)


def price(arch):
    return {"gflops": scored(arch)[0]["gflops"]}


def drive(found, count, measure=scored):
    """Ask, measure, tell; returns the trials."""
    done = []
    for number in range(count):
        arch = found.ask()
        metrics, reward = measure(arch)
        done.append(Trial(number, arch, metrics, reward))
        found.tell(done[-1])
    return done


def test_genes_as_numbers():
    space = Space(blocks=2, widths=(2, 1, 5))  # act: silu, relu; depth: 2, 1; w1, w2
    encode = Encoder(space, lambda arch: {"gflops": math.exp(arch["w1"])})
    rows = encode([{"act": "relu", "depth": 2, "w1": 5, "w2": 1}, {"act": "silu", "depth": 1, "w1": 2}])
    # w2 of the second does nothing and stands at the default, 2 of 1..5
    assert rows == pytest.approx(np.array([[0, 1, 1, 1, 0, 5], [1, 0, 0, 0.25, 0.25, 2]]))


def test_a_search_that_limits_drift_draws_near_what_was_within():
    given = setup(limits=parse_limits({"drift": "<= 0.3"}))
    first = given.space.default()
    found = predictor(given)
    found.tell(Trial(0, first, {**scored(first)[0], "drift": 0.0}, 0.5))
    drawn = [found.ask() for _ in range(10)]
    differ = [sum(arch[label] != first[label] for label in first) for arch in drawn]
    assert max(differ) <= 0.3 * len(first)  # a random one differs in most


def test_a_stopped_trial_counts_as_the_worst_that_ended():
    found = predictor(setup())
    for number, (score, state) in enumerate([(0.5, "complete"), (0.3, "complete"), (0.1, "stopped")]):
        found.tell(Trial(number, {"x00": number}, {"map50_95": score, "gflops": 1.0}, score, state))
    told = found._told("map50_95")
    assert found._values("map50_95", told).tolist() == [0.5, 0.3, 0.3]
    assert found._values("gflops", told).tolist() == [1.0, 1.0, 1.0]


def test_the_regressor_interpolates_and_knows_where_it_is_unsure():
    rng = np.random.default_rng(0)
    x = rng.random((60, 4))
    y = 30 + 5 * np.sin(3 * x[:, 0]) + x[:, 1]
    model = Surrogate().fit(x, y)
    inside = rng.random((40, 4))
    mean, doubt = model.predict(inside)
    truth = 30 + 5 * np.sin(3 * inside[:, 0]) + inside[:, 1]
    assert skill(mean, truth).rmse < 0.3 * truth.std() and skill(mean, truth).tau > 0.85
    assert model.predict(np.full((1, 4), 6.0))[1][0] > 2 * doubt.max()


def test_held_out_figures_do_not_see_what_they_predict():
    rng = np.random.default_rng(1)
    x, cost = rng.random((40, 5)), 1 + rng.random(40)
    noise = rng.normal(size=40)
    ours, alone = held_out(x, noise, Surrogate().fit(x, noise), cost, seed=0)
    assert ours.n == alone.n == 40 and abs(ours.tau) < 0.4 and ours.rmse > 0.8 * noise.std()
    line = 2 + 3 * np.log(cost)
    ours, alone = held_out(x, line, Surrogate().fit(x, line), cost, seed=0)
    assert alone.tau == pytest.approx(1) and alone.rmse < 1e-9 and abs(ours.tau) < 0.5
    assert held_out(x, line, Surrogate().fit(x, line), None, seed=0)[1] is None


def test_errors_by_hand():
    found = skill(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 4.0]))
    assert (found.n, found.mae) == (3, 1.0) and found.rmse == pytest.approx(math.sqrt(5 / 3))
    assert found.tau == pytest.approx(2 / math.sqrt(2 * 3))  # of three pairs two agree, one is tied
    assert skill(np.array([1.0, 2.0]), np.array([3.0, 3.0])).tau is None


def test_a_batch_is_what_pushes_the_front_farthest():
    found = predictor(setup(), batch=3)

    def candidate(name, quality, gflops):
        metrics = {"map50_95": quality, "gflops": gflops}
        return Candidate({"x00": name}, metrics, metrics)

    base = [candidate(9, 0.5, 5.0), candidate(8, 0.1, 1.0), candidate(7, 0.9, 10.0)]
    met = [
        candidate(0, 0.52, 5.0),  # a little better than what is known
        candidate(1, 0.75, 5.5),  # much better
        candidate(2, 0.74, 5.6),  # worse than the one before
        candidate(3, 0.40, 2.0),  # much better elsewhere
    ]
    assert [c.arch["x00"] for c in found._choose(met, base)] == [1, 3, 0]
    limited = predictor(setup(limits=parse_limits({"gflops": "<= 5"})), batch=2)
    assert [c.arch["x00"] for c in limited._choose(met, base)] == [3, 0]
    assert [c.arch["x00"] for c in limited._choose(met[1:3], base)] == [1, 2]  # none fits: the nearest


def test_after_the_first_archs_come_those_that_are_predicted_to_be_good():
    """The trials that the predictor proposes are better than random ones and than its first ones."""
    won, lead = [], []
    reference = {"map50_95": 0.0, "gflops": 75.0}
    for seed in range(2):
        found = predictor(setup(seed=seed, quick=price, budget=40), startup=12, batch=7, evaluations=200)
        ours = drive(found, 40)
        assert len({t.key for t in ours}) == 40
        rival = ParetoEvolution(Line(), OBJECTIVES, seed=seed, population_size=13)
        won.append(
            hypervolume(ours, OBJECTIVES, reference) / hypervolume(drive(rival, 40), OBJECTIVES, reference)
        )
        lead.append(hypervolume(ours, OBJECTIVES, reference) / hypervolume(ours[:12], OBJECTIVES, reference))
    assert min(won) > 1.02 and min(lead) > 1.1


def test_the_figures_are_written_after_every_fit_and_said_at_the_end(tmp_path):
    found = predictor(setup(quick=price, run_dir=tmp_path), startup=10, batch=5)
    drive(found, 10)
    assert not (tmp_path / "predictor.json").exists()
    drive_on = [found.ask() for _ in range(5)]
    facts = json.loads((tmp_path / "predictor.json").read_text())
    assert [f["held_out"]["n"] for f in facts["fits"]] == [10]
    assert facts["quality"] == "map50_95" and facts["proposed"] is None and facts["known"] == 0
    for number, arch in enumerate(drive_on, start=10):
        found.tell(Trial(number, arch, *scored(arch)))
    text = found.closing()
    facts = json.loads((tmp_path / "predictor.json").read_text())
    first, last = facts["fits"]
    assert last["held_out"]["n"] == last["cost_alone"]["n"] == 15 and last["cost"] == "gflops"
    assert set(last["held_out"]) == {"n", "tau", "rmse", "mae"}
    assert facts["proposed"]["n"] == 5
    assert text.startswith(f"predictor: held-out tau {last['held_out']['tau']:.2f} (n=15), RMSE 0.")
    assert f"GFLOPs alone: tau {last['cost_alone']['tau']:.2f}, RMSE" in text
    assert "of what it proposed: tau" in text
    assert found.closing() == text and len(facts["fits"]) == 2  # nothing new: no fit more


def test_known_trials_are_fitted_to_and_the_best_are_measured_first(tmp_path):
    rng, space = np.random.default_rng(0), Line()
    archs = {arch_key(a): a for a in (space.random(rng) for _ in range(40))}
    known = [Trial(i, a, *scored(a)) for i, a in enumerate(archs.values())]
    found = predictor(setup(quick=price, known=known, run_dir=tmp_path), batch=4)
    first = [found.ask() for _ in range(4)]
    front = {t.key for t in known if t.key in map(arch_key, first)}
    assert len(front) == 4  # of the known ones
    qualities = {t.key: t.metrics["map50_95"] for t in known}
    assert max(qualities, key=qualities.get) in front
    assert not (tmp_path / "predictor.json").exists()
    nexts = [found.ask() for _ in range(4)]
    assert not {arch_key(a) for a in nexts} & set(archs)
    facts = json.loads((tmp_path / "predictor.json").read_text())
    assert facts["known"] == facts["fits"][0]["held_out"]["n"] == 40


@pytest.mark.parametrize("name", ["pareto", "evolution", "predictor"])
def test_a_search_begins_with_the_best_of_the_known(name, tmp_path):
    search(tmp_path / "before", "random", budget=25)
    known = trials(tmp_path / "before")
    options = {"known": known, "limits": {"gflops": "<= 7"}}
    search(tmp_path / "now", name, budget=12, **options)
    best = Setup(Space(), 0, 12, OBJECTIVES, parse_limits(options["limits"]), known=known).head_start(20)
    assert all(Space().cost(arch)["gflops"] <= 7 for arch in best)
    best = [arch for arch in best if arch != Space().default()]
    first = [line["arch"] for line in asked(tmp_path / "now")[1:]]
    batch = {"pareto": 4, "evolution": 3, "predictor": 6}[name]
    assert first[:batch] == best[:batch]
    assert search(tmp_path / "now", name, budget=12, **options).ran == []  # resumes


def test_a_cost_that_has_to_be_measured_is_predicted_for_objectives_and_limits():
    def measure(arch):
        metrics, reward = scored(arch)
        return {**metrics, "latency_ms": 3 + arch["x00"] + arch["x01"]}, reward

    objectives = {"map50_95": "max", "gflops": "min", "latency_ms": "min"}
    given = setup(objectives=objectives, quick=price, limits=parse_limits({"latency_ms": "<= 5"}))
    found = predictor(given, startup=30, batch=8)
    drive(found, 30, measure)
    slow = [measure(found.ask())[0]["latency_ms"] > 5 for _ in range(8)]
    assert sum(slow) <= 1  # of random ones, 10 in 16 are
    # A limit on what is no objective, and was measured, too.
    found = predictor(setup(quick=price, limits=given.limits), startup=30, batch=8)
    drive(found, 30, measure)
    assert sum(measure(found.ask())[0]["latency_ms"] > 5 for _ in range(8)) <= 1


def test_one_objective_is_enough_and_one_to_maximise_is_needed():
    found = predictor(setup(objectives={"map50_95": "max"}), startup=20, batch=5)
    done = drive(found, 25)
    assert max(t.reward for t in done[20:]) > max(t.reward for t in done[:20])
    with pytest.raises(UserError, match="'predictor' needs an objective to maximise"):
        predictor(setup(objectives={"gflops": "min"}))
    with pytest.raises(UserError, match="objective 'gflops' was not measured; trial 3 has map50_95"):
        found = predictor(setup())
        found.tell(Trial(3, {"x00": 1}, {"map50_95": 0.5}, 0.5))


def test_what_a_user_gets_wrong():
    for options, line in [
        ({"startup": 5}, "unknown option of strategy 'predictor' 'startup'; did you mean 'startup_trials'"),
        ({"evaluations": 0}, "evaluations of strategy 'predictor' is 0; a whole number from 1 is needed"),
        ({"exploration": -1}, "exploration of strategy 'predictor' is -1; a number above 0 is needed"),
    ]:
        with pytest.raises(UserError) as error:
            check_strategy("predictor", options)
        assert line in str(error.value)
