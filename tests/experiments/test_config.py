import re

import pytest

from data.hyp import load_hyp
from experiments import config
from experiments.config import (
    ROOT,
    augmentation,
    describe_keys,
    finetune_settings,
    hyp_file,
    known_keys,
    load_experiment,
    rank_settings,
    retrain_settings,
)
from experiments.strategies import STRATEGIES
from utils.errors import UserError
from utils.rewards import REWARDS
from utils.steps import STEPS

NO_DATA = {ROOT / "experiments" / name for name in ("slim.yaml", "slim_supernet.yaml")}
SHIPPED = sorted(set((ROOT / "experiments").glob("*.yaml")) - NO_DATA)


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "space.yaml").write_text("backbone: []")
    (tmp_path / "data.yaml").write_text("names: [a]")
    (tmp_path / "hyp.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text("{name: x, space: space.yaml, data: data.yaml, train: {hyp: hyp.yaml}}")
    return path


def test_defaults_are_filled_in_and_paths_made_absolute(file):
    exp = load_experiment(file)
    assert exp.space == str(file.parent / "space.yaml")
    assert (exp.search.strategy.name, exp.search.engine, exp.search.baseline) == ("evolution", "nni", True)


def test_overrides_reach_every_depth(file):
    exp = load_experiment(
        file,
        [
            "search.max_trials=8",
            "train.lr=1e-4",
            "search.limits.gflops=<= 2",
            "search.strategy.sample_size=3",
        ],
    )
    assert exp.search.max_trials == 8
    assert exp.train.lr == 1e-4  # PyYAML alone reads 1e-4 as a string
    assert exp.search.limits == {"gflops": "<= 2"}
    assert exp.search.strategy.options == {"sample_size": 3}


def test_another_name_drops_the_options_of_the_old_one(file):
    exp = load_experiment(file, ["search.strategy={name: evolution, sample_size: 3}", "search.strategy=tpe"])
    assert (exp.search.strategy.name, exp.search.strategy.options) == ("tpe", {})


def test_an_option_keeps_the_name_that_stands_in_the_file():
    exp = load_experiment(ROOT / "experiments/yolov5_supernet.yaml", ["supernet.sampling.bins=5"])
    assert exp.supernet is not None
    assert (exp.supernet.sampling.name, exp.supernet.sampling.bins) == ("stratified", 5)


@pytest.mark.parametrize(
    ("epochs", "name"),
    [(1, "default"), (24, "default"), (25, "scratch-low"), (199, "scratch-low"), (200, "scratch-med")],
)
def test_augmentation_is_chosen_by_the_length_of_the_training(file, epochs, name):
    train = load_experiment(file, ["train.hyp=auto", f"train.epochs={epochs}"]).train
    assert train.hyp == "auto" and train.hyp_file == f"data/hyps/{name}.yaml"
    assert f"{name}.yaml, chosen for {epochs} epochs" in train.augmentation
    mine = load_experiment(file, [f"train.epochs={epochs}"]).train
    assert mine.hyp_file == str(file.parent / "hyp.yaml") and "chosen for" not in mine.augmentation


def test_retrain_finetune_and_rank_choose_for_their_own_length(file):
    exp = load_experiment(
        file,
        ["train.hyp=auto", "train.epochs=60", "retrain.epochs=250", "rank.train.epochs=6", "finetune.lr=0.1"],
    )
    chosen = [s(exp).hyp_file for s in (retrain_settings, finetune_settings, rank_settings)]
    assert chosen == [f"data/hyps/{n}.yaml" for n in ("scratch-med", "default", "default")]
    exp = load_experiment(file, ["train.hyp=auto", "retrain={hyp: hyp.yaml}"])
    assert retrain_settings(exp).hyp_file == str(file.parent / "hyp.yaml")


def test_data_that_names_its_own_augmentation_has_that_where_nobody_names_another(file):
    (file.parent / "data.yaml").write_text("names: [a]\nhyp: hyps/scratch-med.yaml\n")
    exp = load_experiment(file, ["train.hyp=auto", "train.epochs=60", "finetune.hyp=hyp.yaml"])
    for settings in (exp.train, retrain_settings(exp), rank_settings(exp)):
        assert hyp_file(exp, settings) == str(ROOT / "data/hyps/scratch-med.yaml")
        assert f"scratch-med.yaml, which {file.parent / 'data.yaml'} asks for" in augmentation(exp, settings)
    assert hyp_file(exp, finetune_settings(exp)) == str(file.parent / "hyp.yaml")
    exp = load_experiment(file)
    assert hyp_file(exp, exp.train) == str(file.parent / "hyp.yaml")
    (file.parent / "data.yaml").write_text("names: [a]\nhyp: nowhere.yaml\n")
    with pytest.raises(
        UserError, match=r"hyp must name a file of augmentation settings, got 'nowhere\.yaml'"
    ):
        load_experiment(file, ["train.hyp=auto"])


def test_no_shipped_experiment_mirrors_the_digits():
    off = load_hyp("data/hyps/default.yaml")
    for path in SHIPPED:
        exp = load_experiment(path, ["train.epochs=300"])
        assert exp.data.endswith("digits.yaml") and load_hyp(hyp_file(exp, exp.train)) == off


def test_the_short_shipped_experiments_train_without_augmentation_as_they_always_did():
    off = load_hyp("data/hyps/default.yaml")
    assert all(v == 0 for k, v in off.items() if k not in ("box", "cls", "dfl"))
    for path in SHIPPED:
        train = load_experiment(path).train
        assert train.hyp == "auto"
        if train.epochs <= 16:
            assert load_hyp(train.hyp_file) == off


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.max_trails=8", "unknown key 'search.max_trails'; did you mean 'search.max_trials'?"),
        ("epochs=3", "unknown key 'epochs'; did you mean 'train.epochs'?"),
        ("train.epochs=soon", "train.epochs: 'soon' does not fit"),
        ("train.epochs=0", "train.epochs: 0 does not fit"),
        ("train.lr=.nan", "train.lr"),
        ("imgsz=99", "a multiple of 4 is needed, the nearest is 100"),
        ("search.engine=nmi", "unknown search.engine 'nmi'; did you mean 'nni'?"),
        ("steps=[serch]", "unknown step 'serch'; did you mean 'search'?"),
        ("data=dota.yaml", "data: 'dota.yaml' does not exist; did you mean 'data.yaml'?"),
        ("train.hyp=nowhere.yaml", "train.hyp: 'nowhere.yaml' does not exist"),
        ("train.hyp=space.yaml", "unknown key in hyp file"),
        ("retrain.hyp=nowhere.yaml", "retrain.hyp: 'nowhere.yaml' does not exist"),
        ("finetune.hyp=space.yaml", "unknown key in hyp file"),
        ("rank.train={hyp: data}", "hyp"),
        ("name=a/b", "it names a folder below runs/"),
        ("nonsense", "'nonsense' is neither a file nor key=value"),
        ("train=5", "train: 5 does not fit"),
        ("train.schedule=cosin", "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("train.schedule={name: StepLR, gama: 1}", "unknown option of StepLR 'gama'; did you mean 'gamma'?"),
        ("finetune.schedule=CosineAnnealingLR", "the schedule CosineAnnealingLR needs T_max"),
        ("train.schedule={name: OneCycleLR, max_lr: 0.1, total_steps: 1}", "ends before epoch"),
        ("search.data_portion=[0.0, 0.95, 0.1]", "the shares sum to 1.05, and 1 is all there is"),
        ("search.data_portion=[0.9, 0.1]", "three shares of train are needed"),
        ("search.data_portion=[0, 1, 0]", "the last two above 0"),
        (
            "search={val_fraction: 0.2, data_portion: [0, 0.9, 0.1]}",
            "val_fraction is 0.2: give one of the two",
        ),
        (
            "supernet={distil: {teachers: {big: nowhere.pt}, outputs: [{teacher: big}]}}",
            "supernet.distil.teachers: 'nowhere.pt' does not exist",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_remedy(file, override, message):
    with pytest.raises(UserError) as caught:
        load_experiment(file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not YAML"), ("- 1", "should be a mapping"), ("{}", "the key 'name' is missing")],
)
def test_a_broken_file_is_one_line(file, content, message):
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_experiment(file)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models/yolov5n_nas.yaml", "no experiment; .* space=.*yolov5n_nas.yaml"),
        ("models/bignas_regnet.yaml", "no experiment; .* space="),
        ("data/digits.yaml", "no experiment; .* data=.*digits.yaml"),
    ],
)
def test_a_space_or_data_in_place_of_an_experiment(path, message):
    with pytest.raises(UserError, match=message):
        load_experiment(ROOT / path)


def test_a_missing_file_names_its_neighbour(file):
    with pytest.raises(UserError, match="no experiment file .*; did you mean 'x.yaml'"):
        load_experiment(file.with_name("xx.yaml"))


def test_every_key_says_its_default_and_its_meaning():
    lines = describe_keys().splitlines()
    said = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(said) == known_keys()
    assert "train.epochs = 6 " in said["train.epochs"] and "passes over" in said["train.epochs"]
    assert "space (needed)" in said["space"] and "search.strategy = evolution " in said["search.strategy"]
    for key, field in config._fields(config.Experiment):
        assert field.description and len(field.description) >= 10, key
    for name in (*STRATEGIES, *REWARDS):
        assert re.search(rf"\b{name}\b", describe_keys("search").split("search.limits")[0]), name
    block = describe_keys("supernet.sampling").splitlines()
    assert block[1].startswith("supernet.sampling.name = uniform") and len(block) < 12
    assert all(len(line) <= 110 for line in lines)


@pytest.mark.parametrize(
    ("head", "names"),
    [("| `search.strategy`", STRATEGIES), ("| `search.reward`", REWARDS), ("| step |", STEPS)],
)
def test_the_tables_of_the_readme_name_all_there_is_and_nothing_else(head, names):
    table = (ROOT / "README.md").read_text().split(head)[1].split("\n\n")[0]
    said = re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in table.splitlines()[2:]))
    assert set(said) - {"mine.py"} == set(names)


def test_known_keys_are_the_shared_vocabulary():
    shared = "name space data imgsz device seed train.epochs train.batch train.lr search.strategy"
    for key in [
        "engine",
        "max_trials",
        "max_seconds",
        "concurrency",
        "reward",
        "limits",
        "objectives",
        "top_k",
    ]:
        shared += f" search.{key}"
    assert set(shared.split()) <= set(known_keys())
