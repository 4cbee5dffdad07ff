"""Every parameter of every command and every key of an experiment, given what cannot work: the outcome is one
line on stderr and exit status 2, and nothing is left behind."""

import inspect
import json
import os
import shutil

import pytest
import torch
import yaml

import hello_nas
from experiments.config import known_keys, load_experiment
from experiments.run_folder import RunFolder
from experiments.sample import _space_of
from models.networks import build
from models.weights import save_weights
from tests.experiments.test_handover import DIGITS, SPACE
from utils.history import Trial
from utils.report.results import write_top

ARCH, WEIGHTS = "runs/done/top/1.json", "runs/done/trials/0000/weights.pt"
NO_FILE = ["nowhere", "folder", "ünï☃", "x" * 300, "binary.pt/below", ""]
NO_TEXT_FILE = [*NO_FILE, "binary.pt", "empty"]
TAKEN = ["folder", "binary.pt", "binary.pt/below", ""]
NO_WHOLE = ["-1", "1.5", "1e99", "nan", "x", "ünï", ""]
NO_COUNT = [*NO_WHOLE, "0", "9" * 30]
NO_NUMBER = ["nan", "x", "ünï", ""]
NO_SHARE = [*NO_NUMBER, "-0.1", "1.1", "inf"]
NO_FLAG = ["perhaps"]
NO_KEY = ["nonsense", "a=1", "=1", "train..lr=1", "train.lr", "ünï=1", ""]

# command: (what is right, parameter: what is not): a value for its option, or all arguments as a list.
MISTAKES = {
    "run": (
        ["tiny.yaml", "name=new"],
        {
            "args": [[x] for x in [*NO_TEXT_FILE, "empty.yaml", "tiny.jpeg"] + NO_KEY]
            + [["tiny.yaml", x] for x in NO_KEY],
            "data": NO_TEXT_FILE,
            "run_dir": TAKEN,
            "resume": [["--resume", "--run-dir", x] for x in NO_TEXT_FILE],
            "steps": ["serch", "supernet", "search,,x", "ünï", ""],
            "port": [*NO_COUNT, "70000"],
            "host": [""],
            "no_ui": NO_FLAG,
        },
    ),
    "space": ([], {"experiment": NO_TEXT_FILE, "overrides": [["tiny.yaml", x] for x in NO_KEY]}),
    "sample": (
        ["tiny.yaml", "--out", "new"],
        {
            "experiment": [[x] for x in NO_TEXT_FILE],
            "overrides": [["tiny.yaml", x] for x in NO_KEY],
            "n": NO_COUNT,
            "out": ["binary.pt", "binary.pt/below", ""],
            "seed": NO_WHOLE,
            "low": [*NO_NUMBER, "inf", "1e99"],
            "high": [*NO_NUMBER, "-1"],
            "traverse": NO_FLAG,
        },
    ),
    "evaluate": (
        [ARCH],
        {
            "arch": [[x] for x in NO_TEXT_FILE],
            "overrides": [[ARCH, x] for x in [*NO_KEY, "name=x", "imgsz=100", "device=nix"]],
            "data": NO_TEXT_FILE,
            "weights": NO_TEXT_FILE,
            "split": ["nowhere", "ünï", ""],
            "space": NO_TEXT_FILE,
            "out": ["folder", "binary.pt", ""],
        },
    ),
    "measure": (
        [ARCH],
        {
            "arch": [[x] for x in NO_TEXT_FILE],
            "overrides": [[ARCH, x] for x in [*NO_KEY, "name=x", "imgsz=100"]],
            "data": NO_TEXT_FILE,
            "weights": NO_TEXT_FILE,
            "metrics": ["int8", "int8_mss", "gflops", "int8_top1", "onnx_ms,x"],
            "target": ["", "-oProxyCommand=x", "a b", "nowhere.invalid"],
            "python": [[ARCH, "--target", "nowhere.invalid", "--python", "x"]],
            "threads": NO_COUNT,
            "split": ["nowhere", "ünï", ""],
            "space": NO_TEXT_FILE,
            "out": ["folder", "binary.pt", ""],
        },
    ),
    "retrain": (
        [ARCH],
        {
            "arch": [[x] for x in NO_TEXT_FILE],
            "overrides": [[ARCH, x] for x in [*NO_KEY, "search.top_k=3", "train.epochs=0"]],
            "data": NO_TEXT_FILE,
            "out": TAKEN,
            "weights": NO_FILE,
            "space": NO_TEXT_FILE,
            "resume": [[ARCH, "--resume", "--out", x] for x in NO_FILE],
        },
    ),
    "finetune": (
        [ARCH, "--weights", WEIGHTS],
        {
            "arch": [[x, "--weights", WEIGHTS] for x in NO_TEXT_FILE],
            "overrides": [[ARCH, x, "--weights", WEIGHTS] for x in NO_KEY],
            "weights": [[ARCH, "--weights", x] for x in NO_TEXT_FILE] + [[ARCH]],
            "data": NO_TEXT_FILE,
            "out": TAKEN,
            "space": NO_TEXT_FILE,
            "resume": [[ARCH, "--weights", WEIGHTS, "--resume", "--out", x] for x in NO_FILE],
        },
    ),
    "export": (
        [ARCH],
        {
            "arch": [[x] for x in NO_TEXT_FILE],
            "weights": NO_TEXT_FILE,
            "format": ["onxx", "ünï", ""],
            "out": ["folder", "binary.pt", ""],
            "imgsz": [*NO_COUNT, "100"],
            "data": [""],
            "threads": NO_COUNT,
            "space": NO_TEXT_FILE,
        },
    ),
    "predict": (
        [WEIGHTS, "picture.png", "--out", "new"],
        {
            "weights": [[x, "picture.png", "--out", "new"] for x in NO_TEXT_FILE],
            "source": [[WEIGHTS, x, "--out", "new"] for x in NO_TEXT_FILE],
            "out": TAKEN,
            "conf": NO_SHARE,
            "iou": NO_SHARE,
            "imgsz": [*NO_COUNT, "100"],
            "device": ["nix", "cuda:99", ""],
            "save": ["picturs", "json,,txt", "ünï", ""],
        },
    ),
    "report": (
        ["runs/done"],
        {
            "run_dir": [[x] for x in NO_TEXT_FILE],
            "others": [["runs/done", x, "--out", "new"] for x in NO_TEXT_FILE],
            "baselines": NO_TEXT_FILE,
            "out": ["folder", "binary.pt", "binary.pt/below", ""],
        },
    ),
    "keys": ([], {"block": [["serch"], ["train.epoch"], ["ünï"], [""], ["-1"]]}),
    "status": ([], {"run_dir": NO_TEXT_FILE}),
    "view": (["runs/done"], {"run_dir": [[x] for x in [*NO_TEXT_FILE, "runs/done"]], "port": NO_COUNT}),
    "data": (
        ["digits.yaml", "--to", "new"],
        {"src": [[x, "--to", "new"] for x in NO_TEXT_FILE], "to": ["binary.pt", "runs", ""]},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, whose network never learnt anything, and files that are not what they seem."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "folder").mkdir()
    (folder / "folder" / "mine").write_text("precious")
    (folder / "binary.pt").write_bytes(b"\x80\x02\xff\xfeabc")
    for name in ("empty", "empty.yaml", "picture.png"):
        (folder / name).touch()
    (folder / "tiny_space.yaml").write_text(yaml.safe_dump(SPACE))
    (folder / "digits.yaml").write_text(yaml.safe_dump(DIGITS))
    experiment = {"name": "done", "space": "tiny_space.yaml", "data": "digits.yaml", "device": "cpu"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment | {"search": {"engine": "inline"}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HELLO_NAS_CACHE", str(folder / ".cache"))
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
        exp = load_experiment("tiny.yaml")
        space, _ = _space_of(folder / "tiny.yaml", [])
        run = RunFolder.create(folder / "runs" / "done", exp)
        arch = space.default()
        trial = Trial(0, arch, {"map50_95": 0.1, **space.cost(arch, 64)}, reward=0.1)
        run.history.append(trial)
        write_top(run.path, [trial], 1, space=exp.space, data=exp.data, imgsz=64)
        names = [str(i) for i in range(10)]
        net = build(space, arch, names)
        save_weights(run.trial_dir(0) / "weights.pt", net, space, arch, imgsz=64, names=names)
        yield folder


def given(command, parameter, value):
    right, _ = MISTAKES[command]
    if isinstance(value, list):
        return [command, *value]
    if parameter in ("run_dir", "experiment") and command not in ("run", "sample"):
        return [command, value]
    return [command, *right, {"n": "-n"}.get(parameter, f"--{parameter.replace('_', '-')}"), value]


def contents(folder):
    """Every file but the remembered data, with when it was written."""
    return {
        str(p): p.stat().st_mtime_ns if p.is_file() else 0
        for p in folder.rglob("*")
        if ".cache" not in p.parts and p.name not in (".lock",)
    }


def outcome(arguments, place, capsys):
    """The line on stderr of a command that has to fail."""
    before = contents(place)
    status = hello_nas.main(arguments)
    said = capsys.readouterr().err.splitlines()
    assert (status, len(said)) == (2, 1), (arguments, status, said)
    assert said[0].startswith("error: ") and len(said[0]) > 15, said
    assert contents(place) == before, arguments
    return said[0]


@pytest.mark.parametrize(
    ("command", "parameter"), [(c, p) for c, (_, parameters) in MISTAKES.items() for p in parameters]
)
def test_a_wrong_value_of_a_parameter_is_one_line(command, parameter, place, capsys):
    for value in MISTAKES[command][1][parameter]:
        if f"{command} {parameter}" == "run no_ui" and "=" not in value:
            value = ["tiny.yaml", f"--no-ui={value}"]
        if parameter == "traverse":
            value = ["tiny.yaml", f"--traverse={value}"]
        outcome(given(command, parameter, value), place, capsys)


def test_no_command_and_no_parameter_is_left_out():
    commands = {name for name in hello_nas.app if not name.startswith("-")}
    assert commands == set(MISTAKES)
    for command, (_, parameters) in MISTAKES.items():
        function = getattr(hello_nas, command)
        assert set(inspect.signature(function).parameters) == set(parameters), command


@pytest.mark.parametrize("key", known_keys())
def test_a_wrong_value_of_a_key_is_one_line(key, place, capsys):
    """Where the value happens to fit, the device does not: nothing is run."""
    stop = "search.reward=nix" if key == "device" else "device=nix"
    for value in ("", "[]", "{}", "{a: b}", "[1, x]", "ünï", "-1", "1.5", "9" * 30, "1e99", ".nan", "true"):
        if key == "name" and value not in ("1.5", "-1", "true"):
            outcome(["run", "tiny.yaml", stop, f"{key}={value}", "--run-dir", "new"], place, capsys)
        elif key != "name":
            outcome(["run", "tiny.yaml", "name=new", f"{key}={value}", stop], place, capsys)


def test_advice_names_what_the_command_has(place, capsys):
    """Not another command's options."""
    for command in ("retrain", "finetune"):
        line = outcome([command, ARCH, "--weights", WEIGHTS, "--out", "folder"], place, capsys)
        assert "--out DIR" in line and "--run-dir" not in line and "name=" not in line
    line = outcome(["run", "tiny.yaml", "name=new", "--run-dir", "folder"], place, capsys)
    assert "--run-dir DIR or name=NAME" in line
    if not torch.cuda.is_available():
        line = outcome(["predict", WEIGHTS, "picture.png", "--device", "cuda", "--out", "new"], place, capsys)
        assert line.endswith("use cpu or auto")


@pytest.mark.parametrize("step", ["sample", "sample_accuracy"])
def test_what_a_sample_cannot_have_is_said_before_there_is_a_run(step, place, capsys):
    for gflops, message in (("[500, 600]", "the nearest has"), ("[5, 1]", "the smaller one first")):
        arguments = [f"{step}={{n: 3, gflops: {gflops}}}", f"steps=[{step}]", "supernet={}", "name=new"]
        assert message in outcome(["run", "tiny.yaml", *arguments], place, capsys)


def test_a_run_is_found_by_its_name(place, capsys):
    assert hello_nas.main(["status", "done"]) == 0
    assert "runs/done" in capsys.readouterr().out
    assert "no run 'dome'; did you mean 'done'?" in outcome(["status", "dome"], place, capsys)
    assert "has no NNI experiment" in outcome(["view", "done"], place, capsys)
    shutil.copytree(place / "runs" / "done", place / "runs" / "copy")
    assert hello_nas.main(["report", "copy", "--baselines", "done"]) == 0
    assert (place / "runs" / "copy" / "report.html").is_file()
    shutil.rmtree(place / "runs" / "copy")


def test_data_may_be_an_option_of_run(place, capsys):
    right = ["run", "tiny.yaml", "name=new", "device=nix", "data=nowhere.yaml"]
    assert "unknown device" in outcome([*right, "--data", "digits.yaml"], place, capsys)


def test_a_killed_run_says_the_command_that_goes_on(place, capsys):
    file = place / "runs" / "done" / "run.json"
    facts = {"state": "running", "pid": 2**22 + 1, "started": 0.0}
    for command in ("python hello_nas.py retrain a.json --out x", "python hello_nas.py run x.yaml --resume"):
        file.write_text(json.dumps(facts | {"command": command}))
        assert hello_nas.main(["status", "done"]) == 0
        line = f"go on with: {command.removesuffix(' --resume')} --resume\n"
        assert line in capsys.readouterr().out
    os.unlink(file)


def test_ctrl_c_says_resume_only_where_there_is_something_to_resume(capsys, monkeypatch):
    class Stopped:
        def __iter__(self):
            return iter(names)

        def __call__(self, *_, **__):
            raise KeyboardInterrupt

    names = list(hello_nas.app)
    monkeypatch.setattr(hello_nas, "app", Stopped())
    for arguments, said in (
        ([], "interrupted; --resume goes on\n"),
        (["train.epochs=3"], "interrupted; --resume goes on\n"),
        (["finetune", "x"], "interrupted; --resume goes on\n"),
        (["sample", "x"], "interrupted\n"),
        (["predict", "x"], "interrupted\n"),
    ):
        assert hello_nas.main(arguments) == 130
        assert capsys.readouterr().err == said


def test_a_target_that_does_not_answer_is_said_before_a_run_has_a_folder(tiny, tmp_path, monkeypatch, capsys):
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'ssh: connect to host board port 22: No route to host' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    said = ["search.measure=[onnx_ms]", "search.target=board"]
    assert hello_nas.main(["run", str(tiny), "--run-dir", str(tmp_path / "r"), "--no-ui", *said]) == 2
    assert "target board does not answer: ssh cannot reach it" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
