"""Pre-training of backbones as classifiers, and what detectors have of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hello_nas
from data.crops import backgrounds, crops_of
from data.sample import Sample
from experiments.job import job_of
from experiments.pretrain import classifier_job, classifier_of_supernet, pretrain_arch
from experiments.starts import begin
from models.networks import build, open_any_space
from models.supernet import Supernet, calibrate, extract, inherit_supernet
from models.weights import load_weights, read_weights, save_weights
from tests.experiments.test_ofa_ssd import check_same_weights
from utils.report.runs import read_run
from utils.run_files import Files
from utils.steps import steps_line
from utils.training.batch import to_device
from utils.training.train import State

torch.set_num_threads(1)
CPU = torch.device("cpu")
PATHS = ["3x3", "5x5", "7x7", "xception"]
SPACE = {
    "network": {"detector": "retinanet", "backbone": "shufflenet"},
    "backbone": {
        "depth": [1, 1, 1, 1, 1],
        "out_channel": [4, 8, 8, 8, 16],
        "path": {"values": [["3x3"], *[PATHS] * 4], "middle": "3x3", "sample": "block"},
    },
    "neck": {"depth": [3, 3], "out_channel": [8, 16]},
    "head": {"depth": [1], "out_channel": 8},
    "options": {"synchronised_norm": True},
}
BLOCKS = {
    "name": "detnas",
    "space": "paths.yaml",
    "imgsz": 64,
    "train": {"epochs": 1, "batch": 12, "lr": 0.003},
    "pretrain": {"imgsz": 32, "winners": True, "train": {"epochs": 2, "batch": 16}},
    "supernet": {"subnets": ["random"], "distil": {"weight": 0}, "calibration": 8},
    "search": {"engine": "inline", "strategy": "random", "max_trials": 2, "top_k": 1},
}


@pytest.fixture
def detnas(tiny):
    """A DetNAS of a few thousand parameters; gives its file."""
    experiment = yaml.safe_load(tiny.read_text()) | BLOCKS
    (tiny.parent / "detnas.yaml").write_text(yaml.safe_dump(experiment))
    (tiny.parent / "paths.yaml").write_text(yaml.safe_dump(SPACE))
    return tiny.parent / "detnas.yaml"


def run(*arguments):
    return hello_nas.main(["run", *map(str, arguments)])


@pytest.mark.slow
def test_the_supernet_and_the_winners_begin_with_their_classifiers(detnas, monkeypatch):
    assert run(detnas, "--steps", "pretrain,supernet,search,retrain") == 0
    folder = Path("runs/detnas").resolve()
    files, job = Files(folder), job_of(str(folder))
    result = json.loads((files.pretrain / "result.json").read_text())
    rows = result["curve"]
    assert len(rows) == 1 and 0 <= result["metrics"]["top1"] <= 1
    alone = json.loads((files.pretrained_alone.parent / "result.json").read_text())
    assert len(alone["curve"]) == 1 and alone["arch"] == classifier_job(job).space.default()
    batches = len(classifier_job(job).dataset.splits["search_train"]) // 16 + 1
    assert result["steps"] == batches
    account = json.loads((files.supernet / "start.json").read_text())
    exact = {layer for layer, what in account["layers"].items() if what == "exact"}
    assert account["start"] == "weights.pt"
    assert exact == {layer for layer in account["layers"] if layer.startswith("backbone.")}
    assert steps_line(read_run(folder)) == "done: pretrain, supernet, search, retrain"
    for trained in folder.glob("retrain/*"):
        alone = read_weights(trained / "pretrain" / "last.pt")
        start = json.loads((trained / "start.json").read_text())
        assert alone.meta["kind"] == "pretrain" and alone.arch
        assert start["path"] == "pretrain/last.pt"
        assert {k for k, v in start["layers"].items() if v == "fresh"} == {
            k for k in start["layers"] if not k.startswith("backbone.")
        }
    before = (files.pretrained).read_bytes()
    monkeypatch.setattr("experiments.pretrain.train_in_full", None)  # would be called, were it repeated
    assert run("--resume", "--run-dir", folder, "--steps", "pretrain,supernet,search,retrain") == 0
    assert files.pretrained.read_bytes() == before


@pytest.fixture
def digits(detnas):
    """DetNAS on 160 scenes, enough to learn what digits are; gives its file."""
    experiment = yaml.safe_load(detnas.read_text())
    card = yaml.safe_load(Path(experiment["data"]).read_text())
    scenes = {"search_train": 160, "search_val": 40, "val": 4}
    detnas.with_name("digits.yaml").write_text(yaml.safe_dump(card | {"scenes": scenes}))
    space = SPACE | {"backbone": SPACE["backbone"] | {"out_channel": [8, 16, 16, 32, 64]}}
    detnas.with_name("paths.yaml").write_text(yaml.safe_dump(space))
    detnas.write_text(yaml.safe_dump(experiment | {"data": "digits.yaml"}))
    return detnas


@pytest.mark.slow
def test_a_short_pre_training_of_paths_learns_what_chance_does_not(digits):
    """One path alone, then all of them from it: not only the first one tells ten digits apart."""
    train = "pretrain.train={epochs: 8, batch: 32, lr: 0.01, val_every: 8}"
    assert run(digits, "--steps", "pretrain", train, "--run-dir", "r") == 0
    files = Files(Path("r").resolve())
    alone = json.loads((files.pretrained_alone.parent / "result.json").read_text())
    both = json.loads((files.pretrain / "result.json").read_text())
    assert [len(r["curve"]) for r in (alone, both)] == [4, 4] and alone["split"] == "search_val"
    assert both["metrics"]["top1"] > 0.4, (alone["metrics"]["top1"], both["metrics"]["top1"])
    job = classifier_of_supernet(job_of(str(files.folder)))
    supernet = Supernet(job.space.model, job.space.nc)
    load_weights(supernet.net, read_weights(files.pretrained))
    learn, val = (
        to_device(next(iter(job.task.make_loader(samples, job.dataset.names, 32, 999, train=False))), CPU)
        for samples in (job.dataset.splits["search_train"], job.dataset.splits["search_val"])
    )
    right = []
    for seed in range(4):
        net = extract(supernet.net, job.space.random(np.random.default_rng(seed)))
        calibrate(net, iter([learn["img"][:128]]), 128)
        right.append((net.eval().raw(val["img"]).argmax(1) == val["cls"].flatten()).float().mean().item())
    assert np.mean(right) > 0.2, right


@pytest.mark.slow
def test_an_interrupted_pre_training_ends_with_the_same_weights(detnas, monkeypatch):
    """Killed while one path learns alone, and while all do."""
    train = "pretrain.train={epochs: 4, batch: 16, checkpoint_seconds: 0}"
    command = (detnas, "--steps", "pretrain", train)
    assert run(*command, "--run-dir", "whole") == 0
    real, closed = State.close_epoch, []

    def dies(state, row):
        real(state, row)
        closed.append(row["epoch"])
        if len(closed) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "close_epoch", dies)
    assert run(*command, "--run-dir", "killed") == 130
    assert run("--resume", "--run-dir", "killed") == 130
    assert run("--resume", "--run-dir", "killed") == 0
    assert closed == [1, 2, 1, 2]
    assert steps_line(read_run(Path("killed"))) == "done: pretrain"
    whole, killed = (read_weights(Files(Path(f).resolve()).pretrained).state for f in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)


@pytest.mark.slow  # two processes that import torch and NNI
def test_two_processes_pretrain_what_one_does_on_all_images_of_a_step(detnas):
    """2 x 8 crops a step make the weights that 1 x 16 do, to 1 % of the way they went."""
    states = []
    for devices, batch in ((1, 16), (2, 8)):
        given = [f"supernet.devices={devices}", f"pretrain.train.batch={batch}", f"name=on{devices}"]
        given += ["pretrain.train.optimizer=SGD", "pretrain.train.lr=0.05", "pretrain.alone=0"]
        assert run(detnas, *given, "--steps", "pretrain") == 0
        states.append(read_weights(Files(Path(f"runs/on{devices}")).pretrained).state)
    torch.manual_seed(0)
    space = classifier_job(job_of("runs/on1")).space
    check_same_weights(*states, Supernet(space.model, space.nc, space.ch).net.state_dict())


def test_every_path_and_norm_of_a_supernet_is_handed_over(tmp_path):
    torch.manual_seed(0)
    space = open_any_space(SPACE, nc=3)
    classifier = Supernet(space.classifier({"label_smoothing": 0.1}), 5)
    assert classifier.space.options["label_smoothing"] == 0.1 and classifier.space.task == "classify"
    with torch.no_grad():
        for tensor in classifier.net.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else tensor)
    path = tmp_path / "classifier.pt"
    save_weights(path, classifier.net, classifier.space, {}, imgsz=32, supernet=True)
    detector = Supernet(SPACE, 3)
    inherit_supernet(detector, read_weights(path))
    ours, theirs = detector.net.state_dict(), classifier.net.state_dict()
    names = [name for name in ours if name.startswith("backbone.")]
    assert sum("xception" in name for name in names) > 40 and any("running_var" in name for name in names)
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert {n for n in ours if n not in names} == {n for n in ours if not n.startswith("backbone.")}


@pytest.mark.slow
def test_an_arch_s_backbone_by_itself(detnas, tmp_path):
    """What networks that grow are trained again by: from their own weights, and back."""
    assert run(detnas, "--steps", "search", "search.max_trials=1", "supernet=null") == 0
    job = job_of(str(Path("runs/detnas").resolve()))
    arch = job.space.default() | {"backbone.path.1.0": "7x7"}
    net = job.build(arch)
    given = tmp_path / "detector.pt"
    save_weights(given, net, job.space, arch, imgsz=64)
    alone = pretrain_arch(job, arch, tmp_path / "alone", given)
    start = json.loads((tmp_path / "alone" / "start.json").read_text())
    assert {k for k, v in start["layers"].items() if v == "fresh"} == {"head.linear"}
    again = job.build(arch)
    begin(job, again, arch, tmp_path / "again", alone)
    state = read_weights(alone).state
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items() if k.startswith("backbone."))
    assert not torch.equal(net.backbone.stem.conv.weight, again.backbone.stem.conv.weight)


def test_serial_backbones_can_classify_too():
    space = open_any_space("models/spnas_small.yaml", nc=3)
    classifier = open_any_space(space.classifier({"label_smoothing": 0.1}), 4)
    net = build(classifier, space.default())
    assert net.raw(torch.rand(2, 3, 64, 64)).shape == (2, 4)
    backbone = {k: v.shape for k, v in build(space, space.default()).backbone.state_dict().items()}
    assert {k: v.shape for k, v in net.backbone.state_dict().items()} == backbone


def samples(names):
    boxes = np.array([[0.25, 0.25, 0.2, 0.2], [0.75, 0.5, 0.3, 0.4]], np.float32)
    cls = np.arange(2) % len(names)
    return [Sample(Path(f"{i}.png"), boxes, cls, (100, 200)) for i in range(3)]


def test_places_without_objects_are_a_second_class():
    found = backgrounds(samples(["one"]), np.random.default_rng(0))
    assert len(found) == 6 and {int(s.cls[0]) for s in found} == {1}
    for sample in found:
        (x, y, w, h), others = sample.boxes[0], samples(["one"])[0].boxes
        assert w / 2 <= x <= 1 - w / 2 and h / 2 <= y <= 1 - h / 2
        apart = np.abs(others[:, :2] - (x, y)) >= (others[:, 2:] + (w, h)) / 2 - 1e-6
        assert apart.any(1).all()
    whole = Sample(Path("full.png"), np.array([[0.5, 0.5, 1, 1]], np.float32), np.zeros(1, int), (9, 9))
    assert backgrounds([whole], np.random.default_rng(0)) == []


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_crops_stay_in_the_split_of_their_image(names):
    from data.account import Account
    from data.sample import Dataset

    splits = {"train": samples(names), "val": samples(names)[:1]}
    found = crops_of(Dataset("d", names, splits, "s", "YOLO", "none", Account(), "detect"))
    assert found.task == "classify" and found.nc == 2
    assert len(found.splits["train"]) == (12 if len(names) == 1 else 6)
    assert {s.image.name for s in found.splits["val"]} == {"0.png"}
    assert all(len(s.cls) == len(s.boxes) == 1 for s in found.splits["train"])


def image_folder(root, classes):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (40, 40), (i * 40, len(name) * 20, 0)).save(root / name / f"{i}.png")
    return root


@pytest.mark.slow
def test_a_folder_of_classes(detnas, tmp_path):
    folder = image_folder(tmp_path / "pets", ["cat", "horse", "dog"])
    assert run(detnas, f"pretrain.data={folder}", "--steps", "pretrain") == 0
    file = read_weights(Path("runs/detnas/pretrain/weights.pt"))
    assert file.names == ["cat", "dog", "horse"] and file.meta["supernet"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pretrain.data=empty", "empty is none of the known layouts"),
        ("pretrain.data=nowhere", "pretrain.data: 'nowhere' does not exist"),
        ("pretrain.data=lonely", "everything in train is of one class, 'cat'; a classifier needs two"),
        ("pretrain.imgsz=40", "imgsz 40 is not a multiple of the stride 32"),
        ("pretrain.train.epoch=3", "unknown key in pretrain.train 'epoch'; did you mean 'epochs'?"),
        ("pretrain.label_smoothing=1", "pretrain.label_smoothing: 1 does not fit"),
        ("pretrain=null", "the step 'pretrain' needs a `pretrain:` block"),
        ("supernet=null", "the step 'pretrain' is for a supernet's backbone"),
        (
            "search.limits.gflops=>= 3 baseline, <= 4 baseline",
            "no architecture of the space meets the limits gflops >= 0.0074",
        ),
        ("space=thin_nas.yaml", "has no backbone that could be a classifier's"),
    ],
)
def test_mistakes_are_one_line(detnas, capsys, tmp_path, change, said):
    (tmp_path / "empty").mkdir()
    image_folder(tmp_path / "lonely", ["cat"])
    assert run(detnas, change, "--steps", "pretrain") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not Path("runs/detnas").exists()
