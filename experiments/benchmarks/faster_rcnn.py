"""A training step of our Faster R-CNN against torchvision's over the same backbone: time and memory.

    python experiments/benchmarks/faster_rcnn.py [--side 224] [--batch 1] [--width 64]
        [--rounds 5] [--threads 1] [--bf16]

Both have the all-3x3 net of models/detnas_300m.yaml and the same weights, FPN, anchors, proposals and box
head; forward, backward, by turns in one process. Memory is what a step keeps for its backward pass, in bytes
of tensors. `--side 800 --width 256 --bf16` is DetNAS's size, seconds a
step on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torchvision.models.detection import FasterRCNN  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor  # noqa: E402
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_convert  # noqa: E402
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # noqa: E402

from models.inherit import inherit  # noqa: E402
from models.networks import build, open_any_space  # noqa: E402
from models.weights import WeightFile  # noqa: E402

CLASSES, STRIDES = 10, (4, 8, 16, 32, 64)


class Body(nn.Module):
    """torchvision's way of a backbone with FPN, over ours."""

    def __init__(self, body: Any, out: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, out
        widths = [width.largest for width in body.widths]
        self.fpn = FeaturePyramidNetwork(widths, out, LastLevelMaxPool())

    def forward(self, x: torch.Tensor) -> Any:
        return self.fpn({str(i): m for i, m in enumerate(self.body(x))})


def torchvisions(net: Any, side: int, width: int) -> nn.Module:
    """Its detector around a copy of our backbone; images stay as they are."""
    sizes = tuple((8.0 * s,) for s in STRIDES)
    return FasterRCNN(
        Body(copy.deepcopy(net.backbone), width),
        None,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(STRIDES)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [1024], norm_layer=nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(1024, 1 + CLASSES),
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
        min_size=side,
        max_size=side,
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
    )


def kept_by(step: Callable[[], Any]) -> int:
    """Bytes of the tensors that a step keeps for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=64, help="channels of FPN and head")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = open_any_space(ROOT / "models/detnas_300m.yaml").model | {"name": "bench"}
    model["options"] = {"head_convs": 4}
    model["neck"] = {**model["neck"], "out_channel": args.width}
    space = open_any_space(model, nc=CLASSES)
    ours: Any = build(space, space.default()).train()
    theirs = torchvisions(ours, args.side, args.width).train()
    inherit(ours, WeightFile(Path("theirs"), "state dict", theirs.state_dict()))
    images, n = torch.rand(args.batch, 3, args.side, args.side), 8
    boxes = torch.rand(args.batch, n, 4) * 0.4 + 0.2
    labels = torch.randint(CLASSES, (args.batch, n))
    batch = {
        "img": images,
        "bboxes": boxes.flatten(0, 1),
        "cls": labels.flatten()[:, None].float(),
        "batch_idx": torch.arange(args.batch).repeat_interleave(n).float(),
    }
    corners = box_convert(boxes * args.side, "cxcywh", "xyxy")
    targets = [{"boxes": b, "labels": c + 1} for b, c in zip(corners, labels, strict=True)]

    def step(loss: Callable[[], dict[str, torch.Tensor]]) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            total = torch.stack([x.float() for x in loss().values()]).sum()
        total.backward()
        return time.perf_counter() - start

    steps = {"ours": lambda: ours.loss(batch), "torchvision's": lambda: theirs(list(images), targets)}
    memory = {name: kept_by(loss) for name, loss in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(args.rounds + 1):
        for name, loss in steps.items():
            took = step(loss)
            seconds[name] += [took] if i else []  # the first warms up
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    for name in steps:
        print(f"{name:<14} {statistics.median(seconds[name]):.2f} s, {memory[name] / 2**20:.0f} MiB kept")
    kept = memory["ours"] / memory["torchvision's"]
    print(
        f"{args.batch} x {args.side} px: {statistics.median(ratios):.2f} times torchvision's time "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {args.rounds} rounds), {kept:.2f} times its memory"
    )


if __name__ == "__main__":
    main()
