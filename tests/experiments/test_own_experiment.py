"""A script of one's own with NNI's evaluator, strategy and experiment; our commands take what it exports."""

import json

import pytest

from experiments.examples import own_experiment
from hello_nas import main
from models.networks import open_any_space


@pytest.fixture
def exported(tiny, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny.parent / "cache"))
    given = ["--space", "thin_nas.yaml", "--data", "digits.yaml", "--out", "found.json"]
    best = own_experiment.main([*given, "--trials", "2"])
    return tiny.parent, best


def test_the_script_searches_and_our_commands_take_what_it_exports(exported, capsys):
    folder, best = exported
    assert json.loads((folder / "found.json").read_text()) == best
    space = open_any_space(folder / "thin_nas.yaml", nc=10)
    assert set(best) == set(space.choices)  # a value for every label, also where it does nothing
    as_json = json.loads(
        json.dumps(best).replace("2.0", "2")
    )  # as node writes numbers, between NNI's processes
    assert space.canonical(as_json) == space.canonical(best)
    given = ["found.json", "--space", "thin_nas.yaml"]
    rest = [
        "--data",
        "digits.yaml",
        "imgsz=64",
        "train.epochs=1",
        "train.batch=12",
        "threads=1",
        "device=cpu",
    ]
    assert main(["retrain", *given, "--data", "digits.yaml"]) == 2
    assert "does not say its image size; give imgsz=PIXELS" in capsys.readouterr().err
    assert main(["retrain", *given, *rest, "--out", "trained"]) == 0
    weights = ["--weights", "trained/last.pt"]
    assert main(["evaluate", *given, *rest, *weights, "--out", "score.json"]) == 0
    assert json.loads((folder / "score.json").read_text())["arch"] == space.canonical(best)
    assert main(["finetune", *given, *rest, *weights, "--out", "tuned"]) == 0
    assert main(["export", *given, *weights, "--format", "onnx", "--out", "found.onnx"]) == 0
    assert (folder / "found.onnx").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ('{"nasconv_0": "6x6"}', [], "give --space YAML"),
        ('{"nasconv_0": "9x9"}', ["--space", "thin_nas.yaml"], "does not fit its space"),
        ('{"nasconv_9999": "6x6"}', ["--space", "thin_nas.yaml"], "does not fit its space"),
        ('[{"nasconv_0": "6x6"}]', ["--space", "thin_nas.yaml"], "holds a list of 1; give one architecture"),
        ('{"nasconv_0": "6x6"}', ["--space", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
        ("{}", ["--space", "thin_nas.yaml"], "lacks"),
    ],
)
def test_a_bare_dict_that_cannot_be_used_is_one_line(text, arguments, message, tiny, capsys):
    (tiny.parent / "found.json").write_text(text)
    assert main(["retrain", "found.json", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and message in said[0]
