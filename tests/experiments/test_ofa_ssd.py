"""OFA + SSD through all of its steps on tiny data, and what is refused."""

import json

import pytest
import torch
import yaml

import hello_nas
from experiments import supernet
from experiments.arch_file import open_arch_file
from experiments.config import ROOT, load_experiment
from experiments.inputs import open_data
from experiments.job import Job, job_of
from experiments.run_folder import RunFolder
from models.elastic import genotype
from models.networks import open_any_space
from models.sampling import Phases
from models.supernet import Supernet
from models.weights import read_weights, save_weights
from tests.models.test_retinanet import OBJECTS
from tests.models.test_ssd import TINY
from utils.errors import UserError
from utils.history import History
from utils.training.mimic import check
from utils.training.sandwich import Pupil
from utils.training.settings import Distil

SPACE = {k: v for k, v in TINY.items() if k != "nc"}
SCHEDULE = {
    "backbone.kernel_size.1": {"boundary": [1, 2], "value": [[7], [7, 5, 3]]},
    "backbone.expand_ratio.1": {"boundary": [1, 3], "value": [[4], [4, 3]]},
    "backbone.depth": {"boundary": [1, 3], "value": [[2], [2, 1]]},
}


def check_same_weights(one, two, fresh):
    """Two trainings that began as `fresh` are apart by 1 % of the way they went: distances of all weights
    and biases. Of the way only what no order of channels can hide, because these may have been sorted."""
    assert one.keys() == two.keys() == fresh.keys()
    apart = went = 0.0
    for name, tensor in one.items():
        if not name.endswith(("weight", "bias")):
            continue
        apart += float((tensor - two[name]).square().sum())
        went += float((tensor.flatten().sort().values - fresh[name].flatten().sort().values).square().sum())
    assert went**0.5 > 0.01 and apart**0.5 < 0.01 * went**0.5, (apart**0.5, went**0.5)


@pytest.fixture
def experiment(tiny):
    """`experiments/ofa_ssd.yaml` on the tiny data and space."""
    published = yaml.safe_load((ROOT / "experiments/ofa_ssd.yaml").read_text())
    own = yaml.safe_load(tiny.read_text())
    (tiny.parent / "space.yaml").write_text(yaml.safe_dump(SPACE))
    published["threads"] = 1
    published |= {k: own[k] for k in ("data", "imgsz") if k in own} | {"space": "space.yaml"}
    published["train"] |= {"epochs": 3, "batch": 12, "val_every": 3}
    published["supernet"] |= {"calibration": 16, "schedule": SCHEDULE}
    published["search"] |= {"max_trials": 3, "top_k": 1, "val_fraction": 0.2}
    published["finetune"] = {"epochs": 1, "backbone_lr": 0.0005, "freeze": ["neck"]}
    published["controls"]["seeds"] = [0]
    (tiny.parent / "ofa.yaml").write_text(yaml.safe_dump(published))
    return tiny.parent / "ofa.yaml"


def test_every_step_of_the_experiment(experiment, capsys):
    assert hello_nas.main(["run", str(experiment)]) == 0
    said = capsys.readouterr().out
    depths, widths, kernels = (
        "backbone.depth of 2",
        "backbone.expand_ratio.1 of 4",
        "backbone.kernel_size.1 of 7",
    )
    first, second = f"1 on {depths}; {widths}; {kernels}", f"2 on {depths}; {widths}; {kernels}, 5, 3"
    for line in (first, second, f"3 on {depths}, 1; {widths}, 3; {kernels}, 5, 3"):
        assert said.count(f"supernet: from epoch {line}\n") == 1
    assert (
        said.count("sorted by importance before widths shrink; the largest network computes the same\n") == 1
    )
    folder = experiment.parent / "runs" / "ofa_ssd"
    trials = History(folder / "history.jsonl").load()
    assert [t.number for t in trials] == [0, 1, 2]
    file = folder / "top" / "1.json"
    record, found = json.loads(file.read_text()), open_arch_file(file)
    space = open_any_space(SPACE, nc=3)
    assert genotype.read(space, record["genotype"]) == found.arch
    assert record["exported"]["onnx"]["max_difference"] < 1e-3 and (folder / "top/1.onnx").is_file()
    beaten = json.loads((folder / "controls" / "controls.json").read_text())["rows"]
    assert {"winner", "smallest", "largest", "random_search"} <= {n for row in beaten for n in row["names"]}
    assert all(list(row["scores"]) == ["0"] for row in beaten)
    assert record["finetuned"]["split"] == record["evaluated"]["split"] == "val"

    del record["arch"], record["subnet_settings"]
    (file.parent / "genotype.json").write_text(json.dumps(record))
    assert open_arch_file(file.parent / "genotype.json").arch == found.arch


def test_a_schedule_that_cannot_be():
    space = open_any_space(TINY)
    for schedule, said in (
        ({"backbone.depth": ([1, 3, 2], [[2], [2], [2, 1]])}, "needs a list of values for each boundary"),
        ({"backbone.depth": ([1, 3], [[2], []])}, "backbone.depth has a phase without a value"),
        (
            {"backbone.depth": ([1, 3], [[2], [2, 9]])},
            "unknown value of backbone.depth.1 in supernet.schedule",
        ),
        ({"backbone.width": ([1], [[2]])}, "unknown choice in supernet.schedule 'backbone.width'"),
        ({"backbone.depth": ([1, 30], [[2], [2, 1]])}, "backbone.depth changes in epoch 30 of 20"),
    ):
        with pytest.raises(UserError) as caught:
            Phases(space, schedule, 20)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_with_other_anchors_cannot_teach():
    net = Supernet(TINY).net
    other = Supernet(TINY | {"options": TINY["options"] | {"scales": [0.1, 0.4, 0.6, 0.8, 1.0]}}).net
    distil = Distil(teachers={"big": "big.pt"}, outputs=[{"teacher": "big"}])
    check(net, distil, {"big": Supernet(TINY).net})
    with pytest.raises(UserError) as caught:
        check(net, distil, {"big": other})
    assert str(caught.value) == (
        "the teacher 'big' has other anchors (scales [0.1, 0.4, 0.6, 0.8, 1.0]) than the network "
        "([0.2, 0.4, 0.6, 0.8, 1.0]): it can teach features only"
    )
    softmax = Supernet(TINY | {"options": TINY["options"] | {"loss": "multibox"}}).net  # one column more
    with pytest.raises(UserError, match=r"'big' has other shapes \(\d+x4 \+ .* than .*x3 \+ .*features only"):
        check(net, distil, {"big": softmax})
    with pytest.raises(UserError, match="unknown option of distillation for SSD 'batch'"):
        check(net, Distil(options={"batch": 1}), {})


def test_students_learn_from_positive_anchors_of_their_batch():
    torch.manual_seed(0)
    supernet = Supernet(TINY).eval()
    found = {}
    for anchors in ("positive", "all"):
        pupil = Pupil(supernet.net, Distil(labels=0, options={"anchors": anchors})).eval()
        supernet.set_arch(supernet.space.largest())
        _, taught = pupil(OBJECTS)
        supernet.set_arch(supernet.space.smallest())
        losses, _ = pupil(OBJECTS, taught)
        raw = supernet.net.raw(OBJECTS["img"])
        expected = supernet.net.distil(raw, taught["max"]["raw"], OBJECTS, anchors=anchors)
        found[anchors] = float(losses["distil_cls"])
        assert found[anchors] == pytest.approx(float(expected["cls"]))
    assert found["positive"] < found["all"]


def test_portions_of_train(experiment, tmp_path):
    """As aw_nas has them: the second share is learnt from, the third searched on, the rest left out."""
    sizes = {}
    for portion in ("[0, 0.8, 0.2]", "[0.3, 0.5, 0.2]", "[0, 0.5, 0.2]"):
        exp = load_experiment(experiment, [f"search.data_portion={portion}"])
        assert exp.search.val_fraction == 0.2
        splits = open_data(exp, tmp_path).splits
        sizes[portion] = [len(splits[name]) for name in ("train", "search_train", "search_val")]
        trained_on, scored_on = ({str(s.image) for s in splits[f"search_{n}"]} for n in ("train", "val"))
        assert not trained_on & scored_on
    whole, *rest = sizes.values()
    left = [whole[0], round(whole[1] * 0.5 / 0.8), whole[2]]
    assert sum(whole[1:]) == whole[0] and rest == [left, left]


def test_a_final_model_teaches_and_what_is_none_is_refused(experiment, tmp_path):
    """Of an architecture file and weights: those of a network alone, or of a supernet."""
    names = open_data(load_experiment(experiment), tmp_path / "c").names
    torch.manual_seed(1)
    whole = Supernet(SPACE, len(names)).eval()
    whole.net.names, space = names, whole.space
    arch = space.largest()
    model = {"schema": 1, "imgsz": 32, "space": str(experiment.parent / "space.yaml"), "arch": arch}
    (tmp_path / "arch.json").write_text(json.dumps(model))
    alone = whole.extract(arch)
    torch.save(alone.state_dict(), tmp_path / "bare.pt")
    torch.save(alone, tmp_path / "pickled.pt")
    save_weights(tmp_path / "said.pt", alone, space, arch, imgsz=32, names=names)
    save_weights(tmp_path / "supernet.pt", whole.net, space, {}, imgsz=32, supernet=True)

    def teacher(said):
        distil = f"supernet.distil={{teachers: {{big: {said}}}, outputs: [{{teacher: big}}]}}"
        exp = load_experiment(experiment, [distil])
        return supernet.teachers_of(Job(RunFolder(tmp_path, exp), open_data(exp, tmp_path / "c"), space, {}))[
            "big"
        ]

    def final(weights):
        return f"{{arch: {tmp_path / 'arch.json'}, weights: {tmp_path / weights}}}"

    for said in (final("bare.pt"), final("said.pt"), str(tmp_path / "said.pt")):
        torch.testing.assert_close(teacher(said).state_dict(), alone.state_dict())
    cut = teacher(final("supernet.pt"))
    assert torch.equal(cut.backbone.stem.conv.weight, alone.backbone.stem.conv.weight)
    for said, message in (
        (
            str(tmp_path / "bare.pt"),
            "does not say its architecture; give {arch: ARCH.json, weights: bare.pt}",
        ),
        (str(tmp_path / "pickled.pt"), "teacher 'big': "),
    ):
        with pytest.raises(UserError) as caught:
            teacher(said)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_resuming_past_the_end_is_one_line(experiment, capsys):
    """A supernet that has been trained for three epochs does not become one of two."""
    run = RunFolder.create(
        experiment.parent / "past",
        load_experiment(experiment, ["train.checkpoint_seconds=0", "supernet.schedule={}"]),
    )

    class Stop(Exception):
        pass

    def stop(row, *args):
        if row["epoch"] == 2:
            raise Stop
        return ""

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(supernet, "epoch_line", stop)
        supernet.train_supernet(run)
    said = capsys.readouterr()
    again = ["run", "--run-dir", str(run.path), "--resume", "--steps", "supernet"]
    assert hello_nas.main([*again, "train.epochs=1"]) == 2
    said = capsys.readouterr()
    assert "epochs" in said.err and said.err.count("\n") == 1, said.err


@pytest.mark.slow  # two trainings
def test_a_supernet_resumed_before_its_channels_are_sorted_has_the_same_bits(experiment, capsys):
    exp = load_experiment(experiment, ["train.checkpoint_seconds=0", "train.val_every=9", "train.epochs=3"])
    states, line = [], supernet.epoch_line

    def stop(row, *args):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        return line(row, *args)

    for name in ("whole", "stopped"):
        run = RunFolder.create(experiment.parent / name, exp)
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(supernet, "epoch_line", stop)
                supernet.train_supernet(run)
            assert "sorted by importance" not in capsys.readouterr().out
        supernet.train_supernet(run)
        said = capsys.readouterr().out
        assert "sorted by importance" in said and "supernet: from epoch 3 on backbone.depth of 2, 1" in said
        states.append(read_weights(run.path / "supernet" / "weights.pt").state)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow  # two processes that import torch and NNI
@pytest.mark.parametrize("loss", ["focal", "multibox"])
def test_two_processes_train_what_one_does_on_all_images_of_a_step(experiment, loss):
    """Synchronised norms, the same archs, the schedule: 2 x 6 images a step make the weights that 1 x 12 do,
    to 1 % of the way they went: 4 backwards of 30 layers in float32. By SGD: Adam makes steps of rounding
    errors, too."""
    model = SPACE | {"options": SPACE["options"] | {"synchronised_norm": True, "loss": loss}}
    (experiment.parent / "space.yaml").write_text(yaml.safe_dump(model))
    states = []
    for devices, batch in ((1, 12), (2, 6)):
        given = [f"supernet.devices={devices}", f"train.batch={batch}", "train.optimizer=SGD"]
        exp = load_experiment(experiment, [*given, f"space={experiment.parent / 'space.yaml'}"])
        run = RunFolder.create(experiment.parent / str(devices), exp)
        supernet.train_supernet(run)
        result = json.loads((run.path / "supernet" / "result.json").read_text())
        assert result["steps"] == 6  # 3 epochs of 24 images
        states.append(read_weights(run.path / "supernet" / "weights.pt").state)
    torch.manual_seed(exp.seed)
    check_same_weights(*states, Supernet(model, job_of(str(run.path)).dataset.nc).net.state_dict())
