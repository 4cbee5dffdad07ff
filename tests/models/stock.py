"""Stock Ultralytics in a process that has never heard of this package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

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
