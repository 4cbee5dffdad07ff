"""Ultralytics as a quiet library: no network, no files under ~/.config, no surprises in the process.

Importing ultralytics as it comes opens connections (analytics, update check), writes settings into the home
folder and changes process-wide state. Call `quiet_ultralytics()` before the first `import ultralytics` of
every module that needs it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path


@cache
def cache_dir() -> Path:
    """Our own cache folder, made if missing: `$XDG_CACHE_HOME/hello_nas`, else `~/.cache/hello_nas`.

    Where neither can be written (a container without a home) it is a temporary folder of this process.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "hello_nas"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # read-only or no home folder at all (containers)
        pass
    return Path(tempfile.mkdtemp(prefix="hello_nas-"))


def quiet_ultralytics() -> None:
    """Import ultralytics offline, silent and without side effects on this process. Free when called again.

    Whatever the user has set in the environment stays as it is. Undone after the import: OMP_NUM_THREADS=1
    (torch and every child process would inherit it), torch.save replaced by a retrying wrapper, torch and
    numpy print options. Kept: cv2.setNumThreads(0), because decoding is spread over loader workers.
    """
    if "ultralytics" in sys.modules:
        return
    config = cache_dir() / "ultralytics"
    for key, value in {
        "YOLO_OFFLINE": "True",  # no analytics, no update check
        "YOLO_AUTOINSTALL": "False",  # never pip install behind the user's back
        "YOLO_VERBOSE": "False",
        "YOLO_CONFIG_DIR": str(config),
        "MPLCONFIGDIR": str(cache_dir() / "matplotlib"),
    }.items():
        os.environ.setdefault(key, value)

    import numpy as np
    import torch  # before ultralytics, so that torch still picks its own number of threads

    threads, save, printing = os.environ.get("OMP_NUM_THREADS"), torch.save, np.get_printoptions()
    import ultralytics

    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    torch.save = save
    torch.set_printoptions(profile="default")
    np.set_printoptions(**printing)
    # Settings live in our own folder, so switching everything chatty off is nobody else's loss.
    chatty = {"sync", "clearml", "comet", "dvc", "mlflow", "raytune", "vscode_msg", "openvino_msg"}
    settings = ultralytics.settings
    if os.environ["YOLO_CONFIG_DIR"] == str(config) and any(settings.get(key) for key in chatty):
        settings.update(dict.fromkeys(chatty, False))


def offline_font() -> Path:
    """Put a font where Ultralytics looks for Arial.ttf, which it would otherwise download even when offline.

    Needed only before `check_det_dataset` and plots of Ultralytics. Returns the file.
    """
    quiet_ultralytics()
    import shutil

    import matplotlib
    from ultralytics.utils import USER_CONFIG_DIR

    font = Path(USER_CONFIG_DIR) / "Arial.ttf"
    if not font.exists():
        part = font.with_suffix(f".{os.getpid()}")  # several trials may come here at once
        shutil.copyfile(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", part)
        part.replace(font)
    return font
