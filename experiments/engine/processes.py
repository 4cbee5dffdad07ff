"""Ports and processes: what must be free before a search, and what must be gone after it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from utils.errors import UserError
from utils.files import own_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessRecord:
    """A process we started, as written on disk, so that a later run can recognise it after a crash.

    started: its start time, unix seconds; a recycled pid has another
    marker:  a word its command line must contain
    """

    role: str
    pid: int
    started: float
    marker: str

    @classmethod
    def of(cls, role: str, pid: int, marker: str) -> ProcessRecord:
        return cls(role, pid, psutil.Process(pid).create_time(), marker)

    def find(self) -> psutil.Process | None:
        """The process if it still runs and is ours beyond doubt: same pid, same start, our word in it."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            if (
                same
                and process.status() != psutil.STATUS_ZOMBIE
                and self.marker in " ".join(process.cmdline())
            ):
                return process
        return None

    def stop(self, patience: float = 8.0) -> bool:
        """SIGTERM, then SIGKILL after `patience` seconds. True if there was something to stop."""
        process = self.find()
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(patience)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(patience)
        return True


def save_records(path: Path, facts: dict[str, Any], records: list[ProcessRecord]) -> None:
    """Write facts and processes as one JSON file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps({**facts, "processes": [asdict(r) for r in records]}, indent=2) + "\n")
    os.replace(draft, path)


def load_records(path: Path) -> tuple[dict[str, Any], list[ProcessRecord]]:
    """What `save_records` wrote; nothing if there is no such file or it is damaged."""
    raw = own_json(path, _is_record)
    return raw, [ProcessRecord(**record) for record in raw.pop("processes", [])]


def _is_record(raw: dict[str, Any]) -> bool:
    kinds = {"role": str, "pid": int, "started": float, "marker": str}
    lists = [raw.get(key, []) for key in ("experiments", "processes")]
    return all(isinstance(each, list) for each in lists) and all(
        isinstance(record, dict)
        and record.keys() == kinds.keys()
        and all(isinstance(record[key], kind) for key, kind in kinds.items())
        for record in lists[1]
    )


def stop_leftovers(path: Path) -> None:
    """End what a killed search has left: its manager, which ends its trials, and its warm process.

    path: the run's nni.json. A resumed run calls it before it looks whether its port is free.
    """
    for record in load_records(path)[1]:
        if record.stop():
            log.warning("stopped the %s (pid %d) of a killed search", record.role, record.pid)


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Raise UserError unless a server can listen there."""
    if not 0 < port < 65536:
        raise UserError(f"port {port} does not exist: give {option} a number from 1 to 65535")
    for address in dict.fromkeys([host, "127.0.0.1"]):  # NNI itself always talks to its server on loopback
        try:
            _bind(address, port)
        except PermissionError:
            raise UserError(f"port {port} needs root: give {option} a number above 1023") from None
        except socket.gaierror:
            raise UserError(f"unknown host {host!r}: give --host an address of this machine") from None
        except OSError as error:
            if address != "127.0.0.1" and error.errno == 99:  # EADDRNOTAVAIL
                raise UserError(
                    f"{host} is no address of this machine: --host takes one of its own"
                ) from None
            raise UserError(f"port {port} is taken{_owner(port)}: give another one with {option}") from None


def without_proxy(host: str = "127.0.0.1") -> dict[str, str]:
    """Environment in which this machine is reached without the proxy that http_proxy, ALL_PROXY, ... name.

    The search, NNI's manager and the trials talk to each other; the Internet keeps its proxy.
    """
    said = [os.environ.get(name) for name in ("no_proxy", "NO_PROXY")]
    hosts = [part.strip() for text in filter(None, said) for part in text.split(",")]
    value = ",".join(dict.fromkeys(filter(None, [*hosts, "localhost", "127.0.0.1", "::1", host])))
    return {"no_proxy": value, "NO_PROXY": value}


@contextmanager
def reached_directly(host: str) -> Iterator[None]:
    """`without_proxy` for this process and whatever it starts meanwhile."""
    wanted = without_proxy(host)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now, chosen by the system."""
    return _bind(host, 0)


def _bind(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        sock.bind((host, port))
        return int(sock.getsockname()[1])


def _owner(port: int) -> str:
    """` by node (pid 123)` if the system lets us see who listens."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


class Interruption:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt; later ones only call `hurry`."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.stopping = False  # set it before cleaning up, so that a signal cannot cut the cleaning short
        self.hurry = lambda: None

    def handle(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        if self.stopping or not first:
            self.hurry()
        else:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Both stop signals end the block in the same orderly way. Outside the main thread it does nothing."""
    interruption = Interruption()
    previous = {}
    with suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
