"""What counts as an image is what training decodes; what does not is counted, never met in a trial."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from data.account import Account
from data.boxes import judge_boxes, small_boxes
from data.class_loader import make_class_loader
from data.dataset import open_dataset
from data.images import Probe, fingerprint, list_images, probe, read_pixels
from data.loader import make_loader
from data.pixels import Crops, Pixels
from tests.data.make import image, yolo_set
from utils.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SIZE = Probe((40, 60), (40, 60), 1)


def saved(file, **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE).save(file, **how)
    return file


# Formats and folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffix", ["avif", "bmp", "gif", "jfif", "jp2", "jpg", "jpe", "mpo", "png", "ppm", "tif", "webp"]
)
def test_each_format_is_listed_and_probed_as_it_is_trained_on_and_cut_files_are_not(tmp_path, suffix):
    file = saved(tmp_path / f"a.{suffix}")
    assert list_images(tmp_path) == [file] and probe(file) == SIZE
    assert read_pixels(file).shape == (40, 60, 3)
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 3, len(whole) * 2 // 3, len(whole) - 20):
        file.write_bytes(whole[:length])
        assert probe(file) is None and read_pixels(file) is None, length


@pytest.mark.parametrize("kind", ["float", "three floats", "int32", "two channels", "text", "folder"])
def test_what_decodes_to_no_8_bit_colours_is_no_image(tmp_path, kind):
    file = tmp_path / "a.tif"
    if kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_text("II*\0 no tiff")
    elif kind == "two channels":
        Image.fromarray(NOISE[..., :2], "LA").save(file)
    else:
        values = NOISE.astype(np.int32 if kind == "int32" else np.float32)
        assert cv2.imwrite(str(file), values if kind == "three floats" else values[..., 0])
    good = kind == "two channels"  # grey with alpha: the decoder makes three channels of it
    assert (probe(file) == SIZE) is good and (read_pixels(file) is not None) is good


def test_16_bits_cmyk_and_a_wrong_suffix_are_images(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), NOISE.astype(np.uint16) * 257)
    assert cv2.imwrite(str(tmp_path / "a.tif"), NOISE.astype(np.uint16) * 257)
    Image.fromarray(NOISE).convert("CMYK").save(tmp_path / "a.jpg")
    saved(tmp_path / "x.png").rename(tmp_path / "b.jpg")
    saved(tmp_path / "x.jpg").rename(tmp_path / "b.tif")
    for file in list_images(tmp_path):
        assert probe(file) == SIZE, file
    assert np.array_equal(read_pixels(tmp_path / "a.tif"), NOISE)


def exif_jpeg(file, kind: int, value: bytes):
    """A JPEG whose EXIF orientation has the type `kind` (EXIF 2.3: 1 byte, 3 short, 4 long, 5 rational)."""
    ifd = struct.pack("<HHHI4sI", 1, 0x0112, kind, 1, value.ljust(4, b"\0"), 0)
    saved(file, exif=b"Exif\0\0II*\0\x08\0\0\0" + ifd + struct.pack("<II", 6, 1))
    return file


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 99])
@pytest.mark.parametrize("value", [0, 1, 3, 6, 9])
def test_an_orientation_of_any_type_turns_as_the_decoder_turns(tmp_path, kind, value):
    file = exif_jpeg(tmp_path / "a.jpg", kind, bytes([value]))
    found, pixels = probe(file), read_pixels(file)
    assert found is not None and found.upright == pixels.shape[:2] and found.stored == (40, 60)
    assert (found.orientation >= 5) is (found.upright != found.stored)
    if kind == 3:
        assert found.orientation == {3: 3, 6: 6}.get(value, 1)


def test_a_square_picture_is_asked_which_way_it_was_turned(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[274] = orientation
        Image.fromarray(NOISE[:40, :40]).save(tmp_path / "a.jpg", exif=exif)
        assert probe(tmp_path / "a.jpg") == Probe((40, 40), (40, 40), orientation)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_turned_picture_of_any_format_is_as_its_decoder_has_it(tmp_path, suffix):
    turned = image(tmp_path / f"a.{suffix}", 60, 40, orientation=6)
    shape = read_pixels(turned).shape[:2]
    assert probe(turned).upright == shape and (suffix == "webp" or shape == (60, 40))


def test_pictures_beyond_pils_limit_are_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the limit is twice that, and a warning before it
    for suffix in ("jpg", "png", "tif"):
        assert probe(saved(tmp_path / f"a.{suffix}")) == SIZE
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert probe(tmp_path / "a.jpg") == SIZE
    turned = image(tmp_path / "turned.jpg", 60, 40, orientation=8)
    assert probe(turned) == Probe((40, 60), (60, 40), 8)


def test_an_upright_photo_is_not_decoded(tmp_path, monkeypatch):
    import data.images

    monkeypatch.setattr(data.images, "read_pixels", lambda _: pytest.fail("decoded"))
    for suffix in ("jpg", "png", "webp"):
        assert probe(saved(tmp_path / f"a.{suffix}")) == SIZE


def test_linked_folders_are_followed_once_and_hidden_ones_are_counted(tmp_path):
    root, pool = tmp_path / "set", tmp_path / "pool"
    for place in (root / "a.jpg", root / "sub" / "b.jpg", pool / "c.jpg", pool / "deep" / "d.png"):
        saved(place)
    for place in (".ipynb_checkpoints", "__MACOSX", "sub/.thumbs"):
        saved(root / place / "copy.jpg")
    saved(root / "x.jpg").rename(root / "._a.jpg")
    (root / "Thumbs.db").write_bytes(b"")
    (root / "film.mp4").write_bytes(b"")
    (root / ".gitkeep").write_bytes(b"")
    (root / "a.txt").write_text("")
    (root / "more").symlink_to(pool)
    (root / "again").symlink_to(root / "sub")
    (root / "sub" / "loop").symlink_to(root)
    account = Account()
    found = [str(p.relative_to(root)) for p in list_images(root, account)]
    assert found == ["a.jpg", "more/c.jpg", "more/deep/d.png", "sub/b.jpg"]
    assert account.counts == {"hidden": 4, "linked again": 2, "other file": 2}
    assert account.examples["linked again"] == ["again", "sub/loop"]
    assert account.examples["other file"] == ["Thumbs.db", "film.mp4"]
    before = fingerprint([root])
    (pool / "deep" / "e.txt").write_text("")
    assert fingerprint([root]) != before


# Decoding that fails later --------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_an_image_that_goes_bad_is_skipped_and_counted(tmp_path, train, memory, capfd):
    root = yolo_set(tmp_path, labels={f"t{i}": "0 0.5 0.5 0.5 0.5\n" for i in range(9)})
    data = open_dataset(root, tmp_path / "cache")
    bad = [s.image for s in data.splits["train"][2:5]]
    bad[0].unlink()
    bad[1].write_bytes(bad[1].read_bytes()[:500])
    bad[2].write_bytes(b"")
    pixels = Pixels()
    if not memory:
        pixels.preload = lambda *_, **__: False
    hyp = {"mosaic": 0.5} if train else None
    loader = make_loader(data.splits["train"], data.names, 32, 1, train=train, hyp=hyp, pixels=pixels)
    shown = [file for batch in loader for file in batch["im_file"]]
    assert len(shown) == 9 and not set(map(str, bad)) & set(shown)  # a batch that would be empty has the next
    assert pixels.lost == set(bad)
    said = capfd.readouterr().out
    assert said.count("skipped: image") == 3 and "cannot be decoded any more (3 so far)" in said


def test_most_images_gone_is_an_error(tmp_path):
    data = open_dataset(yolo_set(tmp_path), tmp_path / "cache")
    for sample in data.splits["train"][1:]:
        sample.image.unlink()
    with pytest.raises(UserError, match=r"3 of 4 images cannot be decoded any more \(first: .*t1.jpg\)"):
        make_loader(data.splits["train"], data.names, 32, 2, train=True, pixels=Pixels())
    data.splits["train"][0].image.unlink()
    pixels = Pixels()
    pixels.preload = lambda *_: False
    with pytest.raises(UserError, match="none of 4 images can be decoded any more"):
        next(iter(make_loader(data.splits["train"], data.names, 32, 2, train=False, pixels=pixels)))


def test_an_object_whose_image_goes_bad_is_skipped_too(tmp_path):
    labels = {f"t{i}": "0 0.25 0.5 0.25 0.5\n1 0.75 0.5 0.25 0.5\n" for i in range(4)}
    data = open_dataset(yolo_set(tmp_path, labels=labels), tmp_path / "cache", task="classify")
    data.splits["train"][0].image.write_bytes(b"")
    for train in (True, False):
        loader = make_class_loader(data.splits["train"], data.names, 32, 3, train=train, pixels=Crops())
        assert sorted(c for batch in loader for c in batch["cls"].flatten().tolist()) == [0] * 3 + [1] * 3


# Boxes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "kept", "counts"),
    [
        ([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], {}),
        # 100 wide, 50 high: half a pixel is .005 of the width and .01 of the height
        ([1.0, 0.5, 0.0098, 0.2], [0.99755, 0.5, 0.0049, 0.2], {}),
        ([1.0, 0.5, 0.0102, 0.2], [0.99745, 0.5, 0.0051, 0.2], {"clipped": 1}),
        ([0.5, 0.5, 1.001, 0.2], [0.5, 0.5, 1.0, 0.2], {}),
        ([0.5, 0.0, 0.2, 0.018], [0.5, 0.0045, 0.2, 0.009], {}),
        ([0.5, 0.0, 0.2, 0.022], [0.5, 0.0055, 0.2, 0.011], {"clipped": 1}),
        ([0.5, 0.5, 1.0000019, 1.0], [0.5, 0.5, 1.0000019, 1.0], {}),  # as six digits round
        ([0.5, 0.5, 1.000004, 1.0], [0.5, 0.5, 1.0, 1.0], {}),  # more than that is cut
        ([1.05, 0.5, 0.2, 0.2], [0.975, 0.5, 0.05, 0.2], {"clipped": 1}),
        ([1.2, 0.5, 0.2, 0.2], None, {"outside": 1}),
        ([-9, 0.5, 0.2, 0.2], None, {"outside": 1}),
        ([0.5, 0.5, -0.2, 0.2], None, {"degenerate": 1}),
        ([0.5, 0.5, 1e-60, 0.2], None, {"degenerate": 1}),
        ([0.5, 0.5, float("nan"), 0.2], None, {"unreadable": 1}),
        ([float("inf"), 0.5, 0.2, 0.2], None, {"unreadable": 1}),
        ([1e308, 0.5, 1.7e308, 0.2], None, {"unreadable": 1}),
        ([0.5, 0.5, float("inf"), 0.2], None, {"unreadable": 1}),
    ],
)
def test_one_box_is_cut_kept_or_dropped(box, kept, counts):
    account = Account()
    boxes, cls = judge_boxes([box, [0.25, 0.25, 0.5, 0.5]], [1, 0], (50, 100), "a.jpg", account)
    assert account.counts == counts and boxes.dtype == np.float32
    expected = [[0.25, 0.25, 0.5, 0.5]] if kept is None else [kept, [0.25, 0.25, 0.5, 0.5]]
    assert boxes == pytest.approx(np.array(expected), abs=1e-7)
    assert cls.tolist() == ([0] if kept is None else [1, 0])


def test_boxes_too_small_for_a_size(tmp_path):
    # 64 x 48 pixels: at imgsz 64 a box of .0625 x .0625 is 4 x 3, of .03 x .03 only 1.92 x 1.44
    small, large = "0 0.5 0.5 0.03 0.03\n", "0 0.5 0.5 0.0625 0.0625\n"
    root = yolo_set(tmp_path, labels={"a": small, "b": small + large, "c": small + large, "d": large})
    samples = open_dataset(root, tmp_path / "cache").splits["train"]
    assert small_boxes(samples, 64) == (3, 6, 96)  # 2 * 64 / 1.44 = 88.9, in steps of 32
    assert small_boxes(samples, 96) == (0, 6, 96) and small_boxes(samples, 32) == (6, 6, 96)
    assert small_boxes(samples[3:], 32) == (1, 1, 64)


def test_the_account_counts_by_kind_and_file():
    account = Account()
    for number in range(5):
        account.note("degenerate", f"{number}.txt", n=2)
    account.note("degenerate", "4.txt")
    account.note("outside", "we\udce9ird\x1b[31m\n.txt")
    assert account.counts == {"degenerate": 11, "outside": 1}
    assert account.lines() == [
        "dropped: 11 x degenerate (box without width or height) in 5 places: 0.txt, 1.txt, 2.txt, ...",
        r"dropped: 1 x outside (box entirely outside its image): we\udce9ird\x1b[31m\n.txt",
    ]
    assert account.why(["outside", "corrupt image"]).startswith("; dropped: 1 x outside")


def test_a_link_to_itself_is_no_image_and_stops_nobody(tmp_path):
    file = saved(tmp_path / "a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "loop").symlink_to("loop")
    before = fingerprint([tmp_path])
    assert [f for f in list_images(tmp_path) if probe(f)] == [file]
    saved(tmp_path / "b.jpg")
    assert fingerprint([tmp_path]) != before
    with pytest.raises(UserError, match="gone cannot be opened: No such file"):
        list_images(tmp_path / "gone")
