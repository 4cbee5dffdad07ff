"""The one door to NNI: a search goes in, an outcome comes out. No other file knows NNI's internals.

NNI 3.0 (archived in 2024) does what it does well: it schedules trials, serves the web UI, answers `nnictl`.
What is wrong with it is repaired here and in nni_preload.js, by subclasses wherever possible; nothing of NNI
is changed on disk. `STILL_DEFECTIVE` looks for six of the defects in NNI's own source, and a test fails when
one of them is gone; `bad_metric`, `hidden_choices` and the preload's part of `wrong_arch` step aside by
themselves then, the other repairs are always on. The defects, by the name that the repairs carry:

wrong_arch      with two trials at a time one may run the other's architecture
bad_metric      a result of None, NaN or without 'default' hangs the search, or wins it
late_metric     on a busy disk a trial's end overtakes its result, or NNI drops it (nni_preload.js)
lost_models     the end of a model that the strategy no longer holds is never told
dead_listener   when the manager ends, or says something unknown, the strategy waits for ever
all_interfaces  the server listens on every interface, without a password
one_gpu         a machine's last GPU is given to no trial, and the manager tries for ever without a pause
any_file        the server returns any file of its user, and does what foreign pages ask for (nni_preload.js)
left_behind     SIGTERM or SIGKILL leave the manager, its port and running trials
impatience      a manager that needs more than 3 s to start is given up
cold_trials     every trial spends 6 to 11 s on imports (warm_server.py)
hidden_choices  the web UI's hyper-parameter graph does not find the choices

Resume: NNI's own is broken twice (torch >= 2.6 cannot load its checkpoint; ImportData kills the listener) and
would run unfinished trials behind the strategy's back. So a strategy replays the history, and a new NNI
experiment runs what is missing; `nni.json` in the run folder names all of them and `view` shows any.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache
from pathlib import Path
from typing import Any

from experiments.engine.gpus import HANDED_OUT
from experiments.engine.processes import (
    ProcessRecord,
    interruptible,
    load_records,
    reached_directly,
    save_records,
    stop_leftovers,
)
from experiments.engine.runtime_settings import (
    ROOT,
    Outcome,
    SearchRuntime,
    check_runtime,
    importable,
    is_remote,
    manager_environment,
    resolve,
)
from experiments.engine.warm import CLIENT, WarmServer
from experiments.engine.warm_client import CANCELLED, ORPHANED
from utils.errors import UserError, unknown

# NNI's import lists every torch class that is no nn.Module; gym, which its RL imports, advertises another.
with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    import nni
    import requests
    from nni.experiment import RunMode, launcher, rest
    from nni.experiment.config.training_services import LocalConfig, RemoteConfig, RemoteMachineConfig
    from nni.experiment.data import TrialJob
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.execution import SequentialExecutionEngine, TrainingServiceExecutionEngine, event
    from nni.nas.execution import training_service as nni_engine
    from nni.nas.experiment import NasExperiment, NasExperimentConfig
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.space import ExecutableModelSpace, ModelStatus, SimplifiedModelSpace
    from nni.nas.strategy.base import Strategy
    from nni.runtime import log as nni_log
    from nni.runtime.tuner_command_channel import TunerCommandChannel, command_type

__all__ = ["Outcome", "SearchRuntime", "run_search", "view"]

log = logging.getLogger(__name__)
NNI_HOME = Path.home() / "nni-experiments"  # where nnictl looks; it has no option
MANAGER = "NNI manager"
PACKAGES = ("data", "experiments", "models", "utils")
CODE = (".py", ".yaml", ".html", ".js")  # of these what is needed to run them
OVER = ("DONE", "STOPPED")  # states of the manager in which it starts no trial


# ---- a search ----


def run_search(
    space: ModelSpace,
    evaluate: Callable[..., Any],
    arguments: Mapping[str, Any],
    strategy: Strategy,
    runtime: SearchRuntime,
    announce: Callable[[str], None] = print,
) -> Outcome:
    """Let `strategy` explore `space`: each architecture it asks for is built and given to `evaluate`.

    evaluate:  importable function `(model, **arguments)`; it reports through experiments.engine.trial
    arguments: JSON values
    When this returns, no process and no port of it is left, however it ended. Raises UserError for a taken
    port and other settings that cannot work, before anything was started, and where NNI's manager fails.
    """
    target = importable(evaluate)
    json.dumps(dict(arguments))
    stop_leftovers(runtime.record)
    runtime = check_runtime(runtime)
    evaluator = FunctionalEvaluator(evaluate, **arguments)
    experiment = SafeExperiment(space, evaluator, strategy, build_config(runtime), runtime, announce)
    quiet_nni()
    started = time.monotonic()
    lost: Exception | None = None
    with reached_directly(runtime.host), interruptible() as interruption:
        interruption.hurry = experiment.kill
        try:
            experiment.warm_up(target, arguments)
            experiment.launch()
            status = "stopped" if experiment.stopped_from_outside else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
        except Exception as error:  # the manager's end, perhaps, whose log is whole once it has ended
            lost = error
        finally:
            interruption.stopping = True
            experiment.tear_down()
    if failure := experiment.failure or (lost and why_it_gave_up(experiment.id)):
        raise UserError(f"NNI's manager failed: {failure}; finished trials are kept, --resume goes on")
    if lost:
        raise lost
    if status == "stopped":
        announce("the search was stopped from outside (nnictl or the web UI); finished trials are kept")
    seconds = time.monotonic() - started
    nni_id = experiment.id if runtime.on_nni else None
    return Outcome(status, experiment.trials, seconds, nni_id, interruption.signal)


def view(
    run_dir: Path, port: int | None = 8083, host: str = "127.0.0.1", experiment_id: str | None = None
) -> None:
    """Show NNI's web UI of a finished run until Ctrl-C; the run is only read. Raises UserError.

    experiment_id: which of a resumed run's experiments; None = the last
    """
    runtime = SearchRuntime(run_dir=run_dir, port=port, host=host)
    facts, records = load_records(runtime.record)
    known = [str(e) for e in facts.get("experiments", [])]
    if not known:
        raise UserError(f"{run_dir} has no NNI experiment to show: only runs with search.engine=nni have one")
    if any(record.find() for record in records if record.role == MANAGER):
        raise UserError(f"{run_dir} is being searched now: its web UI is at {facts.get('url')}")
    experiment_id = experiment_id or known[-1]
    if experiment_id not in known:
        raise unknown("experiment", experiment_id, known)
    if not (NNI_HOME / experiment_id / "db" / "nni.sqlite").exists():
        raise UserError(f"NNI's data of experiment {experiment_id} are gone from {NNI_HOME}")
    runtime = check_runtime(runtime)
    config = build_config(runtime).canonical_copy()
    quiet_nni()
    nodes: list[subprocess.Popen[bytes]] = []
    with reached_directly(runtime.host), interruptible() as interruption:
        interruption.hurry = lambda: nodes[0].kill() if nodes else None
        try:
            with ready_for_manager(runtime, None, nodes.append):
                launcher.start_experiment(
                    "view", experiment_id, config, runtime.port, False, RunMode.Detach, None
                )
            print(f"web UI of {experiment_id}: http://{host}:{runtime.port} (Ctrl-C ends it)", flush=True)
            nodes[0].wait()
        except KeyboardInterrupt:
            pass
        finally:
            interruption.stopping = True
            for node in nodes:
                stop_manager(node, runtime.port)


def run_trial() -> None:
    """A trial's life in a fork of the warm process, where NNI is imported but believes to be in no trial."""
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


def quiet_nni() -> None:
    """What NNI has to say goes to its own log file; what matters of it, we say."""
    nni_log.silence_stdout()
    logger = logging.getLogger("nni")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())  # without any, once its file is closed, Python prints to stderr


def build_config(runtime: SearchRuntime) -> NasExperimentConfig:
    """`SearchRuntime` in NNI's words."""
    if not runtime.on_nni:
        return NasExperimentConfig(
            "sequential", "simplified", experiment_working_directory=str(runtime.run_dir)
        )
    config = NasExperimentConfig("ts", "simplified", "local")
    config.experiment_name = runtime.name
    config.experiment_working_directory = str(NNI_HOME)
    config.trial_concurrency = runtime.concurrency
    config.max_trial_number = runtime.max_trials
    if runtime.max_trial_seconds is not None:
        config.max_trial_duration = math.ceil(runtime.max_trial_seconds)
    if is_remote(runtime):
        config.trial_gpu_number = runtime.gpus_per_trial
        config._trial_command_params = {"envs": f"{HANDED_OUT}=cuda"} if runtime.gpus_per_trial else {}
        assert runtime.training_service is not None
        machines = [RemoteMachineConfig(**machine) for machine in runtime.training_service["machine_list"]]
        if path := machines[0].python_path:  # NNI finds its own parts by it, and trials by this process's
            python = path if Path(path).name.startswith("python") else f"{path}/python"
            config._trial_command_params["python"] = shlex.quote(python)
        code = copy_code(runtime.run_dir / "code")
        config.training_service = RemoteConfig(machine_list=machines, trial_code_directory=str(code))
        config.nni_manager_ip = runtime.training_service.get("nni_manager_ip")
        return config
    config.training_service = LocalConfig()
    if runtime.gpus_per_trial == 0:
        config.trial_gpu_number = 0  # hides them; where there is more to give, nni_preload.js does (one_gpu)
    config._trial_command_params = {
        "python": f"{shlex.quote(sys.executable)} -S -E {shlex.quote(str(CLIENT))}",
    }
    return config


def copy_code(folder: Path) -> Path:
    """Our packages alone, in a folder that other machines are sent: NNI sends the current one, which may hold
    data sets, runs and environments, and refuses 300 MB."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in (f for name in PACKAGES for f in (ROOT / name).rglob("*") if f.suffix in CODE):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder


# ---- the manager process ----


@contextmanager
def ready_for_manager(
    runtime: SearchRuntime, warm: WarmServer | None, started: Callable[[subprocess.Popen[bytes]], None]
) -> Iterator[None]:
    """NNI's launcher gives node our environment, says at once what it `started` and (impatience) waits."""
    before, check, start = os.environ.copy(), launcher._check_rest_server, launcher._start_rest_server
    nodes: list[subprocess.Popen[bytes]] = []

    def start_and_tell(*args: Any) -> subprocess.Popen[bytes]:
        node = start(*args)
        nodes.append(node)
        started(node)  # Ctrl-C while the launcher still waits must find it
        return node

    def wait_for_server(port: int, retry: int = 3, url_prefix: str | None = None) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                rest.get(port, "/check-status", url_prefix)
                return
            except Exception:
                if time.monotonic() > deadline or (nodes and nodes[0].poll() is not None):
                    raise
                time.sleep(0.1)

    os.environ.update(manager_environment(runtime, warm.socket if warm else None))
    launcher._start_rest_server, launcher._check_rest_server = start_and_tell, wait_for_server
    try:
        yield
    finally:
        launcher._start_rest_server, launcher._check_rest_server = start, check
        os.environ.clear()
        os.environ.update(before)


def stop_manager(node: subprocess.Popen[bytes], port: int | None) -> None:
    """Ask the manager to end, then tell it, then make it. NNI's own way waits without limit."""
    with suppress(requests.RequestException):
        requests.delete(f"http://localhost:{port}/api/v1/nni/experiment", timeout=5)
    for act, patience in ((lambda: None, 10.0), (node.terminate, 5.0), (node.kill, 5.0)):
        act()
        with suppress(subprocess.TimeoutExpired):
            node.wait(patience)
            return


def why_it_gave_up(experiment_id: str) -> str | None:
    """Why a manager ended by itself: machines that it could not use. It tells nobody but its log."""
    path = NNI_HOME / experiment_id / "log" / "nnimanager.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"Training srevice initialize failed: (?:\w*Error: )?(.+)", text)  # NNI's spelling
    return f"a machine cannot be used: {found[1].strip()}" if found else None


# ---- NNI, repaired ----

STILL_DEFECTIVE: dict[str, tuple[Any, str]] = {
    "wrong_arch": (TrainingServiceExecutionEngine._trial_end_callback, "command.parameter_ids[0]"),
    "bad_metric": (TrainingServiceExecutionEngine._report_metric_data_callback, "TrialMetric, command.value"),
    "lost_models": (TrainingServiceExecutionEngine.submit_models, "weakref.ref(model)"),
    "dead_listener": (TunerCommandChannel.receive, "raise ValueError(f'Unknown command type"),
    "impatience": (launcher._check_rest_server, "retry: int = 3"),
    "hidden_choices": (SimplifiedModelSpace._dump, "rv['sample'] = self.sample"),
}


@cache
def still_defective(name: str) -> bool:
    """Whether NNI's source still has the words that make a repair necessary."""
    owner, words = STILL_DEFECTIVE[name]
    return words in inspect.getsource(owner)


class VisibleModelSpace(SimplifiedModelSpace):
    """hidden_choices: the web UI looks for each choice at the top level of a trial's parameters."""

    def _dump(self) -> dict[str, Any]:
        parameters = super()._dump()
        if not still_defective("hidden_choices"):
            return parameters
        # Where this key is, the page's graph has axes for what it holds and for nothing else.
        return {**(self.sample or {}), "mutation_summary": self.sample or {}, **parameters}


class SafeChannel(TunerCommandChannel):
    """dead_listener: an unknown command or a lost connection ends the listening thread with a traceback."""

    def receive(self) -> command_type.TunerIncomingCommand:
        while True:
            try:
                return super().receive()
            except (ValueError, TypeError, KeyError) as error:
                log.debug("ignored a command of NNI's manager: %s", error)
            except Exception as error:
                log.debug("lost the connection to NNI's manager: %s", error)
                return command_type.Terminate()


class SafeEngine(TrainingServiceExecutionEngine):
    """NNI's engine that keeps hold of its models, checks their results and notices when the manager is gone.

    A model that failed has `failure_reason`, one line. One cut short because the search ended has status
    `Interrupted`, not `Failed`: it is to run again on resume.
    """

    def __init__(self, experiment: SafeExperiment, max_trials: int | None, deadline: float | None) -> None:
        self.max_trials = max_trials
        self.deadline = deadline
        self.trials = 0
        self._again = 0  # trials that ran once more
        self.gone = False  # the manager will tell us nothing more
        self.cut_short = False  # it takes no more trials, and that was not our wish
        self.failure: str | None = None  # what went wrong in it, one line
        self._running: dict[int, ExecutableModelSpace] = {}  # by parameter id
        self._problems: dict[int, str] = {}  # parameter id -> what is wrong with what it reported
        self._ran: dict[str, int] = {}  # trial job -> the parameters that it says it ran
        self._strategy_error: Exception | None = None
        self._changed = threading.Condition(threading.RLock())
        stock, nni_engine.TunerCommandChannel = nni_engine.TunerCommandChannel, SafeChannel
        try:
            super().__init__(experiment)
        finally:
            nni_engine.TunerCommandChannel = stock
        self._current_parameter_id = -1  # a new experiment has none; NNI would read what others submitted
        self._channel.on_terminate(lambda _: self.manager_gone())

    # What strategies call, in the main thread.

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        for model in models:
            self.trials += 1
            self._start(model)

    def submit_again(self, model: ExecutableModelSpace) -> None:
        """Run a model once more whose trial was killed. The manager counts both, so it may start one more."""
        if self.max_trials is not None:
            self._again += 1
            profile = {"params": {"maxTrialNumber": self.max_trials + self._again}}
            with suppress(Exception):  # without a manager nothing runs any more, see `_start`
                rest.put(self.nodejs_binding.port, "/experiment?update_type=MAX_TRIAL_NUM", profile)
        self._start(model)

    def _start(self, model: ExecutableModelSpace) -> None:
        with self._changed:
            super().submit_models(model)
            self._running[self._current_parameter_id] = model
        if self.gone:
            self.manager_gone()

    def idle_worker_available(self) -> bool:
        """Waits up to a second for a worker: strategies ask for one, then sleep, once a second."""
        with self._changed:
            self._changed.wait_for(lambda: self._workers > 0 or self.gone, timeout=0.9)
            return self._workers > 0

    def budget_available(self) -> bool:
        self._raise_strategy_error()
        if self.gone or (self.deadline is not None and time.monotonic() >= self.deadline):
            return False
        if self.max_trials is not None and self.trials >= self.max_trials:
            return False
        status = self._manager_status()
        if status in ("INITIALIZED", "RUNNING", "TUNER_NO_MORE_TRIAL"):
            return True
        self.cut_short = True  # by a limit that is not ours: somebody has set one in the web UI
        if status in OVER:
            self.manager_gone()  # what it has not started by now it never will
        return False

    def wait_models(self, *models: ExecutableModelSpace) -> None:
        """Until these models, or all, have ended. NNI looks once a second, at the end seven times in vain."""
        with self._changed:
            while any(not models or model in models for model in self._running.values()):
                if not self._changed.wait(2.0) and self._manager_status() in OVER:
                    self.manager_gone()
        self._raise_strategy_error()

    def shutdown(self) -> None:
        """NNI's waits for the listener without limit, which a killed manager would make for ever."""
        self._stopped = True
        self._channel_listen_stop_event.set()
        self._channel_listen_thread.join(2.0)
        self._channel.disconnect()

    # What the manager says, in the listening thread.

    def _request_trial_jobs_callback(self, command: command_type.RequestTrialJobs) -> None:
        with self._changed:
            super()._request_trial_jobs_callback(command)
            self._changed.notify_all()

    def _report_metric_data_callback(self, command: command_type.ReportMetricData) -> None:
        """bad_metric: NNI lets the exception end its listening thread, and ranks NaN first."""
        self._ran[str(command.trial_job_id)] = command.parameter_id
        problem = metric_problem(command.value)
        if problem and still_defective("bad_metric"):
            self._problems.setdefault(command.parameter_id, problem)
            return
        with self._strategy_errors_kept():
            super()._report_metric_data_callback(command)

    def _trial_end_callback(self, command: command_type.TrialEnd) -> None:
        """wrong_arch: the end is booked on the parameters that the trial says it ran."""
        parameter_id = self._ran.pop(command.trial_job_id, command.parameter_ids[0])
        reason = self._problems.pop(parameter_id, None)
        with self._changed:
            model = self._running.get(parameter_id)
        if model is None:
            return  # submitted by hand in the web UI
        model.killed = False
        if reason is None and self._interpret_trial_job_status(command.event) is not ModelStatus.Trained:
            reason, model.killed = self._why(command)
        elif reason is None and model.metric is None:
            reason = "it reported no result"
        self._end(model, ModelStatus.Failed if reason else ModelStatus.Trained, reason)
        with self._changed:
            self._running.pop(parameter_id, None)
            self._changed.notify_all()

    def manager_gone(self) -> None:
        """dead_listener: nobody will report the running models any more, so nobody may wait for them."""
        with self._changed:
            self.gone = True
            running, self._running = list(self._running.values()), {}
            self._changed.notify_all()
        for model in running:
            self._end(model, ModelStatus.Interrupted, "the search was stopped")

    def _end(self, model: ExecutableModelSpace, status: ModelStatus, reason: str | None) -> None:
        model.failure_reason = reason
        with self._strategy_errors_kept():
            self.dispatch_model_event(event.TrainingEndEvent(model, status))

    def _find_reference_model(self, parameter_id: int) -> ExecutableModelSpace | None:
        """lost_models: NNI holds models weakly; one that its strategy lets go of never ends."""
        return self._running.get(parameter_id) or super()._find_reference_model(parameter_id)

    def _why(self, command: command_type.TrialEnd) -> tuple[str, bool]:
        """Why a trial failed: the last line of its error output, or what the manager knows. And whether it
        was killed from outside, so that it may do better another time."""
        if command.event == "EARLY_STOPPED":
            return "it took longer than max_trial_seconds", False
        said = ""
        with suppress(OSError, IndexError, requests.RequestException):
            said = self._stderr(command.trial_job_id).strip().splitlines()[-1].strip()
        if command.event == "USER_CANCELED" and said != CANCELLED:  # NNI calls every end by a signal that
            return "it was killed (out of memory?)" + f": {said}" * bool(said), True
        return said or f"it ended with status {command.event}", said == ORPHANED

    def _stderr(self, trial: str) -> str:
        """What a trial has written to its error output, wherever it ran."""
        folder = NNI_HOME / self.nodejs_binding.id / "environments" / "local-env" / "trials" / trial
        if folder.is_dir():
            return (folder / "trial.stderr").read_text(errors="replace")
        port = self.nodejs_binding.port
        answer = requests.get(
            f"http://localhost:{port}/api/v1/nni/trial-file/{trial}/trial.stderr", timeout=20
        )
        return answer.text if answer.ok else ""

    def _manager_status(self) -> str:
        try:
            answer = rest.get(self.nodejs_binding.port, "/check-status")
        except Exception:  # refused, reset, timed out: as good as stopped; the listener will notice, too
            return "STOPPED"
        if answer["status"] == "ERROR" and not self.gone:
            self.failure = " ".join("; ".join(answer.get("errors", [])).split())
            self.manager_gone()
        return str(answer["status"])

    @contextmanager
    def _strategy_errors_kept(self) -> Iterator[None]:
        """An exception of a strategy's callback is for the main thread; it must not end the listening one."""
        try:
            yield
        except Exception as error:
            self._strategy_error = self._strategy_error or error

    def _raise_strategy_error(self) -> None:
        if self._strategy_error is not None:
            raise self._strategy_error


class SafeSequentialEngine(SequentialExecutionEngine):
    """NNI's in-process engine with a wall-clock budget, checked results and reasons for failures."""

    def __init__(self, max_trials: int | None, deadline: float | None) -> None:
        super().__init__(max_trials, None, continue_on_failure=True)
        self.deadline = deadline

    @property
    def trials(self) -> int:
        return self._model_count

    def budget_available(self) -> bool:
        late = self.deadline is not None and time.monotonic() >= self.deadline
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
            del model.execute
            nni.trial._params = None  # we are outside a trial again

    def dispatch_model_event(self, happened: Any, **kwargs: Any) -> None:
        if isinstance(happened, event.FinalMetricEvent | event.IntermediateMetricEvent):
            problem = metric_problem(happened.metric)
            if problem:
                raise ValueError(problem)  # inside the trial that reported it
        trained = isinstance(happened, event.TrainingEndEvent) and happened.status is ModelStatus.Trained
        if trained and happened.model.metric is None:
            happened.status = ModelStatus.Failed
            happened.model.failure_reason = "it reported no result"
        super().dispatch_model_event(happened, **kwargs)


def metric_problem(value: Any) -> str | None:
    """What is wrong with a reported result; None for a finite number, or a dict with one as 'default'."""
    number = value.get("default") if isinstance(value, dict) else value
    if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
        return None
    lacks = isinstance(value, dict) and "default" not in value
    return f"it reported {'a result without default' if lacks else repr(number)}, not a finite number"


class SafeExperiment(NasExperiment):
    """NNI's experiment with our engines, started and stopped so that nothing is left behind."""

    def __init__(
        self,
        space: ModelSpace,
        evaluator: FunctionalEvaluator,
        strategy: Strategy,
        config: NasExperimentConfig,
        runtime: SearchRuntime,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(space, evaluator, strategy, config)
        self._proc: subprocess.Popen[bytes] | None = None
        self.port: int | None = None
        self.runtime = runtime
        self.announce = announce
        self.warm: WarmServer | None = None

    def warm_up(self, target: str, arguments: Mapping[str, Any]) -> None:
        """cold_trials: local trials fork from a process that imports now, while the manager starts."""
        runtime = self.runtime
        if not runtime.on_nni and runtime.warm_import:
            resolve(runtime.warm_import)(**arguments)
        if runtime.on_nni and runtime.warm and not is_remote(runtime):
            self.warm = WarmServer(target, runtime.warm_import, dict(arguments), runtime.run_dir / "warm.log")

    def launch(self) -> None:
        """Start everything; return when the strategy has finished and all its trials have ended."""
        self.start(self.runtime.port or 0, run_mode=RunMode.Detach)
        self._engine.wait_models()

    def tear_down(self) -> None:
        """Trials first: the manager would wait five seconds for each that does not listen."""
        if isinstance(self._engine, SafeEngine):
            self._engine.gone = True
            self._engine._running.clear()  # cut short, not failed: their ends are not to be told
        if self.warm is not None:
            self.warm.stop()
        self.stop()
        self._remember()

    def kill(self) -> None:
        """A second Ctrl-C: no patience left."""
        if self.warm is not None:
            self.warm.process.kill()  # the kernel kills the forks with it
        if self._proc is not None:
            self._proc.kill()

    @property
    def trials(self) -> int:
        return 0 if self._engine is None else int(self._engine.trials)

    @property
    def stopped_from_outside(self) -> bool:
        return isinstance(self._engine, SafeEngine) and (self._engine.gone or self._engine.cut_short)

    @property
    def failure(self) -> str | None:
        said = self._engine.failure if isinstance(self._engine, SafeEngine) else None
        return said or (why_it_gave_up(self.id) if self.stopped_from_outside else None)

    # What NasExperiment calls.

    def execution_engine_factory(self, config: Any) -> SafeEngine | SafeSequentialEngine:
        seconds = self.runtime.max_seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        if self.runtime.on_nni:
            return SafeEngine(self, self.runtime.max_trials, deadline)
        return SafeSequentialEngine(self.runtime.max_trials, deadline)

    def executable_model_factory(self, config: Any) -> ExecutableModelSpace:
        return VisibleModelSpace.from_model(self.model_space, self.evaluator)

    def list_trial_jobs(self) -> list[TrialJob]:
        """Without those that somebody submitted by hand, whose parameters NNI cannot read."""
        jobs = rest.get(self.port, "/trial-jobs")
        return [
            TrialJob(**job)
            for job in jobs
            if all(json.loads(p).get("parameter_id") is not None for p in job.get("hyperParameters") or ())
        ]

    def save_checkpoint(self) -> None:
        """Only the settings, which NNI's own `view` reads: the strategy's state is the history."""
        if self.runtime.on_nni:
            self._checkpoint_directory.mkdir(parents=True, exist_ok=True)
            with open(self._checkpoint_directory / "config.json", "w", encoding="utf-8") as file:
                nni.dump(self.config.json(), fp=file, indent=2)

    def _start_engine_and_strategy(self) -> None:
        """As NNI's, without its resume, and with the wait for the warm process where it harms nobody.

        The manager gives up an engine that does not connect within 10 s, so the engine comes first.
        """
        self._engine = self.execution_engine_factory(self.config.execution_engine)
        self._exec_model_space = self.executable_model_factory(self.config.model_format)
        self.strategy.initialize(self._exec_model_space, self._engine)
        self.save_checkpoint()
        if self.runtime.on_nni:
            self._send_space_to_nni_manager()
        problem = self.warm.wait() if self.warm is not None else None
        if self.warm is not None and problem:
            log.warning("trials start cold, some 8 s each: %s (%s/warm.log)", problem, self.runtime.run_dir)
            self.warm.stop()
        self.strategy.run()

    def _start_nni_manager(self, port: int, *args: Any, **kwargs: Any) -> None:
        try:
            with ready_for_manager(self.runtime, self.warm, self._started):
                super()._start_nni_manager(port, *args, **kwargs)
        except RuntimeError as error:
            if "not idle" in str(error):  # somebody was quicker since we looked
                raise UserError(f"port {port} is taken: give another one with --port") from None
            raise
        self.announce(f"web UI: http://{self.runtime.host}:{port} (NNI experiment {self.id})")

    def _started(self, node: subprocess.Popen[bytes]) -> None:
        self._proc, self.port = node, self.runtime.port
        self._remember()

    def _stop_nni_manager(self) -> None:
        if self._proc is not None:
            stop_manager(self._proc, self.port)
        self.port = self._proc = None

    def _start_logging(self, debug: bool) -> None:
        if self.runtime.on_nni:
            super()._start_logging(debug)

    def _start_without_nni_manager(self) -> None:
        """An in-process search has nothing nnictl could talk to, so it does not enter NNI's list."""

    def _stop_without_nni_manager(self) -> None:
        pass

    def _remember(self) -> None:
        """Note the experiment and its processes in the run folder, for `view` and `stop_leftovers`."""
        if not self.runtime.on_nni:
            return
        earlier, _ = load_records(self.runtime.record)
        records = []
        if self._proc is not None:
            records.append(ProcessRecord.of(MANAGER, self._proc.pid, self.id))
        if self.warm is not None and self.warm.process.poll() is None:
            records.append(ProcessRecord.of("warm process", self.warm.process.pid, "warm_server"))
        facts = {
            "experiment_id": self.id,
            "experiments": [*(e for e in earlier.get("experiments", []) if e != self.id), self.id],
            "url": f"http://{self.runtime.host}:{self.port}" if self.port else None,
        }
        save_records(self.runtime.record, facts, records)
