"""The one door to NNI: a search goes in, an outcome comes out. No other file knows NNI's internals.

NNI 3.0 (archived in 2024) is asked to do what it does well: schedule trials, serve the web UI, answer `nnictl`.
What is wrong with it is repaired here and in nni_preload.js, by subclasses wherever that is possible; nothing
of NNI is changed on disk. Each repair names its defect; `STILL_DEFECTIVE` looks for it in NNI's own source, so
that a repair steps aside for an NNI that no longer needs it. The defects:

    wrong_arch     with two trials at a time one may run the other's architecture (nni_preload.js, SafeEngine)
    bad_metric     a final result of None, NaN or without 'default' hangs the search or wins it (SafeEngine)
    all_interfaces the server listens on every interface, without a password (nni_preload.js)
    lost_models    results of a model that the strategy no longer holds are dropped (SafeEngine)
    dead_listener  when the connection to the manager ends, the strategy waits for ever (SafeChannel, SafeEngine)
    left_behind    SIGTERM or SIGKILL leaves the manager, its port and trials (interruptible, nni_preload.js)
    impatience     a manager that needs more than 3 s to start is given up, a taken port is found late (SafeExperiment)
    cold_trials    each trial spends 6 to 11 s on imports (warm_server.py, warm_client.py)
    hidden_choices the web UI's hyper-parameter graph does not find the choices (VisibleModelSpace)

Resume: we never use NNI's (broken twice: torch >= 2.6 cannot load its checkpoint, and the manager's ImportData
kills the listener). A strategy replays the history instead and a new NNI experiment runs what is missing;
`nni.json` in the run folder lists the experiments of a run, and `view` shows any of them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.processes import (
    Interruption,
    ProcessRecord,
    check_port,
    free_port,
    interruptible,
    load_records,
    save_records,
)
from experiments.warm_server import CLIENT, ROOT, THREAD_VARIABLES, WarmServer, resolve
from utils.errors import UserError, unknown

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NNI's import lists every torch class that is no nn.Module
    import nni
    import requests
    from nni.experiment import RunMode, launcher, rest
    from nni.experiment.config.training_services import LocalConfig, RemoteConfig, RemoteMachineConfig
    from nni.mutable import Sample
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine, TrainingServiceExecutionEngine
    from nni.nas.execution import training_service as nni_engine
    from nni.nas.execution.event import (
        FinalMetricEvent,
        IntermediateMetricEvent,
        ModelEvent,
        TrainingEndEvent,
    )
    from nni.nas.experiment import NasExperiment, NasExperimentConfig
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.space import ExecutableModelSpace, ModelStatus, SimplifiedModelSpace
    from nni.nas.strategy.base import Strategy
    from nni.runtime import log as nni_log
    from nni.runtime.tuner_command_channel import TunerCommandChannel, command_type

log = logging.getLogger(__name__)
NNI_HOME = "~/nni-experiments"  # where nnictl looks; it has no option
PRELOAD = Path(__file__).with_name("nni_preload.js")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class SearchRuntime:
    """How a search runs, apart from what it searches.

    engine:      'nni' = a process a trial, web UI, nnictl; 'inline' = NNI's sequential engine in this process
    max_trials:  trials to start at most in this call; None = the strategy decides
    max_seconds: wall time after which no trial is started; running ones finish
    max_trial_seconds: a trial that takes longer is killed and has failed (engine nni)
    concurrency: trials at a time (engine nni)
    port, host:  of the web UI; port None = any free one
    gpus_per_trial: 0 hides the GPUs from trials, None leaves them as they are
    threads:     CPU threads of a trial; None = cores / concurrency
    warm_import: "module:function", called with the evaluator's arguments once in the process that trials fork from
    training_service: None = this machine; else NNI's own words, {"platform": "remote", "machine_list": [...]}
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


@dataclass
class Outcome:
    """What became of a search. The results themselves stand in the history.

    status: 'finished', 'interrupted' (SIGINT or SIGTERM: `signal`) or 'stopped' (by nnictl or in the web UI)
    """

    status: str
    trials: int
    seconds: float
    experiment_id: str | None = None
    signal: int | None = None


# ---- the search ----


def run_search(
    space: ModelSpace,
    evaluate: Callable[..., Any],
    arguments: Mapping[str, Any],
    strategy: Strategy,
    runtime: SearchRuntime,
    announce: Callable[[str], None] = print,
) -> Outcome:
    """Let `strategy` explore `space`: each architecture it asks for is built and given to `evaluate`.

    evaluate:  importable function `(model, **arguments)`; it reports through experiments.trial
    arguments: JSON values
    When this returns, no process and no port of it is left, however it ended. Raises UserError for a taken port
    and other settings that cannot work, before anything was started.
    """
    target = importable(evaluate)
    json.dumps(dict(arguments))
    evaluator = FunctionalEvaluator(evaluate, **arguments)
    config = build_config(runtime)
    if runtime.engine == "nni":
        stop_leftovers(runtime.run_dir)
        runtime = with_port(runtime)
    experiment = SafeExperiment(space, evaluator, strategy, config, runtime)
    started = time.monotonic()
    with quiet_nni(), interruptible() as interruption:
        warm = start_warm_process(target, arguments, runtime)
        interruption.hurry = lambda: kill_now(experiment, warm)
        try:
            experiment.launch(warm, announce)
            status = "stopped" if experiment.stopped_from_outside else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            interruption.stopping = True
            experiment.tear_down(warm)
    if status == "stopped":
        announce("the search was stopped from outside (nnictl or the web UI); finished trials are kept")
    seconds = time.monotonic() - started
    return Outcome(status, experiment.trials, seconds, experiment.nni_id, interruption.signal)


def view(
    run_dir: Path, port: int | None = 8083, host: str = "127.0.0.1", experiment_id: str | None = None
) -> None:
    """Show NNI's web UI of a finished run until Ctrl-C; nothing of the run is changed. Raises UserError."""
    facts, _ = load_records(run_dir / "nni.json")
    known = [str(e) for e in facts.get("experiments", [])]  # type: ignore[attr-defined]
    if not known:
        raise UserError(f"{run_dir} has no NNI experiment to show: only runs with search.engine=nni have one")
    experiment_id = experiment_id or known[-1]
    if experiment_id not in known:
        raise unknown("experiment", experiment_id, known)
    if not Path(NNI_HOME).expanduser().joinpath(experiment_id, "db", "nni.sqlite").exists():
        raise UserError(f"NNI's data of experiment {experiment_id} are gone from {NNI_HOME}")
    stop_leftovers(run_dir)
    runtime = with_port(SearchRuntime(run_dir=run_dir, port=port, host=host))
    config = build_config(runtime).canonical_copy()
    with quiet_nni(), interruptible() as interruption:
        with manager_environment(runtime, None), patient_launcher():
            node = launcher.start_experiment(
                "view", experiment_id, config, runtime.port, False, RunMode.Detach, None
            )
        try:
            print(
                f"web UI of experiment {experiment_id}: http://{runtime.host}:{runtime.port} (Ctrl-C ends it)"
            )
            node.wait()
        except KeyboardInterrupt:
            pass
        finally:
            interruption.stopping = True
            interruption.hurry = node.kill
            stop_manager(node, runtime.port)


def start_warm_process(
    target: str, arguments: Mapping[str, Any], runtime: SearchRuntime
) -> WarmServer | None:
    """The process local trials are forked from; inline searches warm up right here."""
    if runtime.engine == "inline":
        if runtime.warm_import:
            resolve(runtime.warm_import)(**arguments)
        return None
    if runtime.training_service or not runtime.warm:
        return None
    return WarmServer(target, runtime.warm_import, dict(arguments), runtime.run_dir / "warm.log")


def run_trial() -> None:
    """A trial's life in a fork of the warm process: NNI is imported, but thinks it is in no trial."""
    from nni.runtime import env_vars, trial_command_channel

    importlib.reload(env_vars)
    values = env_vars.trial_env_vars
    nni_log.trial_env_vars = nni.trial.trial_env_vars = values
    nni.trial._experiment_id = values.NNI_EXP_ID
    nni.trial._trial_id = values.NNI_TRIAL_JOB_ID
    nni.trial._sequence_id = int(values.NNI_TRIAL_SEQ_ID or 0)
    nni.trial._params, nni.trial._intermediate_seq = None, 0
    nni_log.silence_stdout()
    nni_log._init_logger()
    trial_command_channel._channel = None
    nni_engine.trial_entry()


# ---- settings ----


def build_config(runtime: SearchRuntime) -> NasExperimentConfig:
    """`SearchRuntime` in NNI's words."""
    if runtime.engine not in ("nni", "inline"):
        raise unknown("engine", runtime.engine, ["nni", "inline"])
    if runtime.engine == "inline":
        config = NasExperimentConfig("sequential", "simplified", "local")
        config.experiment_working_directory = str(runtime.run_dir / "nni")
        return config
    config = NasExperimentConfig("ts", "simplified", "local")
    config.training_service = training_service(runtime)
    config.experiment_name = runtime.name
    config.experiment_working_directory = os.path.expanduser(NNI_HOME)
    config.trial_concurrency = runtime.concurrency
    config.max_trial_number = runtime.max_trials
    config.trial_gpu_number = runtime.gpus_per_trial
    if runtime.max_trial_seconds is not None:
        config.max_trial_duration = math.ceil(runtime.max_trial_seconds)
    if runtime.training_service:
        config.nni_manager_ip = runtime.training_service.get("nni_manager_ip")
    else:
        python = f"{shlex.quote(sys.executable)} -S -E {shlex.quote(str(CLIENT))}"
        config._trial_command_params = {"python": python}
    return config


def training_service(runtime: SearchRuntime) -> LocalConfig | RemoteConfig:
    """This machine, or the ssh machines the user named. UserError for what NNI would only fail on later."""
    raw = dict(runtime.training_service or {"platform": "local"})
    platform = raw.pop("platform", "remote" if "machine_list" in raw else "local")
    raw.pop("nni_manager_ip", None)
    gpu: dict[str, Any] = {"trial_gpu_number": runtime.gpus_per_trial}
    if platform == "local":
        if raw:
            raise UserError(f"training_service: local takes no {next(iter(raw))!r}")
        if runtime.gpus_per_trial:
            gpu["use_active_gpu"] = True
            gpu["max_trial_number_per_gpu"] = trials_per_gpu(runtime)
        return LocalConfig(**gpu)
    if platform != "remote":
        raise unknown("training_service.platform", platform, ["local", "remote"])
    machines = raw.pop("machine_list", None)
    if raw:
        raise unknown(
            "key in training_service", next(iter(raw)), ["platform", "machine_list", "nni_manager_ip"]
        )
    if not isinstance(machines, list) or not machines:
        raise UserError("training_service.machine_list needs at least one {host: ..., user: ...}")
    config = RemoteConfig(machine_list=[remote_machine(machine) for machine in machines], **gpu)
    abroad = [m.host for m in config.machine_list if m.host not in LOOPBACK]
    if abroad and runtime.host in LOOPBACK:
        raise UserError(
            f"{abroad[0]} cannot reach a server on {runtime.host}: give --host this machine's address"
        )
    return config


def remote_machine(raw: Any) -> RemoteMachineConfig:
    known = list(RemoteMachineConfig.__dataclass_fields__)
    if not isinstance(raw, dict):
        raise UserError(f"training_service.machine_list: {raw!r} is no {{host: ..., user: ...}}")
    for key in raw:
        if key not in known:
            raise unknown("key in training_service.machine_list", key, known)
    for key in ("host", "user"):
        if not raw.get(key):
            raise UserError(f"training_service.machine_list: a machine needs {key!r}, got {sorted(raw)}")
    key_file = Path(raw.get("ssh_key_file", "~/.ssh/id_rsa")).expanduser()
    if "password" not in raw and not key_file.is_file():
        raise UserError(
            f"training_service.machine_list: {raw['host']} needs a password or ssh_key_file; no {key_file}"
        )
    return RemoteMachineConfig(**raw)


def trials_per_gpu(runtime: SearchRuntime) -> int:
    """How many trials share a GPU, so that all `concurrency` of them find room."""
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise UserError(f"gpus_per_trial={runtime.gpus_per_trial}, but this machine shows no CUDA GPU")
    return max(1, math.ceil(runtime.concurrency * (runtime.gpus_per_trial or 0) / gpus))


def with_port(runtime: SearchRuntime) -> SearchRuntime:
    """The runtime with a port that is free. UserError if the wanted one is not."""
    from dataclasses import replace

    if runtime.port is None:
        return replace(runtime, port=free_port(runtime.host))
    check_port(runtime.host, runtime.port)
    if runtime.training_service:
        check_port(runtime.host, runtime.port + 1)  # NNI's channel to remote trials
    return runtime


def importable(function: Callable[..., Any]) -> str:
    """ "module:name" under which a trial's process finds the function. ValueError if it cannot."""
    name = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or getattr(resolve_or_none(name), "__wrapped__", function) is None:
        raise ValueError(f"{name} must stand in an importable module, not in a script")
    if resolve_or_none(name) is not function:
        raise ValueError(f"{name} is not found by its name: it must be a function at module level")
    return name


def resolve_or_none(name: str) -> Any:
    with suppress(AttributeError, ImportError):
        return resolve(name)
    return None


def threads_of_a_trial(runtime: SearchRuntime) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return runtime.threads or max(1, cores // runtime.concurrency)


# ---- the manager process ----


@contextmanager
def manager_environment(runtime: SearchRuntime, warm: WarmServer | None) -> Iterator[None]:
    """What node and, through it, the trials find in their environment; ours is put back afterwards."""
    before = os.environ.copy()
    os.environ["NODE_OPTIONS"] = " ".join(
        filter(None, [before.get("NODE_OPTIONS"), f"--require {json.dumps(str(PRELOAD))}"])
    )
    os.environ["NAS_NODE_OPTIONS"] = before.get("NODE_OPTIONS", "")
    os.environ["NAS_BIND_HOST"] = runtime.host
    os.environ["NAS_PARENT"] = str(os.getpid())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
    os.environ.update({name: str(threads_of_a_trial(runtime)) for name in THREAD_VARIABLES})
    if warm is not None:
        os.environ["NAS_WARM_SOCKET"] = warm.socket
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def patient_launcher() -> Iterator[None]:
    """NNI gives a manager 3 s to answer, too few on a busy machine, and looks once a second."""
    original = launcher._check_rest_server

    def wait_for_server(port: int, retry: int = 3, url_prefix: str | None = None) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                rest.get(port, "/check-status", url_prefix)
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    launcher._check_rest_server = wait_for_server
    try:
        yield
    finally:
        launcher._check_rest_server = original


def stop_manager(node: subprocess.Popen[bytes], port: int | None) -> None:
    """Ask the manager to end, then tell it, then make it."""
    with suppress(Exception):
        requests.delete(f"http://localhost:{port}/api/v1/nni/experiment", timeout=5)
    for act, patience in ((None, 10.0), (node.terminate, 5.0), (node.kill, 5.0)):
        if act is not None:
            act()
        with suppress(subprocess.TimeoutExpired):
            node.wait(patience)
            return


def stop_leftovers(run_dir: Path) -> None:
    """End what a killed search of this run has left: its manager (which ends its trials) and warm process."""
    _, records = load_records(run_dir / "nni.json")
    for record in records:
        if record.stop():
            log.warning("stopped the %s (pid %d) left by a killed search", record.role, record.pid)


def kill_now(experiment: SafeExperiment, warm: WarmServer | None) -> None:
    """A second Ctrl-C: no patience left."""
    if warm is not None:
        warm.process.kill()  # the kernel kills the forks with it
    if experiment._proc is not None:
        experiment._proc.kill()


@contextmanager
def quiet_nni() -> Iterator[None]:
    """NNI's messages go to its log file (and to our root logger from warnings on), not to the screen."""
    nni_log.silence_stdout()
    yield


# ---- NNI, repaired ----


def still_defective(owner: Any, fingerprint: str) -> bool:
    """Whether NNI's source still has the line that makes a repair necessary."""
    return fingerprint in inspect.getsource(owner)


STILL_DEFECTIVE: dict[str, Callable[[], bool]] = {
    "wrong_arch": lambda: still_defective(
        TrainingServiceExecutionEngine._trial_end_callback,
        "self._find_reference_model(command.parameter_ids[0])",
    ),
    "bad_metric": lambda: still_defective(
        TrainingServiceExecutionEngine._report_metric_data_callback, "cast(TrialMetric, command.value)"
    ),
    "lost_models": lambda: still_defective(
        TrainingServiceExecutionEngine.submit_models, "weakref.ref(model)"
    ),
    "dead_listener": lambda: still_defective(
        TunerCommandChannel.receive, "raise ValueError(f'Unknown command type"
    ),
    "hidden_choices": lambda: still_defective(SimplifiedModelSpace._dump, "rv['sample'] = self.sample"),
}


class VisibleModelSpace(SimplifiedModelSpace):
    """hidden_choices: the web UI looks for each choice at the top level of a trial's parameters."""

    def _dump(self) -> dict[str, Any]:
        parameters = super()._dump()
        return {**(self.sample or {}), **parameters} if STILL_DEFECTIVE["hidden_choices"]() else parameters

    def freeze(self, sample: Sample) -> SimplifiedModelSpace:
        return super().freeze(sample)


class SafeChannel(TunerCommandChannel):
    """dead_listener: an unknown command or a lost connection ends the listening thread with a traceback."""

    def receive(self) -> command_type.TunerIncomingCommand:
        while True:
            try:
                return super().receive()
            except (ValueError, TypeError, KeyError) as error:
                log.debug("a command of NNI's manager was ignored: %s", error)
            except Exception as error:
                log.debug("the connection to NNI's manager is lost: %s", error)
                return command_type.Terminate()


@dataclass
class Running:
    """A model that was submitted and has not ended."""

    model: ExecutableModelSpace
    problem: str | None = None


class SafeEngine(TrainingServiceExecutionEngine):
    """NNI's engine, which holds on to its models, checks their metrics and notices when the manager is gone.

    A model that failed has `failure_reason`, one line. One that was cut short by the end of the search has status
    `Interrupted`, not `Failed`: it should run again on resume.
    """

    def __init__(self, experiment: SafeExperiment, deadline: float | None) -> None:
        self.deadline = deadline
        self.trials = 0
        self.gone = False  # the manager will tell us nothing more
        self._running: dict[int, Running] = {}
        self._ran: dict[str, int] = {}  # trial job -> the parameters that it says it ran
        self._strategy_error: BaseException | None = None
        self._changed = threading.Condition(threading.RLock())
        original, nni_engine.TunerCommandChannel = nni_engine.TunerCommandChannel, SafeChannel
        try:
            super().__init__(experiment)
        finally:
            nni_engine.TunerCommandChannel = original
        self._channel.on_terminate(lambda _: self.manager_gone())

    # what strategies call

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        for model in models:
            with self._changed:
                super().submit_models(model)
                self._running[self._current_parameter_id] = Running(model)
                self.trials += 1
        if self.gone:
            self.manager_gone()

    def idle_worker_available(self) -> bool:
        """Waits up to a second for a worker: strategies ask, and then sleep, once a second."""
        with self._changed:
            self._changed.wait_for(lambda: self._workers > 0 or self.gone, timeout=0.9)
            return self._workers > 0

    def budget_available(self) -> bool:
        self._raise_strategy_error()
        if self.gone or (self.deadline is not None and time.monotonic() > self.deadline):
            return False
        return self._manager_status() in ("INITIALIZED", "RUNNING", "TUNER_NO_MORE_TRIAL")

    def wait_models(self, *models: ExecutableModelSpace) -> None:
        """Until these models, or all, have ended. NNI's own looks once a second and at the end 7 times in vain."""
        with self._changed:
            while any(not models or r.model in models for r in self._running.values()):
                if not self._changed.wait(2.0) and self._manager_status() in ("DONE", "ERROR", "STOPPED"):
                    self.manager_gone()
        self._raise_strategy_error()

    def shutdown(self) -> None:
        """NNI waits for its listener without limit; a manager that was killed would keep it for ever."""
        self._stopped = True
        self._channel_listen_stop_event.set()
        self._channel_listen_thread.join(2.0)
        self._channel.disconnect()

    # what the manager says, in the listening thread

    def _request_trial_jobs_callback(self, command: command_type.RequestTrialJobs) -> None:
        with self._changed:
            super()._request_trial_jobs_callback(command)
            self._changed.notify_all()

    def _report_metric_data_callback(self, command: command_type.ReportMetricData) -> None:
        """bad_metric: NNI lets the exception kill its listening thread, and NaN win the search."""
        self._ran[str(command.trial_job_id)] = command.parameter_id
        running = self._running.get(command.parameter_id)
        if running is not None and STILL_DEFECTIVE["bad_metric"]():
            running.problem = running.problem or metric_problem(command.value)
            if running.problem:
                return
        with self._strategy_errors_kept():
            super()._report_metric_data_callback(command)

    def _trial_end_callback(self, command: command_type.TrialEnd) -> None:
        """wrong_arch: the end is booked on the parameters the trial says it ran, not on those it was meant to."""
        parameter_id = self._ran.pop(command.trial_job_id, command.parameter_ids[0])
        with self._changed:
            running = self._running.pop(parameter_id, None)
            self._changed.notify_all()
        if running is None:
            return  # somebody submitted a trial in the web UI
        model, reason = running.model, running.problem
        if reason is None and self._interpret_trial_job_status(command.event) is ModelStatus.Trained:
            reason = None if model.metric is not None else "it reported no result"
        elif reason is None:
            reason = self._why(command)
        model.failure_reason = reason
        with self._strategy_errors_kept():
            status = ModelStatus.Trained if reason is None else ModelStatus.Failed
            self.dispatch_model_event(TrainingEndEvent(model, status))

    def manager_gone(self) -> None:
        """dead_listener: nobody will report the running models any more; let nobody wait for them."""
        with self._changed:
            self.gone = True
            running, self._running = list(self._running.values()), {}
            self._changed.notify_all()
        for entry in running:
            entry.model.failure_reason = "the search was stopped"
            with self._strategy_errors_kept():
                self.dispatch_model_event(TrainingEndEvent(entry.model, ModelStatus.Interrupted))

    def _find_reference_model(self, parameter_id: int) -> ExecutableModelSpace | None:
        """lost_models: NNI holds models weakly, and a strategy that lets go of them is never told their end."""
        running = self._running.get(parameter_id)
        return running.model if running else super()._find_reference_model(parameter_id)

    def _why(self, command: command_type.TrialEnd) -> str:
        if command.event == "EARLY_STOPPED":
            return "it took longer than max_trial_seconds"
        folder = self.nodejs_binding.trial_folder(command.trial_job_id)
        with suppress(OSError):
            lines = [
                line.strip() for line in (folder / "trial.stderr").read_text(errors="replace").splitlines()
            ]
            if any(lines):
                return [line for line in lines if line][-1]
        if command.event == "USER_CANCELED":
            return "it was killed (out of memory, or cancelled in the web UI)"
        return f"it ended with status {command.event}"

    def _manager_status(self) -> str:
        try:
            return str(self.nodejs_binding.get_status())
        except Exception:  # refused, reset, timed out: as good as stopped, the listener will notice too
            return "STOPPED"

    @contextmanager
    def _strategy_errors_kept(self) -> Iterator[None]:
        """An error in a strategy's callback belongs to the main thread, not to the listener."""
        try:
            yield
        except Exception as error:
            self._strategy_error = self._strategy_error or error

    def _raise_strategy_error(self) -> None:
        if self._strategy_error is not None:
            error, self._strategy_error = self._strategy_error, None
            raise error


class SafeSequentialEngine(SequentialExecutionEngine):
    """NNI's in-process engine with wall-clock budget, checked metrics and reasons for failures."""

    def __init__(self, max_trials: int | None, deadline: float | None) -> None:
        super().__init__(max_trials, None, continue_on_failure=True)
        self.deadline = deadline

    @property
    def trials(self) -> int:
        return self._model_count

    def budget_available(self) -> bool:
        late = self.deadline is not None and time.monotonic() > self.deadline
        return not late and super().budget_available()

    def _run_single_model(self, model: ExecutableModelSpace) -> None:
        execute = model.execute

        def execute_and_remember() -> Any:
            try:
                return execute()
            except Exception as error:
                model.failure_reason = f"{type(error).__name__}: {error}"
                raise

        model.failure_reason = None
        model.execute = execute_and_remember
        try:
            super()._run_single_model(model)
        finally:
            nni.trial._params = None  # outside a trial again

    def dispatch_model_event(self, event: ModelEvent, **kwargs: Any) -> None:
        if isinstance(event, FinalMetricEvent | IntermediateMetricEvent):
            problem = metric_problem(event.metric)
            if problem:
                raise ValueError(problem)
        elif (
            isinstance(event, TrainingEndEvent)
            and event.status is ModelStatus.Trained
            and event.model.metric is None
        ):
            event.status = ModelStatus.Failed
            event.model.failure_reason = "it reported no result"
        super().dispatch_model_event(event, **kwargs)


def metric_problem(value: Any) -> str | None:
    """What is wrong with a reported result, one line; None for a finite number or a dict with one as 'default'."""
    number = value.get("default") if isinstance(value, dict) else value
    if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
        return None
    what = "a result without 'default'" if isinstance(value, dict) and "default" not in value else repr(value)
    return f"it reported {what}, not a finite number"


class SafeExperiment(NasExperiment):
    """NNI's experiment with our engines, started and stopped so that nothing is left behind."""

    def __init__(
        self,
        space: ModelSpace,
        evaluator: FunctionalEvaluator,
        strategy: Strategy,
        config: NasExperimentConfig,
        runtime: SearchRuntime,
    ) -> None:
        super().__init__(space, evaluator, strategy, config)
        self.runtime = runtime
        self.warm: WarmServer | None = None
        self.announce: Callable[[str], None] = print
        self.deadline: float | None = None

    def launch(self, warm: WarmServer | None, announce: Callable[[str], None]) -> None:
        """Start everything and return when the strategy has finished and all its trials have ended."""
        self.warm, self.announce = warm, announce
        self.start(self.runtime.port or 0, run_mode=RunMode.Detach)
        self._engine.wait_models()

    def tear_down(self, warm: WarmServer | None) -> None:
        """Trials first: the manager would wait five seconds for each."""
        if self._engine is not None and isinstance(self._engine, SafeEngine):
            self._engine.gone = True
        if warm is not None:
            warm.stop()
        self.stop()
        self._remember()

    @property
    def trials(self) -> int:
        return self._engine.trials if self._engine is not None else 0

    @property
    def nni_id(self) -> str | None:
        return self.id if self.runtime.engine == "nni" else None

    @property
    def stopped_from_outside(self) -> bool:
        return isinstance(self._engine, SafeEngine) and self._engine.gone

    def trial_folder(self, trial_job_id: str) -> Path:
        return Path(NNI_HOME).expanduser() / self.id / "environments" / "local-env" / "trials" / trial_job_id

    # what NasExperiment calls

    def execution_engine_factory(self, config: Any) -> ExecutionEngine:
        if self.runtime.max_seconds is not None:
            self.deadline = time.monotonic() + self.runtime.max_seconds
        if self.runtime.engine == "inline":
            return SafeSequentialEngine(self.runtime.max_trials, self.deadline)
        return SafeEngine(self, self.deadline)

    def executable_model_factory(self, config: Any) -> ExecutableModelSpace:
        return VisibleModelSpace.from_model(self.model_space, self.evaluator)

    def save_checkpoint(self) -> None:
        """Only what NNI's own `view` needs: resuming is replaying, so the strategy's state is not kept."""
        if self.runtime.engine == "nni":
            self._checkpoint_directory.mkdir(parents=True, exist_ok=True)
            with open(self._checkpoint_directory / "config.json", "w", encoding="utf-8") as file:
                nni.dump(self.config.json(), fp=file, indent=2)

    def _start_engine_and_strategy(self) -> None:
        """The warm process has been importing since before the manager was started."""
        problem = self.warm.wait() if self.warm is not None else None
        if self.warm is not None and problem:
            log.warning(
                "trials start cold, some 8 s each: %s (see %s)", problem, self.runtime.run_dir / "warm.log"
            )
            self.warm.stop()
        super()._start_engine_and_strategy()

    def _start_nni_manager(
        self, port: int, debug: bool, run_mode: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """impatience, all_interfaces: see `patient_launcher` and nni_preload.js."""
        try:
            with manager_environment(self.runtime, self.warm), patient_launcher():
                super()._start_nni_manager(port, debug, run_mode, *args, **kwargs)
        except RuntimeError as error:
            if "not idle" in str(error):
                raise UserError(f"port {port} is taken: give another one with --port") from None
            raise
        self._remember()
        self.announce(
            f"web UI: http://{self.runtime.host}:{port}  (nnictl experiment status {self.id}, nnictl stop {self.id})"
        )

    def _stop_nni_manager(self) -> None:
        if self._proc is not None:
            stop_manager(self._proc, self.port)
        self.port = self._proc = None

    def _start_without_nni_manager(self) -> None:
        """An in-process search has nothing that nnictl could talk to: it does not enter NNI's list."""

    def _stop_without_nni_manager(self) -> None:
        pass

    def _start_logging(self, debug: bool) -> None:
        if self.runtime.engine == "nni":
            super()._start_logging(debug)

    def _remember(self) -> None:
        """Note the experiment and its processes in the run folder, for `view` and for `stop_leftovers`."""
        if self.runtime.engine != "nni":
            return
        path = self.runtime.run_dir / "nni.json"
        facts, _ = load_records(path)
        experiments = [e for e in facts.get("experiments", []) if e != self.id] + [self.id]  # type: ignore[attr-defined]
        records = []
        if self._proc is not None:
            records.append(ProcessRecord.of("NNI manager", self._proc.pid, self.id))
        if self.warm is not None and self.warm.process.poll() is None:
            records.append(ProcessRecord.of("warm process", self.warm.process.pid, "warm_server"))
        facts = {
            "experiment_id": self.id,
            "experiments": experiments,
            "url": f"http://{self.runtime.host}:{self.port}" if self.port else None,
        }
        save_records(path, facts, records)
