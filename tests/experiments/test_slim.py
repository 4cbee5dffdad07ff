"""`space=best.pt`: somebody's trained detector, the smaller ones around it, and stock loads them."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from data.dataset import open_dataset
from data.yolo_export import export_yolo
from experiments.config import load_experiment
from experiments.run import run_experiment
from hello_nas import main
from tests.models.elastic_kinds import scramble
from tests.models.stock import isolated
from utils.errors import UserError
from utils.history import Trial
from utils.offline import quiet_ultralytics
from utils.report.runs import exported_trials

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(tiny):
    """best.pt of a thin stock YOLOv8 for digits, and the YOLO data that it names. Gives its path."""
    quiet_ultralytics()
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    data = open_dataset(str(tiny.parent / "digits.yaml"), tiny.parent / "cache")
    export_yolo(data, tiny.parent / "yolo")
    model = yaml_model_load("yolov8n.yaml") | {"scales": {"n": [0.33, 0.125, 256]}}
    torch.manual_seed(0)
    legacy = Detect.legacy
    net = scramble(DetectionModel(model, nc=10, verbose=False)).half()
    Detect.legacy = legacy
    net.names = dict(enumerate(data.names))
    settings = {"imgsz": 96, "data": str(tiny.parent / "yolo" / "data.yaml")}
    torch.save({"model": net, "ema": None, "train_args": settings}, tiny.parent / "best.pt")
    return tiny.parent / "best.pt"


SHORT = ["threads=1", "train.epochs=1", "train.batch=12", "device=cpu", "search.engine=inline"]
SHORT += [
    "search.max_trials=6",
    "search.concurrency=1",
    "search.screen=1",
    "search.top_k=2",
    "retrain.epochs=1",
]
SLIM = ROOT / "experiments" / "slim.yaml"


def test_what_is_not_said_is_the_checkpoints(own):
    exp = load_experiment(SLIM, [f"space={own}"])
    assert (exp.imgsz, exp.weights) == (96, str(own)) and exp.data == str(own.parent / "yolo" / "data.yaml")
    space = yaml.safe_load(Path(exp.space).read_text())
    assert space["resolution"] == [96, 64] and Path(exp.space).name == "best.yaml"
    said = load_experiment(SLIM, [f"space={own}", "imgsz=160", "data=digits.yaml", "weights=yolov5nu.pt"])
    assert (said.imgsz, said.weights) == (160, "yolov5nu.pt") and said.data.endswith("digits.yaml")
    assert yaml.safe_load(Path(said.space).read_text())["resolution"] == [160, 128, 96]
    again = load_experiment(SLIM, [f"space={own}"])
    assert again.space == exp.space  # a resumed run finds its space unchanged


@pytest.mark.slow
def test_the_family_of_a_detector_from_search_to_stock(own):
    run = run_experiment(SLIM, [f"space={own}", *SHORT, "steps=[search,retrain,export]"])
    trials = run.history.load()
    first = trials[0]
    assert first.number == 0 and first.start == {"from": "best.pt", "share": 1.0}
    assert first.arch["resolution"] == 96 and first.metrics["gflops"] == max(
        t.metrics["gflops"] for t in trials
    )
    assert all(t.start["share"] == 1.0 for t in trials)
    begins = [row for row in json.loads((run.path / "screened.json").read_text()) if row["begins"]]
    costs = sorted(row["gflops"] / first.metrics["gflops"] for row in begins)
    assert {row["arch"]["resolution"] for row in begins} == {64, 96} and costs[0] < 0.6
    top = [json.loads(p.read_text()) for p in sorted((run.path / "top").glob("[0-9].json"))]
    assert 0 not in [r["trial"] for r in top] and top
    body = "import numpy as np\n"
    body += "found = [YOLO(p).predict(np.zeros((96, 96, 3), 'uint8'), device='cpu', verbose=False) for p in "
    body += f"{[str(p) for p in (run.path / 'top').glob('*.pt')]!r}]\nprint(json.dumps(len(found)))"
    assert isolated(body, own.parent) == len(top)
    # gone on with: the checkpoint is read again, and its space is the run's own
    assert (
        main(["run", str(SLIM), f"space={own}", *SHORT, "--resume", "--run-dir", str(run.path), "--no-ui"])
        == 0
    )


@pytest.mark.slow
def test_the_family_in_one_training(own):
    """The largest slice begins as the detector; slices are cut out, fine-tuned and loaded by stock YOLO."""
    said = [f"space={own}", "threads=1", "train.epochs=1", "train.batch=12", "device=cpu", "search.top_k=2"]
    said += ["search.max_trials=5", "finetune.epochs=1", "steps=[supernet,search,finetune,export]"]
    run = run_experiment(ROOT / "experiments" / "slim_supernet.yaml", said)
    account = json.loads((run.path / "supernet" / "start.json").read_text())
    assert account["share"] == 1.0 and set(account["layers"].values()) == {"exact"}
    trials = run.history.load()
    assert len(trials) == 5 and len({t.metrics["gflops"] for t in trials}) == 5
    top = sorted((run.path / "top").glob("*.pt"))
    body = "import numpy as np\n"
    body += "found = [YOLO(p).predict(np.zeros((96, 96, 3), 'uint8'), device='cpu', verbose=False) for p in "
    body += f"{[str(p) for p in top]!r}]\nprint(json.dumps(len(found)))"
    assert isolated(body, own.parent) == len(top) >= 1


def test_a_member_of_the_family_may_be_a_checkpoint(tiny, own):
    exp = load_experiment(tiny, [f"family=[{own}]", "imgsz=96"])
    assert exp.family[0].weights == str(own) and exp.family[0].space.endswith("best.yaml")
    assert exp.weights is None and exp.space.endswith("thin_nas.yaml")


def test_mistakes(tiny, own, capsys):
    def said(*arguments):
        assert main(["run", str(SLIM), *arguments, "name=x", "--no-ui"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tiny.parent / "runs").exists()
        return error

    assert "space: 'bset.pt' does not exist; did you mean 'best.pt'?" in said("space=bset.pt")
    (tiny.parent / "text.pt").write_text("nothing")
    assert "text.pt is no weight file" in said("space=text.pt", "data=digits.yaml", "imgsz=64")
    assert "imgsz 100 is not a multiple of the stride 32" in said("space=best.pt", "imgsz=100")
    (tiny.parent / "yolo").rename(tiny.parent / "moved")
    assert "the data that best.pt was trained on" in said("space=best.pt")
    file = torch.load(own, weights_only=False)
    torch.save(file | {"train_args": {}}, own)
    assert "best.pt does not say its imgsz; give imgsz=..." in said("space=best.pt", "data=digits.yaml")


def trial(number, quality, gflops):
    metrics = {"map50_95": quality, "gflops": gflops}
    return Trial(number, {"a": number}, metrics, reward=quality)


def test_of_a_front_the_exported_are_spread_from_the_cheapest_to_the_best():
    front = [trial(n, n / 10, n) for n in range(1, 8)]
    history = [trial(0, 0.9, 9), *front, trial(9, 0.1, 5), trial(10, 0.2, 6)]
    objectives = {"map50_95": "max", "gflops": "min"}
    assert [t.number for t in exported_trials(history, 3, objectives)] == [7, 4, 1]
    assert [t.number for t in exported_trials(history, 20, objectives)] == [7, 6, 5, 4, 3, 2, 1]
    assert [t.number for t in exported_trials(history, 2)] == [0, 7]  # by reward


def test_it_is_an_error_only_for_who_names_a_checkpoint(tiny):
    with pytest.raises(UserError, match="a trained detector's .pt"):
        load_experiment(tiny, ["space=nowhere.pt"])
