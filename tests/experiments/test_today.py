"""Today's networks from the search to the pictures, and Ultralytics' own YAMLs by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import hello_nas
from experiments.config import load_experiment
from models.yolo.space import YoloSpace
from utils.errors import UserError
from utils.history import History

ROOT = Path(hello_nas.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), [("yolo11n", {}), ("yolo26n", {}), ("yolo26n", {"nms": False})])
def test_a_search_through_to_predictions(tiny, name, keys):
    space = yaml.safe_load((ROOT / "models" / f"{name}_nas.yaml").read_text())
    thin = space | {"width_multiple": 0.125} | keys
    (tiny.parent / "thin_nas.yaml").write_text(yaml.safe_dump(thin, sort_keys=False))
    steps = "[search, retrain, export, report]"
    changes = ("imgsz=96", "search.max_trials=4", "search.top_k=1", "retrain={epochs: 2}", f"steps={steps}")
    assert hello_nas.main(["run", str(tiny), *changes]) == 0
    folder = tiny.parent / "runs" / "tiny"
    trials = History(folder / "history.jsonl").load()
    assert [t.state for t in trials] == ["complete"] * 4
    assert len({json.dumps(t.arch) for t in trials}) == 4
    assert len({t.metrics["gflops"] for t in trials}) > 2
    top = folder / "top"
    assert {path.suffix for path in top.iterdir()} >= {".json", ".pt", ".onnx"}
    pictures = sorted((tiny.parent / "cache").rglob("*.png"))[0].parent
    for weights in (top / "1.pt", sorted(folder.glob("retrain/*/last.pt"))[0]):
        out = tiny.parent / f"drawn-{weights.stem}"
        said = ["predict", str(weights), str(pictures), "--out", str(out), "--conf", "0.00001"]
        assert hello_nas.main([*said, "--save", "json"]) == 0
        found = json.loads((out / "predictions.json").read_text())["images"]
        assert found and all(len(image["boxes"]) > 0 for image in found if "boxes" in image)


def test_ultralytics_own_files_by_name(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    exp = load_experiment(tiny, ["space=yolo11s.yaml"])
    assert Path(exp.space).name == "yolo11s.yaml"  # which tells the scale, in the copy of a run as well
    space = YoloSpace(exp.space)
    assert space.cost(space.default(), 640)["params_m"] == 9.458752  # Ultralytics' own figure
    (tiny.parent / "yolo11.yaml").write_text(Path(exp.space).read_text().replace("nc: 80", "nc: 7"))
    own = load_experiment(tiny, ["space=yolo11m.yaml"])  # a scale of somebody's own file goes first
    assert YoloSpace(own.space).nc == 7 and Path(own.space).name == "yolo11m.yaml"
    with pytest.raises(UserError, match=r"space: 'yolo99n.yaml' does not exist.*; a detector YAML is needed"):
        load_experiment(tiny, ["space=yolo99n.yaml"])
