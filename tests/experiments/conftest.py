from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick_clocks(monkeypatch):
    """A latency takes a tenth of a second instead of four: nobody asks whether it is right here."""
    monkeypatch.setattr("utils.timing.BLOCK", 0.001)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A search that takes seconds: 32 small scenes, a thin network, one epoch, in process. Gives its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELLO_NAS_CACHE", str(tmp_path / "cache"))
    card = yaml.safe_load((ROOT / "data" / "digits.yaml").read_text())
    card["scenes"] = {"search_train": 24, "search_val": 8, "val": 8}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(card))
    space = yaml.safe_load((ROOT / "models" / "yolov5n_nas.yaml").read_text())
    space["width_multiple"] = 0.125
    (tmp_path / "thin_nas.yaml").write_text(yaml.safe_dump(space))
    experiment = {
        "name": "tiny",
        "space": "thin_nas.yaml",
        "data": "digits.yaml",
        "threads": 1,
        "device": "cpu",
        "train": {"epochs": 1, "batch": 12},
        "search": {"strategy": "random", "engine": "inline", "max_trials": 3, "top_k": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path
