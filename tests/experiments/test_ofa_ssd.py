"""OFA + SSD through all of its steps on tiny data, and what is refused."""

import json

import pytest
import torch
import yaml

import hello_nas
from experiments import supernet
from experiments.arch_file import open_arch_file
from experiments.config import ROOT, load_experiment
from experiments.run_folder import RunFolder
from models.elastic import genotype
from models.networks import open_any_space
from models.sampling import Phases
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
    from models.supernet import Supernet

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
    from models.supernet import Supernet

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


@pytest.mark.slow  # two processes that import torch and NNI
def test_two_processes_train_one_supernet(experiment):
    """Sliced norms are synchronised and both draw the same archs, of another phase in each epoch."""
    model = SPACE | {"options": SPACE["options"] | {"synchronised_norm": True}}
    (experiment.parent / "space.yaml").write_text(yaml.safe_dump(model))
    exp = load_experiment(experiment, ["supernet.devices=2", f"space={experiment.parent / 'space.yaml'}"])
    run = RunFolder.create(experiment.parent / "two", exp)
    supernet.train_supernet(run)
    result = json.loads((run.path / "supernet" / "result.json").read_text())
    assert result["steps"] == 3  # 24 images, 12 on each of two: one step an epoch
