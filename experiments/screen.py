"""Which architectures keep most of what `weights` know: looked at before a search that starts from them.

Nothing is trained (experiments/drift.py). The archs that drift least for their cost are what the search
begins with, of slices too: one may score well, and its arch, retrained from `weights`, still lose what it
drifts by. `search.limits: {drift: "<= 0.3"}` keeps all of a search near the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from experiments.config import Experiment
from experiments.job import Job, baseline_costs
from models.space import Arch
from utils.files import write_text
from utils.history import arch_key
from utils.limits import parse_limits, violation
from utils.rewards import DRIFT
from utils.run_files import Files

STRATEGIES = ("pareto", "evolution", "predictor")  # that can begin with given archs
LOOKS = 4  # for each trial, where `search.screen` does not say


def screens(exp: Experiment) -> bool:
    """Whether the experiment's search is screened."""
    search = exp.search
    inherits = search.evaluator is None and search.inherit is None
    return bool(looks(exp) and exp.weights and inherits and search.strategy.name in STRATEGIES)


def looks(exp: Experiment) -> int:
    """How many archs are looked at for each trial."""
    return LOOKS if exp.search.screen is None else exp.search.screen


def screened(job: Job) -> list[Arch]:
    """The archs that a search from `weights` begins with, half of its trials, the least drift first.

    What was found is kept in the run's `screened.json`, so that a resumed search begins alike; one that was
    begun without a screen goes on without.
    """
    path = Files(job.run.path).screened
    if not path.is_file():
        if job.run.history.load():
            return []
        write_text(path, json.dumps(_screen(job)) + "\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    return [row["arch"] for row in found if row["begins"]]


def _screen(job: Job) -> list[dict[str, Any]]:
    """A row for each arch that was looked at: arch, drift, costs; `begins`: does the search begin with it?

    First each choice by itself, where that is cheaper; then, one after the other, the choices that drift
    least for what they save are taken together, as long as that saves more.
    """
    exp, space, look = job.exp, job.space, job.look
    limits = parse_limits(exp.search.limits, baseline_costs(job))  # those on what is measured say nothing yet
    default = space.complete(space.default())
    bar = tqdm(desc="screen", unit="arch", leave=False, disable=None)

    rows: dict[str, dict[str, Any]] = {}

    def row(genes: Mapping[str, Any]) -> dict[str, Any]:
        arch = space.canonical(genes)
        if arch_key(arch) not in rows:
            bar.update()
            found = {"arch": arch, DRIFT: look.drift(arch), **space.cost(arch, exp.imgsz)}
            rows[arch_key(arch)] = found | {"begins": False}
        return rows[arch_key(arch)]

    def gflops(genes: Mapping[str, Any]) -> float:
        return space.cost(space.canonical(genes), exp.imgsz)["gflops"]

    full = gflops(default)
    # At another side the network itself drifts by nothing, which says nothing of what the side costs.
    cheaper = [g for g in space.changes(default) if gflops(g) < full and g.get(SIDE) == default.get(SIDE)]
    most = looks(exp) * exp.search.max_trials
    some = cheaper if len(cheaper) <= most else [cheaper[i * len(cheaper) // most] for i in range(most)]
    alone = [(genes, row(genes)) for genes in some]
    alone.sort(key=lambda pair: pair[1][DRIFT] / (full - pair[1]["gflops"]))
    taken = dict(default)
    wanted, share = max(1, exp.search.max_trials // 2), exp.search.screen_to
    path: list[dict[str, Any]] = []
    for genes, _ in alone:
        further = {k: v for k, v in genes.items() if v != default[k] and taken[k] == default[k]}
        if not further or gflops(taken | further) >= gflops(taken) or (share is None and len(path) == wanted):
            continue
        taken |= further
        if violation(limits, space.cost(space.canonical(taken), exp.imgsz)) == 0:
            path.append(dict(taken))
    if share is not None:
        path = _spread(default, path, space.choices.get(SIDE, [None])[1:], gflops, share * full, full, wanted)
    begins = [found for found in map(row, path) if violation(limits, found) == 0]
    for found in begins:
        found["begins"] = True
    bar.close()
    name, drifts = Path(str(exp.weights)).name, ", ".join(f"{r[DRIFT]:.2f}" for r in begins)
    print(f"screen: {len(rows)} architectures looked at without training; those that the search begins with")
    print(f"  drift from {name} by {drifts or 'nothing: none is within the limits'} of its maps' variance")
    return list(rows.values())


def _spread(
    start: dict[str, Any],
    path: Sequence[Mapping[str, Any]],
    sides: Sequence[Any],
    gflops: Callable[[Mapping[str, Any]], float],
    least: float,
    full: float,
    n: int,
) -> list[dict[str, Any]]:
    """About `n` of a path that grows cheaper, at the default side and at each of the smaller `sides`: evenly
    spread over GFLOPs from those of the network as it is (only at smaller sides itself) down to `least`."""
    places = [{}, *({SIDE: side} for side in sides)]
    tops = [full, *(gflops(start | place) for place in places[1:])] if path else []
    ranges = [max(0.0, top - least) for top in tops]
    found: dict[str, dict[str, Any]] = {}
    for place, top, wide in zip(places, tops, ranges, strict=False):
        count = 1 + round((n - len(places)) * wide / max(sum(ranges), 1e-12))
        at = [start | place, *(dict(genes) | place for genes in path)]
        for k in range(count):
            target = top - wide * (k + (not place)) / (count - bool(place) or 1)
            nearest = min(at[not place :], key=lambda genes: abs(gflops(genes) - target))
            found.setdefault(arch_key(nearest), nearest)
    return list(found.values())


SIDE = "resolution"
