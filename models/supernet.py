"""A network whose weights serve every arch of its space: run one in place, draw one, take one out.

    supernet = Supernet(space.model, space.nc)
    supernet.set_arch(space.random(rng))
    supernet.net.loss(batch)  # the slice, in place
    detector = supernet.extract(arch)  # the same as plain modules with their own weights

`set_arch`, `sample`, `extract` and `calibrate` also work on any network that has elastic layers in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from nni.nas.space import current_model
from torch import Tensor, nn

from models.elastic import Elastic, ModelSpace, frozen
from models.elastic_space import ElasticSpace
from models.networks import AnySpace
from models.parse import Value
from models.space import Arch, Space
from models.weights import WeightFile, load_weights, plain
from utils.errors import UserError, unknown

Net = TypeVar("Net", bound=nn.Module)


class Supernet(ModelSpace):
    """An elastic space as NNI sees it, with its weights: the space and its supernet are one object.

    Args (plain data, so that another process can build it again):
        model: the YAML as a dict: of an `ElasticSpace`, or a detector's (models/space.py) with NAS rows.
        nc, ch: as those take them.

    Attributes:
        space: what may vary, an `ElasticSpace` or a `Space`.
        net: the network; elastic, or plain once frozen.
        arch: what runs now: of the last `set_arch`, at first the largest; of a frozen one, what it is.
    """

    def __init__(self, model: dict[str, Any], nc: int | None = None, ch: int | None = None) -> None:
        super().__init__()
        sample = current_model()
        self.space, self.net = _open(model, nc, ch)
        self.arch = self.space.largest() if sample is None else self.space.canonical(sample)
        if sample is None:
            self.set_arch(self.arch)

    def set_arch(self, arch: Mapping[str, Any]) -> Arch:
        """Run `arch` from now on; returns it, canonical. Raises UserError if it is not of this space."""
        self.arch = self.space.canonical(arch)
        for layer in running(self.net, self.arch):
            layer.set_arch(self.arch)
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


def _open(model: dict[str, Any], nc: int | None, ch: int | None) -> tuple[ElasticSpace | Space, nn.Module]:
    """The space of a YAML and its network, elastic, or plain under NNI's `model_context`."""
    if "network" in model:
        space = ElasticSpace(model, nc, ch)
        return space, space.build()
    from models.yolo import build  # Ultralytics is not needed for the others
    from models.yolo_elastic import elastic_detector

    yolo, sample = Space(model, nc, ch), current_model()
    return yolo, elastic_detector(yolo) if sample is None else build(yolo, yolo.canonical(sample))


def load_supernet(file: WeightFile, space: AnySpace, names: Sequence[str] | None = None) -> Supernet:
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


# Any network of elastic layers ----------------------------------------------------------------------------


def running(module: nn.Module, arch: Mapping[str, Any]) -> Iterator[Elastic]:
    """The elastic layers that run in `arch`, those around others first."""
    children: Iterable[nn.Module] = module.children()
    if isinstance(module, Elastic):
        yield module
        children = module.running(arch)
    for child in children:
        yield from running(child, arch)


def choices(net: nn.Module) -> dict[str, list[Value]]:
    """Label -> values of every choice in the network, in its order."""
    found = {c.label: list(c.values) for m in net.modules() if isinstance(m, Elastic) for c in m.choices()}
    return found


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


# Costs ----------------------------------------------------------------------------------------------------


class CostTable:
    """Parameters and FLOPs of every arch at one image size, from one pass of the largest network on torch's
    meta device and then look-ups: layers that hang on the same genes are summed once for each value.

    net: elastic, on the meta device. shape: of one image, (channels, height, width).
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        positions = _positions(net, shape)
        groups: dict[tuple[str, ...], list[_Term]] = {}
        for module, conditions in dict(_modules(net, [])).items():
            term = _Term(module, positions.get(module, 0), conditions)
            groups.setdefault(term.labels, []).append(term)
        merged: dict[tuple[str, ...], list[_Term]] = {}
        for labels in sorted(groups, key=len, reverse=True):
            host = next((m for m in merged if set(labels) <= set(m)), labels)
            merged.setdefault(host, []).extend(groups[labels])
        self.groups: list[tuple[tuple[str, ...], list[_Term], dict[Any, tuple[int, int]]]] = [
            (labels, terms, {}) for labels, terms in merged.items()
        ]
        self.defaults = {label: values[0] for label, values in choices(net).items()}

    def __call__(self, arch: Mapping[str, Any]) -> dict[str, float]:
        params = macs = 0
        get, defaults = arch.get, self.defaults
        for labels, terms, known in self.groups:
            key = tuple([get(label, defaults[label]) for label in labels])
            cost = known.get(key)
            if cost is None:
                cost = known[key] = _sum(terms, dict(zip(labels, key, strict=True)))
            params += cost[0]
            macs += cost[1]
        return {"params_m": params / 1e6, "gflops": 2 * macs / 1e9}


class _Term:
    """One layer: what it counts, and the dims that decide whether it runs."""

    def __init__(
        self, module: nn.Module, positions: int, conditions: list[tuple[Elastic, nn.Module]]
    ) -> None:
        self.module, self.positions, self.conditions = module, positions, conditions
        layers = [m for m, _ in conditions] + ([module] if isinstance(module, Elastic) else [])
        self.labels = tuple(dict.fromkeys(label for m in layers for d in m.dims for label in d.labels))
        self.own = 0, 0
        if not isinstance(module, Elastic):
            weights = module.weight.numel() if isinstance(module, (nn.Conv2d, nn.Linear)) else 0
            self.own = sum(p.numel() for p in module.parameters(recurse=False)), weights

    def cost(self, arch: Mapping[str, Any]) -> tuple[int, int]:
        if any(all(child is not m for m in outer.running(arch)) for outer, child in self.conditions):
            return 0, 0
        params, macs = self.module.count(arch) if isinstance(self.module, Elastic) else self.own
        return params, macs * self.positions


def _sum(terms: list[_Term], arch: Mapping[str, Any]) -> tuple[int, int]:
    costs = [term.cost(arch) for term in terms]
    return sum(p for p, _ in costs), sum(m for _, m in costs)


def _modules(
    module: nn.Module, conditions: list[tuple[Elastic, nn.Module]]
) -> Iterator[tuple[nn.Module, list[tuple[Elastic, nn.Module]]]]:
    """Every module once, with the elastic layers around it and the child of each that leads to it."""
    yield module, conditions
    for child in module.children():
        inner = [*conditions, (module, child)] if isinstance(module, Elastic) else conditions
        yield from _modules(child, inner)


def _positions(net: nn.Module, shape: tuple[int, int, int]) -> dict[nn.Module, int]:
    """Output positions of every convolution and linear layer for one image, summed over its calls."""
    found: dict[nn.Module, int] = {}
    seen: set[nn.Module] = set()

    def record(module: nn.Module, args: Any, y: Tensor) -> None:
        if module not in seen:
            channels = y.size(-1) if isinstance(module, nn.Linear) else y.size(1)
            found[module] = found.get(module, 0) + y.numel() // channels

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(record) for m in layers]
    known, mode = choices(net), net.training
    passes = 1 + max([len(v) for v in known.values()], default=0)
    try:
        net.eval()
        # The first pass runs every block at its largest; others are for the paths that it did not take.
        for i in range(passes):
            if i and len(found) == len(layers):
                break
            arch = {k: v[min(i, len(v)) - 1] for k, v in known.items()} if i else _largest(known)
            for layer in running(net, arch):
                layer.set_arch(arch)
            with torch.no_grad():
                net(torch.empty(1, *shape, device="meta"))
            seen |= found.keys()
    finally:
        for hook in hooks:
            hook.remove()
        net.train(mode)
    return found


def _largest(known: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {k: v[0] if any(isinstance(x, str) for x in v) else max(v) for k, v in known.items()}
