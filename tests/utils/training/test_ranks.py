"""Two processes train one supernet: what they draw, when they would wait for ever, and what they count."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hello_nas

ROOT = Path(__file__).resolve().parents[3]
RANK = """
import os, sys
from datetime import timedelta

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from models.sampling import subnets
from models.supernet import Supernet
from tests.models.test_retinanet import OBJECTS
from tests.models.test_ssd import tiny
from utils.training.lessons import SandwichLesson
from utils.training.sandwich import sandwich_step
from utils.training.settings import Distil

KINDS = ["max", "random", "random", "min"]
rank, out = int(os.environ["LOCAL_RANK"]), sys.argv[1]
torch.set_num_threads(1)
strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=15))
fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
fabric.launch()
torch.manual_seed(0)
supernet = Supernet(tiny(synchronised_norm=True, loss="multibox"))
half = OBJECTS["batch_idx"] % 2 == rank
batch = {
    "img": OBJECTS["img"][rank::2],
    "batch_idx": torch.div(OBJECTS["batch_idx"][half] - rank, 2, rounding_mode="floor"),
    "cls": OBJECTS["cls"][half],
    "bboxes": OBJECTS["bboxes"][half],
}
torch.manual_seed(rank)  # what a generator of its own would give each
own = np.random.default_rng(rank)
found = {"drawn": [], "said": "nothing", "deadlock": "killed"}


def drawn(step, epoch, score):
    archs = subnets(KINDS, supernet.space, 0, step)
    found["drawn"].append([score(archs[1]), *archs])
    return archs


def each_its_own(step, epoch, score):
    return [supernet.space.largest(), supernet.space.random(own), supernet.space.random(own)]


def lesson_of(kinds, draw):
    lesson = SandwichLesson(supernet.net, Distil(), supernet.set_arch, kinds, draw)
    return lesson, fabric.setup_module(lesson.module)


lesson, model = lesson_of(KINDS, drawn)
for step in range(4):
    supernet.zero_grad()
    lesson.backward(model, batch, fabric, share=1.0, last=True, step=step)
found["gradients"] = {k: p.grad.clone() for k, p in supernet.named_parameters() if p.grad is not None}
lesson.archs = each_its_own
try:
    lesson.backward(model, batch, fabric, share=1.0, last=True, step=7)
except RuntimeError as error:
    found["said"] = str(error)
fabric.barrier()
torch.save(found, f"{out}/{rank}")
try:  # as published: nobody looks, and each waits for sums that the other does not ask for
    archs = [supernet.space.largest(), supernet.space.smallest()][:: 1 - 2 * rank]
    sandwich_step(model, supernet.set_arch, batch, archs, no_sync=lambda: fabric.no_backward_sync(model))
    found["deadlock"] = "went through"
except RuntimeError as error:
    found["deadlock"] = str(error)
torch.save(found, f"{out}/{rank}")
os._exit(0)
"""


@pytest.mark.slow
def test_two_ranks_draw_the_same_and_say_so_where_they_do_not_instead_of_waiting_for_ever(tmp_path):
    """aw_nas's deadlock, on its own kind of space: synchronised norms, archs drawn by each rank for itself.
    There sums are asked for that the other rank does not give: gloo waits for them until it gives up after
    15 s, or kills the process for their sizes. Our drawing ends, and theirs is one line at once."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    known = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "WORLD_SIZE": "2", "NODE_RANK": "0"}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(tmp_path)],
            cwd=ROOT,
            env=known | {"LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    codes = [rank.wait(timeout=300) for rank in ranks]
    one, two = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert one["drawn"] == two["drawn"] and len({str(step) for step in one["drawn"]}) == 4
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        assert torch.equal(gradient, two["gradients"][name]), name
    said = "the 2 devices drew different architectures for step 7: they must come from (seed, step) alone"
    assert one["said"].startswith(said) and two["said"].startswith(said)
    for code, found in zip(codes, (one, two), strict=True):
        assert code == -signal.SIGABRT or (code == 0 and found["deadlock"] != "went through")


def test_torchrun_is_told_that_a_run_starts_its_own_processes(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert hello_nas.main(["run", str(ROOT / "experiments/ofa_ssd.yaml"), "device=cpu"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "torchrun started this 2 times" in lines[0]
    assert "supernet.devices=2" in lines[0] and not (tmp_path / "runs" / "ofa_ssd").exists()
