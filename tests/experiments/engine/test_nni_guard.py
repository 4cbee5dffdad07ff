"""Who is heard by NNI's server: one search, whose trial hangs, asked in every way that a stranger may ask."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
import time
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from experiments.engine.nni_runtime import NNI_HOME, SearchRuntime, run_search
from experiments.engine.processes import free_port
from tests.experiments import toy_space

# isort: split
from nni.nas.strategy import Random
from nni.tools.nnictl.config_utils import Experiments

API = "/api/v1/nni"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
JSON = {"Content-Type": "application/json"}


def ask(port, method, path, body=None, **headers):
    """(status, text) of one request whose head is exactly as given; Host is ours unless it says otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        head = {"Host": f"127.0.0.1:{port}", **headers}
        if body is not None:
            head["Content-Length"] = str(len(body))
        for name, value in head.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body.encode() if body is not None else None)
        answer = connection.getresponse()
        return answer.status, "" if answer.status == 101 else answer.read().decode(errors="replace")
    finally:
        connection.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A search in a thread, whose first trial has ended and whose second hangs; its port and its outcome."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "out").mkdir()
    said: list[str] = []
    found = SimpleNamespace(port=free_port(), said=said, outcome=None, folder=folder)
    runtime = SearchRuntime(run_dir=folder, port=found.port)
    arguments = {"folder": str(folder / "out")}

    def work():
        strategy = Random(seed=0)
        found.outcome = run_search(
            toy_space.ToySpace(), toy_space.hang_later, arguments, strategy, runtime, said.append
        )

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 90
    while len(list((folder / "out").iterdir())) < 2:
        assert time.monotonic() < deadline and thread.is_alive(), said
        time.sleep(0.05)
    found.thread = thread
    jobs = json.loads(ask(found.port, "GET", f"{API}/trial-jobs")[1])
    found.trial = jobs[0]["trialJobId"]
    yield found
    if thread.is_alive():
        ask(found.port, "DELETE", f"{API}/experiment")
    thread.join(60)
    for each in json.loads((folder / "nni.json").read_text())["experiments"]:
        Experiments().remove_experiment(each)
        shutil.rmtree(NNI_HOME / each, ignore_errors=True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9000", "[::1]:8083"])
def test_this_machine_by_all_its_names_is_heard_with_any_port(live, host):
    """ssh -L 9000:127.0.0.1:8083 asks for localhost:9000."""
    for origin in (None, f"http://{host.lower()}"):
        status, text = ask(live.port, "GET", f"{API}/check-status", Host=host, Origin=origin)
        assert (status, json.loads(text)["status"]) == (200, "RUNNING")


FORGED = {
    "another name": {"Host": "evil.example"},
    "with the port": {"Host": "evil.example:8083"},
    "as a login": {"Host": "localhost@evil.example"},
    "as a sub-domain": {"Host": "localhost.evil.example"},
    "another machine": {"Host": "192.0.2.7"},
    "no name": {"Host": ""},
    "another site": {"Origin": "http://evil.example"},
    "another port": {"Origin": "http://localhost:1"},
    "no site": {"Origin": "null"},
    "a page's request": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
def test_strangers_are_refused_whatever_they_ask(live, headers):
    asked = [
        ("GET", f"{API}/check-status", None, {}),
        ("GET", "/", None, {}),
        ("GET", "/logs/nnimanager.log", None, {}),
        ("OPTIONS", f"{API}/experiment", None, {}),
        ("DELETE", f"{API}/experiment", None, {}),
        ("PUT", f"{API}/experiment?update_type=MAX_TRIAL_NUM", '{"params": {"maxTrialNumber": 1}}', JSON),
        ("POST", f"{API}/trial-jobs", "{}", JSON),
        ("PUT", f"/env/local-env/{live.trial}", '{"type": "metric"}', JSON),
        ("GET", "/tuner", None, UPGRADE),
    ]
    for method, path, body, more in asked:
        status, text = ask(live.port, method, path, body, **{**more, **headers})
        assert status in (400, 403), (method, path, text)
    assert json.loads(ask(live.port, "GET", f"{API}/check-status")[1])["status"] == "RUNNING"


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/proc/net/tcp"), reason="only root can be another user"
)


def trials_wanted(live):
    return json.loads(ask(live.port, "GET", f"{API}/experiment")[1])["params"].get("maxTrialNumber")


def as_nobody(question):
    """What `question()` answers in a process of another user of this machine."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, json.dumps(question()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text)


@needs_root
def test_other_users_of_this_machine_are_refused(live):
    """A job is a command that runs as the user; so is what a trial is told."""
    before = trials_wanted(live)
    for method, path, body, more in (
        ("POST", f"{API}/trial-jobs", '{"a": "on"}', JSON),
        ("PUT", f"/env/local-env/{live.trial}", '{"type": "metric"}', JSON),
        ("GET", f"/env/local-env/{live.trial}", None, UPGRADE),
        ("GET", "/tuner", None, UPGRADE),
        ("PUT", f"{API}/experiment?update_type=MAX_TRIAL_NUM", '{"params": {"maxTrialNumber": 77}}', JSON),
        ("GET", f"{API}/check-status", None, {}),
    ):
        status, text = as_nobody(lambda: ask(live.port, method, path, body, **more))  # noqa: B023
        assert (status, text) == (403, "Only the user who started this search is heard."), path
    assert trials_wanted(live) == before


@needs_root
def test_who_leaves_before_the_answer_is_not_taken_for_root(live):
    """The kernel says of a connection that its owner has closed that it is root's."""

    body = '{"params": {"maxTrialNumber": 77}}'
    head = f"PUT {API}/experiment?update_type=MAX_TRIAL_NUM HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

    def shout():
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", live.port)) as sock:
                sock.sendall((head + body).encode())

    before = trials_wanted(live)
    as_nobody(shout)
    assert trials_wanted(live) == before


def test_our_own_connection_is_known_also_over_a_socket_of_ipv6(live):
    with socket.socket(socket.AF_INET6) as sock:
        sock.connect(("::ffff:127.0.0.1", live.port))
        sock.sendall(f"GET {API}/check-status HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_link_from_another_site_leads_to_the_web_ui(live):
    status, text = ask(
        live.port, "GET", "/", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    )
    assert status == 200 and "<html" in text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_page_can_send_without_asking_is_not_read(live, kind):
    for method, path in (("POST", f"{API}/trial-jobs"), ("PUT", f"{API}/experiment")):
        assert ask(live.port, method, path, "{}", **{"Content-Type": kind})[0] == 415
    assert len(json.loads(ask(live.port, "GET", f"{API}/trial-jobs")[1])) == 2


def test_only_files_of_its_own_trials_are_shown(live):
    folder = NNI_HOME / json.loads((live.folder / "nni.json").read_text())["experiment_id"]
    trial = folder / "environments" / "local-env" / "trials" / live.trial
    (trial / "link").symlink_to("/etc/passwd")
    (trial / "own.txt").write_text("mine")
    up = quote("/".join([".."] * 9), safe="")
    outside = [
        f"{live.trial}/{up}%2Fetc%2Fpasswd",
        f"{live.trial}/%2Fetc%2Fpasswd",
        f"{live.trial}/link",
        f"{up}%2Fetc/passwd",
        f"{up}%2Fetc%2F.%2F/passwd",
        f"{live.trial}%2F{up}%2Fetc/passwd",
        f"..%2F{live.trial}/trial.log",
        "nobody/trial.log",
        f"{live.trial}/..%2F..%2F..%2F..%2Fdb%2Fnni.sqlite",
    ]
    for path in outside:
        status, text = ask(live.port, "GET", f"{API}/trial-file/{path}")
        assert (status, json.loads(text)) == (404, {"error": "Not a file of this trial."}), path
    for path in ("/logs/..%2F..%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd", "/..%2F..%2F..%2F..%2Fetc%2Fpasswd"):
        assert "root:" not in ask(live.port, "GET", path)[1]
    assert ask(live.port, "GET", f"{API}/trial-file/{live.trial}/own.txt") == (200, "mine")
    status, text = ask(live.port, "GET", f"{API}/trial-file/{live.trial}/trial.log")
    assert status == 200 and "printed by the trial" in text


def test_no_other_server_is_started_or_shown(live, tmp_path):
    """Stock NNI makes a folder wherever `trials` says, and shows netron.app as a page of ours."""
    far = tmp_path / "made"
    body = json.dumps({"trials": "../" * 12 + str(far)[1:]})
    status, text = ask(live.port, "POST", f"{API}/tensorboard", body, **JSON)
    assert status == 400 and "TensorBoard is not started from here" in text
    assert not far.exists()
    for path in ("/netron/", "/NETRON/index.html"):
        assert ask(live.port, "GET", path) == (404, "Netron is not served from here.")


def test_a_search_stopped_from_outside_ends_in_one_line_also_after_a_foreign_job(live):
    """Comes last: it ends the search that the tests before it share."""
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", live.port)) == 0
    assert ask(live.port, "POST", f"{API}/trial-jobs", '{"a": "on"}', **JSON)[0] == 200
    body = '{"params": {"maxTrialNumber": 1}}'
    path = f"{API}/experiment?update_type=MAX_TRIAL_NUM"
    assert ask(live.port, "PUT", path, body, **JSON)[0] == 200
    assert ask(live.port, "DELETE", f"{API}/experiment")[0] == 200
    live.thread.join(60)
    assert live.outcome is not None and live.outcome.status == "stopped"
    assert live.said[1:] == [
        "the search was stopped from outside (nnictl or the web UI); finished trials are kept"
    ]
