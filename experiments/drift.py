"""How far an architecture has come from the network that `weights` are of, before any training.

It is cut out of that network and fitted to it; how far its maps are from that network's then, on other
training images, is what a training has to win back (models/refit.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.sample import Dataset, mixed
from experiments.config import Experiment
from experiments.sources import source
from experiments.tasks import TASKS
from models.inherit import inherit
from models.networks import build
from models.refit import Maps, drift, maps, refit
from models.space import Arch, Space
from utils.history import arch_key
from utils.sides import Sides, area
from utils.training.batch import to_device
from utils.training.measure import torch_threads

IMAGES = 32  # that an arch is fitted to; as many others show its drift
PIXELS = 2**20  # of either


class Look:
    """What tells the drift of an arch: the weights, the network that they are of, and two sets of images.

    Raises UserError for weights that cannot be read.
    """

    def __init__(self, exp: Experiment, space: Space, dataset: Dataset) -> None:
        self.exp, self.space, self.dataset = exp, space, dataset
        self.source = source(Path(str(exp.weights)), space)
        with torch_threads(1):  # a process whose threads have worked cannot be forked for a trial
            self.teacher = self.cut(space.default())
        self.known: dict[str, float] = {}
        self.batches: dict[Sides, list[tuple[Tensor, Maps]]] = {}

    def cut(self, arch: Arch) -> Any:
        """The network of an arch with what it has of the weights; takes no random numbers from anybody."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.exp.seed)
            net = build(self.space, arch, self.dataset.names)
            inherit(net, self.source)
        return net

    def drift(self, arch: Arch) -> float:
        """A share of the variance of the maps: 0 for the network as it is, above 1 where nothing is left."""
        if (key := arch_key(arch)) not in self.known:
            with torch_threads(1):
                self.known[key] = self.measured(arch)
        return self.known[key]

    def measured(self, arch: Arch) -> float:
        fitting, showing = self.pictures(self.space.side(arch, self.exp.imgsz))
        net = self.cut(arch)
        if self.exp.refit:
            refit(net, self.teacher, *fitting)
        return drift(net, self.teacher, *showing)

    def pictures(self, side: Sides) -> list[tuple[Tensor, Maps]]:
        """Two sets of training images [n, 3, H, W] of this size, each with what the teacher makes of them."""
        if side not in self.batches:
            n = max(2, min(IMAGES, self.exp.refit or IMAGES, PIXELS // area(side)))
            chosen = mixed(self.dataset.splits["search_train"], 2 * n)
            make_loader = TASKS[self.dataset.task].make_loader
            loader = make_loader(chosen, self.dataset.names, side, len(chosen), train=False)
            both = to_device(next(iter(loader)), torch.device("cpu"))["img"]
            halves = both[: len(both) // 2], both[len(both) // 2 :]
            self.batches[side] = [(half, maps(self.teacher, half)) for half in halves]
        return self.batches[side]
