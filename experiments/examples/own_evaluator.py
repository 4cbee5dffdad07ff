"""A trial of your own: plain SGD for a few epochs, scored as you like. See experiments/own.py.

python hello_nas.py run search.evaluator=experiments/examples/own_evaluator.py search.evaluator.epochs=2
"""

from collections.abc import Callable
from typing import Any

import torch


def evaluate(
    network: Any, data: Any, report: Callable[..., None], epochs: int = 1, lr: float = 0.01
) -> dict[str, float]:
    """Train `network` and return its metrics; `epochs` and `lr` are options of the experiment file."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, nesterov=True)
    metrics: dict[str, float] = {}
    for epoch in range(epochs):
        network.train()
        total = 0.0
        if hasattr(data.train.dataset, "set_epoch"):
            data.train.dataset.set_epoch(epoch)
        for batch in data.train:
            loss = sum(network.loss(data.ready(batch)).values())  # mean per image, each part weighed
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm=10.0)
            optimizer.step()
            total += loss.item()
        metrics = data.score(network)  # COCO's mAP on search_val; or whatever you measure
        report(metrics["map50_95"], loss=total / len(data.train))
    return metrics
