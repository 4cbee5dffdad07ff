"""The search's side of the warm process (warm_server.py): starts it, waits for it, ends it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.engine.runtime_settings import THREAD_VARIABLES, module_path

CLIENT = Path(__file__).with_name("warm_client.py")


class WarmServer:
    """Starts the server; it ends with `stop`, or by itself when this process dies.

    evaluator: "module:function" of the evaluator, imported before the first fork
    warm_import: "module:function" called once with `arguments`
    """

    def __init__(
        self, evaluator: str, warm_import: str | None, arguments: dict[str, Any], log_file: Path
    ) -> None:
        # In the system's temporary folder: the name of a unix socket has at most 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="nas-")
        self.socket = os.path.join(self.folder, "socket")
        task = {"socket": self.socket, "evaluator": evaluator, "warm": warm_import, "arguments": arguments}
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(log_file, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "experiments.engine.warm_server"],  # -P: see warm_client.py
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **_server_environment()},
                start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
            )
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, seconds: float = 300.0) -> str | None:
        """Wait until it can fork. Returns None, or why it cannot (trials then start cold)."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            return "it ended while importing" if ready else f"not ready after {seconds:g} s"
        return json.loads(line).get("error")

    def stop(self, patience: float = 6.0) -> None:
        """End all trials (SIGINT, two seconds later SIGKILL) and the server."""
        assert self.process.stdin and self.process.stdout
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _server_environment() -> dict[str, str]:
    """One thread while importing: once OpenMP's pool has run, a fork hangs in its first parallel loop."""
    single = dict.fromkeys(THREAD_VARIABLES, "1")
    return {**single, "PYTHONPATH": module_path(), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
