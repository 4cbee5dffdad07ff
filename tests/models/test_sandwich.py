"""The sandwich step on real supernets: gradients, teaching, dropout, ranks."""

import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from models.sampling import generator, subnets
from models.space import Space
from models.supernet import Supernet
from tests.models.elastic_kinds import scramble
from tests.models.test_retinanet import OBJECTS
from tests.models.test_supernet import MODELS, REGNET, RETINANET, ROOT
from utils.errors import UserError
from utils.sandwich import Pupil, Sandwich, detached, sandwich_step

torch.set_num_threads(1)
CLASSES = {
    "img": torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    "cls": torch.arange(4),
}
KINDS = ["max", "random", "random", "min"]


def supernet_of(name):
    torch.manual_seed(0)
    if name == "yolo":
        return Supernet(Space(MODELS / "yolov5n_nas.yaml").model, nc=3), OBJECTS
    spec, batch = {"retinanet": (RETINANET, OBJECTS), "regnet": (REGNET, CLASSES)}[name]
    return Supernet(spec), batch


def gradients(net):
    return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["regnet", "retinanet", "yolo"])
def test_the_step_s_gradient_is_the_mean_over_its_archs(name):
    supernet, batch = supernet_of(name)
    for m in supernet.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0  # dropout is the largest net's alone, see below
    archs = subnets(KINDS, supernet.space, seed=0, step=3)
    settings, state = (
        Sandwich(distil=0.7, labels=0.4),
        {k: v.clone() for k, v in supernet.state_dict().items()},
    )
    backwards = []

    def backward(loss):
        backwards.append(loss)
        loss.backward()

    found = sandwich_step(Pupil(supernet.net, settings), supernet.set_arch, batch, archs, backward=backward)
    assert len(backwards) == len(found) == 4
    got = gradients(supernet)

    # The same by hand: four losses, one sum, one backward.
    supernet.load_state_dict(state)
    supernet.zero_grad()
    net, total, teacher = supernet.net, 0, None
    for arch in archs:
        supernet.set_arch(arch)
        raw = net.raw(batch["img"])
        task = sum(net.losses(raw, batch).values())
        if teacher is None:
            teacher, loss = detached(raw), task
        else:
            loss = 0.4 * task + 0.7 * sum(net.distil(raw, teacher).values())
        total = total + loss / 4
    total.backward()
    expected = gradients(supernet)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5)
    assert {k for losses in found[1:] for k in losses} > set(found[0])  # and what was distilled
    assert not any(k.startswith("distil") for k in found[0])


@pytest.mark.parametrize("name", ["regnet", "retinanet", "yolo"])
def test_a_student_that_agrees_has_nothing_to_learn(name):
    supernet, batch = supernet_of(name)
    scramble(supernet)
    supernet.eval()
    raw = detached(supernet.net.raw(batch["img"]))
    assert all(abs(v) < 1e-6 for v in supernet.net.distil(raw, raw).values())
    supernet.set_arch(supernet.space.smallest())
    worse = supernet.net.distil(supernet.net.raw(batch["img"]), raw)
    assert all(v > 1e-6 for v in worse.values())


def test_pure_in_place_distillation_shows_students_no_labels():
    supernet, batch = supernet_of("regnet")
    archs = subnets(KINDS, supernet.space, 0, 0)
    found = sandwich_step(Pupil(supernet.net, Sandwich(labels=0)), supernet.set_arch, batch, archs)
    assert [set(losses) for losses in found] == [{"cls"}] + [{"distil_cls"}] * 3
    supernet.set_arch(archs[1])
    alpha = Pupil(supernet.net, Sandwich(labels=0, options={"divergence": "alpha"}))
    losses, _ = alpha(batch, torch.zeros(4, 4))
    assert set(losses) == {"distil_cls"}


def test_dropout_is_the_largest_net_s_alone():
    supernet, batch = supernet_of("regnet")
    dropout = next(m for m in supernet.modules() if isinstance(m, nn.Dropout))
    modes = []
    dropout.register_forward_hook(lambda m, i, y: modes.append(m.training))
    archs = subnets(KINDS, supernet.space, 0, 0)
    sandwich_step(Pupil(supernet.net, Sandwich()), supernet.set_arch, batch, archs)
    assert modes == [True, False, False, False] and dropout.training


def test_gradients_are_exchanged_once():
    supernet, batch = supernet_of("regnet")
    entered = []

    class NoSync:
        def __enter__(self):
            entered.append(supernet.arch)

        def __exit__(self, *args):
            pass

    archs = subnets(KINDS, supernet.space, 0, 0)
    sandwich_step(Pupil(supernet.net, Sandwich()), supernet.set_arch, batch, archs, no_sync=NoSync)
    assert len(entered) == 3  # all but the last


def test_a_few_steps_teach_every_arch():
    """Four images: the point is that the largest, the smallest and others all learn from the same steps."""
    supernet, batch = supernet_of("regnet")
    model = Pupil(supernet.net, Sandwich())
    optimizer = torch.optim.AdamW(supernet.parameters(), 3e-3)
    for step in range(25):
        sandwich_step(model, supernet.set_arch, batch, subnets(KINDS, supernet.space, 0, step))
        optimizer.step()
        optimizer.zero_grad()
    for arch in (supernet.space.largest(), supernet.space.smallest(), supernet.space.random(generator(9, 9))):
        supernet.set_arch(arch)
        assert supernet.net.loss(batch)["cls"].item() < 0.8  # from log 4 = 1.39


def test_all_archs_of_a_step_see_one_resolution():
    torch.manual_seed(0)
    supernet = Supernet({**RETINANET, "resolution": [32, 64, 96]})
    sides, seen = [], []
    supernet.net.backbone.register_forward_pre_hook(lambda m, x: seen.append(x[0].shape[-1]))
    for step in range(6):
        archs = subnets(["max", "random", "min"], supernet.space, 0, step)
        assert len({a["resolution"] for a in archs}) == 1
        sides += [archs[0]["resolution"]] * 3
        if step < 3:  # and the dense outputs can be compared
            sandwich_step(Pupil(supernet.net, Sandwich()), supernet.set_arch, OBJECTS, archs)
    assert seen == sides[:9] and len(set(sides)) > 1
    free = [subnets(["max", "min"], supernet.space, 0, s, one_resolution=False) for s in range(3)]
    assert [[a["resolution"] for a in archs] for archs in free] == [[96, 32]] * 3


def test_mistakes():
    space = supernet_of("regnet")[0].space
    with pytest.raises(UserError, match="unknown kind of subnet 'mx'; did you mean 'max'"):
        subnets(["max", "mx"], space, 0, 0)
    with pytest.raises(UserError, match="should be 'max' first"):
        subnets(["random", "max"], space, 0, 0)
    with pytest.raises(UserError, match="should not be negative, and not both 0"):
        Sandwich(distil=0, labels=0)


RANK = """
import sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
from models.sampling import subnets
from models.supernet import Supernet
from utils.sandwich import Pupil, Sandwich, sandwich_step
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
saved = torch.load(sys.argv[3])
supernet = Supernet(saved["model"])
supernet.load_state_dict(saved["state"])
model = torch.nn.parallel.DistributedDataParallel(Pupil(supernet.net, Sandwich()))
batch = {k: v.chunk(2)[rank] for k, v in saved["batch"].items()}
archs = subnets(["max", "random", "min"], supernet.space, 0, 5)
for _ in range(2):
    supernet.zero_grad()
    sandwich_step(model, supernet.set_arch, batch, archs, no_sync=model.no_sync, touch=True)
if rank == 0:
    torch.save({k: p.grad for k, p in supernet.named_parameters()}, sys.argv[4])
dist.destroy_process_group()
"""


def test_two_ranks_make_the_gradient_of_the_whole_batch(tmp_path):
    """DDP, synchronised norms, no_sync, archs from (seed, step, k): one process with all images agrees."""
    spec = {**REGNET, "options": {"synchronised_norm": True, "squeeze": 0.25}}
    torch.manual_seed(0)
    supernet = Supernet(spec)
    batch = {"img": CLASSES["img"][:, :, :32, :32].contiguous(), "cls": CLASSES["cls"]}
    batch = {k: torch.cat((v, v.flip(-1))) for k, v in batch.items()}
    torch.save({"model": spec, "state": supernet.state_dict(), "batch": batch}, tmp_path / "s")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                RANK,
                str(r),
                port,
                str(tmp_path / "s"),
                str(tmp_path / "g"),
            ],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        for r in (0, 1)
    ]
    archs = subnets(["max", "random", "min"], supernet.space, 0, 5)
    for _ in range(2):
        supernet.zero_grad()
        sandwich_step(Pupil(supernet.net, Sandwich()), supernet.set_arch, batch, archs)
    assert [r.wait(timeout=200) for r in ranks] == [0, 0]
    theirs = torch.load(tmp_path / "g")
    for key, value in gradients(supernet).items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-2, atol=1e-5)
