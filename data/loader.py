"""From samples to batches: Ultralytics' augmentation, our order, our seeds, nobody else's files.

An epoch is a function of (samples, settings, seed, epoch): the order, and the augmentation of each image,
are drawn from generators seeded by just these. So a resumed training sees the very bytes it would have
seen, with any number of workers, and nothing here disturbs the random numbers of the rest of the process.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from data.hyp import check_hyp
from data.pixels import PIXELS, Pixels, Undecodable
from data.sample import Sample
from utils.errors import UserError
from utils.offline import quiet_ultralytics
from utils.sides import Sides, Size, longer, pair


def make_loader(
    samples: Sequence[Sample],
    names: Sequence[str],
    imgsz: Sides,
    batch: int,
    *,
    train: bool,
    hyp: dict[str, Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    epochs: int | None = None,
    pixels: Pixels = PIXELS,
) -> DetectionLoader:
    """Batches of `samples` at `imgsz`: its side, or (height, width).

    train: shuffled and augmented by `hyp` (as `data.hyp.load_hyp` returns it); else in order, letterboxed
    only.
    epochs: length of the training; needed for `close_mosaic`, which counts from its end.
    workers: processes that prepare batches; 0 prepares them in this one. The batches do not depend on it.

    Each batch is a dict:
        img        uint8 [B, 3, height, width], RGB, 0..255 (divide it by 255)
        bboxes     float32 [N, 4], xywh (centre) as fractions of width and height; N may be 0
        cls        float32 [N, 1], 0 is the first class
        batch_idx  float32 [N], which image of the batch a box belongs to
        im_file    tuple of B paths
        ori_shape  tuple of B (height, width) in pixels of the upright original
        ratio_pad  tuple of B ((ratio_h, ratio_w), (left, top)): pixel = original * ratio + pad.
                   Not in training batches: an augmented image has no single ratio.
    Call `set_epoch(e)` before each epoch of a training. No training batch holds a single image: `loader_of`.
    """
    dataset = DetectionData(
        samples, names, imgsz, train=train, hyp=hyp, seed=seed, epochs=epochs, pixels=pixels
    )
    return loader_of(dataset, batch, seed, workers, collate)


def loader_of(
    dataset: DetectionData, batch: int, seed: int, workers: int, collate_fn: Callable[[Any], dict[str, Any]]
) -> DetectionLoader:
    """Batches of a data set in its own order.

    A training epoch whose last batch would hold a single image, of which batch norm on a 1x1 map has no
    variance, shows the epoch's first image a second time there (unless `batch` is 1).
    """
    dataset.order.company = dataset.order.shuffle and batch > 1 and len(dataset) % batch == 1
    return DetectionLoader(
        dataset,
        batch_size=batch,
        sampler=dataset.order,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        generator=torch.Generator().manual_seed(seed),  # else each epoch draws from torch's global generator
    )


class DetectionData(TorchDataset):
    """Samples as Ultralytics' transforms want a data set: `get_image_and_label`, `cache`, `data`, `buffer`.

    Index it by (epoch, i). It is not a YOLODataset, which would scan folders and write labels.cache
    beside them.
    """

    cache = "ram"  # tells Mosaic to pick its partners among all images instead of the last few loaded
    use_obb = use_keypoints = use_segments = False

    def __init__(
        self,
        samples: Sequence[Sample],
        names: Sequence[str],
        imgsz: Sides,
        *,
        train: bool,
        hyp: dict[str, Any] | None,
        seed: int,
        epochs: int | None,
        pixels: Pixels,
    ) -> None:
        assert len(samples), "a loader needs samples"
        self.samples, self.imgsz, self.seed, self.pixels = list(samples), imgsz, seed, pixels
        self.data: dict[str, Any] = {"names": dict(enumerate(names))}
        self.buffer = range(len(self.samples))
        pixels.preload(self.samples, imgsz)
        settings = check_hyp(hyp or {})
        close = settings["close_mosaic"]
        last = close if close >= 1 else round(close * (epochs or 0))
        self.mosaic_until = epochs - last if train and epochs is not None else math.inf
        self.transforms = _training_transforms(self, settings) if train else _plain_transforms(imgsz)
        calm = {**settings, "mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0}
        self.calm_transforms = _training_transforms(self, calm) if train else self.transforms
        self.train = train
        self.order = EpochOrder(len(self.samples), shuffle=train, seed=seed)
        self._words: tuple[int, np.ndarray] = (-1, np.zeros(0, np.uint32))

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of `epoch`. Workers need not be told: their keys name the epoch."""
        self.order.epoch = epoch

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The transformed image of (epoch, i), with its boxes, as numpy arrays; `collate` makes tensors."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """A whole batch: torch's loader asks for it so, and the global generators need saving only once.

        Images that cannot be decoded any more are left out; a batch that would be empty holds the next one
        that can.
        """
        items = self._decodable(keys)
        following = ((keys[-1][0], (keys[-1][1] + k) % len(self)) for k in range(1, len(self)))
        while not items:
            key = next(following, None)
            if key is None:
                raise UserError(
                    f"none of {len(self)} images can be decoded any more: {self.samples[0].image}"
                )
            items = self._decodable([key])
        return items

    def _decodable(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if not self.train:
            return self._items(keys, lambda word: None)
        with private_random() as restart:
            return self._items(keys, restart)

    def _items(self, keys: list[tuple[int, int]], restart: Callable[[int], None]) -> list[dict[str, Any]]:
        items = []
        for epoch, i in keys:
            restart(self._word(epoch, i))
            transforms = self.transforms if epoch < self.mosaic_until else self.calm_transforms
            try:
                items.append(transforms(self.get_image_and_label(i)))
            except Undecodable:  # this one, or a partner of its mosaic
                continue
            if self.train:
                items[-1].pop("ratio_pad", None)  # an augmented image has no single ratio
        return items

    def _word(self, epoch: int, i: int) -> int:
        """The random word that (seed, epoch, i) stands for."""
        if self._words[0] != epoch:
            self._words = (epoch, np.random.SeedSequence([self.seed, epoch]).generate_state(len(self)))
        return int(self._words[1][i])

    def get_image_and_label(self, i: int) -> dict[str, Any]:
        """Image i before any transform; Mosaic and MixUp call this for their partners."""
        from ultralytics.utils.instance import Instances

        sample = self.samples[i]
        image = self.pixels.get(sample, self.imgsz).copy()  # transforms write into it
        h, w = image.shape[:2]
        return {
            "im_file": str(sample.image),
            "img": image,
            "cls": sample.cls[:, None].astype(np.float32),
            "instances": Instances(sample.boxes.copy(), np.zeros((0, 1000, 2), np.float32), normalized=True),
            "ori_shape": sample.shape,
            "resized_shape": (h, w),
            "ratio_pad": (h / sample.shape[0], w / sample.shape[1]),
        }


def _training_transforms(data: DetectionData, settings: dict[str, float]) -> Callable[[Any], dict[str, Any]]:
    quiet_ultralytics()
    from ultralytics.data.augment import Albumentations, Compose, v8_transforms

    hyp = SimpleNamespace(**settings, copy_paste=0.0, copy_paste_mode="flip")  # copy-paste needs masks
    chain = v8_transforms(data, longer(data.imgsz), hyp).transforms
    _shape(chain[0].transforms, pair(data.imgsz))
    # Albumentations acts only where the optional package happens to be installed, from a generator of its
    # own: the same experiment must not train differently on two machines.
    chain = [t for t in chain if not isinstance(t, Albumentations)]
    return Compose([*chain, partial(to_arrays, bgr=settings["bgr"])])


def _shape(transforms: Sequence[Any], size: Size) -> None:
    """Give what was made for squares of the longer side this (height, width)."""
    height, width = size
    for transform in transforms:
        if hasattr(transform, "border"):  # a mosaic: images meet in the middle of its square canvas
            transform.border = height // 2 - transform.imgsz, width // 2 - transform.imgsz
        elif hasattr(transform, "degrees"):  # the affine one, which cuts that middle out
            transform.size = width, height


def _plain_transforms(imgsz: Sides) -> Callable[[Any], dict[str, Any]]:
    quiet_ultralytics()
    from ultralytics.data.augment import Compose, LetterBox

    return Compose([LetterBox(pair(imgsz), scaleup=False), to_arrays])


def to_arrays(labels: dict[str, Any], bgr: float = 0.0) -> dict[str, Any]:
    """What Ultralytics' Format does, in numpy: on a few boxes tensor arithmetic costs ten times as much.

    img: uint8 [H, W, 3] BGR -> [3, H, W] RGB (left BGR with probability `bgr`); instances -> bboxes
    float32 [n, 4], xywh as fractions.
    """
    image, instances = labels.pop("img"), labels.pop("instances")
    h, w = image.shape[:2]
    instances.convert_bbox("xywh")
    instances.denormalize(w, h)
    keep_bgr = bgr > 0 and random.random() < bgr
    labels["img"] = np.ascontiguousarray(image.transpose(2, 0, 1)[:: 1 if keep_bgr else -1])
    labels["bboxes"] = instances.bboxes / np.array([w, h, w, h], np.float32)
    return labels


@contextmanager
def private_random() -> Iterator[Callable[[int], None]]:
    """Inside, `random` and `np.random` draw from a stream of our own; afterwards they go on as before.

    Yields restart(word), which begins the stream anew. Ultralytics' transforms use these two global
    generators. (A thread that draws from them meanwhile shares the stream.)
    """
    outer, outer_np = random.getstate(), np.random.get_state()

    def restart(word: int) -> None:
        random.seed(word)
        np.random.seed(word)

    try:
        yield restart
    finally:
        random.setstate(outer)
        np.random.set_state(outer_np)


class EpochOrder(Sampler):
    """(epoch, i) for every i, in an order drawn from (seed, epoch), or in order.

    company: whether the epoch's first image comes a second time at its end.
    """

    def __init__(self, n: int, shuffle: bool, seed: int) -> None:
        self.n, self.shuffle, self.seed, self.epoch, self.company = n, shuffle, seed, 0, False

    def __len__(self) -> int:
        return self.n + self.company

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = (
            np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
            if self.shuffle
            else range(self.n)
        )
        keys = [(self.epoch, int(i)) for i in order]
        return iter(keys + keys[: self.company])


class DetectionLoader(DataLoader):
    """A DataLoader whose epochs can be named: `set_epoch(e)`, then iterate."""

    dataset: DetectionData

    def set_epoch(self, epoch: int) -> None:
        """Order and augmentation of the next iteration are those of `epoch` (from 0)."""
        self.dataset.set_epoch(epoch)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack images, join boxes and number them by their image."""
    owner = np.repeat(np.arange(len(items), dtype=np.float32), [len(item["cls"]) for item in items])
    out: dict[str, Any] = {
        "img": torch.from_numpy(np.stack([item["img"] for item in items])),
        "bboxes": torch.from_numpy(np.concatenate([item["bboxes"] for item in items]).astype(np.float32)),
        "cls": torch.from_numpy(np.concatenate([item["cls"].reshape(-1, 1) for item in items])),
        "batch_idx": torch.from_numpy(owner),
    }
    for key in ("im_file", "ori_shape", "ratio_pad"):
        if all(key in item for item in items):
            out[key] = tuple(item[key] for item in items)
    return out
