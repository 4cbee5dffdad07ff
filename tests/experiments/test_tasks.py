"""What a task gives is enough to train and to score a network of that task."""

import torch

from data.dataset import open_dataset
from experiments.tasks import TASKS
from models.networks import build, open_any_space
from utils.training.settings import TrainSettings
from utils.training.train import train

TINY = {
    "network": "regnet",
    "backbone": {"depth": [1, 1, 1, 1, 1], "out_channel": [8, 8, 16, 16, 32], "group_width": 8},
}


def test_a_classifier_learns_the_digits_objects(tmp_path):
    """161 objects by sixteens at 32 px: the last stage has 1x1 maps, the last batch is of one picture."""
    torch.set_num_threads(1)
    (tmp_path / "d.yaml").write_text("format: digits\nscenes: {search_train: 60, search_val: 20, val: 5}\n")
    data = open_dataset(tmp_path / "d.yaml", tmp_path / "cache", task="classify")
    task, device = TASKS["classify"], torch.device("cpu")
    space = open_any_space(TINY, data.nc)
    assert (space.task, task.quality) == ("classify", "top1")
    torch.manual_seed(0)
    net = build(space, space.default(), data.names)
    learnt, scored = data.splits["search_train"][:161], data.splits["search_val"]
    loader = task.make_loader(learnt, data.names, 32, 16, train=True, epochs=24)
    val = task.make_loader(scored, data.names, 32, 64, train=False)
    result = train(
        net,
        loader,
        settings=TrainSettings(epochs=24, batch=16, lr=0.01, val_every=24),
        evaluate=lambda net, last: task.score(net, val, data.names, device, not last),
    )
    assert (
        result.metrics["val_images"] == len(scored) and result.metrics["top5"] > result.metrics["top1"] > 0.25
    )
