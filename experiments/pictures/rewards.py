"""Draws rewards.png for the README: `python experiments/pictures/rewards.py`."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from utils.rewards import draw_iso_reward, iso_reward_info  # noqa: E402

TARGET, LEVELS = 4.0, [0.2, 0.3, 0.4, 0.5, 0.6]
REWARDS = [
    ("weighted_product", {"target": TARGET, "exponent": -0.07}),
    ("weighted_product", {"target": TARGET, "alpha": 0.0, "beta": -1.0}),
    ("linear", {"target": TARGET, "weight": 0.1}),
]

if __name__ == "__main__":
    costs = np.linspace(1.0, 10.0, 91).tolist()
    infos = [iso_reward_info(name, options, costs, LEVELS) for name, options in REWARDS]
    draw_iso_reward(infos, HERE / "rewards.png")
