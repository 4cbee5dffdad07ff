"""Searches on NNI's real manager: what runs, what is reported, and what is left when it is over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from experiments.engine import nni_runtime
from experiments.engine.processes import ProcessRecord, free_port, load_records, save_records, stop_leftovers
from experiments.engine.runtime_settings import ROOT, check_runtime
from experiments.engine.warm import WarmServer
from tests.experiments import toy_space
from utils.cores import cores
from utils.errors import UserError

from experiments.engine.nni_runtime import NNI_HOME, SearchRuntime, build_config, run_search, view  # isort: skip
from nni.nas.strategy import GridSearch, Random
from nni.tools.nnictl.config_utils import Experiments

WARM = "tests.experiments.toy_space:warm"
MARK = "NAS_TEST_SESSION"
os.environ[MARK] = f"{os.getpid()}-{time.time()}"


class Watched:
    """A random search that writes down how its models end and, at the first end, what `look` sees."""

    def __init__(self, look=lambda engine: None):
        self.strategy = Random(seed=0)
        self.look = look
        self.ends: dict[str, tuple[str, float | None]] = {}  # arch -> status, metric
        self.reasons: dict[str, str | None] = {}
        self.seen: Any = None
        initialize = self.strategy._initialize

        def initialize_and_watch(space, engine):
            engine.register_model_event_callback("training_end", self.note)
            return initialize(space, engine)

        self.strategy._initialize = initialize_and_watch

    def note(self, event):
        if not self.ends:
            self.seen = self.look(self.strategy.engine)
        key = json.dumps(event.model.sample, sort_keys=True)
        self.ends[key] = (event.status.value, event.model.metric)
        self.reasons[key] = event.model.failure_reason


@pytest.fixture
def search(tmp_path):
    """Run a search in `tmp_path`; afterwards nothing of it may be left anywhere."""
    ids = []
    (tmp_path / "out").mkdir()

    def run(evaluate, strategy, **settings):
        settings = {"run_dir": tmp_path, "port": None, "warm_import": WARM, **settings}
        arguments = settings.pop("arguments", {"folder": str(tmp_path / "out")})
        said: list[str] = []
        outcome = run_search(
            toy_space.ToySpace(), evaluate, arguments, strategy, SearchRuntime(**settings), said.append
        )
        ids.append(outcome.experiment_id)
        return outcome, notes(tmp_path / "out"), said

    before = ours()
    yield run
    wait_until(lambda: ours() <= before, "processes of the search are left")
    for experiment_id in filter(None, ids):
        forget(experiment_id)


@pytest.fixture(scope="module")
def warm_process(tmp_path_factory):
    """One for several searches: its imports are most of what a short search costs."""
    log_file = tmp_path_factory.mktemp("warm") / "warm.log"
    server = WarmServer("tests.experiments.toy_space:evaluate", WARM, {}, log_file)
    assert server.wait() is None
    lent = SimpleNamespace(socket=server.socket, process=server.process, stop=lambda: None, wait=lambda: None)
    yield lent
    server.stop()


@pytest.fixture
def shared_warm_process(warm_process, monkeypatch):
    monkeypatch.setattr(nni_runtime, "WarmServer", lambda *args: warm_process)


def ours():
    """The living processes that inherited this test session's mark, wherever they hang in the tree."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == os.environ[MARK] and process.pid != os.getpid()
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def forget(experiment_id):
    Experiments().remove_experiment(experiment_id)
    shutil.rmtree(NNI_HOME / experiment_id, ignore_errors=True)


def notes(folder: Path):
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def wait_until(condition, complaint, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def listening(pid):
    return {c.laddr.ip for c in psutil.Process(pid).net_connections("tcp") if c.status == "LISTEN"}


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{path}") as answer:
        return json.loads(answer.read())


def test_two_at_a_time_each_runs_and_reports_its_own_architecture(search, tmp_path):
    def look(engine):
        experiment = engine.nodejs_binding
        facts, records = load_records(tmp_path / "nni.json")
        return {
            "addresses": listening(experiment._proc.pid),
            "id": facts["experiment_id"],
            "alive": {r.role for r in records if r.find()},
            "manifest": Experiments().get_all_experiments()[experiment.id]["status"],
            "jobs": get(experiment.port, "trial-jobs"),
        }

    watched = Watched(look)
    outcome, trials, said = search(toy_space.evaluate, watched.strategy, max_trials=8, concurrency=2)
    assert (outcome.status, outcome.trials, len(trials)) == ("finished", 8, 8)
    assert said == [f"web UI: {said[0].split()[2]} (NNI experiment {outcome.experiment_id})"]

    assert all(trial["built"] == trial["given"] for trial in trials)
    expected = {
        json.dumps(t["built"], sort_keys=True): ("trained", toy_space.reward_of(t["built"])) for t in trials
    }
    assert len(expected) == 8 and watched.ends == expected

    # warm: one import, one call of the warm function, a process and a share of the cores for each trial
    assert {trial["preloaded"] for trial in trials} == {1}
    assert len({trial["pid"] for trial in trials}) == 8 and len({trial["trial"] for trial in trials}) == 8
    assert {trial["threads"] for trial in trials} == {max(1, cores() // 2)}
    assert not any(trial["cuda"] for trial in trials)

    # seen while it ran
    assert watched.seen["addresses"] == {"127.0.0.1"}
    assert watched.seen["id"] == outcome.experiment_id
    assert watched.seen["alive"] == {"NNI manager", "warm process"}
    assert watched.seen["manifest"] == "RUNNING"
    parameters = json.loads(watched.seen["jobs"][0]["hyperParameters"][0])["parameters"]
    assert {label: parameters[label] for label in "abc"} == parameters["sample"]

    # left afterwards: NNI's own files, and no process that could be stopped
    facts, records = load_records(tmp_path / "nni.json")
    assert facts == {
        "experiment_id": outcome.experiment_id,
        "experiments": [outcome.experiment_id],
        "url": None,
    }
    assert records == []
    assert Experiments().get_all_experiments()[outcome.experiment_id]["status"] == "STOPPED"
    logs = [
        p.read_text() for p in (NNI_HOME / outcome.experiment_id).glob("environments/*/trials/*/trial.log")
    ]
    assert len(logs) == 8 and all("printed by the trial" in text for text in logs)


PYNVML = """
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return {count}
"""


@pytest.mark.parametrize(
    ("count", "at_a_time", "visible", "gpus"),
    [
        (1, 1, None, {"0"}),
        pytest.param(2, 2, "3,GPU-8f6a", {"3", "GPU-8f6a"}, marks=pytest.mark.slow),
    ],
    ids=["one-one", "two-two"],
)
def test_trials_start_and_share_the_gpus_that_torch_sees(
    search, shared_warm_process, tmp_path, monkeypatch, count, at_a_time, visible, gpus
):
    """A machine with one GPU, one trial at a time: stock NNI starts none. Its pynvml is a stand-in."""
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "pynvml.py").write_text(PYNVML.format(count=count))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    monkeypatch.syspath_prepend(tmp_path / "stand-in")
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    arguments = {"folder": str(tmp_path / "out"), "seconds": 0.3 * (at_a_time - 1)}
    outcome, trials, _ = search(
        toy_space.evaluate,
        Random(seed=0),
        max_trials=3,
        concurrency=at_a_time,
        gpus_per_trial=1,
        device="cuda",
        arguments=arguments,
    )
    assert (outcome.status, len(trials)) == ("finished", 3)
    assert {trial["gpu"][0] for trial in trials} == gpus
    assert {trial["gpu"][1] for trial in trials} == {"cuda"}


def test_what_goes_wrong_in_a_trial_fails_that_trial_only(search, shared_warm_process):
    """Eight architectures, seven ways to go wrong; the hanging one does not listen to SIGINT."""
    watched = Watched()
    outcome, trials, _ = search(
        toy_space.misbehave, watched.strategy, max_trials=8, concurrency=2, max_trial_seconds=3
    )
    assert (outcome.status, outcome.trials, len(trials)) == ("finished", 8, 8)
    reason = {toy_space.reward_of(json.loads(arch)): text for arch, text in watched.reasons.items()}
    assert reason == {
        0: "it reported None, not a finite number",
        1: "it reported nan, not a finite number",
        2: "it took longer than max_trial_seconds",
        3: "it reported 'high', not a finite number",
        4: "it reported a result without default, not a finite number",
        5: "it reported 'rising', not a finite number",
        6: "it was killed (out of memory?)",
        7: None,
    }
    assert [metric for status, metric in watched.ends.values() if status == "trained"] == [7.0]
    assert not any(psutil.pid_exists(trial["pid"]) for trial in trials)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_everything_in_seconds(search, tmp_path, number):
    ended = []

    def interrupt():
        wait_until(lambda: any((tmp_path / "out").iterdir()), "no trial has started", 60)
        ended.append(time.monotonic())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    watched = Watched()
    outcome, trials, _ = search(toy_space.hang, watched.strategy, concurrency=2)
    thread.join()
    assert (outcome.status, outcome.signal) == ("interrupted", number)
    assert time.monotonic() - ended[0] < 12
    assert not any(psutil.pid_exists(trial["pid"]) for trial in trials)
    assert watched.ends == {}, "a trial cut short has not failed: it runs again on resume"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_when_the_search_is_killed_everything_follows_within_seconds(tmp_path):
    (tmp_path / "out").mkdir()
    port = free_port()
    script = f"""
from pathlib import Path
from experiments.engine.nni_runtime import SearchRuntime, run_search
from tests.experiments import toy_space
from nni.nas.strategy import Random
runtime = SearchRuntime(Path({str(tmp_path)!r}), port={port}, concurrency=2)
run_search(toy_space.ToySpace(), toy_space.hang, {{"folder": {str(tmp_path / "out")!r}}}, Random(), runtime)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    main = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: len(list((tmp_path / "out").iterdir())) == 2, "no trials have started", 90)
        facts, records = load_records(tmp_path / "nni.json")
        trials = [trial["pid"] for trial in notes(tmp_path / "out")]
        assert all(psutil.pid_exists(pid) for pid in trials) and all(record.find() for record in records)
    finally:
        main.kill()
        main.wait()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in trials), "trials are left", 8)
    wait_until(lambda: not any(record.find() for record in records), "manager or warm process is left", 20)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


def test_leftovers_are_stopped_and_strangers_are_not(tmp_path):
    """A recycled pid, here our own child, has another start time or another command line."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # leftover"])
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        records = [
            ProcessRecord.of("NNI manager", child.pid, "leftover"),
            ProcessRecord(
                "NNI manager", stranger.pid, psutil.Process(stranger.pid).create_time(), "leftover"
            ),
            ProcessRecord("NNI manager", stranger.pid, 1.0, "time.sleep"),
        ]
        save_records(tmp_path / "nni.json", {}, records)
        stop_leftovers(tmp_path / "nni.json")
        assert child.poll() is not None
        assert stranger.poll() is None
    finally:
        for process in (child, stranger):
            process.kill()
            process.wait()


def test_a_taken_port_is_one_line_before_anything_starts(search, tmp_path):
    known = set(Experiments().get_all_experiments())
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} is taken.*--port$"):
            search(toy_space.evaluate, Random(), port=port)
    assert set(Experiments().get_all_experiments()) == known
    assert not (tmp_path / "nni.json").exists() and not (tmp_path / "warm.log").exists()


@pytest.mark.slow
def test_without_a_warm_process_trials_start_cold_and_say_so(search, tmp_path, monkeypatch):
    """The warm function fails; the search goes on as stock NNI would."""
    outcome, trials, _ = search(
        toy_space.evaluate, Random(seed=0), max_trials=1, warm_import="tests.experiments.toy_space:broken"
    )
    assert outcome.status == "finished" and trials[0]["preloaded"] == 0
    errors = (NNI_HOME / outcome.experiment_id).glob("environments/*/trials/*/trial.stderr")
    assert "no warm start" in next(errors).read_text()
    assert "the warm function is broken" in (tmp_path / "warm.log").read_text()


def test_in_process_the_same_search_takes_milliseconds(search, tmp_path):
    started = time.monotonic()
    outcome, trials, said = search(toy_space.fail, GridSearch(shuffle=False), engine="inline")
    assert time.monotonic() - started < 2
    assert (outcome.status, outcome.trials, outcome.experiment_id) == ("finished", 8, None)
    assert len(trials) == 4 and all(trial["built"] == trial["given"] for trial in trials)
    assert said == [] and not (tmp_path / "nni.json").exists()


def test_in_process_a_search_keeps_to_its_seconds(search):
    arguments = {"folder": os.devnull, "seconds": 0.2}
    outcome, _, _ = search(
        toy_space.doze, Random(seed=0), engine="inline", max_seconds=0.3, arguments=arguments
    )
    assert outcome.trials == 2


def test_nnictl_stop_ends_the_search_with_one_line_and_view_shows_it_again(
    search, shared_warm_process, tmp_path, capsys
):
    def stop():
        wait_until(lambda: len(list((tmp_path / "out").iterdir())) == 2, "no trial has started", 60)
        pid = load_records(tmp_path / "nni.json")[1][0].pid
        os.kill(pid, signal.SIGTERM)  # what `nnictl stop` does

    thread = threading.Thread(target=stop)
    thread.start()
    watched = Watched()
    outcome, _, said = search(toy_space.hang_later, watched.strategy)
    thread.join()
    assert (outcome.status, outcome.trials) == ("stopped", 2)
    assert "stopped from outside" in said[-1]
    assert [status for status, _ in watched.ends.values()] == ["trained", "interrupted"]

    port = free_port()
    seen: dict[str, Any] = {}

    def look():
        def shown():
            with suppress(OSError):
                seen.update(status=get(port, "check-status")["status"])
            return seen.get("status") == "VIEWED"

        wait_until(shown, "no web UI", 30)
        seen["jobs"] = [job["status"] for job in get(port, "trial-jobs")]
        os.kill(os.getpid(), signal.SIGINT)

    before = (tmp_path / "nni.json").read_text()
    thread = threading.Thread(target=look)
    thread.start()
    view(tmp_path, port)
    thread.join()
    assert len(seen["jobs"]) == 2 and "SUCCEEDED" in seen["jobs"]
    assert outcome.experiment_id in capsys.readouterr().out
    assert (tmp_path / "nni.json").read_text() == before
    with pytest.raises(UserError, match="no NNI experiment to show"):
        view(tmp_path / "out", port)


@pytest.mark.slow
def test_nnictl_knows_the_search(search, shared_warm_process, tmp_path):
    """list, status, trial ls, export and stop, while the second trial runs."""
    said = {}

    def nnictl(*words):
        command = [str(Path(sys.executable).with_name("nnictl")), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask():
        wait_until(lambda: len(list((tmp_path / "out").iterdir())) == 2, "no trial has started", 60)
        name = json.loads((tmp_path / "nni.json").read_text())["experiment_id"]
        try:
            said["list"] = nnictl("experiment", "list")
            said["status"] = nnictl("experiment", "status", name)
            said["trials"] = nnictl("trial", "ls", name)
            nnictl("experiment", "export", name, "--type", "csv", "--filename", str(tmp_path / "x.csv"))
        finally:
            said["stop"] = nnictl("stop", name)

    thread = threading.Thread(target=ask)
    thread.start()
    outcome, _, lines = search(toy_space.hang_later, Random(seed=0), name="toy")
    thread.join()
    assert outcome.status == "stopped" and "stopped from outside" in lines[-1]
    assert outcome.experiment_id in said["list"] and "toy" in said["list"]
    assert "RUNNING" in said["status"]
    assert said["trials"].count('"sequenceId"') == 2 and "SUCCEEDED" in said["trials"]
    header, row = (tmp_path / "x.csv").read_text().splitlines()[:2]
    assert {"a", "b", "c", "cost"} <= set(header.split(",")) and "on" in row
    assert "Stop experiment success" in said["stop"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "nnl"}, "did you mean 'nni'"),
        ({"port": 70000}, "port 70000 does not exist"),
        ({"port": 18123, "host": "192.0.2.77"}, "192.0.2.77 is no address of this machine"),
        ({"training_service": {"platform": "remte"}}, "did you mean 'remote'"),
        ({"training_service": {"machine_lst": []}}, "did you mean 'machine_list'"),
        ({"training_service": {"machine_list": []}}, "at least one"),
        ({"training_service": {"machine_list": ["gpu1"]}}, "'gpu1' is not"),
        (
            {"training_service": {"machine_list": [{"host": "a", "user": "b", "port": "ssh"}]}},
            "port of 'a' is 'ssh'; a number from 1 to 65535 is needed",
        ),
        (
            {"training_service": {"machine_list": [{"host": "a", "user": "b", "gpu_indices": "x"}]}},
            "machine_list.gpu_indices: 'x' is no list",
        ),
        ({"training_service": {"platform": "local", "gpu_indices": [0, 0]}}, "[0, 0] is no list"),
        (
            {"training_service": {"machine_list": [{"host": "a", "user": "b"}], "gpu_indices": [0]}},
            "is for platform: local; each machine has its own",
        ),
        ({"training_service": {"machine_list": [{"host": "gpu1"}]}}, "a machine needs 'user', got only host"),
        ({"training_service": {"machine_list": [{"host": "a", "usr": "b"}]}}, "did you mean 'user'"),
        (
            {"training_service": {"machine_list": [{"host": "a", "user": "b", "ssh_key_file": "/no/key"}]}},
            "a needs a password or ssh_key_file; there is no /no/key",
        ),
        (
            {"training_service": {"machine_list": [{"host": "gpu1", "user": "b", "password": "c"}]}},
            "gpu1 cannot reach a server on 127.0.0.1",
        ),
        (
            {
                "host": "0.0.0.0",
                "training_service": {
                    "machine_list": [
                        {"host": "a", "user": "b", "password": "c", "python_path": "/one/bin"},
                        {"host": "d", "user": "b", "password": "c"},
                    ]
                },
            },
            "python_path is /one/bin, None; all machines need the same",
        ),
    ],
)
def test_settings_that_cannot_work_are_one_line(settings, message, tmp_path):
    with pytest.raises(UserError) as error:
        check_runtime(SearchRuntime(run_dir=tmp_path, **settings))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_machines_are_put_in_nnis_words(tmp_path):
    key = tmp_path / "key"
    key.write_text("")
    machine = {
        "host": "gpu1",
        "user": "me",
        "port": 2222,
        "ssh_key_file": str(key),
        "python_path": "/venv/bin",
    }
    runtime = check_runtime(
        SearchRuntime(
            run_dir=tmp_path,
            host="0.0.0.0",
            port=free_port("0.0.0.0"),
            gpus_per_trial=1,
            training_service={"platform": "remote", "machine_list": [machine], "nni_manager_ip": "192.0.2.1"},
        )
    )
    config = build_config(runtime).canonical_copy()
    assert config.nni_manager_ip == "192.0.2.1"
    assert "NAS_DEVICE=cuda" in config.trial_command, "cuda:1 of the experiment is cuda:0 to a trial there"
    assert config.training_service.platform == "remote" and config.training_service.trial_gpu_number == 1
    (configured,) = config.training_service.machine_list
    assert {name: getattr(configured, name) for name in machine} == {**machine, "ssh_key_file": str(key)}
    assert "NAS_DEVICE=cuda /venv/bin/python -m nni" in config.trial_command, "theirs, not this process's"
    sent = Path(config.training_service.trial_code_directory)
    assert {path.name for path in sent.iterdir()} == {"data", "experiments", "models", "utils"}
    assert (sent / "experiments/evaluators.py").is_file() and (sent / "data/hyps/default.yaml").is_file()


def test_code_for_other_machines_is_ours_alone(tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name in ("models/a.py", "models/a.yaml", "models/best.pt", "data/mine/1.jpg", ".venv/b.py", "c.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr(nni_runtime, "ROOT", root)
    (tmp_path / "code/models").mkdir(parents=True)
    (tmp_path / "code/models/left_over.py").write_text("of an earlier start")
    sent = nni_runtime.copy_code(tmp_path / "code")
    found = {str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_file()}
    assert found == {"models/a.py", "models/a.yaml"}


def test_a_machine_that_cannot_be_used_is_named_in_one_line(search):
    machine = {"host": "127.0.0.1", "port": free_port(), "user": "me", "password": "a secret"}
    with pytest.raises(UserError) as error:
        search(
            toy_space.evaluate,
            Random(seed=0),
            max_trials=1,
            port=free_port(),
            training_service={"machine_list": [machine], "nni_manager_ip": "127.0.0.1"},
        )
    refused = f"a machine cannot be used: connect ECONNREFUSED 127.0.0.1:{machine['port']}"
    assert refused in str(error.value) and "\n" not in str(error.value)
