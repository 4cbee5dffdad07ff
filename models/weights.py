"""Weights in files: ours, a plain state dict, or a stranger's checkpoint. Nothing in a file is ever executed.

A pickled network (an Ultralytics or YOLOv5 `.pt`) is read by torch's weights-only reader with an inert shell
in the place of every class it names: its tensors can be taken out, its code never runs, and the package that
wrote it need not be installed.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from models.space import Arch, Space
from models.yolo.stock_yaml import expand
from utils.errors import UserError
from utils.files import write_bytes
from utils.sides import Sides, sides_in
from utils.training.measure import device_info

FORMAT = "hello_nas weights"
SCHEMA = 1
SAID = ("arch", "space", "nc", "ch", "names", "imgsz")

# Where classes of pickled networks and of their settings live. Names from anywhere else (os, builtins) have
# no business in a weight file, so such a file is refused although a shell would do no harm.
PACKAGES = ("torch.nn.", "ultralytics.", "models.", "utils.", "pathlib.", "numpy.", "collections.", "types.")


@dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    state:   tensors by name, on the CPU, as stored
    arch, space (the YAML as a dict), nc, ch, names, imgsz: what the file says about its network; None (or [])
             where it says nothing
    classes: module name -> class name, where the file holds a pickled network
    model, settings: the YAML in a pickled Ultralytics network, and what it was trained with; {} without one
    meta:    whatever else was saved beside the weights; `supernet` is True where they serve a whole space
             (`arch` is {} then), `sliced` where those of one arch were taken out of a supernet
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    arch: Arch | None = None
    space: dict[str, Any] | None = None
    nc: int | None = None
    ch: int | None = None
    names: list[str] = field(default_factory=list)
    imgsz: Sides | None = None
    classes: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadAccount:
    """What was and was not loaded. shape_differs: (name, shape in the file, shape wanted)."""

    path: Path
    kind: str
    loaded: list[str]
    shape_differs: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    absent: list[str]
    left_over: list[str]
    share: float  # of the detector's elements

    def __str__(self) -> str:
        """For people: layers instead of tensors. `to_dict` has every name."""
        total = len(self.loaded) + len(self.shape_differs) + len(self.absent)
        lines = [
            f"weights {self.path} ({self.kind}): loaded {len(self.loaded)} of {total} tensors, "
            f"{100 * self.share:.1f} % of the numbers"
        ]
        for what, names in (
            ("of another shape in the file", [name for name, _, _ in self.shape_differs]),
            ("absent from the file", self.absent),
            ("left over in the file", self.left_over),
        ):
            if names:
                layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
                lines.append(f"  {len(names)} tensors {what}: {', '.join(layers)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For a result JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "loaded": len(self.loaded),
            "share": self.share,
            "shape_differs": [[n, list(theirs), list(ours)] for n, theirs, ours in self.shape_differs],
            "absent": self.absent,
            "left_over": self.left_over,
        }


# Writing ----------------------------------------------------------------------------------------------------


def save_weights(
    path: Path,
    detector: nn.Module,
    space: Space,
    arch: Mapping[str, Any],
    *,
    imgsz: Sides,
    names: Sequence[str] | None = None,
    **meta: Any,
) -> None:
    """Write the state dict and what it belongs to, whole or not at all.

    names: of the classes; by default the detector's own. meta: anything of text, numbers, lists and dicts.
    Any torch can read the file weights-only.
    """
    content = io.BytesIO()
    # Cloned: a tensor that is a view would drag the whole storage behind it into the file.
    state = {k: v.detach().cpu().clone() for k, v in detector.state_dict().items()}
    torch.save(
        {FORMAT: identity(detector, space, arch, imgsz, names) | {"meta": plain(meta)}, "state": state},
        content,
    )
    write_bytes(path, content.getvalue())


def identity(
    detector: Any, space: Space, arch: Mapping[str, Any], imgsz: Sides, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a weight file says about its network, enough to build it again: JSON values only."""
    return {
        "schema": SCHEMA,
        "arch": plain(arch),
        "space": plain(space.model),
        "nc": space.nc,
        "ch": space.ch,
        "names": list(detector.names if names is None else names),
        "imgsz": plain(imgsz),
        "versions": {p: v for p, v in device_info().items() if p in ("python", "torch", "ultralytics")},
    }


def plain(value: Any) -> Any:
    """The same value made of what weights-only files may hold; tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return value.item() if hasattr(value, "item") else str(value)


# Reading ----------------------------------------------------------------------------------------------------


def read_weights(path: str | Path) -> WeightFile:
    """Read any weight file without executing anything in it.

    UserError, one line: no such file, truncated, not a weight file, names foreign code, holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights {str(path)!r}; expected a .pt file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load(path)
    network = content
    if isinstance(content, dict):
        # Ultralytics keeps the averaged weights, if any, under "ema"; our checkpoints do as well.
        keys = ("ema", "model", "state_dict", "model_state_dict", "detector", "state")
        network = next((content[k] for k in keys if isinstance(content.get(k), dict | Shell)), content)
    kind, classes, names = "state dict", {}, []
    if isinstance(network, Shell):
        kind = "pickled network"
        state, classes = dict(network.tensors()), dict(network.classes())
        names = _names(vars(network).get("names"))
    else:
        state = (
            {k: v for k, v in network.items() if isinstance(v, Tensor)} if isinstance(network, dict) else {}
        )
        names = _names(content.get("names")) if isinstance(content, dict) else []
    if not state:
        raise UserError(
            f"{path} holds no weights; expected a state dict, an Ultralytics .pt or a file of ours"
        )
    said = content.get(FORMAT) if isinstance(content, dict) else None
    pickled: dict[str, Any] = {
        "model": _mapping(network, "yaml"),
        "settings": _mapping(content, "train_args"),
    }
    if said is None:
        return WeightFile(path, kind, state, names=names, classes=classes, **pickled)
    if said.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {said.get('schema')!r}; this version reads schema {SCHEMA}")
    if said.get("renamed"):  # rows were taken apart for Ultralytics; the arch says more than their classes
        state, classes = {said["renamed"].get(k, k): v for k, v in state.items()}, {}
    about = {k: said[k] for k in SAID}
    about["imgsz"] = sides_in(path, about["imgsz"])
    return WeightFile(path, FORMAT, state, classes=classes, meta=said.get("meta", {}), **about, **pickled)


def _read_safetensors(path: Path) -> WeightFile:
    """Its tensors, and the classes where its metadata have `names`, a list or a dict as JSON."""
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is no whole weight file: {_first_line(error)}") from None
    try:
        names = _names(json.loads(said.get("names", "null")))
    except ValueError:
        names = []
    if not state:
        raise UserError(f"{path} holds no weights")
    return WeightFile(path, "safetensors", state, names=names)


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [str(v) for v in value] if isinstance(value, list) else []


def _mapping(holder: Any, key: str) -> dict[str, Any]:
    """A mapping in a dict or in a shell, as plain values; {} where there is none."""
    value = (vars(holder) if isinstance(holder, Shell) else holder).get(key)
    try:
        return plain(value) if isinstance(value, dict) else {}
    except RecursionError:  # a file may be built to contain itself
        return {}


class Shell:
    """Stands where a pickle names a class: keeps what it is given and does nothing."""

    kind = ""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __new__(cls, *args: Any) -> Shell:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update({str(k): v for k, v in state.items()})

    def children(self) -> list[tuple[str, Shell]]:
        """Submodules by name, where this stands for an nn.Module."""
        modules = vars(self).get("_modules")
        modules = modules.items() if isinstance(modules, dict) else []
        return [(str(k), v) for k, v in modules if isinstance(v, Shell)]

    def tensors(self, prefix: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """What `state_dict()` of the module would hold."""
        if id(self) in above:  # a file may be built to contain itself
            return
        transient = vars(self).get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            members = vars(self).get(group)
            for name, value in members.items() if isinstance(members, dict) else ():
                if isinstance(value, Tensor) and name not in transient:
                    yield f"{prefix}{name}", value.detach()
        for name, child in self.children():
            yield from child.tensors(f"{prefix}{name}.", (*above, id(self)))

    def classes(self, prefix: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, str]]:
        """Class name of every submodule."""
        if id(self) in above:
            return
        for name, child in self.children():
            yield f"{prefix}{name}", child.kind.rpartition(".")[2]
            yield from child.classes(f"{prefix}{name}.", (*above, id(self)))


_lock = threading.Lock()  # torch's allow-list belongs to the process


@contextmanager
def _shells_only(names: list[str]) -> Iterator[None]:
    """Within: the named globals are shells, and nothing else that somebody allowed before is allowed."""
    with _lock:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        shells = [(type("Shell", (Shell,), {"kind": name}), name) for name in names]
        try:
            torch.serialization.add_safe_globals(shells)  # type: ignore[arg-type]
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        begins = file.read(2)
    if begins != b"PK" and begins[:1] != b"\x80":  # a zip, or the pickle that torch wrote before 1.6
        raise UserError(f"{path} is no weight file; expected one that torch, Ultralytics or we have written")
    try:
        with _shells_only([]):
            named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # no zip: what torch wrote before 1.6, or no weights at all; the reader below decides
        named = []
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise UserError(f"{path} is no whole weight file: {_first_line(error)}") from None
    foreign = sorted(name for name in named if not name.startswith(PACKAGES))
    if foreign:
        raise UserError(
            f"{path} was not loaded: {', '.join(foreign[:4])} is code that has no place in a weight file"
        )
    try:
        with _shells_only(named):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} cannot be read as weights only: {_first_line(error)}") from None
    except Exception as error:
        raise UserError(f"{path} is no whole weight file: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


# Loading ----------------------------------------------------------------------------------------------------

Naming = Callable[[str], str]  # a name in a file -> what it would be here
Shapes = Mapping[str, Sequence[int]]
POOR = 0.8  # of a file's tensors; where fewer have name and shape, it may be an export that was trained on
LEAST = 0.1  # a file that fits less of a detector than this is of another network


def load_weights(detector: nn.Module, source: str | Path | WeightFile, *, whole: bool = False) -> LoadAccount:
    """Copy into `detector` every tensor that fits by name and shape; returns the account of it, for printing.

    whole: the file must be of this very network (to evaluate, export or predict with): everything has to fit,
           and the activations that the file tells of have to be the same.
    UserError when less than a tenth of the detector's numbers fit, or when `whole` does not hold; the
    detector is unchanged then.
    """
    file = source if isinstance(source, WeightFile) else read_weights(source)
    wanted = detector.state_dict()
    state, classes = named(file, detector, {k: v.shape for k, v in wanted.items()})
    fits = [k for k, v in wanted.items() if k in state and state[k].shape == v.shape]
    elements = sum(v.numel() for v in wanted.values())
    account = LoadAccount(
        file.path,
        file.kind,
        loaded=fits,
        shape_differs=[
            (k, tuple(state[k].shape), tuple(v.shape))
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
        absent=[k for k in wanted if k not in state],
        left_over=[k for k in state if k not in wanted],
        share=sum(wanted[k].numel() for k in fits) / max(1, elements),
    )
    if whole:
        _check_whole(file, account, classes)
    if account.share < LEAST:
        raise UserError(
            f"weights {file.path} ({file.kind}) do not fit: {len(fits)} of {len(wanted)} tensors have the "
            f"name and shape needed here, {100 * account.share:.1f} % of the numbers"
        )
    with torch.no_grad():
        for name in fits:
            wanted[name].copy_(state[name])
    return account


def named(
    file: WeightFile, net: nn.Module, shapes: Shapes
) -> tuple[dict[str, Tensor], dict[str, tuple[str, str]]]:
    """A file's tensors by our names, and (class in the file, class here) of each module that both know.

    shapes: of all tensors of the network, by our names. A tensor that has none keeps its own.
    """
    naming = max(_namings(file, net, shapes), key=lambda naming: _hits(file.state, naming, shapes))
    here = _classes(net)
    told = {k: v for k, v in file.classes.items() if _moves_along(k, file.state, naming)}
    classes = {naming(f"{k}.")[:-1]: v for k, v in told.items()}
    both = {k: (v, here[k]) for k, v in classes.items() if k in here}
    return {naming(k): v for k, v in file.state.items()}, both


def plain_modules(net: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Each module, also one that is there twice, its name, and the name in its place once the network is
    plain, where some elastic layers are gone."""

    def walk(module: nn.Module, name: str, plain: str) -> Iterator[tuple[nn.Module, str, str]]:
        yield module, name, plain
        for key, child in module._modules.items():
            if child is not None:
                inner = plain if _vanishes(module) else inside(plain, key)
                yield from walk(child, inside(name, key), inner)

    return walk(net, "", "")


def inside(name: str, key: str) -> str:
    """The name of what is called `key` in the module `name`, "" for the network itself."""
    return f"{name}.{key}" if name else key


def _vanishes(module: nn.Module) -> bool:
    return getattr(module, "vanishes", False)


def _classes(net: nn.Module) -> dict[str, str]:
    """Class of each module by its name, both as they are once the network is plain: what an elastic layer
    stands for."""
    return {
        plain: getattr(module, "stands_for", type(module).__name__)
        for module, _, plain in plain_modules(net)
        if not _vanishes(module)
    }


def _moves_along(module: str, state: Mapping[str, Tensor], naming: Naming) -> bool:
    """Whether a module's new name is a head of the new names of its tensors: else the one says nothing of the
    other, as of a container whose rows were taken apart."""
    head = f"{module}."
    inside = next((k for k in state if k.startswith(head)), None)
    return inside is None or naming(inside) == naming(head) + inside[len(head) :]


def _namings(file: WeightFile, net: Any, shapes: Shapes) -> Iterator[Naming]:
    """All ways to read the names of a file, the likeliest of equals first.

    Networks are often wrapped once more (`module.`, `model.`) on one side. Besides our own names we know
    those that a network has `aliases` for, and those of our exports, whose rows are taken apart, so that what
    stock Ultralytics made of an export can come back.
    """
    heads, adds = ({""} | {k.split(".", 1)[0] + "." for k in names} for names in (file.state, shapes))
    most, ours = 0, False
    for head, add in sorted(product(heads, adds), key=lambda p: (len(p[0] + p[1]), p)):
        naming = _moved(head, add)
        alike, same = _hits(file.state, naming, shapes)
        most, ours = max(most, same), ours or alike == len(file.state)
        yield naming
    if most == len(shapes):
        return
    foreign = [(re.compile(pattern), name) for pattern, name in getattr(net, "aliases", ())]
    older = [(re.compile(rf"{re.escape(old)}(.*)"), rf"{new}\1") for old, new in _old_names(net).items()]
    orders = [[*older, *foreign], [*foreign, *older]] if older and foreign else [[*older, *foreign]]
    renamed: Mapping[str, str] = {}
    if hasattr(getattr(net, "model", None), "yaml") and not ours and most < POOR * len(file.state):
        renamed = {new: f"model.{old}" for new, old in expand(net.model).renamed.items()}
    for head in sorted(heads, key=lambda head: (len(head), head)):
        yield from [_translated(head, aliases) for aliases in orders if aliases]
        yield from [_renamed(head, renamed)] if renamed else []


def _old_names(net: nn.Module) -> Mapping[str, str]:
    """Heads of names in older files of ours; some are heads of other people's names as well."""
    return getattr(net, "old_names", {})  # type: ignore[return-value]


def _moved(head: str, add: str) -> Naming:
    return lambda key: add + key[len(head) :] if key.startswith(head) else key


def _renamed(head: str, names: Mapping[str, str]) -> Naming:
    return lambda key: names.get(key.removeprefix(head), key)


def _translated(head: str, aliases: Sequence[tuple[re.Pattern[str], str]]) -> Naming:
    @functools.cache
    def naming(key: str) -> str:
        bare = key.removeprefix(head)
        matches = ((pattern.fullmatch(bare), name) for pattern, name in aliases)
        return next((match.expand(name) for match, name in matches if match), key)

    return naming


def _hits(state: Mapping[str, Tensor], naming: Naming, shapes: Shapes) -> tuple[int, int]:
    """How many tensors of ours have one of the name and number of dimensions there, how many of the shape."""
    pairs = {n: (tuple(v.shape), tuple(shapes[n])) for k, v in state.items() if (n := naming(k)) in shapes}
    return sum(len(a) == len(b) for a, b in pairs.values()), sum(a == b for a, b in pairs.values())


def _check_whole(file: WeightFile, account: LoadAccount, classes: Mapping[str, tuple[str, str]]) -> None:
    wrong = [f"{n} is {list(t)}, here {list(o)}" for n, t, o in account.shape_differs]
    wrong += [f"{n} is absent" for n in account.absent] + [f"{n} is left over" for n in account.left_over]
    # Activations have no weights: another one would fit by name and shape and compute nonsense.
    wrong += [f"{n} is {t}, here {o}" for n, (t, o) in classes.items() if t != o]
    if wrong:
        raise UserError(
            f"weights {file.path} ({file.kind}) are of another network, {len(wrong)} parts differ: {wrong[0]}"
        )
