"""A space of eight architectures and evaluators that know their answers: reward = 4 a + 2 b + c."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import nni
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace

from experiments.engine.trial import current_arch, report_final, report_intermediate


class ToySpace(ModelSpace):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        for label in "abc":
            choices = {"off": torch.nn.Identity(), "on": torch.nn.Linear(width, width)}
            setattr(self, label, LayerChoice(choices, label=label))


def arch_of(model: torch.nn.Module) -> dict[str, str]:
    """What was really built."""
    return {label: "on" if isinstance(getattr(model, label), torch.nn.Linear) else "off" for label in "abc"}


def reward_of(arch: dict[str, str]) -> float:
    return sum(value * (arch[label] == "on") for label, value in zip("abc", (4.0, 2.0, 1.0), strict=True))


def note(folder: str, **facts: object) -> None:
    """One file a call, so that trials running side by side do not mix their lines."""
    Path(folder, f"{time.monotonic_ns()}-{os.getpid()}.json").write_text(json.dumps(facts))


def evaluate(model: torch.nn.Module, folder: str, seconds: float = 0.0) -> None:
    """Writes down what it built, what NNI says it was given, and where it runs."""
    time.sleep(seconds)
    reward = reward_of(arch_of(model))
    report_intermediate(reward / 2)
    note(
        folder,
        built=arch_of(model),
        given=current_arch(),
        pid=os.getpid(),
        threads=torch.get_num_threads(),
        cuda=torch.cuda.is_initialized(),
        preloaded=WARMED,
        trial=nni.get_trial_id(),
        gpu=[os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NAS_DEVICE")],
        random=torch.rand(()).item(),
    )
    print("printed by the trial")
    report_final(reward, {"cost": 1.0})


def misbehave(model: torch.nn.Module, folder: str) -> None:
    """Each architecture goes wrong in its own way; the good one reports 7."""
    arch = arch_of(model)
    number = int(reward_of(arch))
    if number != 2:
        note(folder, built=arch, pid=os.getpid())
    bad = [None, float("nan"), float("inf"), "high", {"accuracy": 0.5}]
    if number == 2:
        hang(model, folder)
    elif number < len(bad):
        nni.report_final_result(bad[number])
    elif number == 5:
        nni.report_intermediate_result("rising")
        nni.report_final_result(0.5)
    elif number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        nni.report_final_result(7.0)


def fail(model: torch.nn.Module, folder: str) -> None:
    if reward_of(arch_of(model)) < 4:
        raise RuntimeError("no luck with this one")
    evaluate(model, folder)


def hang(model: torch.nn.Module, folder: str) -> None:
    """Never ends, and does not listen to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note(folder, built=arch_of(model), pid=os.getpid())
    time.sleep(600)


WARMED = 0


def warm(**arguments: object) -> None:
    global WARMED
    WARMED += 1


def broken(**arguments: object) -> None:
    raise RuntimeError("the warm function is broken")


def hang_later(model: torch.nn.Module, folder: str) -> None:
    """The first trial ends, the second does not."""
    if any(Path(folder).iterdir()):
        hang(model, folder)
    evaluate(model, folder)


def doze(model: torch.nn.Module, folder: str, seconds: float) -> None:
    time.sleep(seconds)
    report_final(reward_of(arch_of(model)))
