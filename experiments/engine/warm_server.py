"""A process that has imported everything once and forks a trial in a tenth of a second.

A cold trial spends 6 to 11 s on imports (torch, NNI, lightning) before it does anything. The server imports
the same modules and the evaluator's own, calls the warm function (which loads data into memory that the forks
then share) and forks on request. It never touches CUDA: the fork of a process that did cannot use the GPU.

The search's side is warm.py; this is the server (`python -m experiments.engine.warm_server`).
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from experiments.engine.runtime_settings import resolve

log = logging.getLogger(__name__)


# ---- the server ----


def serve() -> None:
    """Import, then fork a trial for each client until the search closes our standard input."""
    task = json.loads(sys.stdin.buffer.readline())
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while being imported goes to the log
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(task["socket"])
    listener.listen(64)
    print(json.dumps({"error": _prepare(task)}), file=report, flush=True)
    report.close()
    Server(listener).run()


def _prepare(task: dict[str, Any]) -> str | None:
    """Import and warm up; returns what makes forking impossible."""
    try:
        import experiments.engine.nni_runtime  # noqa: F401

        resolve(task["evaluator"])
        if task["warm"]:
            resolve(task["warm"])(**task["arguments"])
        import torch

        if torch.cuda.is_initialized():
            return "the warm function has initialised CUDA, which no fork can use"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


class Server:
    """One thread, one loop: new clients, signals from clients, ends of trials, end of the search."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: dict[socket.socket, int] = {}  # connection -> pid of its trial
        self.search = os.getppid()

    def run(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.close())
        while True:
            watched: list[Any] = [0, woken, self.listener, *self.clients]
            ready, _, _ = select.select(watched, [], [], 1.0)
            if os.getppid() != self.search or (0 in ready and not os.read(0, 64)):
                self.close()
            if woken in ready:
                os.read(woken, 64)
            if self.listener in ready:
                self.fork(self.listener.accept()[0])
            for client in ready:
                if isinstance(client, socket.socket) and client in self.clients:
                    self.forward(client)
            self.reap()

    def fork(self, client: socket.socket) -> None:
        """Read one request and start its trial."""
        try:
            client.settimeout(10)
            head, files, _, _ = socket.recv_fds(client, 4, 2)
            body = b""
            while len(body) < int.from_bytes(head, "big"):
                part = client.recv(1 << 16)
                if not part:
                    raise OSError("the client left")
                body += part
            request = json.loads(body)
        except (OSError, ValueError) as error:
            log.warning("a client that cannot be read: %s", error)
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.listener.close()
            for other in self.clients:
                other.close()
            client.close()
            _become_trial(request, files)
        for file in files:
            os.close(file)
        self.clients[client] = pid

    def forward(self, client: socket.socket) -> None:
        """A byte is a signal for the trial; the end of the stream means that nobody waits for it any more."""
        pid = self.clients[client]
        try:
            message = client.recv(1)
        except OSError:
            message = b""
        with suppress(ProcessLookupError):
            if message:
                os.kill(pid, message[0])
            else:
                _kill_group(pid, signal.SIGKILL)
        if not message:
            del self.clients[client]
            client.close()

    def reap(self) -> None:
        """Tell the clients of ended trials, and kill what a trial has left of its own processes."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            _kill_group(pid, signal.SIGKILL)
            end = (
                {"signal": os.WTERMSIG(status)}
                if os.WIFSIGNALED(status)
                else {"code": os.WEXITSTATUS(status)}
            )
            for client in [c for c, trial in self.clients.items() if trial == pid]:
                with suppress(OSError):
                    client.sendall(json.dumps(end).encode() + b"\n")
                del self.clients[client]
                client.close()

    def close(self) -> None:
        """End everything; a trial has two seconds to finish what it is writing."""
        running = set(self.clients.values())
        for number, patience in ((signal.SIGINT, 2.0), (signal.SIGKILL, 1.0)):
            for pid in running:
                _kill_group(pid, number)
            deadline = time.monotonic() + patience
            while running and time.monotonic() < deadline:
                for pid in list(running):
                    with suppress(ChildProcessError):
                        if os.waitpid(pid, os.WNOHANG)[0] == 0:
                            continue
                    running.discard(pid)
                time.sleep(0.02)
        os._exit(0)


def _kill_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
        return
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _become_trial(request: dict[str, Any], files: list[int]) -> None:
    """The child's whole life. Never returns."""
    code: int | None = 1
    try:
        os.setsid()
        die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for target, file in zip((1, 2), files, strict=True):
            os.dup2(file, target)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = request["argv"]
        _fresh_generators_and_threads()

        from experiments.engine.nni_runtime import run_trial

        run_trial()
        code = 0
    except KeyboardInterrupt:
        code = None
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        if code is None:  # die of the signal, as an interrupted python does
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(1 if code is None else code)


def die_with_parent() -> None:
    """Linux: SIGKILL for us when our parent is killed. Elsewhere the client's end of the socket must do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _fresh_generators_and_threads() -> None:
    """Random states as in a new process, not the server's, and the trial's share of the cores."""
    import random

    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.manual_seed(torch.default_generator.initial_seed())
    with suppress(KeyError, ValueError):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


if __name__ == "__main__":
    # Imported by its name, so that a trial's `import experiments.engine.warm_server` finds this very module.
    from experiments.engine import warm_server

    warm_server.serve()
