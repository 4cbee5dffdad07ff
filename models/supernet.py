"""A network whose weights serve every arch of its space: run one in place, draw one, take one out.

    supernet = Supernet(space.model, space.nc)
    supernet.set_arch(space.random(rng))
    supernet.net.loss(batch)  # the slice, in place
    detector = supernet.extract(arch)  # the same as plain modules with their own weights

`set_arch`, `sample`, `extract` and `calibrate` also work on any network that has elastic layers in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from nni.nas.space import current_model
from torch import Tensor, nn

from models.channels import watch
from models.elastic.layers import Elastic, ModelSpace, PathChoice, choices, frozen, running
from models.inherit import LEAST, Account, inherit
from models.networks import open_any_space
from models.space import Arch, Space, Value
from models.weights import WeightFile, load_weights, plain, read_weights
from utils.errors import UserError, unknown

Net = TypeVar("Net", bound=nn.Module)


class Supernet(ModelSpace):
    """An elastic space as NNI sees it, with its weights: the space and its supernet are one object.

    Args (plain data, so that another process can build it again):
        model: the YAML of a space as a dict. nc, ch: classes and input channels, where they override it.

    Attributes:
        space: what may vary.
        net: the network; elastic, or plain once frozen.
        arch: what runs now: of the last `set_arch`, at first the largest; of a frozen one, what it is.
    """

    def __init__(self, model: dict[str, Any], nc: int | None = None, ch: int | None = None) -> None:
        super().__init__()
        sample = current_model()
        self.space: Space = open_any_space(model, nc, ch)
        if sample is None:
            self.net = self.space.supernet()
            self.set_arch(self.space.largest())
        else:
            self.arch = self.space.canonical(sample)
            self.net = self.space.build(self.arch)

    def set_arch(self, arch: Mapping[str, Any]) -> Arch:
        """Run `arch` from now on; returns it, canonical. Raises UserError if it is not of this space."""
        self.arch = self.space.canonical(arch)
        _run(self.net, self.arch)
        return self.arch

    def sample(self, rng: np.random.Generator) -> Arch:
        """Run a random arch; returns it."""
        return self.set_arch(self.space.random(rng))

    def extract(self, arch: Mapping[str, Any]) -> nn.Module:
        """The network of `arch`: plain modules with copies of the weights, in the mode the supernet is in."""
        return frozen(self.net, self.space.canonical(arch))

    def freeze(self, sample: Mapping[str, Any]) -> Supernet:
        """NNI's name for `extract`; the copy keeps `space` and `arch` beside the plain `net`."""
        arch = self.space.canonical({k: v for k, v in sample.items() if k in self.space.choices})
        memo: dict[int, Any] = {id(self.space): self.space, id(self.net): frozen(self.net, arch)}
        copied = copy.deepcopy(self, memo)
        copied.arch = arch
        return copied

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Told to the network."""
        self.net.begin_epoch(epoch, epochs)


def load_supernet(file: WeightFile, space: Space, names: Sequence[str] | None = None) -> Supernet:
    """The supernet of `space` with the weights of a file, in eval mode.

    names: of the classes, by default the file's. Raises UserError unless the file holds a supernet of this
    very space and number of classes.
    """
    if not file.meta.get("supernet"):
        raise UserError(
            f"{file.path} holds no supernet; the step `supernet` of a run writes supernet/weights.pt"
        )
    theirs = file.space or {}
    for key in dict.fromkeys([*theirs, *space.model]):
        if key not in ("name", "nc") and plain(space.model.get(key)) != theirs.get(key):
            raise UserError(
                f"{file.path} is a supernet of another space ({theirs.get('name')}): its {key} is "
                f"{theirs.get(key)!r}, here it is {space.model.get(key)!r}"
            )
    if file.nc != space.nc:
        raise UserError(f"{file.path} is a supernet for {file.nc} classes, here there are {space.nc}")
    supernet = Supernet(space.model, space.nc, space.ch)
    net: Any = supernet.net
    net.names = list(names or file.names)
    load_weights(net, file, whole=True)
    return supernet.eval()


def sliced(
    file: WeightFile,
    space: Space,
    arch: Mapping[str, Any],
    names: Sequence[str] | None = None,
    batches: Iterable[Tensor] | None = None,
    images: int = 2048,
    device: str | torch.device = "cpu",
) -> Any:
    """The plain network of `arch` with its share of a supernet's weights, in eval mode.

    names:   of the classes, by default the file's
    batches: images [B, 3, H, W] float32 RGB 0..1 on `device`, of which `images` re-estimate the batch norm;
             without them it has the supernet's statistics, which fit no arch: to be trained, not to be scored

    Raises UserError unless the file holds a supernet of this space and number of classes.
    """
    net: Any = load_supernet(file, space, names).extract(arch).to(device)
    if batches is not None:
        calibrate(net, batches, images)
    return net.eval()


def as_slice(file: WeightFile, net: nn.Module, arch: Mapping[str, Any]) -> WeightFile:
    """What `sliced` took out of a supernet's file, as if it had been read from a file of its own."""
    meta = {**file.meta, "supernet": False, "sliced": True}
    state = {k: v.detach().cpu() for k, v in net.state_dict().items()}
    return replace(file, kind="slice of a supernet", state=state, arch=dict(arch), meta=meta)


def inherit_supernet(
    supernet: Supernet, source: WeightFile | str | Path, into: str = "", least: float = LEAST
) -> Account:
    """Start a supernet from trained weights: the largest network holds them, the most important channels
    first, so that every slice has the best of them. Those of another supernet, of the same backbone for
    instance, are in their order, and each path has its own. Returns the account; see
    `models.inherit.inherit`.
    """
    before = supernet.arch
    file = source if isinstance(source, WeightFile) else read_weights(source)
    sort = not file.meta.get("supernet")
    try:
        poses = paths(supernet.net, supernet.space)
        into = into or supernet.space.name
        return inherit(supernet.net, file, into=into, sort=sort, poses=poses, least=least)
    finally:
        supernet.set_arch(before)


def importance(
    net: nn.Module, space: Space, sorts: Callable[[Sequence[str]], bool] = bool
) -> dict[str, tuple[Tensor | None, ...]]:
    """The order that puts the most important channels first: tensor -> of its first dimensions the numbers
    of what comes first, None: as it is. The largest network computes the same in that order, and a narrower
    one is the best of it (Once-for-All, arXiv 1908.09791, section 3.3). The network runs any arch after.

    sorts: given the choices that a number of channels depends on, whether these are sorted: elastic ones are.
    """
    channels, state = watch(net, paths(net, space)), net.state_dict()
    wanted = set()
    for name, layer in net.named_modules():
        for weight, labels in layer.makes() if isinstance(layer, Elastic) else ():
            made = channels.of.get(f"{name}.{weight}", (None,))[0]
            if made is not None and sorts(labels):
                wanted |= {segment.axis.whole() for segment in made}
    orders = channels.order({key: tensor.cpu() for key, tensor in state.items()})
    orders = {axis: order for axis, order in orders.items() if axis in wanted}
    return channels.places(orders, {key: tuple(tensor.shape) for key, tensor in state.items()})


def paths(net: nn.Module, space: Space) -> list[Callable[[], object]]:
    """What brings the largest network to run each path once, where paths have weights of their own."""
    largest = space.largest()
    weighty = [m for m in net.modules() if isinstance(m, PathChoice) and list(m.parameters())]
    most = max([len(m.choice.values) for m in weighty], default=1)
    archs = [largest]
    for i in range(most if weighty else 0):
        other = {v.label: v.values[min(i, len(v.values) - 1)] for m in weighty for v in m.choice.choices}
        archs.append(space.canonical({**largest, **other}))
    return [partial(_run, net, arch) for arch in archs]


def _run(net: nn.Module, arch: Mapping[str, Any]) -> None:
    """Of a space's own arch, which says all that is needed and may say more."""
    for layer in running(net, arch):
        layer.set_arch(arch)


# Any network of elastic layers ----------------------------------------------------------------------------


def set_arch(net: nn.Module, arch: Mapping[str, Any]) -> None:
    """Run `arch` from now on. It may leave out what does nothing in it.

    Raises UserError for a label or value that the network does not have, and for a missing one that matters.
    """
    known = choices(net)
    for label, value in arch.items():
        if label not in known:
            raise unknown("choice of the network", label, known)
        if value not in known[label]:
            raise unknown(f"value of {label}", value, known[label])
    layers = list(running(net, arch))
    for layer in layers:
        for dim in layer.dims:
            for label in dim.needs(arch):
                raise UserError(f"the arch says nothing about {label!r}")
    for layer in layers:
        layer.set_arch(arch)


def sample(net: nn.Module, rng: np.random.Generator) -> dict[str, Value]:
    """Run an arch with every choice drawn uniformly; returns it. With an order: `ElasticSpace.random`."""
    drawn = {label: values[int(rng.integers(len(values)))] for label, values in choices(net).items()}
    layers = list(running(net, drawn))
    for layer in layers:
        layer.set_arch(drawn)
    live = {c.label for layer in layers for c in layer.choices()}
    return {label: value for label, value in drawn.items() if label in live}


def extract(net: Net, arch: Mapping[str, Any]) -> Net:
    """The network of `arch` as plain modules with copies of the weights. `net` stays as it is."""
    return frozen(net, arch)


def is_plain(net: nn.Module) -> bool:
    """Whether no layer is elastic any more."""
    return not any(isinstance(m, Elastic) for m in net.modules())


# Batch norm -----------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(net: nn.Module, batches: Iterable[Tensor], images: int = 2048) -> int:
    """Re-estimate the statistics of every batch norm on training images; returns how many were used.

    The running statistics of a supernet mix those of all its archs and fit none of them. They are forgotten
    and replaced by the mean over batches of each batch's own (momentum None), with only the norms in train
    mode: dropout stays off. Batches should be equally large, because each counts alike.

    Meant for an extracted network. On a supernet it overwrites what the next candidate would start from; no
    candidate sees another's statistics as long as each is extracted first (`calibrated`).

    batches: images [B, 3, H, W] float32 RGB 0..1. Raises UserError if there are none.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes, momenta = [(m, m.training) for m in net.modules()], [m.momentum for m in norms]
    net.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
    used = 0
    try:
        for batch in batches:
            batch = batch[: images - used]
            net(batch)
            used += len(batch)
            if used >= images:
                break
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    if used == 0:
        raise UserError("there are no images to re-estimate batch norm on")
    return used


def calibrated(
    supernet: Supernet, arch: Mapping[str, Any], batches: Iterable[Tensor], images: int = 2048
) -> nn.Module:
    """The network of `arch`, extracted, its batch norm re-estimated, in eval mode: ready to be scored."""
    net = supernet.extract(arch)
    calibrate(net, batches, images)
    return net.eval()
