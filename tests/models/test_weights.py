"""What goes into a weight file comes out; what is in a stranger's file never runs."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from models import networks
from models.networks import build, open_any_space
from models.supernet import Supernet, as_slice, calibrated, sliced
from models.weights import load_weights, read_weights, save_weights
from models.yolo.space import YoloSpace
from tests.models.elastic_kinds import scramble
from tests.models.test_supernet import REGNET, RETINANET
from utils.errors import UserError

TINY = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "backbone": [
        [-1, 1, "NASConv", [8, 6, 2, 2]],
        [-1, 1, "NASConv", [16, 3, 2]],
        [-1, 2, "NASC3", [16]],
        [-1, 1, "Conv", [16, 3, 2]],
    ],
    "head": [[-1, 1, "SPPF", [16, 5]], [[2, 4], 1, "Detect", ["nc"]]],
}


@pytest.fixture(scope="module")
def space():
    return YoloSpace(TINY)


def make(space, seed, arch=None):
    """A detector with weights and batch-norm statistics of its own."""
    torch.manual_seed(seed)
    detector = build(space, arch or space.random(np.random.default_rng(seed)))
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return detector


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_our_file_says_what_it_is_and_gives_the_same_bits_back(space, tmp_path):
    arch = space.random(np.random.default_rng(3))
    detector = make(space, 3, arch)
    save_weights(tmp_path / "w.pt", detector, space, arch, imgsz=64, names=["cat", "dog"], best={"epoch": 3})
    file = read_weights(tmp_path / "w.pt")
    assert (file.arch, file.names, file.nc, file.imgsz, file.meta) == (
        arch,
        ["cat", "dog"],
        2,
        64,
        {"best": {"epoch": 3}},
    )
    again = build(YoloSpace(file.space, nc=file.nc, ch=file.ch), file.arch)
    account = load_weights(again, file, whole=True)
    assert equal(detector, again) and account.share == 1.0
    assert (account.shape_differs, account.absent, account.left_over) == ([], [], [])


def test_our_file_is_read_by_torch_alone_weights_only(space, tmp_path):
    save_weights(tmp_path / "w.pt", make(space, 0), space, space.default(), imgsz=64)
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    assert set(content) == {"hello_nas weights", "state"}


def test_views_of_a_large_storage_do_not_bloat_the_file(space, tmp_path):
    detector = make(space, 0, space.default())
    save_weights(tmp_path / "plain.pt", detector, space, space.default(), imgsz=64)
    for p in detector.parameters():
        p.data = torch.cat([p.data.flatten(), torch.zeros(100_000)])[: p.numel()].view(p.shape)
    save_weights(tmp_path / "views.pt", detector, space, space.default(), imgsz=64)
    assert (tmp_path / "views.pt").stat().st_size == (tmp_path / "plain.pt").stat().st_size


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"module." + k: v for k, v in s.items()}]
)
def test_a_plain_state_dict_fits_under_any_prefix(space, tmp_path, wrap):
    detector, other = make(space, 0), make(space, 1, space.random(np.random.default_rng(0)))
    torch.save(wrap(detector.state_dict()), tmp_path / "s.pt")
    assert load_weights(other, tmp_path / "s.pt", whole=True).share == 1.0
    assert equal(detector, other)


def test_a_pickled_network_is_read_without_its_classes(space, tmp_path, monkeypatch):
    detector, other = make(space, 0), make(space, 1, space.random(np.random.default_rng(0)))
    torch.save({"model": detector.model.half(), "ema": None}, tmp_path / "n.pt")
    detector.float()

    def refuse(self, state):
        raise AssertionError(f"a real {type(self)} was made")

    monkeypatch.setattr(torch.nn.Module, "__setstate__", refuse)
    account = load_weights(other, tmp_path / "n.pt", whole=True)
    monkeypatch.undo()
    assert account.kind == "pickled network"
    assert equal(detector, other)


def test_the_averaged_network_is_preferred_as_ultralytics_does(space, tmp_path):
    plain, averaged, other = make(space, 0), make(space, 0), make(space, 0)
    with torch.no_grad():
        for p in averaged.parameters():
            p.add_(1)
    torch.save({"model": plain.model, "ema": averaged.model}, tmp_path / "n.pt")
    load_weights(other, tmp_path / "n.pt", whole=True)
    assert equal(averaged, other)


def test_other_activations_are_another_network_although_every_tensor_fits(space, tmp_path):
    arch = space.default()
    torch.save({"model": make(space, 0, arch).model}, tmp_path / "n.pt")
    other = make(space, 1, arch | {"nasconv_1_act": "ReLU"})
    assert load_weights(other, tmp_path / "n.pt").share == 1.0
    with pytest.raises(UserError, match=r"1\.act is SiLU, here ReLU"):
        load_weights(other, tmp_path / "n.pt", whole=True)


def test_the_account_names_what_did_not_fit(space, tmp_path):
    """Other classes change the last convolution of each of the two class branches, weight and bias."""
    wider = YoloSpace(TINY | {"nc": 5})
    detector, other = make(space, 0, space.default()), make(wider, 1, wider.default())
    state = detector.state_dict() | {"extra.weight": torch.zeros(3)}
    del state["model.model.3.bn.bias"]
    torch.save(state, tmp_path / "s.pt")
    account = load_weights(other, tmp_path / "s.pt")
    assert account.absent == ["model.model.3.bn.bias"] and account.left_over == ["extra.weight"]
    assert [(n.rpartition("cv3.")[2], a[0], b[0]) for n, a, b in account.shape_differs] == [
        (f"{level}.2.{kind}", 2, 5) for level in (0, 1) for kind in ("weight", "bias")
    ]
    assert len(account.loaded) == len(other.state_dict()) - 5
    text = str(account)
    assert "4 tensors of another shape" in text and "1 tensors absent" in text and "extra" in text


def test_weights_of_another_network_are_refused_and_change_nothing(space, tmp_path):
    detector = make(space, 0)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).state_dict(), tmp_path / "s.pt")
    with pytest.raises(UserError, match="do not fit: 0 of"):
        load_weights(detector, tmp_path / "s.pt")
    torch.save(dict(list(before.items())[:-1]), tmp_path / "most.pt")
    with pytest.raises(UserError, match="of another network"):
        load_weights(detector, tmp_path / "most.pt", whole=True)
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path):
    for name, content in {"a": {"model": Bomb(tmp_path / "ran")}, "b": Bomb(tmp_path / "ran")}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=r"system is code that has no place"):
            read_weights(tmp_path / f"{name}.pt")
    with open(tmp_path / "raw.pt", "wb") as file:
        pickle.dump(Bomb(tmp_path / "ran"), file)
    with pytest.raises(UserError):
        read_weights(tmp_path / "raw.pt")
    assert not (tmp_path / "ran").exists()


def test_a_class_that_somebody_allowed_before_is_still_not_made(tmp_path, monkeypatch):
    def refuse(self, state):
        raise AssertionError(f"a real {type(self)} was made")

    torch.save(nn.Linear(2, 2), tmp_path / "n.pt")
    with torch.serialization.safe_globals([nn.Linear]):
        before = set(torch.serialization.get_safe_globals())
        monkeypatch.setattr(torch.nn.Module, "__setstate__", refuse)
        assert set(read_weights(tmp_path / "n.pt").state) == {"weight", "bias"}
        monkeypatch.undo()
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_one_line(space, tmp_path, keep):
    save_weights(tmp_path / "w.pt", make(space, 0), space, space.default(), imgsz=64)
    content = (tmp_path / "w.pt").read_bytes()
    n = int(len(content) * keep) if isinstance(keep, float) else keep
    (tmp_path / "w.pt").write_bytes(content[:n])
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "w.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"{}"])
def test_what_is_no_weight_file_is_one_line(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_missing_and_empty_ones(tmp_path):
    with pytest.raises(UserError, match="no weights"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"epoch": 3}, tmp_path / "e.pt")
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path / "e.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError):
        read_weights(tmp_path / "z.pt")


# Supernets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["yolo", "retinanet", "regnet"])
def supernet(request, tmp_path_factory):
    """(supernet, its weight file read again, a random arch)"""
    torch.manual_seed(0)
    made = Supernet({"yolo": TINY, "retinanet": RETINANET, "regnet": REGNET}[request.param])
    scramble(made)
    path = tmp_path_factory.mktemp("supernet") / "weights.pt"
    save_weights(path, made.net, made.space, {}, imgsz=64, supernet=True)
    return made.eval(), read_weights(path), made.space.random(np.random.default_rng(5))


def test_a_slice_is_what_the_supernet_runs(supernet):
    made, file, arch = supernet
    assert file.arch == {} and file.meta["supernet"] is True
    net = sliced(file, open_any_space(file.space, file.nc), arch)
    assert equal(net, made.extract(arch)) and not net.training and list(net.names) == list(made.net.names)
    # A fresh network of the arch takes all of it, by name and shape.
    fresh = networks.build(made.space, arch)
    account = load_weights(fresh, as_slice(file, net, arch), whole=True)
    assert equal(fresh, net) and (account.share, account.kind) == (1.0, "slice of a supernet")


def test_a_slice_for_scoring_has_statistics_of_its_own(supernet):
    made, file, arch = supernet
    images = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    net = sliced(file, made.space, arch, batches=images.split(4), images=8)
    assert equal(net, calibrated(made, arch, images[:8].split(4)))
    assert not equal(net, made.extract(arch))


def test_supernets_of_others_are_refused(supernet, tmp_path):
    made, file, arch = supernet
    space = made.space
    with pytest.raises(UserError, match=f"for {space.nc} classes, here there are {space.nc + 1}"):
        sliced(file, open_any_space(space.model, space.nc + 1), arch)
    part = "backbone"
    changed = {**space.model, part: space.model[part][:3] if isinstance(space, YoloSpace) else {"depth": 1}}
    if isinstance(space, YoloSpace):
        changed["head"] = [[-1, 1, "SPPF", [16, 5]], [[1, 3], 1, "Detect", ["nc"]]]
    else:
        changed[part] = {**space.model[part], "depth": {"min": 1, "max": [1, 1, 2, 1, 1]}}
    other = open_any_space(changed, space.nc)
    with pytest.raises(UserError, match="a supernet of another space .*: its backbone is"):
        sliced(file, other, other.default())
    save_weights(tmp_path / "one.pt", made.extract(arch), space, arch, imgsz=64)
    with pytest.raises(UserError, match="holds no supernet"):
        sliced(read_weights(tmp_path / "one.pt"), space, arch)
