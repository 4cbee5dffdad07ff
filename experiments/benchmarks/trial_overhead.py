"""What a trial costs beside its own work: stock NNI against ours, in turns, on the same search.

    python -m experiments.benchmarks.trial_overhead [--trials 6] [--rounds 2]

Both sides run NNI's Random strategy over a space of 64 architectures with an evaluator that only reports, one
trial at a time, on NNI's real manager. Seconds a trial = from the strategy's start to the end of the last
trial, over the number of trials; what a search spends once, on imports and the manager, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Stock NNI as its documentation uses it; nothing of ours is imported but the space and the evaluator.
STOCK = """
import sys, time
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.strategy import Random
from experiments.benchmarks.trial_overhead_space import OverheadSpace, report
from experiments.engine.processes import free_port

class Timed(Random):
    def _run(self):
        self.started = time.monotonic()
        super()._run()

config = NasExperimentConfig("ts", "simplified", "local")
config.max_trial_number = int(sys.argv[1])
config.trial_concurrency = 1
strategy = Timed(seed=0)
experiment = NasExperiment(OverheadSpace(), FunctionalEvaluator(report), strategy, config)
experiment.run(port=free_port())
seconds = time.monotonic() - strategy.started
experiment.stop()
print("SECONDS", seconds)
"""

OURS = """
import sys, time
from pathlib import Path
from experiments.engine.nni_runtime import SearchRuntime, run_search
from nni.nas.strategy import Random
from experiments.benchmarks.trial_overhead_space import OverheadSpace, report

class Timed(Random):
    def _run(self):
        self.started = time.monotonic()
        super()._run()
        self.engine.wait_models()
        self.seconds = time.monotonic() - self.started

strategy = Timed(seed=0)
runtime = SearchRuntime(Path(sys.argv[2]), max_trials=int(sys.argv[1]), port=None)
run_search(OverheadSpace(), report, {}, strategy, runtime, announce=lambda line: None)
print("SECONDS", strategy.seconds)
"""


def measure(script: str, trials: int) -> float:
    """Seconds of one search of `trials` trials, in a process and a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-c", script, str(trials), home]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("SECONDS "):
                return float(line.split()[1])
        raise RuntimeError(f"the search failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    for turn in range(options.rounds):
        for name, script in (("stock", STOCK), ("ours", OURS)):
            started = time.monotonic()
            trial = measure(script, options.trials) / options.trials
            once = time.monotonic() - started - trial * options.trials
            seconds[name].append(trial)
            print(f"round {turn + 1}: {name:5} {trial:6.2f} s a trial, {once:5.1f} s once", flush=True)
    stock, ours = (statistics.median(seconds[name]) for name in ("stock", "ours"))
    print(f"trial overhead: stock NNI {stock:.2f} s, ours {ours:.2f} s: {stock / ours:.1f} times less")
    print(json.dumps({"stock_s": stock, "ours_s": ours, "ratio": stock / ours, "trials": options.trials}))


if __name__ == "__main__":
    main()
