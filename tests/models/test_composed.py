"""One backbone serves several networks; a new one is one file and one line."""

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from experiments.run_folder import plugins
from experiments.strategies.pareto import ParetoEvolution
from models.elastic import composed
from models.export import export
from models.networks import describe, open_any_space
from models.sampling import generator, in_range, subnets
from models.supernet import Supernet
from tests.models.stock import isolated
from utils.errors import UserError
from utils.history import Trial, arch_key
from utils.training.sandwich import Pupil, sandwich_step
from utils.training.settings import Distil

PATHS = ["xception", "shuffle7", "shuffle3", "shuffle5"]  # in no order
BACKBONE = {
    "depth": [1, 1, 2, 1],
    "out_channel": [8, 16, 16, 16],
    "path": {"values": [["shuffle3"], PATHS, PATHS, PATHS], "sample": "block"},  # the stem has none
}
CLASSIFIER = {"network": {"detector": "classifier", "backbone": "shufflenet"}, "nc": 3, "backbone": BACKBONE}
RETINANET = {
    "network": {"detector": "retinanet", "backbone": "shufflenet"},
    "nc": 3,
    "backbone": BACKBONE,
    "neck": {"depth": [2, 3], "out_channel": 8},
    "head": {"depth": [1], "out_channel": 8},
}
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_line(monkeypatch):
    """What a new backbone adds to a dict."""
    monkeypatch.setitem(composed.BACKBONES, "shufflenet", Path(__file__).with_name("shufflenet.py"))


def batch(side=64):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.3, 0.4, 0.2, 0.3]])
    labels = torch.tensor([[1.0], [2.0]])
    images = torch.rand(2, 3, side, side, generator=generator)
    return {"img": images, "cls": labels, "bboxes": boxes, "batch_idx": torch.tensor([0.0, 1.0])}


def every_arch(space):
    labels = list(space.choices)
    return [dict(zip(labels, values, strict=True)) for values in itertools.product(*space.choices.values())]


@pytest.mark.parametrize("model", [CLASSIFIER, RETINANET], ids=["classifier", "retinanet"])
def test_path_choices_are_ordered_by_what_they_cost_in_their_place(model):
    space = open_any_space(model)
    archs = every_arch(space)
    assert len(archs) == 4**4 == space.size()[1]
    costs = {arch_key(a): space.cost(a, 64)["gflops"] for a in archs}
    assert arch_key(space.smallest()) == min(costs, key=costs.__getitem__)
    assert arch_key(space.largest()) == max(costs, key=costs.__getitem__)
    assert space.smallest() != space.default() != space.largest()
    rng = np.random.default_rng(0)
    small, large = ([costs[arch_key(space.biased(rng, tilt))] for _ in range(50)] for tilt in (-6, 6))
    assert np.mean(small) < np.median(list(costs.values())) < np.mean(large)
    top = max(costs.values())
    assert all(costs[arch_key(a)] >= 0.95 * top for a in in_range(space, rng, 0.95 * top, top, 64, n=3))


def test_a_backbone_is_the_same_under_every_detector():
    under = {}
    for model in (CLASSIFIER, RETINANET):
        space = open_any_space(model)
        torch.manual_seed(0)
        under[space.task] = {k: v for k, v in space.supernet().state_dict().items() if "backbone." in k}
    assert under["classify"].keys() == under["detect"].keys()
    assert all(under["detect"][k].shape == v.shape for k, v in under["classify"].items())
    text = describe(open_any_space(RETINANET), 64)
    assert "network retinanet on shufflenet with stages: backbone of 4, neck of 2, head of 1" in text


def test_short_names_are_what_they_were():
    for short, (detector, backbone) in composed.NETWORKS.items():
        long = composed.compose({"detector": detector, "backbone": backbone})
        ours = composed.compose(short)
        assert str(ours) == short
        assert (ours.parts, ours.stride, ours.task) == (long.parts, long.stride, long.task)
        assert list(ours.parts)[0] == "backbone"


@pytest.mark.parametrize("detector, backbone", [("classifier", "resnet"), ("retinanet", "regnet")])
def test_detectors_and_backbones_go_together_as_one_likes(detector, backbone):
    model = {
        "network": {"detector": detector, "backbone": backbone},
        "nc": 3,
        "backbone": {"depth": [1] * 5, "out_channel": {"min": 8, "max": 16, "stride": 8}},
    }
    if backbone == "regnet":
        model["backbone"]["group_width"] = 8
    if detector == "retinanet":
        model |= {"neck": {"depth": [2, 3], "out_channel": 8}, "head": {"depth": [1], "out_channel": 8}}
    supernet = Supernet(model)
    supernet.set_arch(supernet.space.smallest())
    loss = sum(supernet.net.loss(batch()).values())
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(CLASSIFIER, id="classifier", marks=pytest.mark.slow),
        pytest.param(RETINANET, id="retinanet", marks=pytest.mark.slow),
    ],
)
def test_it_is_trained_searched_exported_and_loaded_by_plain_torch(model, tmp_path):
    torch.manual_seed(0)
    supernet = Supernet(model)
    space, images = supernet.space, batch()
    pupil = Pupil(supernet.net, Distil(labels=0.5))
    optimizer = torch.optim.SGD(supernet.parameters(), 0.01)
    supernet.train()
    for step in range(3):
        archs = subnets(["max", "random", "min"], space, 0, step)
        sandwich_step(pupil, supernet.set_arch, images, archs)
        optimizer.step()
        optimizer.zero_grad()
    supernet.eval()

    objectives = {"map50_95": "max", "gflops": "min"}
    strategy = ParetoEvolution(space, objectives, seed=0, population_size=4)
    for number in range(12):
        arch = strategy.ask()
        supernet.set_arch(arch)
        with torch.no_grad():
            score = -sum(float(v) for v in supernet.net.loss(images).values())
        strategy.tell(Trial(number, arch, {"map50_95": score, **space.cost(arch, 64)}, score, "complete"))
    found = strategy.population[0].trial.arch
    net = supernet.extract(found).eval()

    for format in ("pt", "onnx"):
        path = tmp_path / f"net{space.formats[format]}"
        said = export(net, path, format, space=space, arch=found, imgsz=96)
        assert said.max_difference < 1e-4
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = [float(v.double().sum()) for v in net.decode(net.raw(x), x)]
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    got = [float(v.astype(np.float64).sum()) for v in session.run(None, {"images": x.numpy()})]
    assert got == pytest.approx(expected, rel=1e-4)
    body = f"""
x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
found = torch.export.load({str(tmp_path / "net.pt2")!r}).module()(x)
print(json.dumps([float(v.double().sum()) for v in found]))
"""
    assert isolated(body, tmp_path, ultralytics=False) == pytest.approx(expected, rel=1e-4)


def test_the_archs_of_a_step_are_drawn_from_paths_too():
    space = open_any_space(CLASSIFIER)
    largest, drawn, smallest = subnets(["max", "random", "min"], space, 0, 7)
    assert largest == space.largest() and smallest == space.smallest()
    assert drawn == space.random(generator(0, 7, 1))


@pytest.mark.parametrize(
    "network, message",
    [
        ({"detector": "retinanet"}, "network should be like {detector: retinanet, backbone: resnet}"),
        (
            {"detector": "retinet", "backbone": "resnet"},
            "unknown detector .*did you mean 'retinanet'",
        ),
        ({"detector": "classifier", "backbone": "resnt"}, "unknown backbone 'resnt'.*did you mean 'resnet'"),
        ({"detector": "classifier", "backbone": "none.py"}, "no backbone file 'none.py'"),
        (7, "network should be like"),
    ],
)
def test_what_cannot_be_composed(network, message):
    with pytest.raises(UserError, match=message):
        open_any_space({"network": network, "nc": 3, "backbone": BACKBONE})


def test_a_run_keeps_the_files_that_its_space_is_composed_of(tmp_path):
    source = Path(__file__).with_name("shufflenet.py").read_text()
    (tmp_path / "mine.py").write_text(source)
    space = tmp_path / "space.yaml"
    space.write_text(
        yaml.safe_dump({**CLASSIFIER, "network": {"detector": "classifier", "backbone": "mine.py"}})
    )
    assert plugins(space) == ["mine.py"]
    assert open_any_space(space).composed.backbone == tmp_path / "mine.py"
    assert open_any_space(space).model["network"]["backbone"] == str(tmp_path / "mine.py")
