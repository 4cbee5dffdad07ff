"""The embedded data set: the same everywhere, with no handwriting on two sides."""

import hashlib
import time

import numpy as np

from data.dataset import open_dataset
from data.digits import DEFAULTS, _enlarge, instances, scene

SMALL = "format: digits\nname: tiny\nscenes: {search_train: 12, search_val: 4, val: 4}\n"


def test_no_digit_instance_is_in_two_splits():
    parts = instances(0)
    joined = np.concatenate(list(parts.values()))
    assert sorted(joined.tolist()) == list(range(1797))
    rng = np.random.default_rng(0)
    for of in parts.values():
        shown = {which for _ in range(30) for which in scene(DEFAULTS, of, rng)[3]}
        assert shown <= set(of.tolist())


def test_enlarging_by_hand():
    # two pixels 0 and 8 over four: centres at -1/4, 1/4, 3/4, 5/4 of the source, so 0, 2, 6, 8
    assert _enlarge(np.array([[0, 8], [0, 8]]), 4).tolist() == [[0, 2, 6, 8]] * 4
    assert _enlarge(np.arange(64).reshape(8, 8), 8).tolist() == np.arange(64).reshape(8, 8).tolist()


def test_boxes_hold_their_digit_tightly():
    plain = {**DEFAULTS, "texture": 0, "noise": 0}
    rng = np.random.default_rng(1)
    for _ in range(20):
        image, boxes, labels, shown = scene(plain, instances(0)["val"], rng)
        assert 1 <= len(boxes) == len(labels) == len(shown) <= 4
        bright = (image.astype(int) - image[0, 0]).max(-1) > 60  # ink over a plain background
        inside = np.zeros_like(bright)
        for x1, y1, x2, y2 in boxes:
            inside[y1:y2, x1:x2] = True
            held = bright[y1:y2, x1:x2]
            assert held.any(0).mean() >= 0.75 and held.any(1).mean() >= 0.75
        assert (bright & ~inside).sum() <= 0.05 * bright.sum()


def test_same_card_same_bytes(tmp_path):
    card = tmp_path / "tiny.yaml"
    card.write_text(SMALL)
    sums = []
    for cache in ("a", "b"):
        data = open_dataset(card, tmp_path / cache)
        assert {k: len(v) for k, v in data.splits.items()} == {
            "train": 16, "search_train": 12, "search_val": 4, "val": 4,
        }  # fmt: skip
        digest = hashlib.sha1()
        for split in ("train", "val"):
            for sample in data.splits[split]:
                digest.update(_pixels(sample.image) + sample.boxes.tobytes() + sample.cls.tobytes())
        sums.append(digest.hexdigest())
    assert sums[0] == sums[1] == GOLDEN
    card.write_text(SMALL + "seed: 1\n")
    other = open_dataset(card, tmp_path / "a")
    assert not np.array_equal(_pixels(other.splits["val"][0].image), _pixels(data.splits["val"][0].image))


def _pixels(file) -> bytes:
    from PIL import Image

    return np.asarray(Image.open(file)).tobytes()


# Of the pixels, boxes and labels of SMALL. If this changes, everybody's results on the digits change:
# raise VERSION in data/digits.py and say so in the README.
GOLDEN = "fbbe5004c745377ddd9c696e0d1de962ea3c402d"


def test_the_default_is_made_in_seconds_and_opened_at_once(tmp_path):
    data = open_dataset("data/digits.yaml", tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 750, "search_train": 600, "search_val": 150, "val": 200,
    }  # fmt: skip
    assert data.names == [str(d) for d in range(10)] and data.account.counts == {}
    assert min(data.boxes_per_class("search_val").values()) >= 20
    start = time.process_time()
    open_dataset("data/digits.yaml", tmp_path)
    assert time.process_time() - start < 0.5
