import json
import multiprocessing

import numpy as np
import pytest

from utils.history import History, Trial, append_line, arch_key


def test_identity_ignores_the_order_of_keys():
    assert arch_key({"b": 1, "a": "k3"}) == arch_key({"a": "k3", "b": 1}) == '{"a":"k3","b":1}'


def test_a_trial_survives_the_file(tmp_path):
    trial = Trial(3, {"a": "k3"}, {"map50_95": 0.1234567890123}, 0.5, "complete", None, 1.5, 7, (1, 2), 9.0)
    history = History(tmp_path / "run" / "history.jsonl")
    history.append(trial)
    assert history.load() == [trial]


def test_nan_and_numpy_are_written_as_strict_json(tmp_path):
    line = Trial(0, {}, {"map50_95": float("nan"), "gflops": np.float32(0.5)}).to_json()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {"map50_95": None, "gflops": 0.5}
    assert Trial.from_json(line).metrics == {"gflops": 0.5}


def test_a_line_torn_by_a_crash_is_left_out_and_the_next_is_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(Trial(0, {"a": 0}))
    with open(path, "a") as file:
        file.write('{"number": 1, "arch": {"a"')
    history.append(Trial(2, {"a": 2}))
    assert [t.number for t in history.load()] == [0, 2]


def test_whole_lines_are_appended_as_they_are_and_only_a_torn_one_gets_an_end(tmp_path):
    path = tmp_path / "lines.jsonl"
    for line in ("{}", "1", ""):
        append_line(path, line)
    assert path.read_bytes() == b"{}\n1\n\n"
    path.write_bytes(b"1\n2")
    append_line(path, "3")
    assert path.read_bytes() == b"1\n2\n3\n"
    path.write_bytes(b"1")
    append_line(path, "2")
    assert path.read_bytes() == b"1\n2\n"


def test_foreign_lines_and_unknown_keys_are_tolerated(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('[]\n{"number": 1, "arch": {}, "invented_later": 5}\n\n{"number": 2}\n')
    assert [t.number for t in History(path).load()] == [1]


ODD = {
    "deep lists": '{"number": 1, "arch": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "deep objects": '{"number": 1, "arch": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + "}",
    "a few hundred levels": '{"number": 1, "arch": {"a": ' + "[" * 300 + "]" * 300 + "}}",
    "no object": "[1, 2]",
    "no arch": '{"number": 1}',
    "a number that is none": '{"number": 1.5, "arch": {}}',
    "an arch that is none": '{"number": 1, "arch": [1]}',
    "a number of many digits": '{"number": ' + "9" * 5000 + ', "arch": {}}',
}


@pytest.mark.parametrize("name", ODD)
def test_a_line_that_is_no_trial_is_left_out(name, tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(ODD[name] + "\n" + Trial(2, {"a": 1}).to_json() + "\n")
    assert History(path).load() == [Trial(2, {"a": 1})]


def test_values_of_the_wrong_kind_are_as_if_they_were_not_said():
    line = {"number": 4, "arch": {"a": 1}, "metrics": {"map50_95": "high", "gflops": 2, "x": 1e999}}
    line |= {"reward": "0.5", "seconds": None, "started": [], "parents": "12", "reason": 7, "seed": True}
    line |= {"curve": [3, {"loss": 1.0}], "state": ["complete"]}
    found = Trial.from_json(json.dumps(line))
    assert found == Trial(4, {"a": 1}, {"gflops": 2}, curve=[{"loss": 1.0}])
    for key in ("metrics", "curve", "parents"):
        assert Trial.from_json(json.dumps({"number": 4, "arch": {}, key: 5})) == Trial(4, {})
    assert Trial.from_json('{"number": 4, "arch": {}, "reward": ' + "9" * 400 + "}").reward is None


def _append_many(path, first):
    for number in range(first, first + 25):
        History(path).append(Trial(number, {"a": "x" * 5000}))


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    workers = [multiprocessing.Process(target=_append_many, args=(path, 25 * i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [t.number for t in History(path).load()] == list(range(100))
