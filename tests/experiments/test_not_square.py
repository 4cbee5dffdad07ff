"""A search in images that are not square, from its file to a picture with boxes."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.config import load_experiment
from experiments.job import job_of
from hello_nas import main
from models.weights import read_weights
from utils.errors import UserError
from utils.history import History
from utils.report.results import load_arch_file

SIZE = ("imgsz=[64, 96]", "search.max_trials=1", "search.top_k=1")


def test_a_trial_its_files_and_boxes_in_pictures(tiny, capsys):
    assert main(["run", str(tiny), *SIZE]) == 0
    folder = tiny.parent / "runs" / "tiny"
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["imgsz"] == [64, 96]
    (trial,) = History(folder / "history.jsonl").load()
    assert trial.state == "complete", trial.reason
    assert trial.metrics["gflops"] == job_of(str(folder)).space.cost(trial.arch, (64, 96))["gflops"]
    weights = folder / "trials/0000/weights.pt"
    assert read_weights(weights).imgsz == load_arch_file(folder / "top" / "1.json")["imgsz"] == (64, 96)
    assert "64x96 px" in (folder / "report.html").read_text()
    assert main(["run", str(tiny), *SIZE, "--run-dir", str(folder), "--resume"]) == 0

    picture = next((tiny.parent / "cache").rglob("*.png"))
    for name, said, imgsz in (("a", [], [64, 96]), ("b", ["--imgsz", "96x64"], [96, 64])):
        assert main(["predict", str(weights), str(picture), "--out", name, "--conf", "0", *said]) == 0
        found = json.loads(Path(name, "predictions.json").read_text())
        (image,) = found["images"]
        assert found["imgsz"] == imgsz and image["objects"]
        boxes = np.array([one["box"] for one in image["objects"]])
        assert boxes.min() >= 0 and boxes.max() <= 64 == image["width"] == image["height"]
    capsys.readouterr()
    assert main(["export", str(folder / "top/1.json"), "--imgsz", "64x100", "--out", "x.onnx"]) == 2
    assert "imgsz 64x100 is not a multiple of the stride 32; try 64x96" in capsys.readouterr().err


@pytest.mark.slow
def test_a_winner_is_retrained_scored_timed_and_exported(tiny):
    steps = "steps=[search, retrain, evaluate, export, report]"
    assert main(["run", str(tiny), *SIZE, "search.measure=[latency_ms]", steps]) == 0
    folder = tiny.parent / "runs" / "tiny"
    assert json.loads((folder / "latency.json").read_text())["imgsz"] == [64, 96]
    top = folder / "top" / "1.json"
    assert load_arch_file(top)["evaluated"]["metrics"]["latency_ms"] > 0
    assert "64 x 96 pixels" in (folder / "top" / "1.md").read_text()
    assert main(["evaluate", str(top), "--split", "val", "--out", "e.json"]) == 0
    assert json.loads(Path("e.json").read_text())["imgsz"] == [64, 96]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[0, 64]", "imgsz: [0, 64] does not fit: input should be greater than or equal to 32"),
        ("[64, 96, 3]", "a whole number is needed, or two of them, [height, width]"),
        ("[64]", "a whole number is needed, or two of them"),
        ("64x", "imgsz: '64x' does not fit"),
        ("[64, 99]", "a multiple of 4 is needed, the nearest is 100"),
        ("[64, 96.5]", "a whole number is needed"),
    ],
)
def test_sizes_that_no_experiment_has(tiny, given, message):
    with pytest.raises(UserError) as error:
        load_experiment(tiny, [f"imgsz={given}"])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_size_is_read_in_any_spelling_and_its_stride_checked(tiny, capsys):
    for given, imgsz in {"64x96": (64, 96), "[64,96]": (64, 96), "[64,64]": 64, "96": 96}.items():
        exp = load_experiment(tiny, [f"imgsz={given}"])
        assert exp.imgsz == imgsz
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydantic's, of a value that is of another type than it says
            assert exp.model_dump(mode="json")["imgsz"] == (
                list(imgsz) if isinstance(imgsz, tuple) else imgsz
            )
    assert main(["space", str(tiny), "imgsz=[64,100]"]) == 2
    assert "imgsz 64x100 is not a multiple of the stride 32; try 64x96" in capsys.readouterr().err
    assert main(["space", str(tiny), "imgsz=[64,96]"]) == 0
    assert "at 64 x 96" in capsys.readouterr().out
