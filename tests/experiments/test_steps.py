"""The table of steps: every row calls something that is there, and reads settings that there are."""

import inspect
from importlib import import_module

import pytest

from experiments.config import Experiment
from experiments.run_folder import MAY_CHANGE
from utils.report.runs import Run
from utils.steps import STEPS, StepState, steps_of


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_calls_a_function_of_the_run_folder_alone(step):
    module, name = step.run.split(":")
    assert list(inspect.signature(getattr(import_module(f"experiments.{module}"), name)).parameters) == [
        "run"
    ]


def test_the_settings_that_steps_read_are_keys_of_an_experiment():
    named = {block for step in STEPS.values() for block in (*step.blocks, step.needs) if block}
    assert named <= set(Experiment.model_fields)
    assert {"retrain", "rank", "sample_accuracy"} <= set(MAY_CHANGE)
    assert not {"supernet", "search", "train"} & set(MAY_CHANGE)


def test_a_step_that_is_not_known_does_not_vanish(tmp_path):
    run = Run(tmp_path, [], [], {}, experiment={"steps": ["search", "distant_future"]})
    assert steps_of(run) == [StepState("search", False), StepState("distant_future", False)]
