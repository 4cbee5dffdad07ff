"""A reward of your own: mAP50, but only the part above what a network costs at a price you name.

python hello_nas.py run search.reward=experiments/examples/own_reward.py search.reward.price=0.2
"""

Metrics = dict[str, float]


def reward(metrics: Metrics, baseline: Metrics, price: float = 0.1) -> float:
    """A number that the search maximises.

    metrics:  of the trial: map50_95, map50, params_m, gflops, ...; with search.measure=[latency_ms] that too
    baseline: costs of the unsearched network
    price:    an option of the experiment file: the mAP50 that the baseline's GFLOPs are worth
    """
    return metrics["map50"] - price * metrics["gflops"] / baseline["gflops"]
