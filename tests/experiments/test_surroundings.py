"""Where people start us: beside another project with a `utils` of its own, and behind a proxy."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import requests
import yaml

from experiments.engine.processes import reached_directly
from experiments.engine.warm import CLIENT
from utils.history import History

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("utils", "models", "data", "experiments", "tests")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy")


@pytest.fixture
def clone(tmp_path):
    """A folder like a clone of YOLOv5: it has packages that are called as ours are."""
    folder = tmp_path / "yolov5"
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} of another project')")
    return folder


@pytest.fixture
def behind_proxies(monkeypatch):
    """Every way to name a proxy, and the proxy answers nobody."""
    for name in PROXIES:
        for written in (name, name.upper()):
            monkeypatch.setenv(written, "http://192.0.2.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intern.example")


@pytest.mark.slow
def test_a_search_beside_a_clone_of_yolov5_and_behind_proxies(tiny, clone, behind_proxies, monkeypatch):
    """In its folder, with it on PYTHONPATH; the manager, the warm process and the trials see both too."""
    experiment = yaml.safe_load(tiny.read_text())
    experiment["search"] |= {"engine": "nni", "max_trials": 2}
    for key in ("space", "data"):
        experiment[key] = str(tiny.parent / experiment[key])
    tiny.write_text(yaml.safe_dump(experiment))
    monkeypatch.setenv("PYTHONPATH", str(clone))
    command = [
        sys.executable,
        ROOT / "hello_nas.py",
        "run",
        tiny,
        "--no-ui",
        "--run-dir",
        tiny.parent / "run",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=clone, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "start cold" not in done.stderr
    trials = History(tiny.parent / "run" / "history.jsonl").load()
    assert [(t.number, t.state) for t in trials] == [(0, "complete"), (1, "complete")]


def test_a_trial_that_starts_cold_finds_our_packages_too(clone):
    command = [sys.executable, "-S", "-E", CLIENT, "-c", "import utils; print(utils.__file__)"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{clone}"}
    environment.pop("NAS_WARM_SOCKET", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=clone, env=environment, timeout=60)
    assert done.stdout.strip() == str(ROOT / "utils" / "__init__.py"), done.stderr


def test_this_machine_is_reached_without_the_proxy_and_the_others_with_it(behind_proxies):
    def proxied(host):
        return bool(requests.utils.get_environ_proxies(f"http://{host}:8083"))

    def bypassed(host):  # as websockets asks
        return bool(urllib.request.proxy_bypass(f"{host}:8083"))

    here = ("localhost", "127.0.0.1", "192.0.2.7")
    assert all(proxied(host) and not bypassed(host) for host in here)
    before = dict(os.environ)
    with reached_directly("192.0.2.7"):
        assert not any(proxied(host) for host in here) and all(bypassed(host) for host in here)
        assert proxied("example.org") and not proxied("intern.example")
    assert dict(os.environ) == before
