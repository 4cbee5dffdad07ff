"""What `predict` writes, with a network that finds what it is told to find."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data.dataset import open_dataset
from experiments import predict as module
from experiments.predict import predict
from utils.errors import UserError

NAMES = ["cat", "dog"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of 100 x 50 pixels; the bright ones hold a dog in their right half."""
    folder = tmp_path / "pictures"
    for name, value in {"a.jpg": 200, "a.png": 200, "deep/dark.png": 0}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((50, 100, 3), value, np.uint8))
    return folder


@pytest.fixture
def finds_dogs(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(net: object, image: np.ndarray, *how: object) -> dict[str, np.ndarray]:
        n = int(image.mean() > 100)
        return {
            "boxes": np.array([[50.0, 0.0, 100.0, 50.0]] * n).reshape(-1, 4),
            "scores": np.array([0.75] * n),
            "labels": np.array([1] * n),
        }

    monkeypatch.setattr(module, "find_objects", found)
    monkeypatch.setattr(module, "open_network", lambda *a: (SimpleNamespace(names=NAMES), 64, "detect"))


def test_everything_is_written_and_what_held_nothing_is_named(
    pictures: Path, finds_dogs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = predict(Path("w.pt"), pictures, tmp_path / "out")
    out = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    labels = {"labels/a.txt", "labels/a.png.txt", "labels/deep/dark.txt"}
    assert out == {"a.jpg", "a.png", "deep/dark.png", "predictions.json", *labels}
    said = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {k: said[k] for k in ("names", "imgsz", "conf", "iou")} == {
        "names": NAMES,
        "imgsz": 64,
        "conf": 0.25,
        "iou": 0.7,
    }
    by_file = {image["file"]: image for image in said["images"]}
    dog = {"label": 1, "name": "dog", "score": 0.75, "box": [50.0, 0.0, 100.0, 50.0]}
    assert by_file["a.jpg"] == {"file": "a.jpg", "width": 100, "height": 50, "objects": [dog]}
    assert by_file["deep/dark.png"]["objects"] == []
    assert (tmp_path / "out/labels/a.txt").read_text() == "1 0.750000 0.500000 0.500000 1.000000\n"
    assert (tmp_path / "out/labels/deep/dark.txt").read_text() == ""
    printed = capsys.readouterr().out
    assert "3 files, 2 objects\n  nothing found in 1 of them: deep/dark.png\n" in printed
    assert done.empty == ["deep/dark.png"] and done.objects == 2


def test_the_labels_are_read_back_as_yolo_data(pictures: Path, finds_dogs: None, tmp_path: Path) -> None:
    (pictures / "a.png").unlink()
    predict(Path("w.pt"), pictures, tmp_path / "out", save="txt")
    root = tmp_path / "data"
    (root / "labels").mkdir(parents=True)
    pictures.rename(root / "images")
    (tmp_path / "out/labels").rename(root / "labels/train")
    (root / "images").rename(root / "train_pictures")
    (root / "images").mkdir()
    (root / "train_pictures").rename(root / "images/train")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    dataset = open_dataset(root / "data.yaml", tmp_path / "cache")
    boxes = {s.image.name: (s.cls.tolist(), s.boxes.tolist()) for s in dataset.splits["val"]}
    assert boxes["a.jpg"] == ([1], [[0.75, 0.5, 0.5, 1.0]]) and boxes["dark.png"] == ([], [])


def test_only_what_is_asked_for(pictures: Path, finds_dogs: None, tmp_path: Path) -> None:
    done = predict(Path("w.pt"), pictures, tmp_path / "out", save="json")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"] and done.written == []
    with pytest.raises(UserError, match="unknown thing to save 'yaml'"):
        predict(Path("w.pt"), pictures, tmp_path / "more", save="json,yaml")


def test_a_video_has_a_line_a_frame(finds_dogs: None, tmp_path: Path) -> None:
    source = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 10, (100, 50))
    for value in (0, 220, 220):
        writer.write(np.full((50, 100, 3), value, np.uint8))
    writer.release()
    done = predict(Path("w.pt"), source, tmp_path / "out")
    images = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [(i["file"], i["frame"], len(i["objects"])) for i in images] == [
        ("v.avi", 0, 0),
        ("v.avi", 1, 1),
        ("v.avi", 2, 1),
    ]
    names = sorted(p.name for p in (tmp_path / "out/labels").iterdir())
    assert names == [f"v_{n:06d}.txt" for n in range(3)] and (tmp_path / "out/v.mp4").exists()
    assert done.empty == []  # something in some of its frames


def test_a_classifiers_answer(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "open_network", lambda *a: (SimpleNamespace(names=NAMES), 64, "classify"))
    sure = np.array([0.125, 0.875])
    monkeypatch.setattr(module, "classify", lambda net, image, side: sure if image.mean() > 100 else sure / 9)
    predict(Path("w.pt"), pictures, tmp_path / "out")
    assert (tmp_path / "out/labels/a.txt").read_text() == "0.8750 dog\n"
    images = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert images[0]["objects"] == [{"label": 1, "name": "dog", "score": 0.875}]
    assert "nothing found in 1 of them" in capsys.readouterr().out


def test_boxes_come_back_from_a_network_that_is_not_square() -> None:
    """100 x 50 is 96 x 48 in images of 64 x 96, below 8 grey rows: a box there is 1 / .96 as large here."""
    seen = []

    class Net(torch.nn.Linear):
        def predict(self, images: torch.Tensor, **how: float) -> list[dict[str, torch.Tensor]]:
            seen.append(images.shape)
            box = torch.tensor([[19.2, 12.8, 57.6, 32.0], [0.0, 0.0, 96.0, 64.0]])
            return [{"boxes": box, "scores": torch.ones(2), "labels": torch.zeros(2).long()}]

    found = module.find_objects(Net(1, 1), np.zeros((50, 100, 3), np.uint8), (64, 96), 0.25, 0.7)
    assert seen == [(1, 3, 64, 96)]
    assert found["boxes"] == pytest.approx(np.array([[20, 5, 60, 25], [0, 0, 100, 50]]), abs=1e-4)
