import functools
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick_clocks(monkeypatch):
    """A latency takes a tenth of a second instead of four: nobody asks whether it is right here."""
    monkeypatch.setattr("utils.timing.BLOCK", 0.001)


@functools.cache
def written() -> dict[str, str]:
    """The files of the fixture `tiny`, by name."""
    card = yaml.safe_load((ROOT / "data" / "digits.yaml").read_text())
    card["scenes"] = {"search_train": 24, "search_val": 8, "val": 8}
    space = yaml.safe_load((ROOT / "models" / "yolov5n_nas.yaml").read_text())
    space["width_multiple"] = 0.125
    experiment = {
        "name": "tiny",
        "space": "thin_nas.yaml",
        "data": "digits.yaml",
        "threads": 1,
        "device": "cpu",
        "train": {"epochs": 1, "batch": 12},
        "search": {"strategy": "random", "engine": "inline", "max_trials": 3, "top_k": 2},
    }
    found = {"digits.yaml": card, "thin_nas.yaml": space, "tiny.yaml": experiment}
    return {name: yaml.safe_dump(value) for name, value in found.items()}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A search that takes seconds: 32 small scenes, a thin network, one epoch, in process. Gives its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELLO_NAS_CACHE", str(tmp_path / "cache"))
    for name, text in written().items():
        (tmp_path / name).write_text(text)
    return tmp_path / "tiny.yaml"
