"""A supernet from training to export on tiny data; what is resumed, what is refused."""

import json

import pytest
import torch
import yaml

import hello_nas
from experiments import slices, supernet
from experiments.arch_file import open_arch_file
from experiments.config import load_experiment
from experiments.job import job_of
from experiments.run_folder import RunFolder
from models.weights import read_weights
from utils.history import History

RETINANET = {
    "network": "retinanet",
    "backbone": {
        "depth": {"min": [1, 1, 1, 1, 1], "max": [1, 2, 1, 1, 1], "sample": "stage"},
        "out_channel": {"min": 8, "max": 16, "stride": 8, "sample": "stage"},
    },
    "neck": {"depth": [3, 4], "out_channel": 16},
    "head": {"depth": [1], "out_channel": {"min": 8, "max": 16, "stride": 8}},
    "options": {"anchor_scales": [2, 3], "anchor_ratios": [1]},
}
BLOCKS = {
    "train": {"epochs": 2, "batch": 12, "val_every": 2, "lr": 0.003},
    "supernet": {"calibration": 16, "sampling": {"name": "stratified", "pool": 50, "bins": 4}},
    "sample": {"n": 50},
    "sample_accuracy": {"n": 5},
    "search": {"engine": "inline", "strategy": "random", "max_trials": 4, "top_k": 2},
    "rank": {"n": 3, "seeds": [0], "train": {"epochs": 1}},
}


@pytest.fixture
def shared(tiny):
    """The tiny experiment with a supernet: of the thin YOLO. There are `space=sizes.yaml`, the same at two
    image sizes, and `space=retinanet.yaml`, too."""
    experiment = yaml.safe_load(tiny.read_text()) | BLOCKS | {"name": "shared"}
    (tiny.parent / "shared.yaml").write_text(yaml.safe_dump(experiment))
    thin = yaml.safe_load((tiny.parent / "thin_nas.yaml").read_text())
    (tiny.parent / "sizes.yaml").write_text(yaml.safe_dump(thin | {"resolution": [96, 64]}))
    (tiny.parent / "retinanet.yaml").write_text(yaml.safe_dump(RETINANET))
    return tiny.parent / "shared.yaml"


def run(*arguments):
    return hello_nas.main(["run", *map(str, arguments)])


def fails(capsys, *arguments):
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


STEPS = "supernet,sample,sample_accuracy,search,evaluate,finetune,export,report"


@pytest.mark.slow
@pytest.mark.parametrize("space", ["sizes.yaml", "retinanet.yaml"])
def test_every_step_runs_and_a_resumed_run_repeats_nothing(shared, capsys, space):
    assert run(shared, f"space={space}", "--steps", STEPS) == 0
    folder = shared.parent / "runs" / "shared"
    job = job_of(str(folder))
    trials = History(folder / "history.jsonl").load()
    assert [t.number for t in trials] == [0, 1, 2, 3] and all(t.state == "complete" for t in trials)
    assert trials[0].arch == job.space.default()
    measured = History(folder / "sample_accuracy" / "history.jsonl").load()
    assert len({t.key for t in measured}) == 5
    assert measured[0].arch == job.space.smallest() and measured[1].arch == job.space.largest()
    best = open_arch_file(folder / "top" / "1.json")
    kept = read_weights(folder / "trials" / f"{best.record['trial']:04d}" / "weights.pt")
    net = slices.sliced(job, best.arch)
    assert kept.state.keys() == net.state_dict().keys()
    assert all(torch.equal(kept.state[k], v) for k, v in net.state_dict().items())
    score = slices.score_slice(job, best.arch)
    assert {k: v for k, v in score.items() if "ms" not in k}.items() <= best.record["metrics"].items()
    record = json.loads((folder / "top" / "1.json").read_text())
    assert record["evaluated"]["split"] == record["finetuned"]["split"] == "val"
    assert record["exported"]["onnx"]["max_difference"] < 1e-3

    written = {p: p.stat().st_mtime_ns for p in folder.glob("**/weights.pt")}
    lines = (folder / "sample_accuracy" / "history.jsonl").read_bytes()
    assert run(shared, f"space={space}", "--steps", STEPS, "--resume", "sample_accuracy.n=6") == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("**/weights.pt")} == written
    longer = (folder / "sample_accuracy" / "history.jsonl").read_bytes()
    assert longer.startswith(lines) and longer.count(b"\n") > 5
    again = json.loads((folder / "top" / "1.json").read_text())
    # evaluated before it was fine-tuned, then with the better of both
    scores = [r["metrics"]["map50_95"] for r in (record["evaluated"], record["finetuned"])]
    assert record["evaluated"]["weights"].startswith("trials/")
    assert again["evaluated"]["weights"].startswith("finetune/" if scores[1] >= scores[0] else "trials/")
    assert again["evaluated"]["metrics"]["map50_95"] == pytest.approx(max(scores), abs=1e-9)
    assert again["exported"]["weights"] == again["evaluated"]["weights"]


def test_a_resumed_supernet_has_the_same_bits(shared, monkeypatch):
    whole = RunFolder.create(shared.parent / "whole", load_experiment(shared))
    supernet.train_supernet(whole)

    broken = load_experiment(shared, ["train.checkpoint_seconds=0"])
    stopped = RunFolder.create(shared.parent / "stopped", broken)
    with monkeypatch.context() as patch:
        log = "utils.training.loggers.CsvLogger.log"
        patch.setattr(log, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            supernet.train_supernet(stopped)
    assert (stopped.path / "supernet" / "checkpoint.pt").is_file()
    supernet.train_supernet(stopped)
    a, b = (read_weights(r.path / "supernet" / "weights.pt").state for r in (whole, stopped))
    assert all(torch.equal(a[k], b[k]) for k in a)
    result = json.loads((stopped.path / "supernet" / "result.json").read_text())
    assert result["steps"] == 4 and [row["epoch"] for row in result["curve"]] == [1, 2]
    assert {"max_map50_95", "min_map50_95"} == result["metrics"].keys()
    assert "loss/min_distil_cls" in result["curve"][0] and "loss/max_distil_cls" not in result["curve"][0]


@pytest.mark.slow
def test_rank_compares_slices_with_trainings_from_scratch(shared, capsys):
    assert run(shared, "--steps", "supernet,rank") == 0
    folder = shared.parent / "runs" / "shared" / "rank"
    found = json.loads((folder / "rank.json").read_text())
    trainings = History(folder / "trainings.jsonl").load()
    assert len(trainings) == len(found["rows"]) == 3
    job = job_of(str(folder.parent))
    for row, trial in zip(found["rows"], trainings, strict=True):
        assert row["standalone"] == {"0": trial.metrics["map50_95"]}
        assert row["supernet"] == slices.score_slice(job, row["arch"])["map50_95"]
        assert row["gflops"] == job.space.cost(row["arch"], 64)["gflops"]
    before = (folder / "trainings.jsonl").read_bytes()
    assert run(shared, "--steps", "rank", "--resume") == 0
    assert (folder / "trainings.jsonl").read_bytes() == before


@pytest.mark.slow
def test_trainings_of_rank_are_the_same_two_at_a_time(shared):
    assert run(shared, "--steps", "supernet,rank") == 0
    path = shared.parent / "runs" / "shared" / "rank" / "trainings.jsonl"
    trainings = History(path).load()
    path.unlink()
    assert run(shared, "--steps", "rank", "--resume", "search.concurrency=2") == 0
    again = History(path).load()
    assert {t.number: t.curve[-1]["loss"] for t in again} == {
        t.number: t.curve[-1]["loss"] for t in trainings
    }


REGNET = {
    "network": "regnet",
    "backbone": {
        "depth": {"min": [1, 1, 1, 1, 1], "max": [1, 1, 2, 1, 1], "sample": "stage"},
        "out_channel": {"min": 8, "max": 16, "stride": 8, "sample": "stage"},
        "group_width": 8,
    },
    "resolution": [32, 64],
}


@pytest.mark.slow
def test_a_classifier_learns_at_several_resolutions_from_the_best_of_a_few(shared, monkeypatch):
    (shared.parent / "regnet.yaml").write_text(yaml.safe_dump(REGNET))
    sizes = set()
    monkeypatch.setattr("experiments.supernet.calibrate", seen := Seen(supernet.calibrate, sizes))
    changes = ["space=regnet.yaml", "supernet.sampling={name: best_of, k: 2}", "supernet.distil.labels=0"]
    assert run(shared, *changes, "--steps", "supernet,search,evaluate,finetune") == 0
    assert seen.sizes == {32, 64}
    folder = shared.parent / "runs" / "shared"
    exp = yaml.safe_load((folder / "experiment.yaml").read_text())
    assert exp["search"]["objectives"] == {"top1": "max", "gflops": "min"}
    job = job_of(str(folder))
    for trial in History(folder / "history.jsonl").load():
        assert trial.reward == trial.metrics["top1"]
        assert trial.metrics["gflops"] == job.space.cost(trial.arch, trial.arch["resolution"])["gflops"]
    record = json.loads((folder / "top" / "1.json").read_text())
    assert record["subnet_settings"] == job.space.settings(record["arch"])
    assert "top1" in record["finetuned"]["metrics"]


class Seen:
    """A function that notes the sides of the images it is given."""

    def __init__(self, function, sizes):
        self.function, self.sizes = function, sizes

    def __call__(self, net, batches, images):
        batches = list(batches)
        self.sizes |= {batch.shape[-1] for batch in batches}
        return self.function(net, batches, images)


def test_a_run_keeps_the_plugin_that_its_space_names(shared):
    plugin = (hello_nas.ROOT / "models" / "backbones" / "resnet.py").read_text()
    (shared.parent / "mine.py").write_text(plugin)
    network = {"detector": "retinanet", "backbone": "mine.py"}
    (shared.parent / "mine.yaml").write_text(yaml.safe_dump(RETINANET | {"network": network}))
    run_folder = RunFolder.create(shared.parent / "kept", load_experiment(shared, ["space=mine.yaml"]))
    (shared.parent / "mine.py").unlink()
    reopened = RunFolder.open(run_folder.path)
    space = job_of(str(reopened.path)).space
    assert space.composed.backbone == run_folder.path / "space" / "mine.py"
    supernet.train_supernet(reopened)
    assert (run_folder.path / "supernet" / "weights.pt").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("supernet.subnets=[min,max]", "max should come first"),
        ("supernet.sampling=stratifed", "stratified"),
        ("supernet.sampling={name: best_of, of: 3}", "unknown key 'supernet.sampling.of'"),
        ("supernet.sampling={name: best_of, k: -1}", "supernet.sampling.k: -1"),
        ("supernet.sampling={name: best_of, bins: 9, pool: 8}", "pool >= bins, got bins=9, pool=8"),
        ("supernet.sampling={name: stratified, k: 2}", "stratified sampling has no k"),
        ("supernet.sampling={name: uniform, bins: 9}", "uniform sampling has no bins"),
        ("rank.seeds=[1,1]", "each seed once"),
        ("supernet.distil.mimic=[{layers: [model.model.99]}]", "model.model.99"),
        ("supernet.distil.teachers={big: none.pt}", "big"),
        ("sample_accuracy.gflops=[5, 6]", "nearest"),
        ("sample_accuracy.gflops=[6, 5]", "the smaller one first"),
        ("search.objectives={top5: max, gflops: min}", "map50"),
        ("supernet.calibraton=3", "supernet.calibration"),
    ],
)
def test_what_a_supernet_cannot_have_is_said_before_anything_is_written(shared, capsys, change, said):
    assert said in fails(capsys, shared, change, "steps=[supernet,sample_accuracy]")
    assert not (shared.parent / "runs" / "shared").exists()


def test_no_more_gpus_than_there_are(shared, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "torch finds 2 CUDA devices" in fails(capsys, shared, "device=cuda", "supernet.devices=3")
    assert not (shared.parent / "runs" / "shared").exists()


def test_steps_in_the_wrong_order_say_what_is_missing(shared, tiny, capsys):
    assert "needs a `supernet:` block" in fails(capsys, tiny, "steps=[rank]")
    assert "step `supernet` first" in fails(capsys, shared, "steps=[search]")
    assert "step `supernet` first" in fails(capsys, shared, "steps=[rank]", "name=ranked")
    assert not (shared.parent / "runs" / "ranked" / "rank").exists()


def test_a_supernet_of_another_space_is_refused(shared):
    run_folder = RunFolder.create(shared.parent / "one", load_experiment(shared, ["train.epochs=1"]))
    supernet.train_supernet(run_folder)
    job = job_of(str(run_folder.path))
    file = read_weights(run_folder.path / "supernet" / "weights.pt")
    other = type(job.space)(job.space.model | {"width_multiple": 0.25}, job.space.nc)
    with pytest.raises(ValueError, match="another space.*width_multiple is 0.125, here it is 0.25"):
        slices.load_supernet(file, other)
    with pytest.raises(ValueError, match="10 classes, here there are 3"):
        slices.load_supernet(file, type(job.space)(job.space.model, 3))


@pytest.mark.slow  # two processes that import torch and NNI
def test_two_processes_train_one_supernet(shared):
    run_folder = RunFolder.create(
        shared.parent / "two", load_experiment(shared, ["supernet.devices=2", "space=retinanet.yaml"])
    )
    supernet.train_supernet(run_folder)
    result = json.loads((run_folder.path / "supernet" / "result.json").read_text())
    assert result["steps"] == 2  # 24 images, 12 on each of two: one step an epoch
