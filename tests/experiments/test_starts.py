"""Where trainings start: from a file, from a parent, from scratch; and what is said of it."""

import json

import pytest
import torch

from experiments import starts
from experiments.config import Member, check_experiment, load_experiment
from experiments.run_folder import RunFolder
from hello_nas import main
from models.networks import build, open_any_space
from models.weights import read_weights, save_weights
from tests.models.elastic_kinds import scramble
from utils.errors import UserError
from utils.history import Trial
from utils.training.train import TrainingFailed

EVOLVE = ["search.strategy={name: evolution, population_size: 2, sample_size: 2}", "search.inherit=parent"]


def run(path, *overrides):
    folder = path.parent / "r"
    return main(["run", str(path), "--run-dir", str(folder), "--no-ui", *overrides])


def history(path):
    return RunFolder.open(path.parent / "r").history.load()


@pytest.fixture
def trained(tiny):
    """A weight file for the space of `tiny`: nine of its ten classes are known, one as `Nine`."""
    torch.manual_seed(0)
    space = open_any_space("thin_nas.yaml", nc=10)
    names = [*(str(i) for i in range(8)), "eight", " 9"]
    net = scramble(build(space, space.default(), names))
    save_weights(tiny.parent / "w.pt", net, space, space.default(), imgsz=64)
    return tiny.parent / "w.pt"


def test_every_trial_starts_from_the_file_and_says_so(tiny, trained, capsys):
    assert run(tiny, f"weights={trained}", "search.max_trials=2") == 0
    printed = capsys.readouterr().out
    assert "% of the numbers of thin_nas; of its layers" in printed
    assert "9 as  9" in printed and "fresh: 8" in printed
    folder = RunFolder.open(tiny.parent / "r")
    first, second = folder.history.load()
    assert first.start["from"] == second.start["from"] == "w.pt"
    assert 0.9 < first.start["share"] < 1.0 and 0.05 < second.start["share"] < 1.0
    account = json.loads((folder.trial_dir(1) / "start.json").read_text())
    assert round(account["share"], 4) == second.start["share"] and account["fresh_classes"] == ["8"]
    assert account["layers"]["model.model.24.cv2.0.0.conv"] == "exact"
    assert folder.meta["start"] == first.start
    assert "every training starts from w.pt" in (folder.path / "report.html").read_text()


def test_a_trial_begins_with_the_weights_and_not_with_others(tiny, trained, monkeypatch):
    """The network that is trained holds the file's numbers when its training begins."""
    seen = []
    from experiments import training

    def train(net, *args, **kwargs):
        seen.append(net.state_dict()["model.model.0.conv.weight"].clone())
        raise TrainingFailed("seen enough")

    monkeypatch.setattr(training, "train", train)
    assert run(tiny, f"weights={trained}", "search.max_trials=1") == 2
    assert torch.equal(seen[0], read_weights(trained).state["model.model.0.conv.weight"])
    (line,) = history(tiny)
    assert line.state == "failed" and line.start["from"] == "w.pt"


def losses(folder):
    return (folder / "log.csv").read_text().splitlines()[0].split(",")


RECOVERED = "recovered without labels, 1 epoch in"


def test_what_was_cut_recovers_before_it_is_trained(tiny, trained, capsys):
    """In trials and retrainings; not the network itself, and not where one says 0."""
    assert run(tiny, f"weights={trained}", "search.max_trials=2", "train.recover=1") == 0
    printed = capsys.readouterr().out
    assert printed.count(RECOVERED) == 1 and printed.index(RECOVERED) > printed.index("trial 0:")
    first, second = history(tiny)
    folders = [RunFolder.open(tiny.parent / "r").trial_dir(t.number) for t in (first, second)]
    said = [json.loads((folder / "start.json").read_text()).get("recovered") for folder in folders]
    assert said[0] is None and said[1]["epochs"] == 1 and 0 < said[1]["off"][0] < 2
    assert len(first.curve) == len(second.curve) == 1 and "loss/mimic" not in second.curve[0]
    arch = json.loads((tiny.parent / "r" / "top" / "1.json").read_text()) | {"arch": second.arch}
    (tiny.parent / "cut.json").write_text(json.dumps(arch | {"space": "thin_nas.yaml"}))
    weights = ["--weights", str(trained)]
    for number, (said, recovers) in enumerate(
        [([*weights, "train.recover=1"], True), (weights, False), (["train.recover=1"], False)]
    ):
        given = [*said, "--out", f"out{number}", "train.epochs=1"]
        assert main(["retrain", "cut.json", *given]) == 0
        assert (RECOVERED in capsys.readouterr().out) == recovers, said
    result, start = (
        json.loads((tiny.parent / "out0" / f"{name}.json").read_text()) for name in ("result", "start")
    )
    trained_for = result["curve"][-1]["seconds"]  # what it cost is both
    assert result["seconds"] >= trained_for + start["recovered"]["seconds"] > trained_for


def test_how_it_recovered_is_known_when_its_training_goes_on(tiny, trained, tmp_path):
    space = open_any_space("thin_nas.yaml", nc=10)
    account = starts.check_start(str(trained), space, [*map(str, range(10))])
    starts.keep_account(account, "w.pt", tmp_path / "t", tmp_path)
    path = tmp_path / "t" / "start.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recovered": {"epochs": 3}}))
    starts.keep_account(account, "backbone.pt", tmp_path / "t", tmp_path)
    said = json.loads(path.read_text())
    assert said["start"] == "backbone.pt" and said["recovered"] == {"epochs": 3}


@pytest.mark.slow
def test_a_training_may_be_held_near_what_the_weights_gave(tiny, trained):
    assert run(tiny, f"weights={trained}", "search.max_trials=2", "train.mimic=5", "train.recover=0") == 0
    same, other = (t.curve[0]["loss/mimic"] for t in history(tiny))
    assert same == pytest.approx(0, abs=1e-6) and other > 0.1  # one step, in which the first is its teacher
    assert "loss/mimic" in losses(tiny.parent / "r" / "trials" / "0000")


@pytest.mark.slow
def test_what_begins_with_a_trial_mimics_nobody(tiny, trained):
    """It has learnt these very images; and a fine-tuning is too short to forget."""
    assert run(tiny, f"weights={trained}", *EVOLVE, "search.max_trials=3", "train.mimic=5") == 0
    folder = RunFolder.open(tiny.parent / "r")
    mimics = {t.start["from"]: "loss/mimic" in t.curve[0] for t in folder.history.load()}
    assert mimics.pop("w.pt") and mimics and not any(mimics.values())
    weights = folder.trial_dir(0) / "weights.pt"
    assert (
        main(["finetune", "r/top/1.json", "--weights", str(weights), "--out", "out", "train.epochs=1"]) == 0
    )
    assert "loss/mimic" not in losses(tiny.parent / "out")


@pytest.mark.slow
def test_a_run_that_never_heard_of_either_goes_on_without(tiny, trained, capsys):
    assert run(tiny, f"weights={trained}", "search.max_trials=1", "train.recover=0") == 0
    path = tiny.parent / "r" / "experiment.yaml"
    assert "  recover: 0.0\n  mimic: 0.0\n" in (text := path.read_text())
    path.write_text(text.replace("  recover: 0.0\n  mimic: 0.0\n", ""))
    assert run(tiny, f"weights={trained}", "search.max_trials=2", "--resume") == 0
    assert len(history(tiny)) == 2 and "recovered without" not in capsys.readouterr().out


def test_children_start_from_their_parents_and_a_resumed_run_has_the_same_history(tiny, trained):
    def essence(trials):
        return [(t.number, t.arch, t.parents, t.start, t.curve[0]["loss"]) for t in trials]

    assert run(tiny, f"weights={trained}", *EVOLVE, "search.max_trials=4") == 0
    whole = history(tiny)
    children = [t for t in whole if t.parents]
    assert children and all(t.start["from"] == f"trial {t.parents[0]}" for t in children)
    assert whole[0].start["from"] == "w.pt"
    weights = [RunFolder.open(tiny.parent / "r").trial_dir(t.number) / "weights.pt" for t in whole]
    assert all(path.is_file() for path in weights)
    (tiny.parent / "r").rename(tiny.parent / "whole")
    assert run(tiny, f"weights={trained}", *EVOLVE, "search.max_trials=2") == 0
    assert run(tiny, f"weights={trained}", *EVOLVE, "search.max_trials=4", "--resume") == 0
    assert essence(history(tiny)) == essence(whole)


def test_without_a_file_the_first_networks_begin_from_scratch(tiny):
    assert run(tiny, *EVOLVE, "search.max_trials=3") == 0
    first, *_, last = history(tiny)
    assert first.start == {} and '"start"' not in first.to_json()
    assert last.parents and last.start["from"] == f"trial {last.parents[0]}"
    assert Trial.from_json(last.to_json()).start == last.start


def test_the_family_starts_from_the_weights_of_all(tiny, trained):
    """And one from scratch stands beside the same one from weights."""
    family = "family=[thin_nas.yaml, {space: thin_nas.yaml, weights: scratch}]"
    assert run(tiny, "steps=[baselines]", f"weights={trained}", family) == 0
    first, second = history(tiny)
    assert first.start["from"] == "w.pt" and first.start["share"] > 0.9 and second.start == {}
    assert [t.arch["model"] for t in (first, second)] == ["thin_nas", "thin_nas from scratch"]


def test_a_member_of_the_family_may_start_from_a_file_of_its_own(tiny, trained):
    family = f"family=[{{space: thin_nas.yaml, weights: {trained}}}]"
    assert run(tiny, "steps=[baselines]", family) == 0
    assert history(tiny)[0].start["from"] == "w.pt"


def test_a_retraining_starts_from_weights_or_from_scratch_all_the_same(tiny, trained):
    """By an option, an override, or as its search did."""
    assert run(tiny, f"weights={trained}", "search.max_trials=1") == 0
    for number, how in enumerate([["--weights", "w.pt"], ["weights=w.pt"], [], ["weights=null"]]):
        out = tiny.parent / f"out{number}"
        assert main(["retrain", "r/top/1.json", *how, "--out", str(out), "train.epochs=1"]) == 0
        started = json.loads((out / "result.json").read_text())["started_from"]
        assert (started is None) == (not (out / "start.json").is_file()) == (how == ["weights=null"])
        if started is not None:
            assert started["share"] > 0.9 and started["layers"]["model.model.0.conv"] == "exact"


def test_a_supernet_starts_from_the_file(tiny, trained, monkeypatch):
    from experiments import supernet

    rates = []

    def train(net, *args, settings, **kwargs):
        rates.append(settings.inherited_lr)
        raise UserError("seen enough")

    monkeypatch.setattr(supernet, "train", train)
    assert run(tiny, f"weights={trained}", "supernet={}", "steps=[supernet]") == 2
    assert rates == [None]  # the low rate for what is inherited, as in a trial
    account = json.loads((tiny.parent / "r" / "supernet" / "start.json").read_text())
    assert account["start"] == "w.pt" and account["layers"]["model.model.0.conv"] == "padded"


def test_a_space_without_a_supernet_starts_from_weights_too(tmp_path):
    space = open_any_space("models/spnas_small.yaml", nc=2)
    net = scramble(space.build(space.default()))
    save_weights(tmp_path / "w.pt", net, space, space.default(), imgsz=64)
    account = starts.check_start(str(tmp_path / "w.pt"), space, net.names)
    assert account.share == 1.0


# What can be wrong -----------------------------------------------------------------------------------------


def one_line(capsys, *said):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in said), lines


def test_weights_that_are_not_there_or_fit_nothing_are_one_line_and_leave_no_run(tiny, capsys):
    assert run(tiny, "weights=nowhere.pt") == 2
    one_line(capsys, "no weights 'nowhere.pt'", "yolov5nu.pt")
    torch.save({"features.0.weight": torch.rand(8, 3, 3, 3)}, "vgg.pth")
    assert run(tiny, "weights=vgg.pth") == 2
    one_line(capsys, "vgg.pth", "do not fit thin_nas", "at least 5 %")
    assert not (tiny.parent / "r").exists()


def test_weights_given_twice_are_one_line(tiny, trained, capsys):
    assert run(tiny, f"weights={trained}", "weights=other.pt") == 2
    one_line(capsys, "weights are given twice", "other.pt")
    assert run(tiny, "search.max_trials=1") == 0
    capsys.readouterr()
    assert main(["retrain", "r/top/1.json", "--weights", "w.pt", "weights=w.pt"]) == 2
    one_line(capsys, "--weights w.pt and weights=w.pt")


def test_slices_of_a_supernet_inherit_from_no_parent(tiny, capsys):
    assert run(tiny, "supernet={}", "search.inherit=parent") == 2
    one_line(capsys, "search.inherit", "supernet")


def test_paths_are_made_absolute(tiny, trained):
    exp = load_experiment(tiny, ["weights=w.pt", "family=[thin_nas.yaml]"])
    assert exp.weights == str(trained)
    assert exp.family == [Member(space=str(tiny.parent / "thin_nas.yaml"))]
    again = check_experiment(exp.model_dump(mode="json"), "again")
    assert again == exp


def test_a_published_name_is_fetched_once(tmp_path, monkeypatch):
    from ultralytics.utils import downloads

    fetched = []

    def fetch(file, **kwargs):
        fetched.append(file)
        file.write_bytes(b"weights")

    monkeypatch.setattr(downloads, "attempt_download_asset", fetch)
    for _ in range(2):
        assert starts.find_weights("yolov5nu.pt", tmp_path) == str(tmp_path / "weights" / "yolov5nu.pt")
    assert fetched == [tmp_path / "weights" / "yolov5nu.pt"]


@pytest.mark.parametrize("raises", [True, False])
def test_without_a_network_a_published_name_is_one_line(tmp_path, monkeypatch, raises):
    from ultralytics.utils import downloads

    def fetch(file, **kwargs):
        if raises:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(downloads, "attempt_download_asset", fetch)
    with pytest.raises(UserError, match=r"yolov5nu\.pt could not be fetched.*github\.com") as caught:
        starts.find_weights("yolov5nu.pt", tmp_path)
    assert "\n" not in str(caught.value)
