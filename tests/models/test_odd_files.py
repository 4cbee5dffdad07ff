"""Space and experiment files that nobody should have written: one line each, at once."""

import copy
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hello_nas
from models.networks import open_any_space
from utils.errors import UserError

ROOT = Path(hello_nas.__file__).parent
SPACES = {
    name: yaml.safe_load((ROOT / "models" / f"{name}.yaml").read_text())
    for name in ("yolov5n_nas", "bignas_regnet", "bignas_retinanet_small")
}
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
TEXTS = {
    "levels": ("deep: " + "[" * 100_000, "cannot be read: it is nested too deeply"),
    "a bomb": (LAUGHS, "cannot be read: its aliases (*) stand for more than 1,000,000 values at line 7"),
    "itself": ("me: &me [*me]\n", "cannot be read: its aliases (*) stand for themselves"),
    "a date": ("day: 2024-13-45\n", "is not YAML: month must be in 1..12"),
    "python": ("x: !!python/object:os.system {}\n", "is not YAML: could not determine a constructor"),
}
BEGINNINGS = {
    "experiment": "name: odd\nspace: models/yolov5n_nas.yaml\n",
    "yolo": "nc: 3\nbackbone: []\n",
    "elastic": "network: regnet\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_text_that_no_reader_survives_is_one_line(kind, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, message = TEXTS[name]
    Path("odd.yaml").write_text(BEGINNINGS[kind] + text)
    if kind != "experiment":
        Path("e.yaml").write_text(yaml.safe_dump({"name": "e", "space": "odd.yaml"}))
    started = time.process_time()
    assert hello_nas.main(["space", "odd.yaml" if kind == "experiment" else "e.yaml"]) == 2
    assert time.process_time() - started < 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message.split(" at line")[0] in lines[0] and "odd.yaml" in lines[0]


def test_a_long_value_is_not_printed_in_full(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(
        "name: e\nspace: models/yolov5n_nas.yaml\ntrain: {epochs: [" + "1, " * 5_000 + "1]}"
    )
    assert hello_nas.main(["space", "e.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "epochs" in said and len(said) < 2100 and said.endswith("...\n")


def test_an_override_may_be_any_text(capsys):
    for value in ("[" * 5000, "&a [*a]", "2024-13-45", "!!int x", "9" * 5000):
        assert hello_nas.main(["space", f"train.epochs={value}"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def places(value, path=()):
    """The path of every value in a YAML."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


PLACES = [(name, path) for name, model in SPACES.items() for path in places(model) if path]
SCALARS = st.sampled_from(
    [None, True, -1, 0, 0.5, 1e308, 10**400, 10**9, float("inf"), float("nan"), "", "x", "nc", "1..n", "k-2"]
    + ["1..5..2", "1..999999999", "[1, 2]", "-" * 5000 + "1", "{[]: 1}", "3x3", b"x"]
)
ODD = SCALARS | st.lists(SCALARS, max_size=5)
ODD |= st.dictionaries(
    st.sampled_from(["min", "max", "stride", "values", "sample", "space", 1]), ODD, max_size=4
)
SLIPS = [
    ("yolov5n_nas", ("backbone", 2, 1), 10**9),
    ("yolov5n_nas", ("choices", "NASC3", "depth"), "1..999999"),
    ("bignas_regnet", ("backbone", "depth"), {"min": 1, "max": 1_000_000}),
    ("bignas_regnet", ("backbone", "out_channel"), {"min": 1, "max": 1_000_000, "stride": 1}),
    ("bignas_regnet", ("backbone", "expand_ratio"), "x"),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), ODD)
def test_a_space_with_any_value_anywhere_is_a_space_or_one_line(place, value):
    name, path = place
    try:
        space = open_any_space(changed(SPACES[name], path, value), 3)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert space.canonical(space.default()) == space.default()


@pytest.mark.parametrize("name, path, value", SLIPS)
def test_a_slip_of_the_finger_does_not_fill_the_memory(name, path, value):
    started = time.process_time()
    with pytest.raises(UserError, match="at most|should be|too many"):
        open_any_space(changed(SPACES[name], path, value), 3)
    assert time.process_time() - started < 2
