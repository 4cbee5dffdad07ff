"""An exported file as a network with `predict`: what ships is scored as what was trained is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.detector import Detections, Network
from models.yolo.detector import YoloDetector
from utils.errors import UserError

Run = Callable[[Tensor], Sequence[Tensor]]


class FileNetwork(nn.Module):
    """What `run` computes, with the class names and the choice of boxes of the network that it was made of.

    Outputs that are known: those of models/export_plain.py; of a YOLO file [B, 4 + classes, A], boxes xywh in
    pixels and scores, or of one without NMS [B, N, 6], boxes xyxy, score and label.
    """

    def __init__(self, run: Run, net: Network) -> None:
        super().__init__()
        self.run, self.net_of = run, [net]  # in a list: its weights are not this module's
        self.names = net.names

    def __deepcopy__(self, memo: Any) -> FileNetwork:
        return self  # it has no weights, and a session of a runtime cannot be copied

    @torch.no_grad()
    def predict(self, images: Tensor, conf: float = 0.001, iou: float = 0.7, max_det: int = 300) -> Any:
        """As `models.detector.Network.predict`; of a classifier probabilities [B, classes]."""
        net = self.net_of[0]
        outputs = self.run(images.detach().float().cpu().contiguous())
        if "boxes" not in net.outputs:
            return outputs[0]
        if isinstance(net, YoloDetector):
            raw = outputs[0]
            if raw.shape[2] == 6 and raw.shape[1] != 4 + net.nc:
                return [_above(rows, conf, max_det) for rows in raw]
            boxes, scores = _xyxy(raw[:, :4].transpose(1, 2)), raw[:, 4:].transpose(1, 2)
        elif len(outputs) == 2:
            boxes, scores = outputs
        else:
            raise UserError(f"{type(net).__name__}: a file with {len(outputs)} outputs cannot be scored")
        pairs = zip(boxes, scores, strict=True)
        return [net.select(b, s, conf, iou, max_det) for b, s in pairs]


def _xyxy(boxes: Tensor) -> Tensor:
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def _above(rows: Tensor, conf: float, max_det: int) -> Detections:
    rows = rows[rows[:, 4] > conf][:max_det]
    return Detections(boxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())
