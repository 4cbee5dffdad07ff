"""Anchors by torchvision's own generator, to compare with."""

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


def torchvisions_anchors(net, images, scales=(4.0, 5.0397, 6.3496), ratios=(0.5, 1.0, 2.0)):
    """[A, 4] of a RetinaNet's levels."""
    maps = net.neck(net.backbone(images))
    strides = [net.coarsest >> i for i in reversed(range(len(maps)))]
    generator = AnchorGenerator(tuple(tuple(s * x for x in scales) for s in strides), (ratios,) * len(maps))
    sizes = [tuple(images.shape[-2:])] * len(images)
    return generator(ImageList(images, sizes), [torch.empty(m.shape) for m in maps])[0]
