"""Files are timed on a target, and what a busy or throttled one says is void."""

import os
import stat
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from utils import target
from utils.errors import UserError
from utils.target import Target, calibrate, time_files, verdict
from utils.timing import alternate

QUICK = {"seconds": 0.2}


def network(path, repeats):
    """An ONNX file with so many 3x3 convolutions of 16 channels, one after the other."""
    rng = np.random.default_rng(0)
    nodes, weights, channels, last = [], [], 3, "images"
    for n in range(repeats):
        values = (rng.standard_normal((16, channels, 3, 3)) / 12).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{n}"))
        nodes.append(helper.make_node("Conv", [last, f"w{n}"], [f"x{n}"], name=f"conv{n}", pads=[1] * 4))
        last, channels = f"x{n}", 16
    shape = ["b", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["b", 16, "h", "w"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return network(folder / "small.onnx", 3), network(folder / "large.onnx", 15)


# What blocks say ----------------------------------------------------------------------------------------


def test_the_latency_is_the_median_ratio_times_the_reference():
    found = verdict([2.0, 2.1, 1.9, 2.0, 2.0, 2.1, 1.9], [0.001] * 7, 1.5)
    assert found.ms == pytest.approx(3.0) and not found.void
    assert found.spread == pytest.approx(0.2 * 1.5)  # quartiles 1.9 and 2.1


def test_blocks_far_apart_are_void():
    found = verdict([1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 2.0], [0.001] * 7, 1.0)
    assert found.ms is None and found.void.startswith("busy: the middle half of the blocks is 100%")


def test_a_reference_that_slowed_down_is_void():
    slow = [0.0025] * 8
    found = verdict([2.0] * 8, slow, 1.0)
    assert found.ms is None
    assert found.void == "busy or throttled: the reference network takes 2.5 times what it took before"
    assert verdict([2.0] * 8, slow, 2.5).ms == 5.0


def test_blocks_alternate_and_a_slow_down_of_both_cancels_out():
    """The machine gets slower with every block: plain times double, the ratio stays."""
    speed, order = 1.0, []

    def clock(run, n):
        nonlocal speed
        order.append(run)
        speed *= 1.01
        return n * run() * speed

    ratios, seen = alternate(lambda: 0.02, lambda: 0.01, clock, 1.0)
    assert seen[-1] > 1.5 * seen[0]
    assert np.median(ratios) == pytest.approx(2.0, rel=0.02)
    blocks = order[6:]
    assert blocks[0] is not blocks[1] and blocks[1] is blocks[2]  # standard, candidate, candidate, standard


# On this machine, and by ssh ----------------------------------------------------------------------------


def test_a_file_of_five_times_the_work_takes_longer(files):
    small, large = files
    here = Target(**QUICK)
    known = calibrate(here, {"onnx": small}, 96)
    assert known.side == 96 and known.hardware and known.reference_ms["onnx"] > 0
    told = target.ask(here, {"onnx": small}, {"a": (small, "onnx"), "b": (large, "onnx")}, 96, 96)
    same, more = (np.median(told["timed"][name]["ratios"]) for name in "ab")
    assert same == pytest.approx(1, abs=0.4) and more > 2 * same
    assert "onnxruntime" in told["versions"]


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A stand-in for ssh that writes its arguments down and runs the command here."""

    def made(body='shift 5; echo "$1" > "$LOG.host"; shift; exec sh -c "$*"'):
        file = tmp_path / "bin" / "ssh"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\nLOG={tmp_path}/ssh\necho "$@" > "$LOG.all"\n{body}\n')
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
        return tmp_path / "ssh.host", tmp_path / "ssh.all"

    return made


def test_by_ssh_the_files_are_sent_and_nothing_is_left(files, ssh, tmp_path, monkeypatch):
    host, everything = ssh()
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there"))
    board = Target("pi@board", sys.executable, **QUICK)
    known = calibrate(board, {"onnx": files[0]}, 64)
    found = time_files(board, {"onnx_ms": (files[1], "onnx")}, 64, {"onnx": files[0]}, known)
    assert found["onnx_ms"].void or found["onnx_ms"].ms > known.reference_ms["onnx"]
    assert host.read_text() == "pi@board\n"
    assert everything.read_text().startswith("-o BatchMode=yes -o ConnectTimeout=10 -- pi@board ")
    left = {path.name for path in (tmp_path / "there").iterdir()}
    assert left <= {".ses"}  # onnxruntime's own


@pytest.mark.parametrize(
    ("body", "python", "message"),
    [
        ("echo 'ssh: connect to host board port 22: No route to host' >&2; exit 255", "python3",
         "ssh cannot reach it: ssh: connect to host board port 22: No route to host"),
        ('shift 6; exec sh -c "$*"', "no-such-python", "it has no no-such-python"),
        ("cat > /dev/null; echo hello", "python3", "it answered b'hello\\n' instead of figures"),
        ("cat > /dev/null; echo \"No module named 'onnxruntime': pip install onnxruntime\" >&2; exit 3",
         "python3", "its Python says No module named 'onnxruntime': pip install onnxruntime"),
    ],
)  # fmt: skip
def test_a_target_that_does_not_answer_is_one_line(files, ssh, body, python, message):
    ssh(body)
    with pytest.raises(UserError) as error:
        calibrate(Target("board", python, **QUICK), {"onnx": files[0]}, 64)
    assert "target board does not answer" in str(error.value) and message in str(error.value)


def test_a_target_that_hangs_is_given_up(files, ssh, monkeypatch):
    ssh("exec sleep 20")
    monkeypatch.setattr(target, "ANSWER_SECONDS", 0.2)
    with pytest.raises(UserError, match="target board: no answer within 1 seconds"):
        calibrate(Target("board", **QUICK), {"onnx": files[0]}, 64)


def test_without_ssh_it_is_said(files, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no ssh here"):
        calibrate(Target("board", **QUICK), {"onnx": files[0]}, 64)


def test_a_file_that_the_runtime_cannot_read_is_said(files, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="this machine does not answer: its Python says .*bad|Fail|Invalid"):
        calibrate(Target(**QUICK), {"onnx": tmp_path / "bad.onnx"}, 64)
