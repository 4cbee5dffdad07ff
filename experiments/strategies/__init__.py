"""Which architecture to try next: eight strategies by name, one set of rules around all of them.

`random`, `evolution`, `rl` and `grid` are NNI's strategies, `tpe` is NNI's tuner, `pareto`, `predictor` and
`streams` are ours behind our ask/tell adapter. Whatever the name, `build_strategy` gives an NNI strategy that
runs the unsearched baseline first, never trains an architecture twice, rejects what breaks a limit before
training, and resumes by replay (`ledger.py`).

NNI and torch are imported only when a strategy is built.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.strategies.contract import Setup
from models.space import Space
from utils.errors import UserError, unknown
from utils.files import own_json, write_text
from utils.history import Arch, Trial
from utils.limits import Limit

if TYPE_CHECKING:
    from nni.nas.strategy.base import Strategy

    from experiments.strategies.ledger import Search


def random(setup: Setup) -> Strategy:
    """NNI's Random: independent draws."""
    from experiments.strategies.nni_strategies import RandomSearch

    return RandomSearch(setup)


def evolution(
    setup: Setup,
    *,
    population_size: int | None = None,
    sample_size: int | None = None,
    mutation_prob: float | None = None,
    crossover: bool = False,
    start: str = "baseline",
    parents: int | None = None,
    mutants: int | None = None,
    crossovers: int | None = None,
    generations: int | None = None,
) -> Strategy:
    """NNI's RegularizedEvolution (Real et al. 2019), with a population that fits the budget; with `parents`,
    DetNAS's: whole generations of mutants and crossovers of so many of the best, and of random archs.

    NNI's default population of 100 makes the first 100 trials a random search.
    """
    if parents is not None:
        return _in_generations(
            setup, population_size, parents, mutants, crossovers, mutation_prob, generations
        )
    from experiments.strategies.nni_strategies import Evolution

    population = population_size or _population(setup.budget)
    sample = sample_size or max(2, population // 2)
    if sample > population:
        raise UserError(f"evolution sample_size {sample} exceeds population_size {population}")
    return Evolution(
        setup,
        population_size=population,
        sample_size=sample,
        mutation_prob=1 / len(setup.space.choices) if mutation_prob is None else mutation_prob,
        crossover=crossover,
        start=start,
    )


def _in_generations(
    setup: Setup,
    population_size: int | None,
    parents: int,
    mutants: int | None,
    crossovers: int | None,
    mutation_prob: float | None,
    generations: int | None,
) -> Strategy:
    from experiments.strategies.adapter import AskTellStrategy
    from experiments.strategies.generations import Generations

    population = population_size or _population(setup.budget)
    share = max(1, 2 * population // 5)  # of 50: 20 mutants, 20 crossovers, 10 at random
    searcher = Generations(
        setup,
        population_size=population,
        parents=parents,
        mutants=min(share, population - (crossovers or 0)) if mutants is None else mutants,
        crossovers=min(share, population - (mutants or share)) if crossovers is None else crossovers,
        mutation_prob=0.1 if mutation_prob is None else mutation_prob,
        generations=generations,
    )
    return AskTellStrategy(searcher, setup.space)


def rl(
    setup: Setup,
    *,
    samples_per_update: int | None = None,
    learning_rate: float = 1e-2,
    update_times: int = 1,
) -> Strategy:
    """NNI's PolicyBasedRL: PPO over the choices, one after the other (after Zoph and Le 2017)."""
    from experiments.strategies.nni_strategies import seeded_rl

    samples = samples_per_update or max(2, min(20, setup.budget // 5))
    return seeded_rl(setup.seed, samples, learning_rate, update_times, setup.repeats)


def tpe(
    setup: Setup, *, startup_trials: int | None = None, candidates: int = 24, gamma: float = 0.25
) -> Strategy:
    """NNI's tree-structured Parzen estimator (Bergstra et al. 2011), the choices taken as independent."""
    from experiments.strategies.adapter import AskTellStrategy
    from experiments.strategies.tpe import Tpe

    startup = startup_trials or max(2, min(20, setup.budget // 3))
    searcher = Tpe(setup, startup=startup, candidates=candidates, gamma=gamma)
    return AskTellStrategy(searcher, setup.space)


def grid(setup: Setup, *, shuffle: bool = True) -> Strategy:
    """NNI's GridSearch: every point, in order or shuffled in blocks of 100."""
    from nni.nas.strategy import GridSearch

    return GridSearch(shuffle=shuffle, seed=setup.seed)


def pareto(
    setup: Setup,
    *,
    population_size: int | None = None,
    mutation_prob: float | None = None,
    crossover_prob: float = 0.9,
    start: str = "baseline",
) -> Strategy:
    """Our NSGA-II over all objectives at once (Deb et al. 2002)."""
    from experiments.strategies.adapter import AskTellStrategy
    from experiments.strategies.pareto import ParetoEvolution

    population = population_size or _population(setup.budget)
    searcher = ParetoEvolution(
        setup.space,
        setup.objectives,
        seed=setup.seed,
        population_size=population,
        mutation_prob=mutation_prob,
        crossover_prob=crossover_prob,
        start=start,
        limits=setup.limits,
        within_limits=setup.within_limits,
        first=setup.head_start(population),
    )
    return AskTellStrategy(searcher, setup.space)


def predictor(
    setup: Setup,
    *,
    startup_trials: int | None = None,
    batch: int | None = None,
    evaluations: int = 2000,
    exploration: float = 0.5,
) -> Strategy:
    """Our evolution with an accuracy predictor: thousands of archs compete in memory, few are measured."""
    from experiments.strategies.adapter import AskTellStrategy
    from experiments.strategies.predictor import Predictor

    searcher = Predictor(
        setup,
        startup=startup_trials or max(2, min(30, setup.budget // 3)),
        batch=batch or max(1, min(8, setup.budget // 8)),
        evaluations=evaluations,
        exploration=exploration,
    )
    return AskTellStrategy(searcher, setup.space)


def streams(setup: Setup) -> Strategy:
    """SP-NAS's second phase: extra streams beside the stages of the best serial codes that are known."""
    from experiments.strategies.adapter import AskTellStrategy
    from experiments.strategies.streams import Streams

    searcher = Streams(setup.space, setup.objectives, seed=setup.seed, known=setup.known)
    return AskTellStrategy(searcher, setup.space)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "random": random,
    "evolution": evolution,
    "rl": rl,
    "tpe": tpe,
    "grid": grid,
    "pareto": pareto,
    "predictor": predictor,
    "streams": streams,
}

# Proposals in a row that bring nothing new before a search ends. Where choices do nothing (the convs of a
# block beyond the depth), a grid walks through many equal archs one after the other, so it needs more.
PATIENCE = {"grid": 20_000}
DEFAULT_PATIENCE = 1_000


def build_strategy(
    name: str,
    options: Mapping[str, Any] | None,
    space: Space,
    *,
    seed: int,
    budget: int,
    run_dir: Path,
    objectives: Mapping[str, str],
    limits: Sequence[Limit] = (),
    cost: Callable[[Arch], Mapping[str, float]] | None = None,
    quick_cost: Callable[[Arch], Mapping[str, float]] | None = None,
    baseline: bool = True,
    patience: int | None = None,
    known: Sequence[Trial] = (),
    first: int = 0,
    begin: Sequence[Arch] = (),
) -> Search:
    """An NNI strategy ready for `NasExperiment`, new or resumed: what `run_dir` holds decides.

    budget:   trials that may finish (complete or failed) over all starts of this run, the baseline included
    run_dir:  holds history.jsonl and asked.jsonl; gets `strategy.json`, the options as they were resolved
    cost:     prices an arch for `limits`, before training; required with limits; may measure (latency_ms)
    quick_cost: those of the costs that need no measuring (`space.cost`); with it, random starts are steered
              into the limits, and what breaks one of these is not measured
    baseline: run `space.default()` as trial 0, whatever the limits say: it is what the others are compared to
    patience: proposals in a row that bring nothing new before the search ends with a message
    known:    trials of an earlier step: `predictor` fits to them, and the best of them come first in it, in
              `pareto` and in `evolution`; the same on resume, or the replay would diverge
    first:    number of the first trial of this search, where another one came before it in `run_dir`
    begin:    archs that `pareto`, `evolution` and `predictor` begin with; the same on resume
    Raises UserError for an unknown name or option, or a value that does not fit.
    """
    from experiments.strategies.ledger import Ledger, Search

    chosen = check_strategy(name, options)
    if not space.choices:
        raise UserError("nothing to search: the space has no choices")
    if limits and cost is None:
        raise ValueError("limits need a cost function")
    ledger = Ledger(
        space,
        run_dir,
        max_trials=budget,
        limits=limits,
        cost=cost or (lambda arch: {}),
        quick_cost=quick_cost,
        patience=patience or PATIENCE.get(name, DEFAULT_PATIENCE),
        penalise=name == "rl",
        first=first,
    )
    fitted_to = _first_budget(run_dir, name, budget)
    setup = Setup(
        space, seed, fitted_to, objectives, limits, lambda: ledger.repeats, quick_cost, known, run_dir, begin
    )
    return Search(STRATEGIES[name](setup, **chosen), ledger, baseline=baseline)


def check_strategy(name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options, checked without importing NNI. Raises UserError for an unknown name or option, or a value
    of the wrong kind or out of range (sizes and counts from 1, probabilities 0..1)."""
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    parameters = list(inspect.signature(STRATEGIES[name]).parameters.values())[1:]
    known = {p.name: p for p in parameters}
    chosen = dict(options or {})
    for key, value in chosen.items():
        if key not in known:
            if not known:
                raise UserError(f"strategy {name!r} takes no options, but got {key!r}")
            raise unknown(f"option of strategy {name!r}", key, known)
        _check_option(name, key, value, str(known[key].annotation))
    if name == "evolution":
        _check_generations(chosen)
    return chosen


def _check_generations(chosen: Mapping[str, Any]) -> None:
    """Raises UserError where options of evolution in generations and of the other kind are mixed."""
    given = {key for key, value in chosen.items() if value is not None}
    other = given & ({"sample_size", "crossover", "start"} if "parents" in given else set(IN_GENERATIONS))
    if other:
        reason = "has none of sample_size, crossover and start" if "parents" in given else "need `parents`"
        raise UserError(
            f"{', '.join(sorted(other))} of strategy 'evolution': generations (parents: 10) {reason}"
        )
    children = sum(chosen.get(key) or 0 for key in ("mutants", "crossovers"))
    if children > (chosen.get("population_size") or children):
        raise UserError(
            f"evolution mutants + crossovers, {children}, exceed population_size {chosen['population_size']}"
        )


def _check_option(name: str, key: str, value: Any, annotation: str) -> None:
    kind, *optional = annotation.split(" | ")
    if value is None and optional:
        return
    if kind == "str":
        starts = STARTS if name == "pareto" else STARTS[:2]
        fits, wanted = value in starts, " or ".join(starts)
    elif kind == "bool":
        fits, wanted = isinstance(value, bool), "true or false"
    elif kind == "int":
        fits, wanted = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            "a whole number from 1",
        )
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if key.endswith("_prob"):
            fits, wanted = number and 0 <= value <= 1, "a probability from 0 to 1"
        else:
            fits, wanted = number and value > 0, "a number above 0"
    if not fits:
        raise UserError(f"{key} of strategy {name!r} is {value!r}; {wanted} is needed")


STARTS = ("baseline", "random", "front")
IN_GENERATIONS = ("mutants", "crossovers", "generations")


def _population(budget: int) -> int:
    """A third of the budget, at most 25: enough to choose from, with most trials left to evolve."""
    return min(25, max(2, budget // 3))


def population_of(options: Mapping[str, Any], budget: int) -> int:
    """How many archs a generation of a strategy has."""
    return int(options.get("population_size") or _population(budget))


def _first_budget(run_dir: Path, name: str, budget: int) -> int:
    """The budget that the defaults were fitted to when the run began.

    A run may be resumed with a larger budget; its strategy must stay what it was, or the replay would
    diverge.
    """
    path = run_dir / "strategy.json"
    before = own_json(path, lambda facts: type(facts.get("budget")) is int and facts["budget"] > 0)
    if before:
        return int(before["budget"])
    write_text(path, json.dumps({"name": name, "budget": budget}) + "\n")
    return budget
