"""The cost model against building each network and counting: how fast, and do they ever disagree?

    python experiments/benchmarks/cost_model.py [models/yolov5n_nas.yaml]

Both sides run here, one after the other, on one thread, on archs of the same seed. Building is as cheap as
ultralytics makes it, and counting is torch's own FLOP counter in inference mode.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from tqdm import tqdm  # noqa: E402

from models.space import Arch  # noqa: E402
from models.yolo.space import YoloSpace  # noqa: E402

IMGSZ = 64
BUILT = 200
ASKED = 20_000


def build_and_count(space: YoloSpace, arch: Arch) -> dict[str, float]:
    """params_m and gflops of the network itself."""
    model = space.build(arch).model.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, space.ch, IMGSZ, IMGSZ))
    params = sum(p.numel() for p in model.parameters())
    return {"params_m": params / 1e6, "gflops": counter.get_total_flops() / 1e9}


def main(path: Path) -> None:
    torch.set_num_threads(1)
    space, rng = YoloSpace(path), np.random.default_rng(0)
    archs = [space.random(rng) for _ in range(ASKED)]

    space.cost(archs[0], IMGSZ)  # makes the tables, once per image size
    start = time.perf_counter()
    costs = [space.cost(arch, IMGSZ) for arch in archs]
    asked = ASKED / (time.perf_counter() - start)

    build_and_count(space, archs[0])  # the first one pays for lazy imports
    start = time.perf_counter()
    bar = tqdm(archs[:BUILT], "build and count", leave=False, disable=None)
    truth = [build_and_count(space, arch) for arch in bar]
    built = BUILT / (time.perf_counter() - start)

    wrong = sum(a != b for a, b in zip(costs, truth, strict=False))
    print(f"{path.name} at {IMGSZ} x {IMGSZ}, one thread")
    print(f"  cost model        {asked:12,.0f} archs/s  ({ASKED:,} archs)")
    print(f"  build and count   {built:12,.1f} archs/s  ({BUILT:,} archs)")
    print(f"  ratio             {asked / built:12,.0f}")
    print(f"  disagreements     {wrong:12}  of {BUILT}, compared to the last digit")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "models" / "yolov5n_nas.yaml")
