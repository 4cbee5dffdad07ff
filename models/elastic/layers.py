"""Layers that hold the largest weights and run with a slice of them.

Every layer is an NNI mutable module: `simplify()` lists its labels, `freeze(sample)` and building it under
NNI's `model_context(sample)` give the plain torch layer. Sizes are `Dim`s (models/elastic/dims.py) or
numbers, so a network is written once, by its usual forward code, and is elastic or plain depending on where
it is built.

    width = gene(Choice("width", (16, 24, 32)))
    conv = ElasticConv2d(3, width, 3)
    conv.set_arch({"width": 24})  # runs as 3 -> 24; a fresh layer runs at its largest
    conv.freeze({"width": 24})  # nn.Conv2d(3, 24, 3, padding=1) with those weights

Channels are prefixes, kernels centre crops (Once-for-All, arXiv 1908.09791; BigNAS, arXiv 2003.11142).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.elastic.dims import Dim, as_dim, combine
from models.elastic.slicing import Slice, centre, leaf_of, pieces_of, ranks, spans_of, synchronised_norm
from models.space import Choice, Value
from utils.errors import UserError
from utils.unborn import without_numbers

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # NNI 3.0 meets names in torch.nn that are no modules
    from nni.nas.nn.pytorch import ModelSpace as ModelSpace
    from nni.nas.nn.pytorch import MutableModule
from nni.mutable import Categorical, Mutable
from nni.mutable.exception import SampleMissingError, SampleValidationError

# Inside `direct_gradients` a slice's gradient is a view of a larger one, with the strides of that: meant so.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

Size = Dim | int
Sizes = Size | Sequence[Size]  # channels; a sequence for the input after a concat, one entry for each part
Module = TypeVar("Module", bound=nn.Module)


class Elastic(MutableModule):
    """What the layers below have in common: a few dims, and what they are at the moment.

    `dims` are all that the layer depends on itself; layers inside it have their own.
    """

    dims: tuple[Dim, ...] = ()
    vanishes: bool = False  # extracted, its only running child stands in its place
    stands_for: str  # name of the class of what it is, extracted
    cache: dict[Any, Any] | None = None  # the last slices, inside `cached_slices` and `direct_gradients`
    direct: bool = False  # inside `direct_gradients`

    def choices(self) -> Iterator[Choice]:
        """The layer's own choices that have alternatives."""
        for dim in self.dims:
            yield from (c for c in dim.choices if len(c.values) > 1)

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        """Run this layer, not those inside it, as `arch` says from now on."""
        raise NotImplementedError

    def largest(self) -> dict[str, Any]:
        """Every choice at its largest; at its default where its values have no order."""
        return {c.label: c.largest for c in self.choices()}

    def running(self, arch: Mapping[str, Any]) -> Iterable[nn.Module]:
        """The children that run in `arch`."""
        return self.children()

    # NNI's side. Its `add_mutable` is for values fixed while a ModelSpace is built; ours change all the time.

    def leaf_mutables(self, is_leaf: Any) -> Iterator[Any]:
        for choice in self.choices():
            yield from Categorical(choice.values, label=choice.label).leaf_mutables(is_leaf)
        yield from super().leaf_mutables(is_leaf)

    def check_contains(self, sample: Mapping[str, Any]) -> Any:
        """None if the sample says what this layer and those running inside it need, else what is wrong."""
        for choice in self.choices():
            if choice.label in sample and sample[choice.label] not in choice.values:
                return SampleValidationError(f"{sample[choice.label]} not found in {choice.values}")
        for dim in self.dims:
            for label in dim.needs(sample):
                return SampleMissingError(label, list(sample))
        for child in self.running(sample):
            for layer in [child] if isinstance(child, Elastic) else outermost(child):
                problem = layer.check_contains(sample)
                if problem is not None:
                    return problem
        return None

    def require(self, sample: Mapping[str, Any]) -> None:
        """Raise NNI's SampleValidationError, a ValueError, unless the sample says what is needed here."""
        problem = self.check_contains(sample)
        if problem is not None:
            raise problem

    def count(self, arch: Mapping[str, Any]) -> tuple[int, int]:
        """(parameters, MACs for one position of the output) of this layer alone, once extracted."""
        return 0, 0

    def makes(self) -> Iterator[tuple[str, list[str]]]:
        """(name here of a convolution's weight, labels of the choices that its filters hang on)."""
        return iter(())

    def write(self, **attributes: Any) -> None:
        """Set attributes that are no parameters or modules, ten times as fast as `nn.Module` does."""
        self.__dict__.update(attributes)

    def may_reuse(self) -> bool:
        """Whether a slice that is cached still has the numbers of the weights."""
        return self.cache is not None and (self.direct or not torch.is_grad_enabled())

    def reused(self, key: Any, cut: Callable[[], Any]) -> Any:
        """The cached slice of a key, cut now if there is none. Kept: the last key's copies, and all views."""
        assert self.cache is not None
        if key not in self.cache:
            if not self.views():
                self.cache.clear()
            self.cache[key] = cut()
        return self.cache[key]

    def views(self) -> bool:
        """Whether slices are views, which stay right when weights change in place."""
        return False


class ElasticConv2d(Elastic, nn.Conv2d):
    """Conv2d whose output width, kernel and groups may vary; the input width is read from the input.

    Args:
        inputs: channels that may come in. A sequence when the input is a concat: its parts, in order. The
            weight has a place for each part at its largest, so that no channel is taken for a neighbour's.
        out: channels out. kernel: odd sizes, or all even. groups: must divide; `inputs` itself for depthwise.
        padding: for the largest kernel; smaller ones are padded less, so that the size of the map stays the
            same. Default: what keeps the size at stride 1.
        transform: smaller kernels are the centre of the next larger one times a learned matrix, shared by all
            channels and the identity at first (OFA, section 3.3), instead of the plain centre.

    Raises UserError for sizes that no convolution can have.
    """

    stands_for = "Conv2d"

    def __init__(
        self,
        inputs: Sizes,
        out: Size,
        kernel: Size = 1,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: Size = 1,
        bias: bool = False,
        transform: bool = False,
    ) -> None:
        shape = _ConvShape(inputs, out, kernel, padding, dilation, groups)
        k = shape.kernel.largest
        super(MutableModule, self).__init__(  # past NNI's classes, which take no arguments
            shape.depth.largest, shape.out.largest, k, stride, shape.padding_of(k), dilation, bias=bias
        )
        self.shape, self.dims = shape, shape.dims
        self.active_out: int
        self.active_kernel: int
        self.active_padding: int
        self.active_parts: list[int]
        self.transforms = nn.ParameterDict()
        sizes = [s for s in reversed(shape.kernel.values) if s < k]
        for size in sizes if transform else ():
            matrix = nn.Parameter(torch.eye(size * size))
            matrix.no_decay = True  # type: ignore[attr-defined]  # towards 0 is not towards the identity
            self.transforms[str(size)] = matrix
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        s, kernel = self.shape, self.shape.kernel(arch)
        self.write(
            active_out=s.out(arch),
            active_kernel=kernel,
            active_padding=s.padding_of(kernel),
            active_parts=[part(arch) for part in s.parts],
            groups=s.groups(arch),
        )

    def running(self, arch: Mapping[str, Any]) -> tuple[nn.Module, ...]:
        return ()  # its matrices are part of the weight

    def makes(self) -> Iterator[tuple[str, list[str]]]:
        yield "weight", self.shape.out.labels

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._cached(x.size(1)) if self.may_reuse() else self._cut(x.size(1))
        return self._conv_forward(x, weight, bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight, bias, self.stride, self.active_padding, self.dilation, self.groups)

    def active_weight(self, channels: int) -> Tensor:
        """The weight [out, in / groups, k, k] for an input of so many channels."""
        return self._transformed(self._sliced(channels))

    def _cut(self, channels: int) -> tuple[Tensor, Tensor | None]:
        return self.active_weight(channels), None if self.bias is None else self.bias[: self.active_out]

    def _cached(self, channels: int) -> tuple[Tensor, Tensor | None]:
        key = (self.active_out, self.active_kernel, self.groups, tuple(self.active_parts), channels)
        if not self.direct:
            return self.reused(key, lambda: self._cut(channels))
        weight, bias = self.reused(
            key, lambda: (self._sliced(channels), leaf_of(self.bias, lambda b: [b[: self.active_out]]))
        )
        return self._transformed(weight), bias  # anew each time, because backward frees its graph

    def _sliced(self, channels: int) -> Tensor:
        """The slice that the kernels' matrices, if there are any, are still to be applied to."""
        w, out = self.weight, self.active_out
        k = w.size(-1) if self.transforms else self.active_kernel
        spans = [(0, channels // self.groups)]
        if len(self.shape.parts) > 1:
            spans = spans_of(self.shape.parts, self.active_parts, channels)
        if self.direct:
            return leaf_of(w, lambda t: pieces_of(t, out, spans, k), 1)
        if (sum(n for _, n in spans), k) != (w.size(1), w.size(-1)):
            return Slice.apply(w, out, spans, k)
        return w if out == len(w) else w[:out]

    def _transformed(self, w: Tensor) -> Tensor:
        if self.active_kernel == w.size(-1):
            return w
        for size, matrix in self.transforms.items():  # from large to small, each on the one before
            w = centre(w, int(size))
            w = (w.flatten(2) @ matrix.T).view_as(w)
            if int(size) == self.active_kernel:
                break
        return w

    def freeze(self, sample: Mapping[str, Any]) -> nn.Conv2d:
        """nn.Conv2d with the slice of `sample`, its own storage."""
        self.require(sample)
        plain = self._plain(self.shape, sample, self)
        was = self.active_out, self.active_kernel, self.groups, self.active_parts, self.active_padding
        self.set_arch(sample)
        with torch.no_grad():
            weight = self.active_weight(sum(self.active_parts)).detach().clone()
            plain.weight = nn.Parameter(weight, self.weight.requires_grad)
            if self.bias is not None:
                plain.bias = nn.Parameter(
                    self.bias[: self.active_out].detach().clone(), self.bias.requires_grad
                )
        self.active_out, self.active_kernel, self.groups, self.active_parts, self.active_padding = was
        return plain.train(self.training)

    def count(self, arch: Mapping[str, Any]) -> tuple[int, int]:
        s = self.shape
        ins, out = sum(part(arch) for part in s.parts), s.out(arch)
        weights = ins // s.groups(arch) * out * s.kernel(arch) ** 2
        return weights + out * (self.bias is not None), weights

    @classmethod
    def create_fixed_module(
        cls,
        sample: Mapping[str, Any],
        inputs: Sizes,
        out: Size,
        kernel: Size = 1,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: Size = 1,
        bias: bool = False,
        transform: bool = False,
    ) -> nn.Conv2d:
        s = _ConvShape(inputs, out, kernel, padding, dilation, groups)
        k = s.kernel(sample)
        ins = sum(part(sample) for part in s.parts)
        return nn.Conv2d(ins, s.out(sample), k, stride, s.padding_of(k), dilation, s.groups(sample), bias)

    @staticmethod
    def _plain(s: _ConvShape, sample: Mapping[str, Any], like: nn.Conv2d) -> nn.Conv2d:
        k, ins = s.kernel(sample), sum(part(sample) for part in s.parts)
        with without_numbers():  # the weights are put in next
            return nn.Conv2d(
                ins,
                s.out(sample),
                k,
                like.stride,  # type: ignore[arg-type]
                s.padding_of(k),
                like.dilation,  # type: ignore[arg-type]
                s.groups(sample),
                like.bias is not None,
            )

    def extra_repr(self) -> str:
        s = self.shape
        sizes = f"{[p.values for p in s.parts]} -> {s.out.values}, kernel={s.kernel.values}"
        return f"{sizes}, stride={self.stride}" + (
            f", groups={s.groups.values}" if s.groups.largest > 1 else ""
        )


class _ConvShape:
    """The sizes of an elastic convolution as dims, checked against each other once."""

    def __init__(
        self, inputs: Sizes, out: Size, kernel: Size, padding: int | None, dilation: int, groups: Size
    ) -> None:
        self.parts = _parts(inputs)
        self.out, self.kernel, self.groups = as_dim(out), as_dim(kernel), as_dim(groups)
        self.dilation = dilation
        k = self.kernel.largest
        self.padding = dilation * (k - 1) // 2 if padding is None else padding
        assert len(self.parts) == 1 or self.groups.largest == 1, "groups over a concat have no meaning here"
        sizes = self.parts[0] if len(self.parts) == 1 else combine(lambda *p: sum(p), *self.parts)
        for size in self.kernel.values:
            if size < 1 or (k - size) % 2 or self.padding_of(size) < 0:
                raise UserError(f"kernel {size} is no centre of kernel {k} with padding {self.padding}")
        for ins, outs, g in combine(lambda i, o, g: (i, o, g), sizes, self.out, self.groups).table.values():
            if min(ins, outs, g) < 1 or ins % g or outs % g:
                raise UserError(f"{g} groups do not divide {ins} -> {outs} channels")
        # Channels of the weight that one output reads: all parts at their largest, one after the other.
        self.depth = combine(lambda i, g: i // g, sizes, self.groups)
        if len(self.parts) > 1:
            self.depth = as_dim(sum(p.largest for p in self.parts))
        self.dims = (*self.parts, self.out, self.kernel, self.groups)

    def padding_of(self, kernel: int) -> int:
        return self.padding - self.dilation * (self.kernel.largest - kernel) // 2


class ElasticBatchNorm2d(Elastic, nn.BatchNorm2d):
    """BatchNorm2d of a prefix of its channels ("solo": one set of statistics, shared by all widths).

    The statistics mix those of all archs that trained: re-estimate them before an arch is scored
    (`models.supernet.calibrate`). channels: as the convolution's `inputs`; synchronised: with DDP, the mean
    and variance of a training step are those of all ranks' batches together, on any device.
    """

    stands_for = "BatchNorm2d"

    def __init__(
        self, channels: Sizes, eps: float = 1e-5, momentum: float | None = 0.1, synchronised: bool = False
    ) -> None:
        parts = _parts(channels)
        super(MutableModule, self).__init__(sum(p.largest for p in parts), eps, momentum)
        self.parts, self.dims, self.synchronised = parts, tuple(parts), synchronised
        self.active_parts: list[int]
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.write(active_parts=[part(arch) for part in self.parts])

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        c = x.size(1)
        if self.may_reuse():
            weight, bias, mean, var = self.reused((c, *self.active_parts), lambda: self._cut(c))
            if self.training and len(self.parts) > 1:  # copies, and the originals change
                mean, var = self._slice(self.running_mean, c), self._slice(self.running_var, c)
        else:
            weight, bias, mean, var = self._cut(c)
        if self.synchronised and self.training and ranks() > 1:
            y = synchronised_norm(x, weight, bias, mean, var, factor, self.eps)
        else:
            y = F.batch_norm(x, mean, var, weight, bias, self.training or mean is None, factor, self.eps)
        if self.training and len(self.parts) > 1 and c != self.num_features:
            self._write_back(mean, var)  # a joined slice is a copy, a prefix a view
        return y

    def views(self) -> bool:
        return len(self.parts) == 1

    def _cut(self, channels: int) -> tuple[Any, ...]:
        """(weight, bias, running mean, running variance)"""
        trained: list[Any] = [self.weight, self.bias]
        if self.direct:
            trained = [leaf_of(p, lambda t: self._pieces(t, channels)) for p in trained]
        else:
            trained = [self._slice(p, channels) for p in trained]
        return *trained, self._slice(self.running_mean, channels), self._slice(self.running_var, channels)

    def _slice(self, t: Any, channels: int) -> Any:
        if t is None or channels == len(t):
            return t
        pieces = self._pieces(t, channels)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _pieces(self, t: Tensor, channels: int) -> list[Tensor]:
        if len(self.parts) == 1:
            return [t[:channels]]
        return [t[a : a + n] for a, n in spans_of(self.parts, self.active_parts, channels)]

    @torch.no_grad()
    def _write_back(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        done = 0
        for start, n in spans_of(self.parts, self.active_parts, len(mean)):
            self.running_mean[start : start + n] = mean[done : done + n]
            self.running_var[start : start + n] = var[done : done + n]
            done += n

    def freeze(self, sample: Mapping[str, Any]) -> nn.BatchNorm2d:
        """nn.BatchNorm2d with the slice of `sample`, its own storage."""
        self.require(sample)
        was, self.active_parts = self.active_parts, [part(sample) for part in self.parts]
        c = sum(self.active_parts)
        plain = nn.BatchNorm2d(c, self.eps, self.momentum, device="meta")
        for name in ("weight", "bias"):
            old = getattr(self, name)
            setattr(plain, name, nn.Parameter(self._slice(old, c).detach().clone(), old.requires_grad))
        for name in ("running_mean", "running_var"):
            plain.register_buffer(name, self._slice(getattr(self, name), c).clone())
        assert self.num_batches_tracked is not None
        plain.register_buffer("num_batches_tracked", self.num_batches_tracked.clone())
        self.active_parts = was
        return plain.train(self.training)

    def count(self, arch: Mapping[str, Any]) -> tuple[int, int]:
        return 2 * sum(part(arch) for part in self.parts), 0

    @classmethod
    def create_fixed_module(
        cls,
        sample: Mapping[str, Any],
        channels: Sizes,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        synchronised: bool = False,
    ) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(sum(part(sample) for part in _parts(channels)), eps, momentum)

    def extra_repr(self) -> str:
        return f"{[p.values for p in self.parts]}, eps={self.eps}, momentum={self.momentum}"


class ElasticLinear(Elastic, nn.Linear):
    """Linear whose output width may vary; the input width is read from the input."""

    stands_for = "Linear"

    def __init__(self, inputs: Size, out: Size, bias: bool = True) -> None:
        self_in, self_out = as_dim(inputs), as_dim(out)
        super(MutableModule, self).__init__(self_in.largest, self_out.largest, bias)
        self.inputs, self.out = self_in, self_out
        self.dims = (self_in, self_out)
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.active_out = self.out(arch)

    def forward(self, x: Tensor) -> Tensor:
        ins, out = x.size(-1), self.active_out
        if self.direct:
            weight = leaf_of(self.weight, lambda w: [w[:out, :ins]])
            bias = leaf_of(self.bias, lambda b: [b[:out]])
        else:
            weight, bias = self.weight[:out, :ins], None if self.bias is None else self.bias[:out]
        return F.linear(x, weight, bias)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Linear:
        """nn.Linear with the slice of `sample`, its own storage."""
        self.require(sample)
        ins, outs = self.inputs(sample), self.out(sample)
        plain = nn.Linear(ins, outs, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight[:outs, :ins].detach().clone(), self.weight.requires_grad)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias[:outs].detach().clone(), self.bias.requires_grad)
        return plain.train(self.training)

    def count(self, arch: Mapping[str, Any]) -> tuple[int, int]:
        ins, outs = self.inputs(arch), self.out(arch)
        return ins * outs + outs * (self.bias is not None), ins * outs

    @classmethod
    def create_fixed_module(
        cls, sample: Mapping[str, Any], inputs: Size, out: Size, bias: bool = True
    ) -> nn.Linear:
        return nn.Linear(as_dim(inputs)(sample), as_dim(out)(sample), bias)

    def extra_repr(self) -> str:
        return f"{self.inputs.values} -> {self.out.values}"


class ElasticDepth(Elastic, nn.Sequential):
    """The first `depth` of its blocks, one after the other."""

    stands_for = "Sequential"

    any_may_be_last = True

    def __init__(self, blocks: Iterable[nn.Module], depth: Size) -> None:
        blocks = list(blocks)
        super(MutableModule, self).__init__(*blocks)
        self.depth = as_dim(depth)
        assert self.depth.values[0] >= 0 and self.depth.largest <= len(blocks), (
            self.depth.values,
            len(blocks),
        )
        self.dims = (self.depth,)
        self.set_arch(self.largest())

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.active_depth = self.depth(arch)

    def running(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        return list(self.children())[: self.depth(arch)]

    def forward(self, x: Tensor) -> Tensor:
        for block in list(self._modules.values())[: self.active_depth]:
            x = block(x)  # type: ignore[misc]
        return x

    def freeze(self, sample: Mapping[str, Any]) -> nn.Sequential:
        self.require(sample)
        return nn.Sequential(*(frozen(block, sample) for block in self.running(sample))).train(self.training)

    @classmethod
    def create_fixed_module(
        cls, sample: Mapping[str, Any], blocks: Iterable[nn.Module], depth: Size
    ) -> nn.Sequential:
        return nn.Sequential(*list(blocks)[: as_dim(depth)(sample)])


class PathChoice(Elastic):
    """One of several modules; the others do not run, and get no gradient."""

    vanishes = True

    def __init__(self, choice: Choice, candidates: Mapping[Value, nn.Module]) -> None:
        super().__init__()
        assert tuple(candidates) == choice.values, (tuple(candidates), choice.values)
        self.choice = Dim((choice,), {(v,): v for v in choice.values})
        self.dims = (self.choice,)
        for value, module in candidates.items():
            self.add_module(_key(value), module)
        self.active = choice.values[0]

    def set_arch(self, arch: Mapping[str, Any]) -> None:
        self.active = self.choice(arch)

    def running(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        return [self[self.choice(arch)]]

    def __getitem__(self, value: Value) -> nn.Module:
        return getattr(self, _key(value))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self[self.active](*args, **kwargs)

    def freeze(self, sample: Mapping[str, Any]) -> nn.Module:
        self.require(sample)
        return frozen(self[self.choice(sample)], sample)

    @classmethod
    def create_fixed_module(
        cls, sample: Mapping[str, Any], choice: Choice, candidates: Mapping[Value, nn.Module]
    ) -> nn.Module:
        return candidates[sample.get(choice.label, choice.values[0])]


def path(dim: Dim, make: Callable[[Any], nn.Module]) -> nn.Module:
    """What `make` gives for each value of a dim that is one choice, or for its only value."""
    if not dim.labels:
        return make(dim.values[0])
    (choice,) = dim.choices
    return PathChoice(choice, {value: make(value) for value in choice.values})


def frozen(module: Module, sample: Mapping[str, Any]) -> Module:
    """A plain copy of `module` at `sample`: what is elastic sliced out, the rest copied, no storage shared.

    A layer that is used in several places stays one layer.
    """
    if isinstance(module, Elastic):
        return module.freeze(sample)
    # deepcopy takes what its memo already knows: elastic layers are replaced wherever they are referred to,
    # and the large weights are never copied.
    memo: dict[int, Any] = {id(m): m.freeze(sample) for m in outermost(module)}
    return copy.deepcopy(module, memo)


def outermost(module: nn.Module) -> Iterator[Elastic]:
    """The elastic layers below `module` that are inside no other elastic layer."""
    for child in module.children():
        if isinstance(child, Elastic):
            yield child
        elif isinstance(child, Mutable):
            raise TypeError(
                f"{type(child).__name__} is one of NNI's mutables; use PathChoice or ElasticDepth"
            )
        else:
            yield from outermost(child)


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


def _key(value: Value) -> str:
    """Torch allows no dot in the name of a submodule."""
    return str(value).replace(".", "_")


def _parts(sizes: Sizes) -> list[Dim]:
    return [as_dim(s) for s in sizes] if isinstance(sizes, Sequence) else [as_dim(sizes)]
