"""The library way: a script of your own with NNI's evaluator, strategy, experiment, and our space and data.

python experiments/examples/own_experiment.py                      in this process, two trials
python experiments/examples/own_experiment.py --engine nni --trials 4 --concurrency 2 --port 8083

What it saves is a plain dict, which our commands take where they take an architecture file:
python hello_nas.py retrain yolov5n_nas.json --space models/yolov5n_nas.yaml --data data/digits.yaml imgsz=64
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # started by its path, Python looks for modules beside this file

from experiments.engine.nni_runtime import SafeExperiment, SearchRuntime, build_config  # noqa: E402, I001

import nni  # noqa: E402
import torch  # noqa: E402
from nni.nas import strategy  # noqa: E402
from nni.nas.evaluator import FunctionalEvaluator  # noqa: E402

from data.dataset import open_dataset  # noqa: E402
from data.hyp import load_hyp  # noqa: E402
from data.loader import make_loader  # noqa: E402
from models.networks import open_any_space  # noqa: E402
from models.nni_space import model_space  # noqa: E402
from utils.training.batch import to_device  # noqa: E402
from utils.training.evaluate import evaluate  # noqa: E402
from utils.offline import cache_dir  # noqa: E402

IMGSZ, BATCH = 64, 16


def evaluate_model(model: Any, data: str, epochs: int) -> None:
    """What a trial does. `model` is the space frozen at the trial's architecture: `model.arch` says which."""
    dataset, hyp = open_dataset(data, cache_dir() / "data"), load_hyp("data/hyps/default.yaml")
    train, val = dataset.splits["search_train"], dataset.splits["search_val"]
    train_loader = make_loader(train, dataset.names, IMGSZ, BATCH, train=True, hyp=hyp, epochs=epochs)
    val_loader = make_loader(val, dataset.names, IMGSZ, 2 * BATCH, train=False)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector: Any = model.detector.to(device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.937, nesterov=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=epochs)
    score = 0.0
    for _ in range(epochs):
        detector.train()
        for batch in train_loader:
            loss = sum(detector.loss(to_device(batch, device)).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), max_norm=10.0)
            optimizer.step()
        scheduler.step()
        score = evaluate(detector, val_loader, dataset.names, device)["map50_95"]
        nni.report_intermediate_result(score)
    nni.report_final_result(score)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Search, print the best architectures, save the first one; returns it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--space", default=str(ROOT / "models" / "yolov5n_nas.yaml"))
    parser.add_argument("--data", default=str(ROOT / "data" / "digits.yaml"))
    parser.add_argument("--engine", choices=["nni", "inline"], default="inline")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--port", type=int, default=8083)
    parser.add_argument("--out", type=Path, default=Path("yolov5n_nas.json"))
    given = parser.parse_args(arguments)

    data = str(Path(given.data).resolve())
    space = open_any_space(given.space, nc=open_dataset(data, cache_dir() / "data").nc)
    search_strategy = strategy.Random(dedup=True)
    evaluator = FunctionalEvaluator(evaluate_model, data=data, epochs=given.epochs)

    # NNI's own NasExperiment works alike, with the defects that experiments/engine/nni_runtime.py lists.
    runtime = SearchRuntime(
        run_dir=given.out.resolve().parent / "own_experiment",
        engine=given.engine,
        max_trials=given.trials,
        concurrency=given.concurrency,
        port=given.port,
    )
    exp = SafeExperiment(
        model_space(space, trained=True), evaluator, search_strategy, build_config(runtime), runtime, print
    )
    exp.run(given.port)
    top = exp.export_top_models(formatter="dict")
    for model_dict in top:
        print(model_dict)
    given.out.write_text(json.dumps(top[0]))
    return top[0]


if __name__ == "__main__":
    main()
