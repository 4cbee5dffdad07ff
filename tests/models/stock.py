"""Stock Ultralytics in a process that has never heard of this package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ["a", "b", "c"]
TRAIN = """
{trainer}
from torch import nn
def said(net):
    # what each layer computes, whatever it is called
    return sorted(f"{{k}} {{type(m).__name__}} {{getattr(m, 'kernel_size', '')}}" for k, m in
                  net.named_modules(remove_duplicate=False) if not list(m.children()))
model = YOLO({pt!r})
before = said(model.model)
model.train(data={data!r}, epochs=1, imgsz=64, batch=8, device="cpu", workers=0, plots=False, val=False,
            project={out!r}, name="t", amp=False, verbose=False{extra})
after = YOLO({out!r} + "/t/weights/last.pt").model
print(json.dumps({{"kept": said(after) == before, "lost": len(set(before) - set(said(after)))}}))
"""
ISOLATED = """
import json, sys
try:
    import models
    print("models is importable"); sys.exit(1)
except ImportError:
    pass
import torch
torch.set_num_threads(1)
{imports}
{body}
"""


def isolated(body: str, cwd: Path, ultralytics: bool = True) -> Any:
    """Run Python code elsewhere with an empty environment; its last line is JSON."""
    environment = {
        "HOME": str(cwd),
        "PATH": os.environ["PATH"],
        "YOLO_CONFIG_DIR": str(cwd),
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
    }
    font = Path(np.__file__).parent.parent / "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"
    (cwd / "Ultralytics").mkdir(exist_ok=True)  # else Ultralytics looks for a font on the network
    (cwd / "Ultralytics" / "Arial.ttf").write_bytes(font.read_bytes())
    code = ISOLATED.format(body=body, imports="from ultralytics import YOLO" if ultralytics else "")
    run = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


def write_data(folder: Path, n: int = 8) -> Path:
    """A data set of coloured squares for Ultralytics."""
    import cv2

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for i in range(n):
            image = np.full((64, 64, 3), 90, np.uint8)
            label, (x, y) = int(rng.integers(3)), rng.integers(4, 40, 2)
            image[y : y + 20, x : x + 20, label] = 255
            cv2.imwrite(str(folder / f"images/{split}/{i}.png"), image)
            text = f"{label} {(x + 10) / 64} {(y + 10) / 64} {20 / 64} {20 / 64}\n"
            (folder / f"labels/{split}/{i}.txt").write_text(text)
    card = folder / "data.yaml"
    card.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {NAMES}\n")
    return card
