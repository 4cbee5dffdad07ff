"""How a search runs, apart from what it searches; checked before NNI, which takes seconds to import, is."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.engine.gpus import check_indices, gpus_to_share
from experiments.engine.processes import check_port, free_port, without_proxy
from utils.cores import threads_each
from utils.errors import UserError, unknown

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = Path(__file__).with_name("nni_preload.js")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENGINES = ("nni", "inline")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TEXT: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, str), "text")
MACHINE_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {  # -> (does a value fit, what would)
    "host": TEXT,
    "port": (lambda value: type(value) is int and 0 < value < 65536, "a number from 1 to 65535"),
    "user": TEXT,
    "password": TEXT,
    "ssh_key_file": TEXT,
    "ssh_passphrase": TEXT,
    "use_active_gpu": (lambda value: isinstance(value, bool), "true or false"),
    "max_trial_number_per_gpu": (lambda value: type(value) is int and value > 0, "a number from 1"),
    "gpu_indices": (lambda value: True, "a list"),  # see check_indices
    "python_path": TEXT,
}


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
    gpus_per_trial: 0 hides the GPUs from trials, None leaves them as they are, 1 gives each trial one, shared
                 where there are more trials at a time than GPUs
    device:      of the experiment: which GPUs, where each trial gets one
    gpus:        these, as CUDA_VISIBLE_DEVICES names them; `check_runtime` fills them in
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
    device: str = "auto"
    gpus: tuple[str, ...] = ()
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
    """The runtime with a free port and the GPUs filled in. Raises UserError for whatever cannot work."""
    if runtime.engine not in ENGINES:
        raise unknown("engine", runtime.engine, ENGINES)
    if not runtime.on_nni:
        return runtime
    service = runtime.training_service or {}
    check_training_service(service, runtime.host)
    if runtime.gpus_per_trial and not is_remote(runtime):
        runtime = replace(runtime, gpus=gpus_to_share(runtime.device, service.get("gpu_indices")))
    if runtime.port is None:
        return replace(runtime, port=free_port())
    check_port(runtime.host, runtime.port)
    if is_remote(runtime):
        check_port(runtime.host, runtime.port + 1)  # NNI's channel to remote trials
    return runtime


def is_remote(runtime: SearchRuntime) -> bool:
    return platform_of(runtime.training_service or {}) == "remote"


def platform_of(service: Mapping[str, Any]) -> Any:
    """What `training_service` says, else `remote` where it lists machines."""
    return service.get("platform", "remote" if "machine_list" in service else "local")


def check_training_service(service: Mapping[str, Any], host: str) -> None:
    """What NNI would only find after it has started, or with a traceback."""
    known = ("platform", "machine_list", "nni_manager_ip", "gpu_indices")
    for key in service:
        if key not in known:
            raise unknown("key in training_service", key, known)
    platform = platform_of(service)
    if platform not in ("local", "remote"):
        raise unknown("training_service.platform", platform, ("local", "remote"))
    check_indices(service.get("gpu_indices"))
    if platform == "local":
        return
    if service.get("gpu_indices") is not None:
        raise UserError("training_service.gpu_indices is for platform: local; each machine has its own")
    if not isinstance(service.get("nni_manager_ip", ""), str):
        raise UserError(f"training_service.nni_manager_ip: {service['nni_manager_ip']!r} is no address")
    machines = service.get("machine_list")
    if not isinstance(machines, list) or not machines:
        raise UserError("training_service.machine_list needs at least one {host: ..., user: ...}")
    for machine in machines:
        check_machine(machine)
        if machine["host"] not in LOOPBACK and host in LOOPBACK:
            raise UserError(
                f"{machine['host']} cannot reach a server on {host}: give --host an address of this machine"
            )
    paths = {machine.get("python_path") for machine in machines}
    if len(paths) > 1:
        said = ", ".join(sorted(map(str, paths)))
        raise UserError(f"training_service.machine_list: python_path is {said}; all machines need the same")


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
    for key, value in machine.items():
        fits, wanted = MACHINE_KEYS[key]
        if not fits(value):
            raise UserError(f"{where}: {key} of {machine['host']!r} is {value!r}; {wanted} is needed")
    check_indices(machine.get("gpu_indices"), where)
    key_file = Path(machine.get("ssh_key_file") or "~/.ssh/id_rsa").expanduser()
    if "password" not in machine and not key_file.is_file():
        raise UserError(
            f"{where}: {machine['host']} needs a password or ssh_key_file; there is no {key_file}"
        )


def manager_environment(runtime: SearchRuntime, warm_socket: str | None) -> dict[str, str]:
    """What NNI's manager and, through it, the trials find in their environment beside our own."""
    node_options = os.environ.get("NODE_OPTIONS", "")
    address = (runtime.training_service or {}).get("nni_manager_ip")  # by which other machines know us
    environment = {
        "NODE_OPTIONS": f"{node_options} --require {json.dumps(str(PRELOAD))}".strip(),
        "NAS_NODE_OPTIONS": node_options,
        "NAS_BIND_HOST": runtime.host,
        "NAS_HOSTS": ",".join([*LOOPBACK, *([address] if address else [])]),
        "NAS_GPUS": ",".join(runtime.gpus),
        "NAS_PARENT": str(os.getpid()),
        "PYTHONPATH": module_path(),
        **without_proxy(runtime.host),
        **dict.fromkeys(THREAD_VARIABLES, str(runtime.threads or threads_each(runtime.concurrency))),
    }
    return environment if warm_socket is None else {**environment, "NAS_WARM_SOCKET": warm_socket}


def module_path() -> str:
    """PYTHONPATH for processes we start: our packages first, then what this process can import."""
    return os.pathsep.join([str(ROOT), *(os.path.abspath(folder) for folder in sys.path)])


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
