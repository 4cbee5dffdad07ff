"""NNI's strategies, with what they need to finish a search of a dozen trials on a small space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nni.mutable import SampleValidationError
from nni.nas.strategy import PolicyBasedRL, Random, RegularizedEvolution

from utils.errors import UserError
from utils.history import arch_key

if TYPE_CHECKING:
    from experiments.strategies.contract import Setup

MUTATIONS = 50  # repeats in a row before a random individual is tried instead
STUCK = 50  # repeats in a row after which the RL policy only draws at random


class RandomSearch(Random):
    """Random whose draws are steered into the limits."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(seed=setup.seed)
        self._setup = setup
        self._rng = np.random.default_rng(setup.seed)

    def random(self, model_space: Any) -> Any:
        sample: dict[str, Any] = {}
        if getattr(self._setup.space, "walks", False):  # whose genes say little one by one
            sample = self._setup.space.complete(self._setup.space.random(self._rng))
        else:
            model_space.random(memo=sample, random_state=self._random_state)
        sample = _steered(self._setup, sample, self._rng)
        self._dedup_helper.dedup(sample)
        return model_space.freeze(sample)


def _steered(setup: Setup, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A sample (all labels), moved into the limits where it breaks one."""
    arch = setup.space.repair(sample)
    within = setup.within_limits(arch, rng)
    return sample if within == arch else setup.space.complete(within)


class Evolution(RegularizedEvolution):
    """RegularizedEvolution that starts from the baseline too, survives an empty population, and looks
    elsewhere when the neighbourhood of its parents is used up (NNI's stops there, with most of the space
    untried)."""

    def __init__(self, setup: Setup, *, start: str = "baseline", **options: Any) -> None:
        super().__init__(seed=setup.seed, **options)
        self._setup = setup
        self._rng = np.random.default_rng(setup.seed)
        self._start = start
        self._first = setup.head_start(self.population_size)
        self._baseline: dict[str, Any] | None = None
        self._repeats = 0
        self._parents: list[Any] = []
        self._numbers: dict[str, int] = {}

    def adopt(self, model: Any) -> None:
        """Take a model that somebody else submits (the baseline) into the population once it has a metric."""
        self._running_models.append(model)
        self._dedup_helper.dedup(model.sample)
        self._baseline = dict(model.sample)

    def random(self) -> Any:
        """The first population fans out from the baseline: the i-th of n has each label redrawn with
        probability (i/n)^2, so that a small budget begins where things are known to work. The best that are
        known from an earlier step come before that."""
        if self._first:
            sample = self._setup.space.complete(self._first.pop(0))
            self._dedup_helper.dedup(sample)
            self._individual_counter += 1
            return self.model_space.freeze(sample)
        i, n = self._individual_counter + 1, self.population_size
        near = self._baseline if self._start == "baseline" and i < n else None
        sample = {
            label: mutable.random(random_state=self._random_state)
            if near is None or self._random_state.uniform() < (i / n) ** 2
            else near[label]
            for label, mutable in self.model_space.simplify().items()
        }
        sample = _steered(self._setup, sample, self._rng)
        self._dedup_helper.dedup(sample)
        self._individual_counter += 1
        return self.model_space.freeze(sample)

    def new_individual(self) -> Any:
        # The first of the population may all have failed: there is nobody to mutate, and NNI's max() would
        # raise.
        if not self._population or self._repeats >= MUTATIONS:
            model = self.random()
        else:
            self._parents = []
            try:
                model = super().new_individual()
            except SampleValidationError:
                self._repeats += 1
                raise
            model.parents = tuple(self._numbers[arch_key(sample)] for sample in self._parents)
        self._repeats = 0
        return model

    def best_parent(self) -> Any:
        parent = super().best_parent()
        if parent not in self._parents:
            self._parents.append(parent)
        return parent

    def _training_end_callback(self, event: Any) -> None:
        self._numbers[arch_key(event.model.sample)] = event.model.trial.number
        super()._training_end_callback(event)


def seeded_rl(
    seed: int, samples_per_update: int, learning_rate: float, update_times: int, repeats: Callable[[], int]
) -> PolicyBasedRL:
    """PolicyBasedRL whose draws come from a generator of its own; NNI's come from torch's and numpy's
    global ones.

    learning_rate: replaces NNI's 1e-4, which does not move the policy in a search of a few hundred trials
    repeats:       proposals in a row that were tried before. A policy that is sure of itself proposes the
                   same arch for ever, so with that number grows the chance of a random choice, up to 1.
    """
    try:
        updates = {"batch_size": 32, "repeat": 5, "update_times": update_times}
        strategy = PolicyBasedRL(samples_per_update=samples_per_update, update_kwargs=updates)
    except ImportError:
        raise UserError(
            "strategy 'rl' needs tianshou 0.5.1: pip install tianshou==0.5.1 gym==0.26.2"
        ) from None
    _interpreted()
    private = PrivateRandom(seed)
    make_policy = strategy.policy_fn

    def seeded_policy(environment: Any) -> Any:
        with private():
            policy = make_policy(environment)
        for group in policy.optim.param_groups:
            group["lr"] = learning_rate
        forward, update = policy.forward, policy.update

        def explore(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if private.lent:  # called by `update`, which needs the policy's own opinion
                return forward(batch, *args, **kwargs)
            with private():
                result = forward(batch, *args, **kwargs)
                if np.random.random() < repeats() / STUCK:
                    result.act = torch.randint(int(batch.obs.action_dim[0]), (1,))
            return result

        def update_in_private(*args: Any, **kwargs: Any) -> Any:
            with private():
                return update(*args, **kwargs)

        policy.forward, policy.update = explore, update_in_private
        return policy

    strategy.policy_fn = seeded_policy
    return strategy


def _interpreted() -> None:
    """Let tianshou's loops over an episode run as they are written: numba takes longer to compile them, again
    in each process, than a search of thousands of trials spends in them."""
    from tianshou.policy import base

    for name in ("_gae_return", "_nstep_return"):
        loop = getattr(base, name)
        setattr(base, name, getattr(loop, "py_func", loop))


class PrivateRandom:
    """Lends its own random state to code that can only use the global generators, and puts theirs back
    after.
    """

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._torch = torch.get_rng_state()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()
        self.lent = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        outside = torch.get_rng_state(), np.random.get_state()
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        self.lent = True
        try:
            yield
        finally:
            self.lent = False
            self._torch, self._numpy = torch.get_rng_state(), np.random.get_state()
            torch.set_rng_state(outside[0])
            np.random.set_state(outside[1])
