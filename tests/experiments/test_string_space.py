"""A space whose arch is a string: no strategy has to know."""

import numpy as np
import pytest

from experiments.strategies.contract import Setup
from experiments.strategies.pareto import ParetoEvolution
from experiments.strategies.predictor import Predictor
from experiments.strategies.tpe import Tpe
from models.space import LabelledSpace
from utils.errors import UserError
from utils.history import Trial, arch_key
from utils.limits import check_limits, parse_limits

OBJECTIVES = {"map50_95": "max", "gflops": "min"}
LONGEST = 6


class Code(LabelledSpace):
    """Archs are {"code": "112"}: three to six digits, blocks of 1, 2 or 3 units. Genes are the digits, ""
    where there is none; they vary by swapping two digits, by growing and by shrinking.
    """

    def __init__(self):
        self.name = "code"
        self.choices = {f"digit{i}": ["1", "2", "3"] + [""] * (i > 2) for i in range(LONGEST)}

    def canonical(self, arch):
        code = arch["code"] if "code" in arch else "".join(arch[label] for label in self.choices)
        if not 3 <= len(code) <= LONGEST or set(code) - set("123"):
            raise UserError(f"{code!r} is no code")
        return {"code": code}

    def complete(self, arch):
        return dict(zip(self.choices, self.canonical(arch)["code"].ljust(LONGEST), strict=True)) | {
            label: "" for i, label in enumerate(self.choices) if i >= len(arch["code"])
        }

    def default(self):
        return {"code": "222"}

    def random(self, rng):
        return {"code": "".join(rng.choice(list("123"), int(rng.integers(3, LONGEST + 1))))}

    def biased(self, rng, tilt):
        return self.random(rng)

    def smallest(self):
        return {"code": "111"}

    def largest(self):
        return {"code": "3" * LONGEST}

    def size(self):
        return 3**3 * 4**3, sum(3**n for n in range(3, LONGEST + 1))

    def mutate(self, genes, rng, prob):
        code = list(self.canonical(genes)["code"])
        kind = rng.integers(3)
        if kind == 0:
            i, j = rng.choice(len(code), 2, replace=False)
            code[i], code[j] = code[j], code[i]
        elif kind == 1 and len(code) < LONGEST:
            code.insert(int(rng.integers(len(code) + 1)), str(rng.integers(1, 4)))
        elif len(code) > 3:
            code.pop(int(rng.integers(len(code))))
        return self.complete({"code": "".join(code)})

    def cross(self, mother, father, rng):
        a, b = self.canonical(mother)["code"], self.canonical(father)["code"]
        cut = int(rng.integers(1, min(len(a), len(b))))
        return self.complete({"code": a[:cut] + b[cut:]})

    def cost(self, arch, imgsz=64):
        return {"gflops": float(sum(map(int, arch["code"])))}


def quality(arch):
    """Long codes are better, and those that begin with small digits."""
    code = arch["code"]
    return len(code) / 10 - sum(int(d) * 0.02 for d in code[:3])


def strategies(space, limits=()):
    setup = Setup(space, 0, 40, OBJECTIVES, limits, quick=space.cost)
    return {
        "tpe": Tpe(setup, startup=8),
        "predictor": Predictor(setup, startup=10, batch=4, evaluations=60, exploration=0.5),
        "pareto": ParetoEvolution(
            space,
            OBJECTIVES,
            seed=0,
            population_size=8,
            limits=limits,
            within_limits=setup.within_limits,
        ),
    }


@pytest.mark.parametrize("name", ["tpe", "predictor", "pareto"])
@pytest.mark.parametrize("limited", [False, True])
def test_every_ask_and_tell_strategy_searches_codes(name, limited):
    space = Code()
    limits = parse_limits({"gflops": "<= 9"} if limited else {})
    strategy = strategies(space, limits)[name]
    seen, best = set(), []
    for number in range(40):
        arch = strategy.ask()
        assert list(arch) == ["code"] and space.canonical(arch) == arch and arch_key(arch) not in seen
        if limited and name != "pareto":  # whose children may break limits, and lose for it
            assert space.cost(arch)["gflops"] <= 9
        seen.add(arch_key(arch))
        best.append(quality(arch))
        metrics = {"map50_95": quality(arch), **space.cost(arch)}
        strategy.tell(Trial(number, arch, metrics, quality(arch), "complete"))
    assert max(best[20:]) >= max(best[:10])
    assert [strategies(space, limits)[name].ask() for _ in range(2)][0]["code"]  # again from the same seed


def test_children_come_from_the_space_s_own_changes():
    """A population of codes without any 3: swapping, growing by inserts and shrinking is all that happens."""
    space, rng = Code(), np.random.default_rng(0)
    children = {
        space.repair(space.mutate(space.complete({"code": "122"}), rng, 0.1))["code"] for _ in range(99)
    }
    assert {"212", "122"} <= children and all(len(c) in (3, 4) for c in children)
    strategy = ParetoEvolution(space, OBJECTIVES, seed=0, population_size=2)
    for number, code in enumerate(("122", "1222")):
        strategy.ask()
        arch = {"code": code}
        strategy.tell(Trial(number, arch, {"map50_95": quality(arch), **space.cost(arch)}, 0.0, "complete"))
    child = strategy.ask()
    assert strategy.parents and sorted(child["code"])[:2] == ["1", "2"]


def test_limits_are_looked_for_in_codes_too():
    space, rng = Code(), np.random.default_rng(0)
    assert 0 < check_limits(space, parse_limits({"gflops": "<= 6"}), 64, rng) < 0.5
    with pytest.raises(UserError, match="no architecture of the space meets the limits"):
        check_limits(space, parse_limits({"gflops": "<= 2"}), 64, rng)
