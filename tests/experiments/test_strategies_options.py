"""Names and options of strategies: what a user gets wrong is one line, before anything heavy is imported."""

import subprocess
import sys

import pytest

from experiments.strategies import build_strategy, check_strategy
from utils.errors import UserError


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("evolutoin", {}, "unknown strategy 'evolutoin'; did you mean 'evolution'"),
        ("evolution", {"populatoin_size": 8}, "'populatoin_size'; did you mean 'population_size'"),
        ("random", {"dedup": False}, "strategy 'random' takes no options, but got 'dedup'"),
        ("evolution", {"population_size": 0}, "is 0; a whole number from 1 is needed"),
        ("evolution", {"population_size": True}, "is True; a whole number from 1 is needed"),
        ("evolution", {"population_size": 2.5}, "is 2.5; a whole number from 1 is needed"),
        ("evolution", {"mutation_prob": 1.5}, "is 1.5; a probability from 0 to 1 is needed"),
        ("evolution", {"crossover": "yes"}, "is 'yes'; true or false is needed"),
        ("rl", {"learning_rate": "1e-3"}, "is '1e-3'; a number above 0 is needed"),
        ("rl", {"learning_rate": 0}, "is 0; a number above 0 is needed"),
        ("tpe", {"gamma": float("nan")}, "is nan; a number above 0 is needed"),
        ("grid", {"shuffle": 1}, "is 1; true or false is needed"),
        ("pareto", {"crossover_prob": -0.1}, "is -0.1; a probability from 0 to 1 is needed"),
        ("evolution", {"mutants": 3}, "mutants of strategy 'evolution': generations (parents: 10) need"),
        ("evolution", {"parents": 3, "sample_size": 2}, "sample_size of strategy 'evolution': generations"),
        (
            "evolution",
            {"parents": 2, "population_size": 8, "mutants": 5, "crossovers": 4},
            "mutants + crossovers, 9, exceed population_size 8",
        ),
        ("pareto", {"seed": 3}, "unknown option of strategy 'pareto' 'seed'"),
    ],
)
def test_what_a_user_gets_wrong(name, options, line):
    with pytest.raises(UserError) as error:
        check_strategy(name, options)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_what_fits():
    assert check_strategy("evolution", {"population_size": None, "mutation_prob": 0}) == {
        "population_size": None,
        "mutation_prob": 0,
    }
    assert check_strategy("random") == {}


class Empty:
    choices: dict[str, list[str]] = {}


def test_nothing_to_search(tmp_path):
    with pytest.raises(UserError, match="the space has no choices"):
        build_strategy("random", {}, Empty(), seed=0, budget=3, run_dir=tmp_path, objectives={})


def test_checking_imports_nothing_heavy():
    code = (
        "import sys, utils.rewards, utils.pareto, utils.limits, experiments.strategies as s;"
        "import experiments.strategies.pareto;"
        "s.check_strategy('rl', {'learning_rate': 0.1});"
        "print([m for m in ('torch', 'nni', 'pymoo', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
