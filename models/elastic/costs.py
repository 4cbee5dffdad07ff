"""What an arch of an elastic network costs, without building it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.elastic.layers import Elastic, choices, running


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
    largest = {k: v for m in net.modules() if isinstance(m, Elastic) for k, v in m.largest().items()}
    passes = 1 + max([len(v) for v in known.values()], default=0)
    try:
        net.eval()
        # The first pass runs every block at its largest; others are for the paths that it did not take.
        for i in range(passes):
            if i and len(found) == len(layers):
                break
            arch = {k: v[min(i, len(v)) - 1] for k, v in known.items()} if i else largest
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
