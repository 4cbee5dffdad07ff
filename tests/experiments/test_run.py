"""A whole search in process, and what a person sees who makes a mistake."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import hello_nas
from data.hyp import load_hyp
from experiments import evaluators, search, training
from experiments.arch_file import open_arch_file
from experiments.config import load_experiment
from experiments.job import job_of
from experiments.run_folder import RunFolder
from models.weights import read_weights
from utils.errors import UserError
from utils.history import History, arch_key
from utils.report.results import load_arch_file
from utils.training.evaluate import evaluate

ROOT = Path(hello_nas.__file__).parent


def run(*arguments):
    return hello_nas.main(["run", *map(str, arguments)])


def test_a_search_leaves_everything_behind_and_the_metrics_are_those_of_the_arch(tiny, capsys):
    card = tiny.parent / "digits.yaml"
    card.write_text(card.read_text().replace("search_train: 24", "search_train: 160"))
    assert run(tiny, "train.epochs=5", "search.max_trials=2", "loggers=[tensorboard]") == 0
    folder = tiny.parent / "runs" / "tiny"
    trials = History(folder / "history.jsonl").load()
    assert [t.number for t in trials] == [0, 1]
    assert all(t.state == "complete" for t in trials)
    job = job_of(str(folder))
    assert trials[0].arch == job.space.default()
    for trial in trials:
        assert job.space.cost(trial.arch, 64).items() <= trial.metrics.items()

    top = json.loads((folder / "top_models.json").read_text())
    best = max(trials, key=lambda t: t.reward)
    assert [top[0]["trial"], top[0]["arch"]] == [best.number, best.arch]
    assert best.metrics["map50_95"] > 0.001  # or the comparison below would say nothing
    assert load_arch_file(folder / "top" / "2.json") == top[1]
    assert {t.number for t in trials if (folder / f"trials/{t.number:04d}/weights.pt").exists()} >= {
        0,
        best.number,
    }
    assert (folder / "results.csv").read_text().count("\n") == 3
    assert (folder / "trials" / "0001" / "log.csv").read_text().count("\n") == 6  # a header, five epochs
    assert list((folder / "trials" / "0001" / "tensorboard").glob("events*"))
    assert "baseline" in capsys.readouterr().out

    # The weights that were kept, in a network built from the arch that was written, score as written.
    from data.loader import make_loader
    from models.networks import build
    from models.weights import load_weights

    detector = build(job.space, best.arch)
    load_weights(detector, folder / f"trials/{best.number:04d}/weights.pt")
    loader = make_loader(job.dataset.splits["search_val"], job.dataset.names, 64, 24, train=False)
    again = evaluate(detector, loader, job.dataset.names)
    assert again["map50_95"] == pytest.approx(best.metrics["map50_95"], abs=1e-6)


def test_a_resumed_search_keeps_what_was_finished_and_completes_the_budget(tiny):
    assert run(tiny, "search.max_trials=2") == 0
    folder = tiny.parent / "runs" / "tiny"
    before = (folder / "history.jsonl").read_text()
    assert run(tiny, "search.max_trials=3", "--resume") == 0
    after = (folder / "history.jsonl").read_text()
    assert after.startswith(before)
    keys = [arch_key(t.arch) for t in History(folder / "history.jsonl").load()]
    assert len(keys) == len(set(keys)) == 3


def test_the_same_seed_gives_the_same_weights(tiny):
    for name in ("a", "b"):
        assert run(tiny, "search.max_trials=1", "--run-dir", tiny.parent / name) == 0
    one, two = (torch.load(tiny.parent / n / "trials/0000/weights.pt") for n in "ab")
    assert all(torch.equal(one["state"][k], two["state"][k]) for k in one["state"])


def test_a_trial_that_fails_is_a_line_with_its_reason_and_the_search_goes_on(tiny, capsys):
    assert run(tiny, "train={lr: 1e+30, clip: 0, warmup_epochs: 0, epochs: 3, batch: 12}") == 2
    assert "error: no trial completed; the last one failed: loss became" in capsys.readouterr().err
    trials = History(tiny.parent / "runs/tiny/history.jsonl").load()
    assert len(trials) == 3
    assert {t.state for t in trials} == {"failed"}
    assert all("loss became" in t.reason for t in trials)
    assert not (tiny.parent / "runs/tiny/top/1.json").exists()


def test_a_crash_of_one_trial_is_its_own(tiny, monkeypatch):
    real, seen = training.train, []

    def broken_at_the_second(*args, **kwargs):
        seen.append(1)
        if len(seen) == 2:
            raise MemoryError("out of it")
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "train", broken_at_the_second)
    assert run(tiny) == 0
    states = [(t.state, t.reason) for t in History(tiny.parent / "runs/tiny/history.jsonl").load()]
    assert states == [("complete", None), ("failed", "MemoryError: out of it"), ("complete", None)]


def test_limits_are_checked_before_training_and_are_no_trials(tiny):
    space = load_experiment(tiny).space
    from models.yolo.space import YoloSpace

    limit = YoloSpace(space, nc=10).cost(YoloSpace(space, nc=10).default(), 64)["gflops"] * 1.25
    assert run(tiny, f"search.limits.gflops=<= {limit}", "search.max_trials=2") == 0
    trials = History(tiny.parent / "runs/tiny/history.jsonl").load()
    trained = [t for t in trials if t.state == "complete"]
    infeasible = [t for t in trials if t.state == "infeasible"]
    assert len(trained) == 2 and all(t.metrics["gflops"] <= limit for t in trained)
    assert all(t.number == -1 and "breaks" in t.reason for t in infeasible)


def test_a_baseline_that_breaks_a_limit_is_measured_but_never_a_winner(tiny, monkeypatch):
    def better_the_larger(job, arch, folder, curve):
        cost = job.space.cost(arch, 64)
        return {"map50_95": cost["gflops"], **cost}

    monkeypatch.setattr(evaluators, "train_and_measure", better_the_larger)
    assert run(tiny, "search.limits.gflops=<= 0.95 baseline", "search.max_trials=3") == 0
    folder = tiny.parent / "runs/tiny"
    baseline, *others = (t for t in History(folder / "history.jsonl").load() if t.state == "complete")
    assert baseline.reward == max(t.reward for t in (baseline, *others))
    assert baseline.reason.startswith("gflops ") and " breaks <= " in baseline.reason
    best = max(others, key=lambda t: t.reward)
    assert json.loads((folder / "top/1.json").read_text())["trial"] == best.number != 0


@pytest.mark.slow
def test_the_image_size_may_be_searched(tiny):
    space = yaml.safe_load((tiny.parent / "thin_nas.yaml").read_text())
    (tiny.parent / "sizes.yaml").write_text(yaml.safe_dump(space | {"resolution": [32, 64]}))
    steps = ("--steps", "search,evaluate,export,report")
    assert run(tiny, "space=sizes.yaml", "search.max_trials=3", *steps) == 0
    folder = tiny.parent / "runs/tiny"
    trials, job = History(folder / "history.jsonl").load(), job_of(str(folder))
    assert trials[0].arch["resolution"] == 64 and {t.arch["resolution"] for t in trials} == {32, 64}
    for trial in trials:
        assert trial.metrics["gflops"] == job.space.cost(trial.arch, 64)["gflops"]
    best = open_arch_file(folder / "top/1.json")
    side = best.arch["resolution"]
    assert read_weights(folder / f"trials/{best.record['trial']:04d}/weights.pt").imgsz == side
    assert best.record["evaluated"]["metrics"]["latency_ms"] > 0
    assert f" {side} px" in (folder / "log.txt").read_text()


MISTAKES = {
    "an unknown key": (["train.epoch=1"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
    "an unknown strategy": (["search.strategy=evolutoin"], "did you mean 'evolution'?"),
    "a strategy's option": (
        ["search.strategy={name: evolution, population: 3}"],
        "did you mean 'population_size'?",
    ),
    "an unknown reward": (["search.reward=mapp"], "did you mean 'map'?"),
    "a reward that pays for slowness": (
        ["search.reward={name: weighted_product, exponent: 0.07}"],
        "would reward slower networks",
    ),
    "an unknown limit": (["search.limits.gflop=<= 3"], "did you mean 'gflops'?"),
    "a limit that is none": (["search.limits.gflops=low"], "write '<= 4', '>= 4'"),
    "limits that no arch meets": (["search.limits.gflops=<= 1e-6"], "the nearest has gflops 0.0"),
    "an unknown objective": (["search.objectives={map: max}"], "unknown metric 'map'"),
    "a missing data set": (["data=nowhere.yaml"], "'nowhere.yaml' does not exist"),
    "a step that is none": (["steps=[serch]"], "did you mean 'search'?"),
    "CUDA that is not there": (["device=cuda"], "use cpu or auto"),
    "an absent run to resume": (["--resume", "--run-dir", "nowhere"], "no run 'nowhere'"),
    "a wrong option": (["--prot", "1"], "--prot"),
    "a logger that is not installed": (["loggers=[mlflow]"], "pip install mlflow"),
    "an unknown logger": (["loggers=[tensorbord]"], "did you mean 'tensorboard'?"),
    "data that are none": (["data=thin_nas.yaml"], "thin_nas.yaml"),
    "a port that does not exist": (["search.engine=nni", "--port", "70000"], "Must be <= 65535"),
    "a training service that is none": (
        ["search.engine=nni", "search.training_service={platform: remte}"],
        "did you mean 'remote'?",
    ),
    "another machine that lacks its user": (
        ["search.engine=nni", "search.training_service={machine_list: [{host: gpu1}]}"],
        "a machine needs 'user'",
    ),
    "GPUs that are not there": (
        ["search.engine=nni", "search.training_service={gpu_indices: [64]}"],
        "CUDA",
    ),
    "a stranger's word": (["oops"], "'oops' is neither a file nor key=value"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_leaves_no_run_behind(tiny, name, capsys):
    arguments, message = MISTAKES[name]
    if name == "CUDA that is not there" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run(tiny, *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]
    assert not (tiny.parent / "runs").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[-1, 1, NASConvv, [64, 6, 2, 2]]", "did you mean 'NASConv'?"),
        ("[7, 1, Conv, [64, 3, 2]]", "7"),
    ],
)
def test_a_broken_space_is_one_line(tiny, row, message, capsys):
    space = tiny.parent / "thin_nas.yaml"
    raw = yaml.safe_load(space.read_text())
    raw["backbone"][0] = yaml.safe_load(row)
    space.write_text(yaml.safe_dump(raw))
    assert run(tiny) == 2
    assert message in capsys.readouterr().err


def test_a_space_of_other_classes_than_the_data_is_refused_but_80_says_nothing(tiny, capsys):
    space = tiny.parent / "thin_nas.yaml"
    space.write_text(space.read_text().replace("nc: 80", "nc: 7"))
    assert run(tiny) == 2
    assert "says nc: 7, but digits has 10 classes" in capsys.readouterr().err


def test_an_existing_run_is_never_overwritten(tiny, capsys):
    folder = tiny.parent / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("precious")
    assert run(tiny) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == "precious"


def test_a_changed_experiment_cannot_be_resumed(tiny):
    exp = load_experiment(tiny)
    RunFolder.create(tiny.parent / "r", exp)
    with pytest.raises(UserError, match="train.epochs was 1 and is now 2"):
        RunFolder.open(tiny.parent / "r").resume_with(load_experiment(tiny, ["train.epochs=2"]))
    with pytest.raises(UserError, match="is not the space of that run"):
        other = tiny.parent / "other.yaml"
        other.write_text((tiny.parent / "thin_nas.yaml").read_text() + "\n# edited\n")
        RunFolder.open(tiny.parent / "r").resume_with(load_experiment(tiny, [f"space={other}"]))
    RunFolder.open(tiny.parent / "r").resume_with(load_experiment(tiny, ["search.max_trials=9"]))
    assert RunFolder.open(tiny.parent / "r").experiment.search.max_trials == 9


def test_a_run_goes_on_with_the_augmentation_that_it_had(tiny):
    """One of a time before `train.hyp: auto` holds the path of a file."""
    fixed = f"train.hyp={ROOT / 'data/hyps/default.yaml'}"
    RunFolder.create(tiny.parent / "r", load_experiment(tiny, [fixed, "train.epochs=60"]))
    run = RunFolder.open(tiny.parent / "r")
    run.resume_with(load_experiment(tiny, ["train.epochs=60"]))
    assert RunFolder.open(tiny.parent / "r").experiment.train.hyp_file.endswith("data/hyps/default.yaml")
    with pytest.raises(UserError, match="train.hyp was"):
        run.resume_with(load_experiment(tiny, ["train.epochs=60", "train.hyp=data/hyps/scratch-low.yaml"]))


def test_what_trains_says_its_augmentation_and_a_retraining_has_its_own(tiny, capsys, monkeypatch):
    seen = {}

    def at_once(job, arch, folder, weights=None, *, kind="retrain", **others):
        seen[kind] = job.hyp
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.training.train_in_full", at_once)
    hyp = "retrain.hyp=data/hyps/scratch-low.yaml"
    assert run(tiny, "search.max_trials=1", hyp, "--steps", "search,retrain") == 130
    assert re.search(r"augmentation: .*hyps/default.yaml, which .* asks for", capsys.readouterr().out)
    assert seen["retrain"] == load_hyp("data/hyps/scratch-low.yaml")


@pytest.mark.slow
def test_the_page_knows_how_many_trials_there_will_be_also_of_a_resumed_run(tiny, monkeypatch):
    asked = []

    def remember(space, evaluator, arguments, strategy, runtime):
        asked.append(runtime.max_trials)
        return real(space, evaluator, arguments, strategy, runtime)

    real = search.run_search
    monkeypatch.setattr(search, "run_search", remember)
    assert run(tiny, "search.max_trials=2") == 0
    assert run(tiny, "search.max_trials=3", "--resume") == 0
    assert asked == [2, 1]
    assert len(History(tiny.parent / "runs/tiny/history.jsonl").load()) == 3


def test_help_and_mistakes_import_nothing_heavy():
    """What makes them slow is torch, NNI and Ultralytics; so none of them may be loaded to answer."""
    code = (
        "import sys, hello_nas\n"
        "hello_nas.main(['--help']); hello_nas.main(['run', 'train.epoch=1'])\n"
        "heavy = {'torch', 'nni', 'ultralytics', 'sklearn', 'plotly', 'matplotlib'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'train.epochs'?" in done.stderr


def test_a_path_that_cannot_be_written_and_a_full_disk_are_one_line(tiny, capsys, monkeypatch):
    taken = tiny.parent / "taken"
    taken.write_text("mine")
    assert hello_nas.main(["sample", str(tiny), "-n", "5", "--out", str(taken / "below")]) == 2
    assert capsys.readouterr().err == f"error: {taken / 'below'}: not a directory\n"
    assert taken.read_text() == "mine"

    def fails_with(error):
        def run(*_, **__):
            raise error

        monkeypatch.setattr(hello_nas, "app", run)
        return hello_nas.main([])

    assert fails_with(OSError(errno.ENOSPC, "No space left on device")) == 2
    assert "the disk is full" in capsys.readouterr().err
    with pytest.raises(OSError, match="no path of anybody's"):
        fails_with(OSError(errno.EIO, "no path of anybody's"))


def test_a_machine_without_the_run_s_folder_says_so():
    with pytest.raises(UserError, match="/nowhere/runs/mine is not on .+: machines of a search share"):
        evaluators.evaluate_trial(None, "/nowhere/runs/mine")
