"""Features of named layers while a network runs, and whether all to be distilled can be. Knows no network.

What the layers of a supernet have in every arch is found by running a weightless copy of it once for every
value of its choices.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from utils.errors import UserError, did_you_mean, unknown
from utils.training.distill import mimicry, no_distillation
from utils.training.settings import MAX, Distil, Mimic

Features = dict[str, list[Tensor]]


@contextmanager
def features(net: nn.Module, layers: Iterable[str]) -> Iterator[Features]:
    """Layer -> the tensors that it returned, in order, while `net` ran inside; absent: it did not run."""
    found: Features = {}

    def keep(layer: str) -> Any:
        # Copies, because the next layer may work in place.
        return lambda module, args, y: found.setdefault(layer, []).extend(t.clone() for t in tensors(y))

    hooks = [net.get_submodule(layer).register_forward_hook(keep(layer)) for layer in dict.fromkeys(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def tensors(raw: Any) -> list[Tensor]:
    """The tensors in tuples, lists and mappings."""
    found: list[Tensor] = []
    mapped(raw, found.append)
    return found


def mapped(raw: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same output with its tensors changed: those in tuples, lists and mappings."""
    if isinstance(raw, Tensor):
        return change(raw)
    if isinstance(raw, Mapping):
        return {k: mapped(v, change) for k, v in raw.items()}
    if isinstance(raw, (tuple, list)):
        return type(raw)(mapped(v, change) for v in raw)
    return raw


def mimic_loss(job: Mimic, student: Features, teacher: Features) -> Tensor:
    """Mean over the job's layers of `mimicry`. Raises UserError where they cannot be compared."""
    losses = []
    for layer, theirs in job.pairs:
        ours, wanted = student.get(layer, []), teacher.get(theirs, [])
        if not ours:
            raise _absent(layer)
        if not wanted:
            raise UserError(f"mimic: layer {theirs!r} of the teacher {job.teacher!r} did not run")
        shapes, other = ([tuple(t.shape[1:]) for t in maps] for maps in (ours, wanted))
        if shapes != other:
            raise UserError(
                f"mimic: layer {layer!r} gives {_text(shapes)} an image, {theirs!r} of the teacher "
                f"{job.teacher!r} {_text(other)}: only equal shapes can be compared"
            )
        losses.append(mimicry(ours, wanted))
    return torch.stack(losses).mean()


# Before a training ----------------------------------------------------------------------------------------


@runtime_checkable
class Chooses(Protocol):
    """A layer of a supernet, as models/elastic/layers.py has them."""

    def choices(self) -> Iterator[Any]: ...
    def set_arch(self, arch: Mapping[str, Any]) -> None: ...


def check(net: Any, distil: Distil, teachers: Mapping[str, nn.Module]) -> None:
    """Raise UserError for what cannot be distilled: layers and options that do not exist, layers that do not
    run or are not equally wide in every arch, teachers of other classes, outputs or map sizes."""
    for name in distil.teachers:
        if name not in teachers:
            raise unknown("teacher", name, (MAX, *teachers))
    for job in distil.mimic:
        for ours, theirs in job.pairs:
            _require(net, ours, "the network")
            teacher = net if job.teacher == MAX else teachers[job.teacher]
            _require(teacher, theirs, f"the teacher {job.teacher!r}")
    distils = getattr(net, "distils", hasattr(net, "distil"))
    if not distils and (distil.weight or distil.outputs):
        raise no_distillation(net)
    known = [option for option in options_of(net) if option != "batch"]
    for option in distil.options:
        if option not in known:
            raise unknown(f"option of distillation for {type(net).__name__}", option, known or ["none"])
    for learnt in distil.outputs:
        _same_classes(net, learnt.teacher, teachers[learnt.teacher])
        _same_coding(net, learnt.teacher, teachers[learnt.teacher])
    if distil.mimic or distil.outputs or distil.options:
        try:
            trials = _Trials(net, distil, teachers)
        except RuntimeError:  # a network that needs real numbers to run: the training will tell
            return
        if distils:
            trials.check_outputs()
        for job in distil.mimic:
            trials.check_mimic(job)


def options_of(net: Any) -> list[str]:
    """What the network's `distil` takes beside two raw outputs; `batch`, what both are of, is no setting."""
    distils = getattr(net, "distils", hasattr(net, "distil"))
    return list(inspect.signature(net.distil).parameters)[2:] if distils else []


class _Trials:
    """Passes without weights and numbers, on torch's meta device: of the network with all its choices at
    their largest, then all at their first value, second and so on; and of the other teachers."""

    def __init__(self, net: Any, distil: Distil, teachers: Mapping[str, Any]) -> None:
        self.net, self.distil = _weightless(net), distil
        side = 2 * math.lcm(*(int(getattr(m, "stride", 32)) for m in (net, *teachers.values())))
        channels = next((p.size(1) for p in net.parameters() if p.dim() == 4), 3)
        images = torch.empty(2, channels, side, side, device="meta")
        ours = {name for job in distil.mimic for name in job.layers}
        theirs = {
            name: {t for job in distil.mimic if job.teacher == name for _, t in job.pairs}
            for name in (MAX, *teachers)
        }
        layers = [m for m in self.net.modules() if isinstance(m, Chooses)]
        choices = {c.label: c for m in layers for c in m.choices()}
        self.students: list[Features] = []
        for i in range(-1, max([len(c.values) for c in choices.values()], default=0)):
            arch = {
                k: c.largest if i < 0 else c.values[min(i, len(c.values) - 1)] for k, c in choices.items()
            }
            for layer in layers:
                layer.set_arch(arch)
            self.students.append(_run(self.net, images, ours | theirs[MAX])[1])
            if i < 0:
                self.raw = _run(self.net, images, ())[0]
        self.raws, self.teachers = {}, {MAX: self.students[0]}
        for name, teacher in teachers.items():
            self.raws[name], self.teachers[name] = _run(_weightless(teacher), images, theirs[name])

    def check_outputs(self) -> None:
        self.net.distil(self.raw, self.raw, **self.distil.options)  # works, or tells of a wrong option
        for job in self.distil.outputs:
            try:
                self.net.distil(self.raw, self.raws[job.teacher], **self.distil.options)
            except Exception:
                ours, theirs = (
                    _text([tuple(t.shape[1:]) for t in tensors(r)])
                    for r in (self.raw, self.raws[job.teacher])
                )
                raise UserError(
                    f"the raw output of the teacher {job.teacher!r} has other shapes ({theirs} an image) "
                    f"than the network's ({ours}): it can teach features only"
                ) from None

    def check_mimic(self, job: Mimic) -> None:
        for layer, theirs in job.pairs:
            if any(layer not in found for found in self.students):
                raise _absent(layer)
            wanted = self.teachers[job.teacher].get(theirs, [])
            for found in self.students:
                if wanted and [t.size(1) for t in found[layer]] != [t.size(1) for t in wanted]:
                    raise UserError(
                        f"mimic: layer {layer!r} has {_widths(*(f[layer] for f in self.students))} channels, "
                        f"by architecture, and {theirs!r} of the teacher {job.teacher!r} has "
                        f"{_widths(wanted)}: only layers of one width can be compared"
                    )
            single = Mimic(layers=[layer], teacher=job.teacher, teacher_layers=[theirs])
            for found in self.students:
                mimic_loss(single, found, self.teachers[job.teacher])


def _weightless(net: Any) -> Any:
    """A copy on the meta device; nothing large is copied. In train mode, because detectors decode in eval
    mode, with constants that are elsewhere; but norms leave the images of other devices alone."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in net.buffers()}
    copied = copy.deepcopy(net, memo).train()
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return copied


@torch.no_grad()
def _run(net: Any, images: Tensor, layers: Iterable[str]) -> tuple[Any, Features]:
    with features(net, layers) as found:
        raw = mapped(net.raw(images), lambda t: torch.zeros(t.shape))  # losses are not for the meta device
    return raw, found


def _require(net: nn.Module, layer: str, whose: str) -> None:
    names = [name for name, _ in net.named_modules() if name]
    if layer in names:
        return
    above = layer
    while above and above not in names:
        above = above.rpartition(".")[0]
    around = [n for n in names if n.rpartition(".")[0] == above]
    hint = did_you_mean(layer, names) or (f"; {above!r} has: " if above else "; known: ") + ", ".join(around)
    raise UserError(f"mimic: unknown layer {layer!r} of {whose}{hint}")


def _same_classes(net: Any, name: str, teacher: Any) -> None:
    ours, theirs = list(net.names), list(teacher.names)
    numbers = [str(i) for i in range(len(ours))]  # of a network that was not told names
    if len(ours) != len(theirs) or ours != theirs and numbers not in (ours, theirs):
        raise UserError(
            f"the teacher {name!r} knows the classes {', '.join(theirs)}; "
            f"the network learns {', '.join(ours)}"
        )


def _same_coding(net: Any, name: str, teacher: Any) -> None:
    """Whether numbers in the same places of raw outputs are about the same anchors."""
    ours, theirs = (dict(getattr(n, "coded", {})) for n in (net, teacher))
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"the teacher {name!r} has other anchors ({key} {theirs.get(key)}) than the network "
                f"({ours.get(key)}): it can teach features only"
            )


def _absent(layer: str) -> UserError:
    return UserError(f"mimic: layer {layer!r} does not run in every architecture; name one that always does")


def _text(shapes: list[tuple[int, ...]]) -> str:
    return " + ".join("x".join(map(str, shape)) for shape in shapes)


def _widths(*outputs: list[Tensor]) -> str:
    *most, last = map(str, sorted({t.size(1) for output in outputs for t in output}))
    return f"{', '.join(most)} or {last}" if most else last
