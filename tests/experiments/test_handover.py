"""From an architecture file to trained weights and back, on digits, with tiny networks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data.dataset import open_dataset
from data.loader import make_loader
from data.sample import Sample
from data.yolo_export import export_yolo
from experiments import baselines, export, findings
from experiments import retrain as retraining
from experiments.arch_file import arch_of, open_arch_file
from experiments.config import ROOT, load_experiment
from experiments.evaluate import evaluate_arch
from experiments.export import export_arch
from experiments.predict import find_objects, open_network, predict
from experiments.retrain import finetune, put_aside, retrain
from experiments.run_folder import RunFolder
from experiments.tasks import TASKS
from experiments.trained import training_images
from hello_nas import main
from models.networks import build, open_any_space
from models.supernet import Supernet, sliced
from models.weights import read_weights, save_weights
from models.yolo.space import YoloSpace
from tests.models.stock import isolated
from utils.errors import UserError
from utils.history import Trial
from utils.report.report import write_report
from utils.report.results import load_arch_file, metrics_line, write_top
from utils.training import measure
from utils.training.evaluate import evaluate, to_original

SPACE = {
    "nc": 80,
    "backbone": [
        [-1, 1, "NASConv", [8, 6, 2, 2]],
        [-1, 1, "NASConv", [16, 3, 2]],
        [-1, 1, "NASC3", [16]],
        [-1, 1, "Conv", [16, 3, 2]],
    ],
    "head": [[-1, 1, "SPPF", [16, 5]], [[2, 4], 1, "Detect", ["nc"]]],
}
DIGITS = {"format": "digits", "scenes": {"search_train": 24, "search_val": 8, "val": 16}}
QUICK = ["train.epochs=2", "train.batch=8", "threads=1", "device=cpu"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELLO_NAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a space, data and an architecture file."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "digits.yaml").write_text(yaml.safe_dump(DIGITS))
    write_arch(folder / "arch.json", folder)
    return folder


def write_arch(path, folder, **changes):
    arch = YoloSpace(SPACE).random(np.random.default_rng(1))
    record = {
        "schema": 1,
        "space": "tiny.yaml",
        "arch": arch,
        "imgsz": 64,
        "data": str(folder / "digits.yaml"),
    }
    path.write_text(json.dumps(record | changes))
    return path


@pytest.fixture(scope="module")
def trained(work):
    """The folder of a short retraining."""
    retrain(work / "arch.json", QUICK, out=work / "trained")
    return work / "trained"


@pytest.fixture(scope="module")
def lively(work):
    """Weights that have learnt something."""
    settings = [
        "train.epochs=30",
        "train.lr=0.01",
        "train.val_every=30",
        "train.hyp=data/hyps/default.yaml",
        "train.batch=8",
        "threads=1",
        "device=cpu",
    ]
    result = retrain(work / "arch.json", settings, out=work / "lively")
    assert result["metrics"]["map50_95"] > 0.01
    return work / "lively/last.pt"


def bits(path):
    return read_weights(path).state


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Training ----------------------------------------------------------------------------------------------


def test_a_retraining_leaves_weights_and_an_account_of_itself(work, trained):
    result = json.loads((trained / "result.json").read_text())
    arch = json.loads((work / "arch.json").read_text())["arch"]
    assert result["arch"] == arch and result["kind"] == "retrain" and result["split"] == "val"
    assert result["train"]["epochs"] == 2 and [row["epoch"] for row in result["curve"]] == [1, 2]
    assert result["metrics"]["val_images"] == 16  # the val split, on which no search ever scored
    cost = YoloSpace(SPACE, nc=10).cost(arch, 64)
    assert {k: result["metrics"][k] for k in cost} == cost
    assert result["seed"] == 0 and "torch" in result["versions"] and result["command"]
    assert {p.name for p in trained.iterdir()} >= {"last.pt", "best.pt", "log.csv", "experiment.yaml"}
    assert not (trained / "checkpoint.pt").exists()
    file = read_weights(trained / "last.pt")
    assert file.arch == arch and file.names == [str(i) for i in range(10)] and file.imgsz == 64


def test_it_trains_on_all_of_train(work, trained):
    """24 + 8 images in batches of 8 make 4 steps an epoch."""
    updates = bits(trained / "last.pt")["model.model.0.bn.num_batches_tracked"]
    assert int(updates) == 2 * 4


def test_same_seed_same_bits_other_seed_other_bits(work, trained, tmp_path):
    again = retrain(work / "arch.json", QUICK, out=tmp_path / "again")
    assert same(bits(trained / "last.pt"), bits(tmp_path / "again/last.pt"))
    other = retrain(work / "arch.json", [*QUICK, "seed=1"], out=tmp_path / "other")
    assert not same(bits(trained / "last.pt"), bits(tmp_path / "other/last.pt"))
    assert other["seed"] == 1 and again["curve"][0]["loss"] != other["curve"][0]["loss"]


def test_finetuning_starts_from_the_weights_and_is_gentle(work, trained, tmp_path, capsys):
    result = finetune(work / "arch.json", trained / "last.pt", [*QUICK, "train.epochs=1"], out=tmp_path / "f")
    assert "100.0 % of the numbers" in capsys.readouterr().out
    assert result["started_from"]["share"] == 1.0 and result["kind"] == "finetune"
    assert result["train"]["lr"] == pytest.approx(0.006 / 10) and result["train"]["warmup_bias_lr"] == 0.0
    before, after = bits(trained / "last.pt"), bits(tmp_path / "f/last.pt")
    key = "model.model.1.conv.weight"
    moved = (before[key] - after[key]).norm() / before[key].norm()
    assert 0 < moved < 0.05


def test_a_finished_retraining_is_not_repeated(work, trained, capsys):
    stamp = (trained / "last.pt").stat().st_mtime_ns
    retrain(work / "arch.json", QUICK, out=trained, resume=True)
    assert "finished already" in capsys.readouterr().out
    assert (trained / "last.pt").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bits(work, tmp_path):
    settings = ["train.epochs=4", "train.batch=8", "threads=1", "device=cpu", "train.checkpoint_seconds=0"]
    whole = retrain(work / "arch.json", settings, out=tmp_path / "whole")
    out = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "hello_nas.py"), "retrain", str(work / "arch.json"), *settings]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "checkpoint.pt").exists() and not (out / "result.json").exists()
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch"] < 4
    resumed = retrain(work / "arch.json", settings, out=out, resume=True)
    assert same(bits(tmp_path / "whole/last.pt"), bits(out / "last.pt"))
    assert same(bits(tmp_path / "whole/best.pt"), bits(out / "best.pt"))
    assert resumed["metrics"]["map50_95"] == whole["metrics"]["map50_95"]
    assert [row["loss"] for row in resumed["curve"]] == [row["loss"] for row in whole["curve"]]


def test_a_training_of_another_schedule_is_put_aside_whole(tmp_path):
    folder = tmp_path / "retrain" / "0003"
    (folder / "pretrain").mkdir(parents=True)
    for schedule in ("first", "second"):
        for name in ("result.json", "last.pt"):
            (folder / name).write_text(schedule)
        put_aside(folder)
    assert [path.name for path in folder.iterdir()] == ["pretrain"]
    for n, schedule in enumerate(("first", "second"), start=1):
        earlier = tmp_path / "retrain" / "earlier" / f"0003-{n}"
        assert {p.name: p.read_text() for p in earlier.iterdir()} == {
            "result.json": schedule,
            "last.pt": schedule,
        }


def test_only_the_same_training_is_resumed(work, trained, tmp_path):
    with pytest.raises(UserError, match="train.lr was 0.006 and is now 0.1"):
        retrain(work / "arch.json", [*QUICK, "train.lr=0.1"], out=trained, resume=True)
    default = YoloSpace(SPACE).default()
    other = write_arch(work / "other.json", work, arch=default)
    with pytest.raises(UserError, match="cannot resume"):
        retrain(other, QUICK, out=trained, resume=True)
    with pytest.raises(UserError, match="no run folder"):
        retrain(other, QUICK, out=tmp_path / "nothing", resume=True)


# Evaluating, exporting ---------------------------------------------------------------------------------


def test_evaluation_scores_the_weights_on_val(work, lively, tmp_path):
    options = ["device=cpu", "threads=1"]
    result = evaluate_arch(work / "arch.json", options, weights=lively, out=tmp_path / "e.json")
    detector, _, _ = open_network(lively, "cpu", None)
    dataset = open_dataset(work / "digits.yaml", tmp_path)
    loader = make_loader(dataset.splits["val"], dataset.names, 64, 5, train=False)
    expected = evaluate(detector, loader, dataset.names)
    assert result["metrics"]["map50_95"] == pytest.approx(expected["map50_95"], abs=1e-9)
    assert result["metrics"]["map50_95"] > 0 and result["split"] == "val"
    cost = YoloSpace(SPACE, nc=10).cost(result["arch"], 64)
    assert {k: result["metrics"][k] for k in cost} == pytest.approx(cost)
    assert result["metrics"]["latency_ms"] > 0
    assert json.loads((tmp_path / "e.json").read_text()) == result


@pytest.mark.slow
def test_stock_ultralytics_scores_an_export_but_for_how_it_interpolates(work, lively, tmp_path):
    """In a process without this package; their AP interpolates a little differently from COCO's."""
    ours = json.loads((lively.parent / "result.json").read_text())["metrics"]
    export_arch(work / "arch.json", "pt", weights=lively, out=tmp_path / "x.pt")
    card = export_yolo(open_dataset(work / "digits.yaml", tmp_path), tmp_path / "yolo")
    body = f"""
model = YOLO({str(tmp_path / "x.pt")!r})
quiet = dict(workers=0, device="cpu", plots=False, verbose=False)
box = model.val(data={str(card)!r}, rect=False, batch=8, **quiet).box
print(json.dumps({{"map50_95": float(box.map), "map50": float(box.map50)}}))
"""
    theirs = isolated(body, tmp_path)
    assert theirs["map50_95"] == pytest.approx(ours["map50_95"], abs=0.005)
    assert theirs["map50"] == pytest.approx(ours["map50"], abs=0.01)


def test_export_by_command_and_again(work, trained, tmp_path, capsys):
    arch, weights = str(work / "arch.json"), str(trained / "last.pt")
    command = ["export", arch, "--weights", weights, "--format", "pt", "--out", str(tmp_path / "x.pt")]
    assert main(command) == 0
    assert "loaded again" in capsys.readouterr().out
    assert main(command) == 2
    assert "never overwritten" in capsys.readouterr().err
    # An export is as good as the weights it was made of.
    again = export_arch(work / "arch.json", "pt", weights=tmp_path / "x.pt", out=tmp_path / "y.pt")
    assert again.max_difference == 0.0 and same(bits(tmp_path / "x.pt"), bits(tmp_path / "y.pt"))


# Predicting --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {"wide.png": (48, 100, 3), "deep/tall.jpg": (90, 40, 3)}.items():
        cv2.imwrite(str(folder / name), rng.integers(0, 255, shape, np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures(lively, pictures, tmp_path, capsys):
    import cv2

    done = predict(lively, pictures, tmp_path / "out", conf=0.001, device="cpu")
    assert [p.relative_to(tmp_path / "out") for p in done.written] == [
        Path("deep/tall.jpg"),
        Path("wide.png"),
    ]
    assert done.objects > 0
    drawn = cv2.imread(str(tmp_path / "out/wide.png"))
    assert drawn.shape == (48, 100, 3) and (drawn != cv2.imread(str(pictures / "wide.png"))).any()
    assert "broken.jpg: not a picture" in capsys.readouterr().out


def test_pictures_are_prepared_as_for_validation(lively, pictures):
    import cv2

    detector, side, _ = open_network(lively, "cpu", None)
    none = np.zeros((0, 4), np.float32)
    for name, shape in {"wide.png": (48, 100), "deep/tall.jpg": (90, 40)}.items():
        sample = Sample(pictures / name, none, np.zeros(0, np.int64), shape)
        batch = next(iter(make_loader([sample], detector.names, side, 1, train=False)))
        expected = detector.predict(batch["img"].float() / 255, conf=0.001)[0]
        found = find_objects(detector, cv2.imread(str(pictures / name)), side, 0.001, 0.7)
        boxes = to_original(expected["boxes"].double().numpy(), batch, 0)
        np.testing.assert_allclose(found["scores"], expected["scores"].numpy(), atol=1e-6)
        np.testing.assert_allclose(found["boxes"], boxes, atol=1e-3)


def test_formats_that_nobody_writes_become_png_and_16_bits_are_as_in_training(lively, tmp_path):
    import cv2
    from PIL import Image

    source = tmp_path / "in"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("a.mpo", "a.jp2", "a.gif", "a.webp"):
        Image.fromarray(noise).save(source / name)
    assert cv2.imwrite(str(source / "a.tiff"), noise.astype(np.uint16) * 257)
    (source / "float.tif").write_bytes(b"II*\0")
    done = predict(lively, source, tmp_path / "out", conf=1.0, device="cpu")
    assert [p.name for p in done.written] == ["a.gif", "a.jp2.png", "a.mpo.png", "a.tiff", "a.webp"]
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "a.tiff")), noise)
    assert [p.name for p, _ in done.unreadable] == ["float.tif"]


def test_a_video(lively, tmp_path):
    import cv2

    source = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(5):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    done = predict(lively, source, tmp_path / "out", conf=0.001, device="cpu")
    video = cv2.VideoCapture(str(done.written[0]))
    assert (done.written[0].name, video.get(cv2.CAP_PROP_FRAME_COUNT)) == ("v.mp4", 5)
    assert (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FPS)) == (64, 10)


# The steps after a search ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(work):
    """A run folder as a search of two trials leaves it."""
    text = {
        "name": "searched",
        "space": str(work / "tiny.yaml"),
        "data": str(work / "digits.yaml"),
        "imgsz": 64,
        "threads": 1,
        "device": "cpu",
        "train": {"epochs": 1, "batch": 8},
        "search": {"max_trials": 2, "top_k": 1},
        "retrain": {"epochs": 2},
        "steps": ["search"],
    }
    (work / "experiment.yaml").write_text(yaml.safe_dump(text))
    run = RunFolder.create(work / "searched", load_experiment(work / "experiment.yaml"))
    space = YoloSpace(SPACE, nc=10)
    for number, arch in enumerate([space.default(), space.random(np.random.default_rng(1))]):
        detector = build(space, arch, [str(i) for i in range(10)])
        run.trial_dir(number).mkdir(parents=True)
        save_weights(run.trial_dir(number) / "weights.pt", detector, space, arch, imgsz=64)
        run.history.append(Trial(number, arch, {"map50_95": 0.1 * number}, reward=0.1 * number))
    exp = run.experiment
    write_top(run.path, run.history.load(), 1, space=exp.space, data=exp.data, imgsz=64)
    return run


def test_retrain_evaluate_and_export_the_top(searched):
    retraining.retrain_top(searched)
    findings.evaluate_top(searched)
    export.export_top(searched)
    record = load_arch_file(searched.path / "top/1.json")
    assert record["metrics"] == {"map50_95": 0.1}  # what the search scored stays what it was
    assert record["retrained"]["epochs"] == 2 and record["retrained"]["split"] == "val"
    # the untrained weights of the trial are scored too, and so is the baseline; the best are taken
    own = [json.loads((searched.path / f"evaluate/{n}/result.json").read_text()) for n in ("0000", "0001")]
    assert [r["weights"] for r in own] == ["trials/0000/weights.pt", "trials/0001/weights.pt"]
    retrained = record["retrained"]["metrics"]["map50_95"]
    assert retrained >= own[1]["metrics"]["map50_95"]
    assert record["evaluated"]["weights"] == "retrain/0001/last.pt"
    assert record["evaluated"]["metrics"]["map50_95"] == pytest.approx(retrained, abs=1e-6)
    assert {p.name for p in (searched.path / "retrain").iterdir()} == {"0000", "0001"}  # and the baseline
    there = searched.path / "evaluate/0001"
    seen = json.loads((there / "findings.json").read_text())
    assert seen["weights"] == "retrain/0001/last.pt" and seen["metrics"] == record["evaluated"]["metrics"]
    assert {f"{p['file']}" for p in seen["pictures"]} == {p.name for p in there.glob("*.jpg")} != set()
    blocks = json.loads((there / "network.json").read_text())["blocks"]
    assert blocks[-1]["kind"] == "Detect" and len(blocks) == len(SPACE["backbone"] + SPACE["head"])
    assert "What it finds" in write_report(searched.path, png=False).read_text()
    assert record["exported"]["pt"]["max_difference"] == 0.0
    assert same(bits(searched.path / "top/1.pt"), strip(bits(searched.path / "retrain/0001/last.pt")))


def strip(state):
    return {k.removeprefix("model."): v for k, v in state.items()}


def test_a_step_done_is_not_done_again(searched, capsys):
    files = [searched.path / f"retrain/{n}/last.pt" for n in ("0000", "0001")]
    retraining.retrain_top(searched)
    stamps = [f.stat().st_mtime_ns for f in files]
    retraining.retrain_top(searched)
    assert [f.stat().st_mtime_ns for f in files] == stamps


def test_commands_find_what_lies_around_a_top_model(searched):
    found = open_arch_file(searched.path / "top/1.json")
    assert found.run == searched.path and found.weights().exists()
    assert found.settings()["train"]["batch"] == 8
    moved = searched.path.parent / "moved"
    shutil.copytree(searched.path, moved)
    assert open_arch_file(moved / "top/1.json").space == moved / "space/tiny.yaml"


def test_the_family_is_trained_as_trials_are(work, searched, tmp_path):
    wide = {**SPACE, "width_multiple": 2.0}
    (work / "wide.yaml").write_text(yaml.safe_dump(wide))
    text = yaml.safe_load((work / "experiment.yaml").read_text())
    text |= {
        "family": [str(work / "tiny.yaml"), str(work / "wide.yaml")],
        "steps": ["baselines"],
        "name": "family",
    }
    (work / "family.yaml").write_text(yaml.safe_dump(text))
    run = RunFolder.create(tmp_path / "family", load_experiment(work / "family.yaml"))
    baselines.train_baselines(run)
    trials = run.history.load()
    assert [t.arch for t in trials] == [{"model": "tiny"}, {"model": "wide"}]
    for trial, model in zip(trials, (SPACE, wide), strict=True):
        space = YoloSpace(model, nc=10)
        assert trial.metrics["gflops"] == space.cost(space.default(), 64)["gflops"]
        assert trial.metrics["val_images"] == 8  # search_val, as for every trial
        assert (trial.state, trial.seed, len(trial.curve)) == ("complete", 0, 1)
    baselines.train_baselines(run)
    assert len(run.history.load()) == 2


# Archs of elastic spaces, weights of supernets ---------------------------------------------------------

MINI = {
    "network": "retinanet",
    "nc": 80,
    "backbone": {
        "depth": {"min": 1, "max": [1, 2, 1, 1, 1]},
        "out_channel": {"min": 8, "max": 16, "stride": 8},
    },
    "neck": {"depth": [2, 3], "out_channel": 16},
    "head": {"depth": [1], "out_channel": {"values": [8, 16]}},
    "options": {"anchor_scales": [1.0, 2.0], "anchor_ratios": [1.0]},
}
CLASSES = {
    "network": "regnet",
    "nc": 1000,
    "backbone": {"depth": 1, "out_channel": {"min": 8, "max": 16, "stride": 8}, "group_width": 8},
    "resolution": [32, 64],
}
ON_CPU = ["threads=1", "device=cpu", "train.batch=8"]


@pytest.fixture
def briefly(monkeypatch):
    """Latency in tenths of a second instead of six."""

    def latency(net, side, device, reference=None):
        return honest(net, side, device, reference=measure_reference(side, device, seconds=0.1), seconds=0.1)

    honest, measure_reference = measure.latency, measure.measure_reference
    monkeypatch.setattr(measure, "latency", latency)


@pytest.fixture(scope="module", params=[MINI, CLASSES], ids=["retinanet", "regnet"])
def inherited(request, work):
    """(folder, arch file, supernet's weights, its arch): an untrained supernet of ten digits."""
    folder = work / request.param["network"]
    folder.mkdir()
    (folder / "space.yaml").write_text(yaml.safe_dump(request.param))
    torch.manual_seed(0)
    supernet = Supernet(request.param, 10)
    net, space = supernet.net, supernet.space
    net.names = [str(i) for i in range(10)]
    schedule = {"epochs": 11, "lr": 0.02}
    save_weights(folder / "supernet.pt", net, space, {}, imgsz=64, supernet=True, train=schedule)
    arch = space.random(np.random.default_rng(2))
    write_arch(folder / "arch.json", work, space="space.yaml", arch=arch)
    return folder, folder / "arch.json", folder / "supernet.pt", arch


def test_a_slice_is_scored_with_statistics_of_training_images(inherited, work, tmp_path, briefly):
    folder, file, weights, arch = inherited
    result = evaluate_arch(file, ON_CPU, weights=weights)
    space = open_any_space(folder / "space.yaml", nc=10)
    assert result["arch"] == arch and result["imgsz"] == arch.get("resolution", 64)
    cost = space.cost(arch, 64)
    assert {k: result["metrics"][k] for k in cost} == pytest.approx(cost)
    # By hand: the slice, the same images, the task's score.
    dataset, task = open_dataset(work / "digits.yaml", tmp_path, task=space.task), TASKS[space.task]
    images = list(training_images(dataset, task, result["imgsz"], 8, torch.device("cpu"), 2048))
    assert {len(part) for part in images} <= {len(images[0]), len(images[0]) - 1}
    assert sum(map(len, images)) == len(dataset.splits["train"])
    net = sliced(read_weights(weights), space, arch, batches=images)
    loader = task.make_loader(dataset.splits["val"], dataset.names, result["imgsz"], 16, train=False)
    expected = task.score(net, loader, dataset.names, torch.device("cpu"), False)
    assert result["metrics"][task.quality] == pytest.approx(expected[task.quality], abs=1e-9)
    assert result["metrics"]["val_images"] == len(dataset.splits["val"])
    assert result["metrics"]["latency_ms"] > 0


def test_finetuning_a_slice_then_everything_else(inherited, tmp_path, pictures, capsys, briefly):
    folder, file, weights, arch = inherited
    result = finetune(file, weights, ON_CPU, out=tmp_path / "f")
    assert "slice of a supernet): 100.0 % of the numbers" in capsys.readouterr().out
    assert result["started_from"]["share"] == 1.0
    assert (result["train"]["epochs"], result["train"]["lr"]) == (2, pytest.approx(0.002))  # a tenth of 11
    assert result["train"]["warmup_epochs"] == 0.2 and result["imgsz"] == arch.get("resolution", 64)
    last = tmp_path / "f/last.pt"
    assert read_weights(last).arch == arch and not read_weights(last).meta.get("supernet")
    quality = TASKS[open_any_space(folder / "space.yaml").task].quality
    scored = evaluate_arch(file, ON_CPU, weights=last)
    assert scored["metrics"][quality] == pytest.approx(result["metrics"][quality], abs=1e-6)
    said = export_arch(file, "onnx", weights=last, out=tmp_path / "x.onnx")
    assert said.max_difference < 1e-4
    done = predict(last, pictures, tmp_path / "out", conf=0.0, device="cpu")
    assert done.objects >= len(done.written) == 2


def test_exports_and_pictures_of_a_supernet(inherited, tmp_path, pictures):
    folder, file, weights, arch = inherited
    said = export_arch(file, "onnx", weights=weights, out=tmp_path / "x.onnx")  # the file says its data
    assert said.max_difference < 1e-4
    record = json.loads(file.read_text())
    del record["data"]
    (folder / "no_data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="re-estimated on training images; give --data DATA, or the weights"):
        export_arch(folder / "no_data.json", "onnx", weights=weights)
    with pytest.raises(UserError, match="is a supernet's, of no one architecture"):
        predict(weights, pictures, tmp_path / "out", device="cpu")


def test_an_arch_spelled_out_as_subnet_settings(inherited):
    folder, file, weights, arch = inherited
    space, record = open_any_space(folder / "space.yaml"), json.loads(file.read_text())
    record["subnet_settings"] = space.settings(arch)
    assert arch_of(record, space) == arch
    del record["arch"]
    (folder / "settings.json").write_text(json.dumps(record | {"imgsz": arch.get("resolution", 64)}))
    assert open_arch_file(folder / "settings.json").arch == arch
    other = next(a for a in map(space.random, map(np.random.default_rng, range(9))) if a != arch)
    if other.get("resolution") == arch.get("resolution"):
        with pytest.raises(UserError, match="arch and subnet_settings contradict each other: its backbone"):
            arch_of(record | {"arch": other}, space)
    with pytest.raises(UserError, match=r"unknown dim of backbone 'width'"):
        arch_of(record | {"subnet_settings": {"backbone": {"depth": [1] * 5, "width": [8] * 5}}}, space)
    with pytest.raises(UserError, match="subnet_settings belong to spaces with a `network`"):
        arch_of(record, YoloSpace(SPACE))


def test_mistakes_with_supernets(inherited, work, trained, capsys):
    folder, file, weights, arch = inherited
    space = open_any_space(folder / "space.yaml", nc=10)
    more = open_any_space({**space.model, "backbone": {**space.model["backbone"], "depth": 1}}, nc=10)
    if more.model == space.model:
        more = open_any_space({**space.model, "options": {"squeeze": 0.5}}, nc=10)
    other = Supernet(more.model, 10).net
    save_weights(folder / "other.pt", other, more, {}, imgsz=64, supernet=True)
    few = Supernet(space.model, 3).net
    save_weights(folder / "few.pt", few, open_any_space(space.model, 3), {}, imgsz=64, supernet=True)
    for path, expected in {
        "other.pt": "is a supernet of another space",
        "few.pt": "were trained for the classes 0, 1, 2, not 0, 1,",
    }.items():
        assert main(["evaluate", str(file), "--weights", str(folder / path), *ON_CPU]) == 2
        assert expected in capsys.readouterr().err
    if "resolution" in arch:
        side = 96 - arch["resolution"]
        assert main(["evaluate", str(file), "--weights", str(weights), f"imgsz={side}"]) == 2
        assert f"whose resolution is {arch['resolution']}" in capsys.readouterr().err


# Mistakes: one line, exit status 2, nothing written ----------------------------------------------------


def test_mistakes_are_one_line_each(work, trained, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arch, weights = str(work / "arch.json"), str(trained / "last.pt")
    record = json.loads((work / "arch.json").read_text())
    known = record["arch"]
    (tmp_path / "bad.pt").write_bytes(Path(weights).read_bytes()[:3000])
    (tmp_path / "exists").mkdir()
    (tmp_path / "exists/file").write_text("mine")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise/a.png").write_bytes(b"noise")

    def variant(name, **changes):
        return str(write_arch(work / f"{name}.json", work, **changes))

    other = YoloSpace({**SPACE, "width_multiple": 2.0})
    save_weights(tmp_path / "other.pt", build(other, other.default()), other, other.default(), imgsz=64)
    for command, expected in {
        ("retrain", "absent.json"): "no file 'absent.json'",
        ("retrain", variant("schema", schema=9)): "has schema 9",
        ("retrain", variant("label", arch={**known, "nasconv_9": "3x3"})): "unknown choice",
        ("retrain", variant("value", arch={**known, "nasconv_0": "9x9"})): "unknown value of nasconv_0 '9x9'",
        ("retrain", variant("foreign", arch={"backbone.width": 3})): "unknown choice",
        ("retrain", variant("homeless", space="gone.yaml")): "its space 'gone.yaml' does not exist",
        ("retrain", arch, "--out", "exists"): "never overwritten",
        ("retrain", arch, "train.epoch=3"): "did you mean 'train.epochs'",
        ("retrain", arch, "search.max_trials=3"): "has no meaning here",
        ("retrain", arch, "--data", "gone"): "'gone' does not exist",
        ("retrain", arch, "--weights", "gone.pt"): "no weights 'gone.pt'",
        ("retrain", arch, "--weights", "bad.pt", "--out", "r1"): "no whole weight file",
        ("evaluate", arch): "give them by --weights",
        ("evaluate", arch, "--weights", "bad.pt"): "no whole weight file",
        ("evaluate", arch, "--weights", "other.pt"): "of another architecture",
        ("evaluate", arch, "--weights", weights, "--split", "test"): "no split 'test'; it has train",
        ("export", arch, "--weights", weights, "--format", "onx"): "did you mean 'onnx'",
        ("predict", "gone.pt", str(pictures)): "no weights 'gone.pt'",
        ("predict", weights, "gone"): "no picture, video or folder 'gone'",
        ("predict", weights, str(pictures), "--out", "exists"): "never overwritten",
        ("predict", weights, "noise", "--out", "p"): "nothing in noise could be decoded",
        ("predict", weights, str(pictures), "--imgsz", "50", "--out", "p"): "multiple of",
        ("predict", weights, str(pictures), "--conf", "2", "--out", "p"): "between 0 and 1",
    }.items():
        assert main(list(command)) == 2, command
        err = capsys.readouterr().err.strip()
        assert err.startswith("error: ") and "\n" not in err and expected in err, (command, err)
    assert not (tmp_path / "p").exists()
    assert (tmp_path / "exists/file").read_text() == "mine"


def test_mistakes_are_answered_without_torch(work):
    """In well under two seconds: nothing heavy is imported before the arguments were looked at."""
    code = (
        "import sys; from hello_nas import main; "
        "status = main(sys.argv[1:]); assert 'torch' not in sys.modules and status == 2"
    )
    for command in (["retrain", str(work / "arch.json"), "train.epoch=3"], ["export", "absent.json"]):
        run = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_a_pickled_network_cannot_say_what_it_is_for_predictions(trained, pictures, tmp_path):
    space = YoloSpace(SPACE, nc=10)
    torch.save({"model": build(space, space.default()).model}, tmp_path / "n.pt")
    with pytest.raises(UserError, match="does not say what its network is"):
        predict(tmp_path / "n.pt", pictures, tmp_path / "out")
    assert metrics_line({"map50_95": 0.5, "other": 1}) == "map50_95 0.5"
    assert os.listdir(tmp_path) == ["n.pt"]
