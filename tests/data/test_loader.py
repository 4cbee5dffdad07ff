"""Batches: equal to Ultralytics' own where nothing is random, repeatable where something is."""

import os
import random

import cv2
import numpy as np
import pytest
import torch

from data.dataset import open_dataset
from data.hyp import load_hyp
from data.images import fingerprint
from data.loader import make_loader
from data.pixels import Pixels, decode
from data.sample import Sample
from data.yolo_export import export_yolo
from tests.data.make import image, voc_xml, yolo_set
from utils.offline import quiet_ultralytics

quiet_ultralytics()  # before any test imports ultralytics itself

EVERYTHING = {
    "hsv_h": 0.1, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10, "translate": 0.1, "scale": 0.5, "shear": 2,
    "flipud": 0.5, "fliplr": 0.5, "mosaic": 0.7, "mixup": 0.3, "cutmix": 0.2, "bgr": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images of odd sizes, one without objects, in VOC."""
    root = tmp_path_factory.mktemp("odd")
    for i, (w, h) in enumerate(
        [(97, 61), (61, 97), (40, 40), (200, 30), (33, 150), (64, 64), (640, 480), (12, 15)]
    ):
        objects = [("a", 1, 1, w / 2, h / 2), ("b", w / 3, h / 3, w, h)][: i % 3]
        image(root / "voc" / "JPEGImages" / f"{i}.png", w, h, shade=i)
        voc_xml(root / "voc", str(i), (w, h), objects)
    return open_dataset(root / "voc", root / "cache")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) for k in ("img", "bboxes", "cls", "batch_idx")
    )


def test_batches_without_augmentation_equal_ultralytics_own(odd, tmp_path):
    from torch.utils.data import DataLoader
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset

    export_yolo(odd, tmp_path / "out")
    theirs = build_yolo_dataset(
        get_cfg(overrides={"task": "detect", "imgsz": 96}), str(tmp_path / "out/images/train"), 3,
        {"names": dict(enumerate(odd.names)), "channels": 3}, mode="val", rect=False,
    )  # fmt: skip
    reference = DataLoader(theirs, 3, collate_fn=theirs.collate_fn)
    samples = open_dataset(tmp_path / "out", tmp_path / "cache").splits["train"]
    mine = make_loader(samples, odd.names, 96, 3, train=False, pixels=Pixels())
    assert len(reference) == len(mine) == 2 + (len(samples) > 6)
    for a, b in zip(reference, mine, strict=True):
        assert a["img"].dtype == b["img"].dtype == torch.uint8 and torch.equal(a["img"], b["img"])
        assert torch.allclose(a["bboxes"], b["bboxes"], atol=1e-6)
        assert torch.equal(a["cls"], b["cls"]) and torch.equal(a["batch_idx"], b["batch_idx"])
        assert list(a["ratio_pad"]) == list(b["ratio_pad"]) and list(a["ori_shape"]) == list(b["ori_shape"])


def test_predictions_map_back_to_the_original_pixels(odd):
    from ultralytics.utils.ops import scale_boxes, xywh2xyxy

    samples = {str(s.image): s for s in odd.splits["train"]}
    for batch in make_loader(odd.splits["train"], odd.names, 128, 4, train=False, pixels=Pixels()):
        for i, (file, shape, pad) in enumerate(
            zip(batch["im_file"], batch["ori_shape"], batch["ratio_pad"], strict=True)
        ):
            h, w = shape
            boxes = xywh2xyxy(batch["bboxes"][batch["batch_idx"] == i]) * 128
            back = scale_boxes((128, 128), boxes, shape, ratio_pad=pad)
            truth = xywh2xyxy(torch.from_numpy(samples[file].boxes)) * torch.tensor([w, h, w, h])
            # the longer side is scaled exactly; the shorter one to whole pixels, which is less than one of
            # them
            assert torch.allclose(back, truth, atol=max(h, w) / 128)


def test_an_epoch_depends_on_seed_and_number_alone(odd):
    def epoch(number: int, seed: int = 0, workers: int = 0, epochs: int = 10) -> list[dict]:
        loader = make_loader(
            odd.splits["train"] * 3, odd.names, 64, 4, train=True, hyp=EVERYTHING, seed=seed, workers=workers,
            epochs=epochs, pixels=Pixels(),
        )  # fmt: skip
        loader.set_epoch(number)
        return list(loader)

    first = make_loader(odd.splits["train"] * 3, odd.names, 64, 4, train=True, hyp=EVERYTHING, epochs=10)
    straight = []
    for number in range(3):
        first.set_epoch(number)
        straight.append(list(first))
    for number in range(3):  # as after a resume: a new loader, this epoch first
        assert all(same(a, b) for a, b in zip(straight[number], epoch(number), strict=True))
    assert all(same(a, b) for a, b in zip(straight[1], epoch(1, workers=2), strict=True))
    assert not any(same(a, b) for a, b in zip(straight[0], straight[1], strict=True))
    assert not any(same(a, b) for a, b in zip(straight[0], epoch(0, seed=1), strict=True))


def test_workers_follow_the_epoch(odd):
    loader = make_loader(odd.splits["train"], odd.names, 64, 4, train=True, hyp=EVERYTHING, workers=1)
    alone = make_loader(odd.splits["train"], odd.names, 64, 4, train=True, hyp=EVERYTHING)
    for number in (0, 5, 1):
        loader.set_epoch(number)
        alone.set_epoch(number)
        assert all(same(a, b) for a, b in zip(loader, alone, strict=True))


def test_the_process_random_numbers_are_left_alone(odd):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    list(make_loader(odd.splits["train"], odd.names, 64, 4, train=True, hyp=EVERYTHING))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_mosaic_closes_for_the_last_epochs(odd):
    hyps: list[dict] = [{"mosaic": 1.0, "close_mosaic": 2}, {}]
    loaders = [make_loader(odd.splits["train"], odd.names, 64, 8, train=True, hyp=h, epochs=5) for h in hyps]
    equal = []
    for number in range(5):
        for loader in loaders:
            loader.set_epoch(number)
        equal.append(all(same(a, b) for a, b in zip(*loaders, strict=True)))
    assert equal == [False, False, False, True, True]
    share = make_loader(
        odd.splits["train"], odd.names, 64, 8, train=True, hyp={"close_mosaic": 0.4}, epochs=5
    )
    assert share.dataset.mosaic_until == 3


def test_augmented_boxes_stay_on_their_objects(tmp_path):
    root = tmp_path / "voc"
    for stem in "abcdef":
        picture = image(root / "JPEGImages" / f"{stem}.png", 64, 64, mark=(16, 24, 48, 40))
        picture.write_bytes(picture.read_bytes() + stem.encode())  # six different files of the same picture
        voc_xml(root, stem, (64, 64), [("x", 16, 24, 48, 40)])
    samples = [s for split in ("train", "val") for s in open_dataset(root, tmp_path / "cache").splits[split]]
    hyp = {"translate": 0.2, "scale": 0.3, "fliplr": 0.5, "flipud": 0.5, "mosaic": 0.5}
    loader = make_loader(samples, ["x"], 64, 6, train=True, hyp=hyp, pixels=Pixels())
    for number in range(3):
        loader.set_epoch(number)
        for batch in loader:
            for i, picture in enumerate(batch["img"].float().mean(1)):
                inside = torch.zeros(64, 64, dtype=torch.bool)
                for x, y, w, h in batch["bboxes"][batch["batch_idx"] == i] * 64:
                    x1, y1 = int((x - w / 2).floor()), int((y - h / 2).floor())
                    inside[max(y1, 0) : int((y + h / 2).ceil()), max(x1, 0) : int((x + w / 2).ceil())] = True
                bright = picture > 160
                assert (bright & inside).sum() >= 0.75 * bright.sum()


def test_no_boxes_at_all_and_one_image(odd):
    empty = [s for s in odd.splits["train"] if not len(s.cls)][:1]
    for train in (True, False):
        batch = next(
            iter(make_loader(empty, odd.names, 32, 4, train=train, hyp=EVERYTHING if train else None))
        )
        images = 1 + train  # no training batch holds a single image
        assert batch["img"].shape == (images, 3, 32, 32) and batch["bboxes"].shape == (0, 4)
        assert batch["cls"].shape == (0, 1) and batch["batch_idx"].shape == (0,)
        assert batch["bboxes"].dtype == batch["cls"].dtype == batch["batch_idx"].dtype == torch.float32


def test_pixels_are_decoded_once_and_shared_with_forked_children(odd, monkeypatch):
    samples, pixels = odd.splits["train"], Pixels()
    assert not pixels.preload(samples, 64, budget=100)  # does not fit: decoded when asked for
    assert np.array_equal(pixels.get(samples[0], 64), decode(samples[0], 64))
    assert pixels.preload(samples, 64)
    import data.pixels

    monkeypatch.setattr(data.pixels, "decode", lambda *_: pytest.fail("decoded again"))
    kept = pixels.get(samples[0], 64)
    assert not kept.flags.writeable and kept.base is not None
    child = os.fork()
    if child == 0:  # what a trial process does: the same samples, nothing decoded
        ok = pixels.preload(samples, 64) and len(
            list(make_loader(samples, odd.names, 64, 4, train=False, pixels=pixels))
        )
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_training_writes_nothing_beside_the_images(tmp_path):
    root = yolo_set(tmp_path)
    before = fingerprint([root])
    data = open_dataset(root, tmp_path / "cache")
    hyp = load_hyp("data/hyps/scratch-med.yaml")
    for train in (True, False):
        list(make_loader(data.splits["train"], data.names, 64, 2, train=train, hyp=hyp, epochs=3))
    assert fingerprint([root]) == before


def test_no_training_batch_holds_a_single_image(odd):
    """Batch norm on a map of one position has no variance of it."""
    samples = odd.splits["train"]

    def sizes(batch, train):
        loader = make_loader(samples, odd.names, 64, batch, train=train, hyp=EVERYTHING, pixels=Pixels())
        return [len(b["im_file"]) for b in loader]

    n = len(samples)
    assert n > 3 and sizes(n - 1, False) == [n - 1, 1]
    assert sizes(n - 1, True) == [n - 1, 2] and sizes(n - 2, True) == [n - 2, 2] and sizes(1, True) == [1] * n
    loader = make_loader(samples, odd.names, 64, n - 1, train=True, hyp=EVERYTHING, pixels=Pixels())
    first, last = loader
    assert last["im_file"][1] == first["im_file"][0]


def picture(path, width=100, height=50, box=(20, 5, 60, 25)):
    """A white rectangle `box`, xyxy, on black, and its sample."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    cv2.imwrite(str(path), pixels)
    xywh = np.array([[(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]])
    return Sample(path, xywh.astype(np.float32), np.array([0]), (height, width))


def test_an_image_is_letterboxed_into_height_and_width(tmp_path):
    """100 x 50 shrinks by .96, the lesser of 96 / 100 and 64 / 50, to 96 x 48: 8 grey rows on each side."""
    sample = picture(tmp_path / "a.png", box=(20, 5, 60, 25))
    (batch,) = make_loader([sample], ["a"], (64, 96), 1, train=False, pixels=Pixels())
    image = batch["img"][0]
    assert image.shape == (3, 64, 96)
    assert (image[:, :8] == 114).all() and (image[:, -8:] == 114).all() and not (image[:, 8:56] == 114).any()
    # x (20 + 60) / 2 * .96 = 38.4 of 96, y (5 + 25) / 2 * .96 + 8 = 22.4 of 64, 38.4 wide, 19.2 high
    assert batch["bboxes"][0].tolist() == pytest.approx([0.4, 0.35, 0.4, 0.3])
    assert batch["ratio_pad"] == (((0.96, 0.96), (0, 8)),)
    tall = make_loader([sample], ["a"], (96, 64), 1, train=False, pixels=Pixels())
    assert next(iter(tall))["ratio_pad"] == (((0.64, 0.64), (0, 32)),)


def test_boxes_stay_on_their_objects_where_images_are_not_square(tmp_path):
    """White objects on black: what a box holds is white, and what is white is in a box."""
    samples = [picture(tmp_path / f"{i}.png", 90 + 9 * i, 60, (10 + i, 8, 70, 40)) for i in range(6)]
    hyp = {"mosaic": 0.6, "scale": 0.4, "translate": 0.1, "fliplr": 0.5, "flipud": 0.5}
    seen, centres = 0, []
    for size in ((64, 128), (128, 64)):
        loader = make_loader(samples, ["a"], size, 3, train=True, hyp=hyp, epochs=20, pixels=Pixels())
        for epoch in range(3):
            loader.set_epoch(epoch)
            for batch in loader:
                assert batch["img"].shape[2:] == size
                left = batch["img"].float().amin(1).gt(200)
                scale = torch.tensor([size[1], size[0]] * 2)
                for i, (x, y, w, h) in zip(batch["batch_idx"].int(), batch["bboxes"] * scale, strict=True):
                    x1, x2 = (round(float(v)) for v in (x - w / 2, x + w / 2))
                    y1, y2 = (round(float(v)) for v in (y - h / 2, y + h / 2))
                    inside = left[i, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
                    assert inside.all() or min(w, h) < 4
                    left[i, max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
                    seen += 1
                    centres.append(float(y / size[0]))
                assert left.float().mean() < 0.01  # slivers at the edge are no objects
    assert seen > 60 and min(centres) < 0.3 and max(centres) > 0.7
