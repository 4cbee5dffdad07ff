"""The sandwich step on real supernets: gradients, teaching, dropout, ranks."""

import socket
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from models.networks import build
from models.sampling import generator, subnets
from models.supernet import Supernet
from models.yolo.space import YoloSpace
from tests.models.elastic_kinds import scramble
from tests.models.test_retinanet import OBJECTS
from tests.models.test_supernet import MODELS, REGNET, RETINANET, ROOT
from utils.errors import UserError
from utils.training.distill import alpha_divergence
from utils.training.sandwich import Pupil, detached, sandwich_step
from utils.training.settings import Distil

torch.set_num_threads(1)
CLASSES = {
    "img": torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    "cls": torch.arange(4),
}
KINDS = ["max", "random", "random", "min"]


def supernet_of(name):
    torch.manual_seed(0)
    if name == "yolo":
        return Supernet(YoloSpace(MODELS / "yolov5n_nas.yaml").model, nc=3), OBJECTS
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
    settings = Distil(weight=0.7, labels=0.4)
    state = {k: v.clone() for k, v in supernet.state_dict().items()}
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
    found = sandwich_step(Pupil(supernet.net, Distil(labels=0)), supernet.set_arch, batch, archs)
    assert [set(losses) for losses in found] == [{"cls"}] + [{"distil_cls"}] * 3
    supernet.set_arch(archs[1])
    alpha = Pupil(supernet.net, Distil(labels=0, options={"divergence": "alpha"}))
    vague = torch.zeros(4, 4)
    supernet.eval()  # without dropout
    losses, answers = alpha(batch, {"max": {"raw": vague, "features": {}}})
    assert set(losses) == {"distil_cls"} and answers == {}
    torch.testing.assert_close(losses["distil_cls"], alpha_divergence(supernet.net.raw(batch["img"]), vague))


# Other teachers, and features ----------------------------------------------------------------------------

FIXED_NECK = RETINANET | {"neck": RETINANET["neck"] | {"out_channel": 16}}
LAYERS = {
    "regnet": ["head"],
    "retinanet": ["neck.further.0", "cls.predict"],  # one map, and one of each level
    "yolo": ["model.model.17"],
}


def with_teacher(name):
    """(supernet, batch, a teacher of its smallest arch with other weights)."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        supernet, batch = supernet_of(name) if name != "retinanet" else (Supernet(FIXED_NECK), OBJECTS)
        scramble(supernet, seed)
        found.append(supernet)
    for m in found[0].modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    return found[0], batch, found[1].extract(found[1].space.smallest())


def seen_in(net, layers, images):
    """(raw output, layer -> its outputs divided by their norms), by hooks of our own."""
    seen = {layer: [] for layer in layers}
    hooks = [
        net.get_submodule(layer).register_forward_hook(
            lambda m, i, y, layer=layer: seen[layer].append(y.clone())
        )
        for layer in layers
    ]
    raw = net.raw(images)
    for hook in hooks:
        hook.remove()
    return raw, {k: [normalize(y.flatten(1), dim=1) for y in ys] for k, ys in seen.items()}


@pytest.mark.parametrize("name", ["regnet", "retinanet", "yolo"])
def test_several_jobs_and_teachers_add_up(name):
    supernet, batch, big = with_teacher(name)
    layers, net, images = LAYERS[name], supernet.net, batch["img"]
    distil = Distil(
        weight=0.7,
        labels=0.4,
        teachers={"big": "big.pt"},
        outputs=[{"teacher": "big", "weight": 0.3, "warm_up": 4}],
        mimic=[{"layers": layers, "weight": 0.6}, {"layers": layers[:1], "teacher": "big", "weight": 0.9}],
    )
    archs = subnets(["max", "random", "min"], supernet.space, seed=0, step=1)
    state = {k: v.clone() for k, v in supernet.state_dict().items()}
    runs = []
    pupil = Pupil(net, distil, {"big": big})
    first = next(m for m in big.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda m, i, y: runs.append((m.training, y.requires_grad)))
    found = sandwich_step(pupil, supernet.set_arch, batch, archs, step=1)
    assert runs == [(False, False)]  # once a batch, in eval mode, without gradients
    got = gradients(supernet)

    def apart(job, ours, theirs):
        each = [
            sum((a - b).square().sum(1).mean() for a, b in zip(ours[k], theirs[k], strict=True))
            / len(ours[k])
            for k in job
        ]
        return sum(each) / len(job)

    supernet.load_state_dict(state)
    supernet.zero_grad()
    with torch.no_grad():
        big_raw, big_seen = seen_in(big, layers, images)
    total, sums, largest = 0, [], None
    for arch in archs:
        supernet.set_arch(arch)
        raw, seen = seen_in(net, layers, images)
        task = sum(net.losses(raw, batch).values())
        other = 0.3 * 2 / 4 * sum(net.distil(raw, big_raw).values()) + 0.9 * apart(layers[:1], seen, big_seen)
        if largest is None:
            largest, loss = detached((raw, seen)), task + other
        else:
            same = 0.7 * sum(net.distil(raw, largest[0]).values()) + 0.6 * apart(layers, seen, largest[1])
            loss = 0.4 * task + other + same
        total = total + loss / 3
        sums.append(loss.item())
    total.backward()
    assert [sum(losses.values()).item() for losses in found] == pytest.approx(sums, rel=1e-4)
    expected = gradients(supernet)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5)
    own = {k for k in found[0] if not k.startswith(("distil_", "mimic_"))}
    big_s = {f"distil_big_{k}" for k in net.distil(raw, big_raw)} | {"mimic_big"}
    max_s = {f"distil_{k}" for k in net.distil(raw, big_raw)} | {"mimic_max"}
    assert [set(losses) for losses in found] == [own | big_s] + [own | big_s | max_s] * 2


def test_a_teacher_is_no_part_of_its_pupil():
    supernet, _, big = with_teacher("regnet")
    distil = Distil(teachers={"big": "big.pt"}, outputs=[{"teacher": "big"}])
    pupil = Pupil(supernet.net, distil, {"big": big})
    alone = Pupil(supernet.net, Distil())
    assert pupil.state_dict().keys() == alone.state_dict().keys()
    assert [id(p) for p in pupil.parameters()] == [id(p) for p in alone.parameters()]
    assert not any(p.requires_grad for p in big.parameters())
    pupil.train().double()  # but it moves along
    assert not big.training and {p.dtype for p in big.parameters()} == {torch.float64}


@pytest.mark.slow
def test_a_wider_yolo_teaches_a_narrower_one():
    """Its maps are wider, its raw output is of the same shape."""
    supernet, batch = supernet_of("yolo")
    space = YoloSpace(MODELS / "yolov5s_nas.yaml", nc=3)
    teachers = {"s": build(space, space.smallest())}
    distil = Distil(labels=0, weight=0, teachers={"s": "s.pt"}, outputs=[{"teacher": "s"}])
    archs = subnets(["max", "min"], supernet.space, 0, 0)
    found = sandwich_step(Pupil(supernet.net, distil, teachers), supernet.set_arch, batch, archs)
    assert [set(losses) for losses in found] == [
        {"box", "cls", "dfl", "distil_s_cls", "distil_s_dfl"},
        {"distil_s_cls", "distil_s_dfl"},
    ]
    wide = Distil(teachers={"s": "s.pt"}, mimic=[{"layers": ["model.model.17"], "teacher": "s"}])
    with pytest.raises(UserError, match="'model.model.17' has 64 channels.*of the teacher 's' has 128"):
        Pupil(supernet.net, wide, teachers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mimic": [{"layers": ["neck.futher.0"]}]},
            "unknown layer 'neck.futher.0' of the network; did you mean 'neck.further.0'",
        ),
        (
            {"mimic": [{"layers": ["neck.qqqqqqqqqqqqqqq"]}]},
            "'neck.qqqqqqqqqqqqqqq' of the network; 'neck' has: neck.laterals, neck.outputs, neck.further$",
        ),
        (
            {"mimic": [{"layers": ["neck.further.0"], "teacher_layers": ["p6"], "teacher": "big"}]},
            "unknown layer 'p6' of the teacher 'big'; known: backbone, neck, cls, box, anchors",
        ),
        (
            {"mimic": [{"layers": ["backbone.stages.3"]}]},
            "'backbone.stages.3' has 24, 32 or 40 channels, by architecture, and .* 'max' has 40: only",
        ),
        ({"mimic": [{"layers": ["cls.blocks.1.conv"]}]}, "'cls.blocks.1.conv' does not run in every arch"),
        (
            {"mimic": [{"layers": ["neck.outputs.0"], "teacher_layers": ["neck.outputs.1"]}]},
            "'neck.outputs.0' gives 16x8x8 an image, 'neck.outputs.1' of the teacher 'max' 16x4x4",
        ),
        ({"options": {"divergence": "alpha"}}, "unknown option of distillation for RetinaNet 'divergence'"),
        ({"teachers": {"b": "b.pt"}, "outputs": [{"teacher": "b"}]}, "unknown teacher 'b'"),
    ],
)
def test_what_cannot_be_distilled(settings, message):
    supernet = Supernet(FIXED_NECK)
    if "big" in message:
        settings = settings | {"teachers": {"big": "big.pt"}}
    with pytest.raises(UserError, match=message):
        Pupil(supernet.net, Distil(**settings), {"big": supernet.extract(supernet.space.smallest())})


def test_teachers_that_do_not_fit():
    supernet = Supernet(FIXED_NECK)
    distil = Distil(teachers={"big": "big.pt"}, outputs=[{"teacher": "big"}])

    def teacher(**changes):
        other = Supernet(FIXED_NECK | changes)
        return {"big": other.extract(other.space.smallest())}

    with pytest.raises(UserError, match="knows the classes 0, 1; the network learns 0, 1, 2"):
        Pupil(supernet.net, distil, teacher(nc=2))
    with pytest.raises(
        UserError, match=r"'big' has other anchors \(sizes \(\(32.0,\), .*can teach features only"
    ):
        Pupil(supernet.net, distil, teacher(options={"anchor_scales": [4.0]}))
    named = teacher()
    named["big"].names = ["cat", "dog", "cow"]
    Pupil(supernet.net, distil, named)  # the network was not told names
    supernet.net.names = ["dog", "cat", "cow"]
    with pytest.raises(UserError, match="knows the classes cat, dog, cow; the network learns dog, cat, cow"):
        Pupil(supernet.net, distil, named)
    classifier = Supernet(REGNET)
    with pytest.raises(UserError, match="unknown divergence 'alfa'; did you mean 'alpha'"):
        Pupil(classifier.net, Distil(options={"divergence": "alfa"}))


# The step -------------------------------------------------------------------------------------------------


def test_dropout_is_the_largest_net_s_alone():
    supernet, batch = supernet_of("regnet")
    dropout = next(m for m in supernet.modules() if isinstance(m, nn.Dropout))
    modes = []
    dropout.register_forward_hook(lambda m, i, y: modes.append(m.training))
    archs = subnets(KINDS, supernet.space, 0, 0)
    sandwich_step(Pupil(supernet.net, Distil()), supernet.set_arch, batch, archs)
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
    sandwich_step(Pupil(supernet.net, Distil()), supernet.set_arch, batch, archs, no_sync=NoSync)
    assert len(entered) == 3  # all but the last


def test_a_few_steps_teach_every_arch():
    """Four images: the point is that the largest, the smallest and others all learn from the same steps."""
    supernet, batch = supernet_of("regnet")
    model = Pupil(supernet.net, Distil())
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
            sandwich_step(Pupil(supernet.net, Distil()), supernet.set_arch, OBJECTS, archs)
    assert seen == sides[:9] and len(set(sides)) > 1
    free = [subnets(["max", "min"], supernet.space, 0, s, one_resolution=False) for s in range(3)]
    assert [[a["resolution"] for a in archs] for archs in free] == [[96, 32]] * 3


def test_mistakes():
    space = supernet_of("regnet")[0].space
    with pytest.raises(UserError, match="unknown kind of subnet 'mx'; did you mean 'max'"):
        subnets(["max", "mx"], space, 0, 0)
    with pytest.raises(UserError, match="should be 'max' first"):
        subnets(["random", "max"], space, 0, 0)


RANK = """
import sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
from models.sampling import subnets
from models.supernet import Supernet
from utils.training.precision import leave_group
from utils.training.sandwich import Pupil, sandwich_step
from utils.training.settings import Distil
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
saved = torch.load(sys.argv[3])
supernet = Supernet(saved["model"])
supernet.load_state_dict(saved["state"])
small = supernet.extract(supernet.space.smallest())
pupil = Pupil(supernet.net, Distil(**saved["distil"]), {"small": small})
model = torch.nn.parallel.DistributedDataParallel(pupil)
batch = {k: v.chunk(2)[rank] for k, v in saved["batch"].items()}
archs = subnets(["max", "random", "min"], supernet.space, 0, 5)
for _ in range(2):
    supernet.zero_grad()
    sandwich_step(model, supernet.set_arch, batch, archs, no_sync=model.no_sync, touch=True)
if rank == 0:
    torch.save({k: p.grad for k, p in supernet.named_parameters()}, sys.argv[4])
del model
leave_group()
"""


@pytest.mark.slow
def test_two_ranks_make_the_gradient_of_the_whole_batch(tmp_path):
    """DDP, synchronised norms, no_sync, archs from (seed, step, k): one process with all images agrees."""
    spec = {**REGNET, "options": {"synchronised_norm": True, "squeeze": 0.25}}
    torch.manual_seed(0)
    supernet = Supernet(spec)
    batch = {"img": CLASSES["img"][:, :, :32, :32].contiguous(), "cls": CLASSES["cls"]}
    batch = {k: torch.cat((v, v.flip(-1))) for k, v in batch.items()}
    distil = Distil(
        teachers={"small": "small.pt"},
        outputs=[{"teacher": "small"}],
        mimic=[{"layers": ["head"]}, {"layers": ["head"], "teacher": "small"}],
    )
    saved = {"model": spec, "state": supernet.state_dict(), "batch": batch, "distil": distil.model_dump()}
    torch.save(saved, tmp_path / "s")
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
    pupil = Pupil(supernet.net, distil, {"small": supernet.extract(supernet.space.smallest())})
    for _ in range(2):
        supernet.zero_grad()
        sandwich_step(pupil, supernet.set_arch, batch, archs)
    assert [r.wait(timeout=200) for r in ranks] == [0, 0]
    theirs = torch.load(tmp_path / "g")
    for key, value in gradients(supernet).items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-2, atol=1e-5)
