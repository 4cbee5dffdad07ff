"""A searched network as an Ultralytics YAML that says all of it, so that stock `YOLO(x.pt).train()` keeps it.

Stock training rebuilds the network from the YAML inside the `.pt` and copies weights over by name. A YAML row
cannot give a Conv another activation, nor a C3 other inner kernels; but rows can be taken apart: a Conv with
ReLU is a Conv without activation and an `nn.ReLU` row, a C3 is two Convs, its Bottlenecks, a Concat and a
Conv. The result computes the very same numbers in more rows.

What stays impossible: a C3 whose hidden channels are no multiple of 8, because the stock parser rounds the
channels of every row up to one. `Expansion.lost` says so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass
class Expansion:
    """net: the same network with one module a row of `net.yaml`; lost: what stock training would change;
    renamed: names in net's state dict -> names in that of the network it was made of."""

    net: nn.Module
    lost: list[str]
    renamed: dict[str, str]


def expand(net: nn.Module) -> Expansion:
    """A copy of a stock DetectionModel, taken apart as far as needed for its YAML to describe it.

    net: built from a resolved YAML (channels explicit, no multiples), its Conv and C3 rows then changed:
    other activations, other convolutions inside a C3. It is left alone.
    """
    from models.yolo.detector import class_state_kept, widened

    old: Any = copy.deepcopy(net)
    names = {id(tensor): name for name, tensor in old.state_dict(keep_vars=True).items()}
    rows, modules = _take_apart(old)
    here = {k: v for k, v in old.yaml.items() if k not in ("backbone", "head")}
    backbone = len(old.yaml["backbone"])
    lines, cut = [row for _, row in rows], sum(owner < backbone for owner, _ in rows)
    model = here | {"backbone": lines[:cut], "head": lines[cut:]}
    with class_state_kept():
        new: Any = widened(type(old)(copy.deepcopy(model), ch=_channels(old), verbose=False))
    rebuilt = signature(new)
    for i, module in enumerate(modules):
        fresh: Any = new.model[i]
        if module is None:
            continue
        module.i, module.f, module.type, module.np = i, fresh.f, fresh.type, fresh.np
        new.model[i] = module
    new.yaml = model
    for name in ("names", "task", "args", "stride"):
        if hasattr(old, name):
            setattr(new, name, copy.deepcopy(getattr(old, name)))
    ours = signature(new)
    lost = [
        f"{k} is {ours.get(k, 'nothing')}, would become {rebuilt.get(k, 'nothing')}"
        for k in sorted(ours.keys() | rebuilt.keys())
        if ours.get(k) != rebuilt.get(k)
    ]
    renamed = {name: names[id(tensor)] for name, tensor in new.state_dict(keep_vars=True).items()}
    return Expansion(new.train(net.training), lost, renamed)


def signature(net: nn.Module) -> dict[str, str]:
    """What each leaf module computes, by name: its class and settings, without weights."""
    return {
        name: f"{type(m).__name__}({m.extra_repr().replace('inplace=True', '').strip(', ')})"
        for name, m in net.named_modules(remove_duplicate=False)  # stock Convs share one activation
        if not any(True for _ in m.children())
    }


def _take_apart(net: Any) -> tuple[list[tuple[int, list[Any]]], list[Any]]:
    """(old row number, new row), and the module of each new row; None where a fresh one will do."""
    act = str(net.yaml.get("activation") or "nn.SiLU()").split("nn.")[-1].split("(")[0]
    rows: list[tuple[int, list[Any]]] = []
    modules: list[Any] = []
    last: list[int] = []  # old row -> the new row that gives its output

    def add(owner: int, source: Any, module: Any, kind: str, args: list[Any], number: int = 1) -> int:
        rows.append((owner, [source, number, kind, args]))
        modules.append(module)
        return len(rows) - 1

    def add_conv(owner: int, source: Any, conv: Any) -> int:
        c, name = conv.conv, type(conv.act).__name__
        pair = c.kernel_size
        kernel = pair[0] if pair[0] == pair[1] else list(pair)
        pad = c.padding[0] if c.padding[0] == c.padding[1] else list(c.padding)
        end = add(
            owner,
            source,
            conv,
            "Conv",
            [c.out_channels, kernel, c.stride[0], pad, c.groups, c.dilation[0], name == act],
        )
        if name in (act, "Identity"):
            return end
        conv.act = nn.Identity()
        return add(owner, -1, None, f"nn.{name}", [])

    for i, (source, number, kind, args) in enumerate(net.yaml["backbone"] + net.yaml["head"]):
        module = net.model[i]
        at = _moved(source, i, last)
        if kind == "Conv" and _is(module, "Conv") and type(module.act).__name__ != act:
            last.append(add_conv(i, at, module))
        elif (
            i > 0  # what reads the image itself cannot be named twice
            and kind == "C3"
            and _is(module, "C3")
            and not _stock_c3(module, act)
            and module.cv1.conv.out_channels % 8 == 0
        ):
            start = _moved(source, i, last, absolute=len(rows) - 1)
            hidden = module.cv1.conv.out_channels
            end = add_conv(i, at, module.cv1)
            for b in module.m:
                inner = b.cv1.conv.out_channels
                e = inner / hidden if int(hidden * (inner / hidden)) == inner else (inner + 0.5) / hidden
                kernels = [b.cv1.conv.kernel_size[0], b.cv2.conv.kernel_size[0]]
                end = add(i, -1, b, "Bottleneck", [hidden, bool(b.add), b.cv2.conv.groups, kernels, e])
            side = add_conv(i, start, module.cv2)
            add(i, [end, side], None, "Concat", [1])
            last.append(add_conv(i, -1, module.cv3))
        else:
            last.append(add(i, at, module, kind, copy.deepcopy(args), number))
    return rows, modules


def _moved(source: Any, i: int, last: list[int], absolute: int | None = None) -> Any:
    """`from` of old row i in new row numbers; -1, the row before, stays unless `absolute` names it."""
    if isinstance(source, list):
        return [_moved(s, i, last) for s in source]
    if source == -1:
        return -1 if absolute is None else absolute
    return last[source if source >= 0 else i + source]


def _is(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name


def _stock_c3(c3: Any, act: str) -> bool:
    """Whether a C3 row can say this C3: 1x1 inputs, the default activation, full-width bottlenecks."""
    hidden = c3.cv1.conv.out_channels
    return all(
        cv.conv.kernel_size == (1, 1) and type(cv.act).__name__ == act for cv in (c3.cv1, c3.cv2, c3.cv3)
    ) and all(b.cv1.conv.out_channels == hidden for b in c3.m)


def _channels(net: Any) -> int:
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
