"""A serial search: children of the front start from their parents' weights; streams come after it."""

import threading
from types import SimpleNamespace

import pytest
import torch

from experiments import starts
from experiments.run_folder import RunFolder
from experiments.serial import parallel
from experiments.starts import start_of
from experiments.strategies import check_strategy
from experiments.strategies.pareto import ParetoEvolution
from experiments.strategies.streams import Streams
from hello_nas import main
from models.inherit import inherit
from models.serial.code import heir, parse
from models.serial.space import SerialSpace
from models.weights import save_weights
from models.yaml_file import read_mapping
from tests.models.test_serial_space import SMALL
from utils.errors import UserError
from utils.history import History, Trial
from utils.training.optimize import Flat, apart, build_optimizer, weight_groups
from utils.training.settings import INHERITED_LR, TrainSettings
from utils.training.train import TrainingFailed

OBJECTIVES = {"map50_95": "max", "gflops": "min"}


@pytest.fixture(scope="module")
def space():
    return SerialSpace(SMALL, nc=3)


def told(space, number, arch, quality):
    metrics = {"map50_95": quality, "gflops": space.cost(arch, 64)["gflops"]}
    return Trial(number, arch, metrics, quality, "complete")


def test_all_are_children_of_the_front_from_the_first_on(space):
    strategy = ParetoEvolution(
        space, OBJECTIVES, seed=0, population_size=4, start="front", crossover_prob=0.0
    )
    asked, seen = [], {str(space.default())}
    for _ in range(2):  # before anything is known: of the unsearched one
        asked.append(strategy.ask())
        assert strategy.parents == (0,)
    for number, arch in enumerate([space.default(), *asked]):
        strategy.tell(told(space, number, arch, [0.9, 0.1, 0.95][number]))
    front = {
        p.trial.number
        for p, (rank, _) in zip(strategy.population, strategy._fitness, strict=True)
        if not rank
    }
    codes = [space.default(), *asked]
    for _ in range(10):
        child = strategy.ask()
        assert len(strategy.parents) == 1 and strategy.parents[0] in front and str(child) not in seen
        seen.add(str(child))
        parent = parse(codes[strategy.parents[0]]["code"])
        kept = {b.id for b in heir(parse(child["code"]), parent).blocks} & {b.id for b in parent.blocks}
        assert len(kept) >= len(parent.blocks) - 3  # at most three changes apart


def test_only_pareto_starts_from_the_front():
    assert check_strategy("pareto", {"start": "front"}) == {"start": "front"}
    with pytest.raises(UserError, match="baseline or random is needed"):
        check_strategy("evolution", {"start": "front"})


def test_streams_stand_beside_codes_of_the_front(space):
    good, bad = {"code": "b_11-21-2-2"}, {"code": "b_11111-21-22"}
    known = [told(space, 0, good, 0.9), told(space, 1, bad, 0.1)]
    strategy = Streams(space, OBJECTIVES, seed=0, known=known)
    drawn = [strategy.ask() for _ in range(12)]
    assert strategy.parents == (0,)  # the other costs more and does worse
    assert len({str(a) for a in drawn}) == 12
    for arch in drawn:
        code = parse(arch["code"])
        assert any(code.streams) and str(code).startswith("b_11-21-2-2_")
    again = Streams(space, OBJECTIVES, seed=0, known=known)
    strategy.tell(told(space, 5, drawn[0], 0.99))  # is no serial code: nobody's parent
    assert [again.ask() for _ in range(12)] == drawn and strategy.ask() and strategy.parents == (0,)


def test_streams_alone_stand_beside_the_unsearched_code(space):
    strategy = Streams(space, OBJECTIVES, seed=0)
    assert strategy.ask()["code"].startswith("b_11-21-2-2_") and strategy.parents == (0,)


def test_streams_need_serial_codes():
    with pytest.raises(UserError, match="needs a space of serial codes"):
        Streams(SimpleNamespace(name="other"), OBJECTIVES, seed=0)


def test_what_is_inherited_learns_more_slowly_and_all_of_it_learns(tmp_path, space):
    torch.manual_seed(0)
    save_weights(tmp_path / "w.pt", space.build(space.default()), space, space.default(), imgsz=64)
    child = space.build({"code": "b_111-21-2-2"})
    inherit(child, tmp_path / "w.pt")
    settings = TrainSettings(inherited_lr=0.25)
    slow = apart(child, settings)
    new = {n for n, _ in child.named_parameters()} - slow
    assert {n.split(".conv")[0].split(".bn")[0] for n in new} == {
        "backbone.stages.0.2"
    }  # the new block alone
    groups = weight_groups(child, slow)
    trained = sum(t.numel() for name, g in groups.items() if name != "buffers" for t in g)
    assert trained == sum(p.numel() for p in child.parameters())
    optimizer = build_optimizer(Flat(child, slow), settings)
    sizes = dict.fromkeys((0.25, 1.0), 0)
    for group in optimizer.param_groups:
        sizes[group["scale"]] += sum(p.numel() for p in group["params"])
    assert sizes[1.0] == sum(p.numel() for n, p in child.named_parameters() if n in new)
    assert sum(sizes.values()) == trained
    by_default = build_optimizer(Flat(child, slow), TrainSettings())
    assert {group["scale"] for group in by_default.param_groups} == {INHERITED_LR, 1.0}


def test_two_rates_for_one_weight_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        TrainSettings(inherited_lr=0.25, backbone_lr=0.001)


def job(folder, parents):
    run = SimpleNamespace(
        path=folder,
        history=History(folder / "history.jsonl"),
        trial_dir=lambda number: folder / f"trials/{number:04d}",
    )
    exp = SimpleNamespace(search=SimpleNamespace(inherit="parent"), weights=None)
    return SimpleNamespace(run=run, exp=exp, parents=parents)


def test_a_child_waits_for_its_parent_and_a_parent_without_weights_is_told(tmp_path):
    mine = job(tmp_path, (0,))
    path = tmp_path / "trials/0000/weights.pt"
    found = []
    waiting = threading.Thread(target=lambda: found.append(start_of(mine)))
    waiting.start()
    assert waiting.is_alive() and not found
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    mine.run.history.append(Trial(0, {}, {}, 0.5, "complete"))
    waiting.join(timeout=10)
    assert found == [starts.Start(path, "trial 0", of_trial=True)]
    path.unlink()
    with pytest.raises(TrainingFailed, match="weights of its parent, trial 0, are missing: no .*weights.pt"):
        start_of(mine)


def write(tmp_path, **changes):
    """A space and an experiment of a minute's seconds."""
    import yaml

    yaml.safe_dump(SMALL | {"nc": 10, "name": "serial"}, (tmp_path / "s.yaml").open("w"))
    exp = read_mapping(starts.Path("experiments/spnas_fasterrcnn.yaml"), "an experiment")
    exp["search"] |= {"engine": "inline", "max_trials": 3, "concurrency": 1, "top_k": 1}
    exp |= {"space": str(tmp_path / "s.yaml"), "parallel": {"max_trials": 2}, "steps": ["search", "parallel"]}
    exp["train"] |= {"epochs": 1}
    exp |= changes
    yaml.safe_dump(exp, (tmp_path / "e.yaml").open("w"))
    return tmp_path / "e.yaml"


def test_a_search_whose_trials_all_failed_leaves_nothing_to_stand_beside(tmp_path):
    from experiments.config import load_experiment

    run = RunFolder.create(tmp_path / "r", load_experiment(write(tmp_path)))
    run.history.append(Trial(0, {"code": "b_11-21-2-2"}, state="failed", reason="loss became nan"))
    with pytest.raises(UserError, match="all 1 trials before it failed, the last one: loss became nan"):
        parallel(run)


def test_streams_beside_what_is_no_serial_code(tmp_path, capsys):
    exp = write(tmp_path, space="models/bignas_retinanet_small.yaml", steps=["parallel"], search={})
    assert main(["run", str(exp), "--run-dir", str(tmp_path / "r"), "--no-ui"]) == 2
    assert "needs a space of serial codes" in capsys.readouterr().err
