"""The doors of the golden tests, all in one file: where a module moves, only this one changes.

What comes out of them must not change: a resumed search is a replay, so no change of the code may draw other
random numbers than the run was begun with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.nni_runtime import SearchRuntime, run_search
from experiments.engine.trial import report_final
from experiments.strategies import STRATEGIES, build_strategy
from models.networks import open_any_space
from models.nni_space import ArchSpace
from models.sampling import BestOf, Stratified, generator, in_range, spread, subnets
from models.yolo.nas import YoloModelSpace
from utils.history import History
from utils.limits import parse_limits

GENERAL = [name for name in STRATEGIES if name != "streams"]  # that one wants serial codes

MODELS = Path(__file__).resolve().parents[2] / "models"
NC = 3
# Serial spaces are not pinned: they ask for larger images (up to 7 stages) and began after these promises.
FILES = sorted(path.stem for path in MODELS.glob("*.yaml") if not path.stem.startswith("spnas"))
IMGSZ = 64
BUDGET = 20
OBJECTIVES = {"map50_95": "max", "gflops": "min"}
# Neither widths nor depths may fall from stage to stage, so proposals are repaired.
ORDERED = {
    "network": "regnet",
    "nc": 3,
    "backbone": {
        "depth": {"values": [[1], [1, 2], [1, 2, 3], [1, 2, 3], [3]], "sample": "ordered_stage_wise_depth"},
        "out_channel": {
            "values": [[16], [16, 24, 32], [16, 24, 32], [16, 24, 32], [32]],
            "sample": "ordered_stage_wise",
        },
        "group_width": 8,
    },
}
SEARCHED = ("yolov5n_nas", "bignas_retinanet_small", "bignas_regnet", "ordered")
STEERED = ("random", "evolution", "tpe", "pareto", "predictor")  # rl and grid would need minutes
BUILT = ("random", "evolution", "grid")  # NNI sees all layers, as in a multi-trial search
CASES = {f"{strategy} on {name}": (strategy, name, False, False) for strategy in GENERAL for name in SEARCHED}
CASES |= {
    f"{strategy} on {name}, limited": (strategy, name, True, False)
    for strategy in STEERED
    for name in SEARCHED
}
CASES |= {f"{strategy} on yolov5n_nas, built": (strategy, "yolov5n_nas", False, True) for strategy in BUILT}


def space_of(name: str) -> Any:
    return open_any_space(ORDERED if name == "ordered" else MODELS / f"{name}.yaml", NC)


def short(thing: object) -> str:
    """A fingerprint of an arch, of costs, of whatever JSON can hold."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:8]


def merit(arch: Mapping[str, Any]) -> float:
    """A score that any arch of any space has: each gene adds its own part, so there is something to learn."""
    parts = [int(hashlib.sha256(f"{k}={v}".encode()).hexdigest()[:6], 16) for k, v in sorted(arch.items())]
    return sum(parts) / 0xFFFFFF / 100


def draws(name: str) -> dict[str, list[Any]]:
    """The archs that a space's ways of drawing give for seed 0, and its ends."""
    space = space_of(name)
    rng = [np.random.default_rng(seed) for seed in range(4)]
    low, high = (space.cost(arch, IMGSZ)["gflops"] for arch in (space.smallest(), space.largest()))
    stratified = Stratified(space, IMGSZ, seed=0, bins=8, pool=200)
    best = BestOf(space.random, lambda arch: space.cost(arch, IMGSZ)["gflops"], k=3)
    kinds = ["max", "random", "random", "min"]
    unchecked = [{k: v[int(rng[3].integers(len(v)))] for k, v in space.choices.items()} for _ in range(20)]
    return {
        "ends": [space.default(), space.smallest(), space.largest()],
        "random": [space.random(rng[0]) for _ in range(20)],
        "biased": [space.biased(rng[1], tilt) for tilt in np.linspace(-6, 6, 20)],
        "in_range": in_range(space, rng[2], low + 0.2 * (high - low), low + 0.5 * (high - low), IMGSZ, n=8),
        "stratified": [stratified(generator(0, step)) for step in range(20)],
        "spread": spread(space, IMGSZ, 12, seed=0),
        "best_of": [best(generator(0, step)) for step in range(20)],
        "subnets": [arch for step in range(5) for arch in subnets(kinds, space, 0, step)],
        "repaired": [getattr(space, "repair", space.canonical)(arch) for arch in unchecked],
    }


def costs(name: str, n: int = 200) -> list[dict[str, float]]:
    """Costs of `n` random archs, at two image sizes in turns."""
    space, rng = space_of(name), np.random.default_rng(0)
    return [space.cost(space.random(rng), (IMGSZ, 2 * IMGSZ)[i % 2]) for i in range(n)]


def trial(model: Any) -> None:
    """What an evaluation reports: the arch's merit and its costs; nothing is built or trained."""
    report_final(merit(model.arch), {"map50_95": merit(model.arch), **model.space.cost(model.arch, IMGSZ)})


def proposals(strategy: str, name: str, limited: bool, built: bool, run_dir: Path) -> list[dict[str, Any]]:
    """The archs that a whole search proposes for seed 0, in their order.

    limited: at most 90 % of the unsearched network's GFLOPs are allowed.
    built: NNI sees the layers of a YOLO, as where trials train; else the choices alone.
    """
    model = (YoloModelSpace if built else ArchSpace)(space_of(name).model, NC)
    space = model.space
    most = 0.9 * space.cost(space.default(), IMGSZ)["gflops"]
    options = {"predictor": {"evaluations": 30}}
    search = build_strategy(
        strategy,
        options.get(strategy),
        space,
        seed=0,
        budget=BUDGET,
        run_dir=run_dir,
        objectives=OBJECTIVES,
        limits=parse_limits({"gflops": f"<= {most}"} if limited else {}),
        cost=lambda arch: space.cost(arch, IMGSZ),
        quick_cost=lambda arch: space.cost(arch, IMGSZ),
    )
    run_search(model, trial, {}, search, SearchRuntime(run_dir=run_dir, engine="inline"), lambda line: None)
    done = [t for t in History(run_dir / "history.jsonl").load() if t.state == "complete"]
    return [t.arch for t in sorted(done, key=lambda t: t.number)]
