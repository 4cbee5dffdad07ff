"""How a search runs, apart from what it searches; checked before NNI, which takes seconds to import, is."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.processes import check_port, free_port
from utils.cores import threads_each
from utils.errors import UserError, unknown

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = Path(__file__).with_name("nni_preload.js")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENGINES = ("nni", "inline")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MACHINE_KEYS = (
    "host",
    "port",
    "user",
    "password",
    "ssh_key_file",
    "ssh_passphrase",
    "use_active_gpu",
    "max_trial_number_per_gpu",
    "gpu_indices",
    "python_path",
)


@dataclass(frozen=True)
class SearchRuntime:
    """How a search runs.

    run_dir:     the run folder; gets nni.json (experiment ids, processes) and warm.log
    engine:      'nni' = a process a trial, web UI, nnictl; 'inline' = NNI's sequential engine in this process
    max_trials:  trials to start at most in this call; None = the strategy decides
    max_seconds: wall time after which no trial is started; running ones finish
    max_trial_seconds: a trial that takes longer is killed and has failed (engine nni)
    concurrency: trials at a time (engine nni)
    port, host:  of the web UI; port None = any free one
    gpus_per_trial: 0 hides the GPUs from trials, None leaves them as they are
    threads:     CPU threads of a trial; None = cores / concurrency
    warm:        fork trials from a process that has imported everything (local trials of engine nni)
    warm_import: "module:function", called once, there, with the evaluator's arguments
    training_service: None = this machine; else in NNI's words {"platform": "remote", "machine_list": [...]}
    """

    run_dir: Path
    name: str = "search"
    engine: str = "nni"
    max_trials: int | None = None
    max_seconds: float | None = None
    max_trial_seconds: float | None = None
    concurrency: int = 1
    port: int | None = 8083
    host: str = "127.0.0.1"
    gpus_per_trial: int | None = None
    threads: int | None = None
    warm: bool = True
    warm_import: str | None = None
    training_service: Mapping[str, Any] | None = None

    @property
    def on_nni(self) -> bool:
        return self.engine == "nni"

    @property
    def record(self) -> Path:
        """Which NNI experiments and processes belong to the run."""
        return self.run_dir / "nni.json"


@dataclass
class Outcome:
    """What became of a search. The results themselves stand in the history.

    status: 'finished', 'interrupted' (SIGINT or SIGTERM: `signal`) or 'stopped' (by nnictl or in the web UI)
    trials: started in this call, failed ones included
    """

    status: str
    trials: int
    seconds: float
    experiment_id: str | None = None
    signal: int | None = None


def check_runtime(runtime: SearchRuntime) -> SearchRuntime:
    """The runtime with a free port filled in. Raises UserError for whatever cannot work."""
    if runtime.engine not in ENGINES:
        raise unknown("engine", runtime.engine, ENGINES)
    if not runtime.on_nni:
        return runtime
    if runtime.training_service:
        check_training_service(runtime.training_service, runtime.host)
    if runtime.port is None:
        return replace(runtime, port=free_port())
    check_port(runtime.host, runtime.port)
    if is_remote(runtime):
        check_port(runtime.host, runtime.port + 1)  # NNI's channel to remote trials
    return runtime


def is_remote(runtime: SearchRuntime) -> bool:
    service = runtime.training_service or {}
    return service.get("platform", "remote" if service else "local") == "remote"


def check_training_service(service: Mapping[str, Any], host: str) -> None:
    """What NNI would only find after it has started, or with a traceback."""
    known = ("platform", "machine_list", "nni_manager_ip")
    for key in service:
        if key not in known:
            raise unknown("key in training_service", key, known)
    platform = service.get("platform", "remote")
    if platform not in ("local", "remote"):
        raise unknown("training_service.platform", platform, ("local", "remote"))
    if platform == "local":
        return
    machines = service.get("machine_list")
    if not isinstance(machines, list) or not machines:
        raise UserError("training_service.machine_list needs at least one {host: ..., user: ...}")
    for machine in machines:
        check_machine(machine)
        if machine["host"] not in LOOPBACK and host in LOOPBACK:
            raise UserError(
                f"{machine['host']} cannot reach a server on {host}: give --host an address of this machine"
            )


def check_machine(machine: Any) -> None:
    where = "training_service.machine_list"
    if not isinstance(machine, dict):
        raise UserError(f"{where}: {machine!r} is not {{host: ..., user: ...}}")
    for key in machine:
        if key not in MACHINE_KEYS:
            raise unknown(f"key in {where}", key, MACHINE_KEYS)
    for key in ("host", "user"):
        if not machine.get(key):
            raise UserError(f"{where}: a machine needs {key!r}, got only {', '.join(sorted(machine))}")
    key_file = Path(machine.get("ssh_key_file") or "~/.ssh/id_rsa").expanduser()
    if "password" not in machine and not key_file.is_file():
        raise UserError(
            f"{where}: {machine['host']} needs a password or ssh_key_file; there is no {key_file}"
        )


def trials_per_gpu(runtime: SearchRuntime, gpus: int) -> int:
    """How many trials share a GPU, so that all `concurrency` of them find room."""
    if not gpus:
        raise UserError(f"gpus_per_trial={runtime.gpus_per_trial}, but this machine shows no CUDA GPU")
    return max(1, math.ceil(runtime.concurrency * (runtime.gpus_per_trial or 0) / gpus))


def manager_environment(runtime: SearchRuntime, warm_socket: str | None) -> dict[str, str]:
    """What NNI's manager and, through it, the trials find in their environment beside our own."""
    node_options = os.environ.get("NODE_OPTIONS", "")
    environment = {
        "NODE_OPTIONS": f"{node_options} --require {json.dumps(str(PRELOAD))}".strip(),
        "NAS_NODE_OPTIONS": node_options,
        "NAS_BIND_HOST": runtime.host,
        "NAS_PARENT": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **dict.fromkeys(THREAD_VARIABLES, str(runtime.threads or threads_each(runtime.concurrency))),
    }
    return environment if warm_socket is None else {**environment, "NAS_WARM_SOCKET": warm_socket}


def importable(function: Callable[..., Any]) -> str:
    """`module:name` by which a trial's process finds the function. Raises ValueError if it cannot."""
    name = f"{function.__module__}:{function.__qualname__}"
    with suppress(AttributeError, ImportError):
        if function.__module__ != "__main__" and resolve(name) is function:
            return name
    raise ValueError(f"{name} must be a function at module level of a module that can be imported")


def resolve(name: str) -> Callable[..., Any]:
    """`package.module:function` -> the function."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found
