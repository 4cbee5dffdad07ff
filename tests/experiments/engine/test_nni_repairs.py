"""Each defect of stock NNI, reproduced without its manager, beside our repair of it."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.engine import nni_runtime as runtime
from experiments.engine.nni_runtime import SafeChannel, SafeEngine, SafeSequentialEngine, VisibleModelSpace
from tests.experiments import toy_space
from tests.experiments.node import HOME, run_in_node
from tests.experiments.toy_space import ToySpace

# isort: split
import nni
from nni.experiment import launcher
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import TrainingServiceExecutionEngine
from nni.nas.execution import training_service as nni_engine
from nni.nas.execution.event import ModelEventType
from nni.nas.space import ModelStatus, SimplifiedModelSpace
from nni.runtime.tuner_command_channel import TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import ReportMetricData, Terminate, TrialEnd
from nni.utils import MetricType

BAD = [None, float("nan"), float("inf"), -float("inf"), "high", {"accuracy": 0.5}, {"default": None}, True]
ARCHS = [{"a": a, "b": b, "c": "off"} for a in ("off", "on") for b in ("off", "on")]


class SilentChannel:
    """A manager that says nothing by itself."""

    def __init__(self, url):
        self.sent = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def send_trial(self, parameter_id, parameters, **rest):
        self.sent.append(parameter_id)


@pytest.fixture
def engines(monkeypatch):
    """(stock, ours) with four models submitted to each; the models are held by the test."""
    manager = SimpleNamespace(tuner_command_channel="", id="x", port=1, list_trial_jobs=lambda: [])
    monkeypatch.setattr(nni_engine, "TunerCommandChannel", SilentChannel)
    monkeypatch.setattr(runtime, "SafeChannel", SilentChannel)
    made = []
    for make in (TrainingServiceExecutionEngine, lambda m: SafeEngine(m, None, None)):
        engine = make(manager)
        models = [frozen(arch) for arch in ARCHS]
        engine.submit_models(*models)
        made.append((engine, models))
    return made


def frozen(arch, space=VisibleModelSpace):
    evaluator = FunctionalEvaluator(toy_space.evaluate, folder=".")
    return space.from_model(ToySpace(), evaluator).freeze(arch)


def metric(parameter_id, value, job="job", kind=MetricType.FINAL):
    return ReportMetricData(parameter_id, kind, 0, value, trial_job_id=job)


def ends_of(engine):
    ends = []
    engine.register_model_event_callback(
        ModelEventType.TrainingEnd, lambda e: ends.append((e.model, e.status))
    )
    return ends


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("kind", [MetricType.FINAL, MetricType.PERIODICAL])
def test_a_bad_metric_fails_its_trial_and_nothing_else(engines, value, kind):
    (stock, stock_models), (ours, models) = engines
    try:
        stock._report_metric_data_callback(metric(0, value, kind=kind))
        survived = stock_models[0].metrics  # NaN, infinity and True pass as results
    except ValueError:
        survived = None  # this exception ends NNI's listening thread, and the search hangs
    assert survived is None or bool(survived)

    ends = ends_of(ours)
    ours._report_metric_data_callback(metric(0, value, kind=kind))
    ours._report_metric_data_callback(metric(0, 0.9))
    ours._trial_end_callback(TrialEnd("job", [0], "SUCCEEDED"))
    ours._report_metric_data_callback(metric(1, {"default": 0.25, "x": 1}, job="other"))
    ours._trial_end_callback(TrialEnd("other", [1], "SUCCEEDED"))
    assert ends == [(models[0], ModelStatus.Failed), (models[1], ModelStatus.Trained)]
    assert models[0].failure_reason.startswith("it reported ") and models[1].failure_reason is None
    assert models[1].metric == 0.25


def test_the_result_and_the_end_go_to_the_architecture_that_ran(engines):
    """Two trials were given each other's parameters."""
    for (engine, models), right in zip(engines, (False, True), strict=True):
        ends = ends_of(engine)
        engine._report_metric_data_callback(metric(1, 0.1, job="first"))
        engine._trial_end_callback(TrialEnd("first", [0], "SUCCEEDED"))
        assert models[1].metric == 0.1
        assert (ends == [(models[1], ModelStatus.Trained)]) is right
        assert (ends == [(models[0], ModelStatus.Trained)]) is not right


def test_a_trial_without_result_has_failed(engines):
    for (engine, models), status in zip(engines, (ModelStatus.Trained, ModelStatus.Failed), strict=True):
        engine._trial_end_callback(TrialEnd("job", [2], "SUCCEEDED"))
        assert models[2].status is status
    assert models[2].failure_reason == "it reported no result"


def test_the_end_of_a_model_that_the_strategy_dropped_is_told(engines):
    for (engine, models), told in zip(engines, (0, 1), strict=True):
        ends = ends_of(engine)
        models.clear()
        engine._report_metric_data_callback(metric(3, 0.5))
        engine._trial_end_callback(TrialEnd("job", [3], "SUCCEEDED"))
        assert len(ends) == told


def test_when_the_manager_is_gone_nobody_waits(engines):
    _, (ours, models) = engines
    started = time.monotonic()
    ours.manager_gone()
    ours.wait_models()
    assert time.monotonic() - started < 1
    assert [m.status for m in models] == [ModelStatus.Interrupted] * 4
    assert not ours.budget_available() and not ours.idle_worker_available()


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ({"status": "NO_MORE_TRIAL"}, None),
        ({"status": "DONE"}, None),
        ({"status": "ERROR", "errors": ["Job\nerror"]}, "Job error"),
    ],
)
def test_a_manager_that_takes_no_more_trials_ends_the_search_in_a_line(engines, monkeypatch, answer, failure):
    """What is running may end, where it still can."""
    _, (ours, models) = engines
    monkeypatch.setattr(runtime, "rest", SimpleNamespace(get=lambda *args: answer))
    assert not ours.budget_available() and ours.cut_short
    assert ours.failure == failure
    waits = answer["status"] == "NO_MORE_TRIAL"
    assert ours.gone is not waits
    assert {m.status for m in models} == {ModelStatus.Training if waits else ModelStatus.Interrupted}


def test_an_error_of_the_strategy_reaches_the_main_thread(engines):
    _, (ours, _) = engines

    def callback(event):
        raise KeyError("a bug of the strategy")

    ours.register_model_event_callback(ModelEventType.FinalMetric, callback)
    ours._report_metric_data_callback(metric(0, 0.5))  # in the listening thread: must not raise
    with pytest.raises(KeyError, match="a bug of the strategy"):
        ours.budget_available()


def test_unknown_commands_and_a_lost_connection_do_not_kill_the_listener(monkeypatch):
    said = [{"type": "FD", "content": "[]"}, {"type": "ME", "content": "[1]"}, {"type": "??"}]

    class Connection:
        def __init__(self, url):
            self.commands = list(said)

        def receive(self):
            if not self.commands:
                raise OSError("connection refused")
            return self.commands.pop(0)

    monkeypatch.setattr("nni.runtime.tuner_command_channel.channel.WsChannelClient", Connection)
    with pytest.raises(ValueError, match="Unknown command type"):
        TunerCommandChannel("").receive()
    assert isinstance(SafeChannel("").receive(), Terminate)


def test_a_channel_whose_manager_hangs_prints_no_traceback(monkeypatch):
    nni_logger = logging.getLogger("nni")
    monkeypatch.setattr(nni_logger, "handlers", [])
    monkeypatch.setattr(nni_logger, "propagate", False)
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(said := io.StringIO()))
    module = "nni.runtime.command_channel.websocket.channel"
    monkeypatch.setattr(f"{module}._logger", logging.getLogger("nni.untouched"))
    monkeypatch.setattr(f"{module}.time.sleep", lambda seconds: None)
    runtime.quiet_nni()
    assert any(isinstance(handler, logging.NullHandler) for handler in nni_logger.handlers)
    with pytest.raises(OSError):
        TunerCommandChannel("ws://127.0.0.1:9")._channel.receive()  # nobody listens there
    assert not said.getvalue()


def test_the_web_ui_finds_the_choices():
    arch = ARCHS[1]
    stock = json.loads(nni.dump(frozen(arch, SimplifiedModelSpace)))
    ours = json.loads(nni.dump(frozen(arch)))
    assert not set(arch) & set(stock)
    assert {label: ours[label] for label in arch} == arch
    assert nni.load(json.dumps(ours)).sample == arch


def test_a_manager_may_take_its_time_to_start(monkeypatch):
    class Slow:
        asked = 0

        @classmethod
        def get(cls, *args):
            cls.asked += 1
            if cls.asked % 10:
                raise ConnectionError("not up yet")

    monkeypatch.setattr(launcher, "rest", Slow)
    monkeypatch.setattr(runtime, "rest", Slow)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError):
        launcher._check_rest_server(1)
    Slow.asked = 0
    with runtime.ready_for_manager(runtime.SearchRuntime(Path()), None, print):
        launcher._check_rest_server(1)
    assert Slow.asked == 10


def test_the_in_process_engine_survives_bad_results(tmp_path):
    engine = SafeSequentialEngine(None, None)
    reasons = []
    for arch in (ARCHS[0], {**ARCHS[0], "c": "on"}, ARCHS[2]):  # rewards 0, 1 and 4
        evaluator = FunctionalEvaluator(toy_space.misbehave, folder=str(tmp_path))
        model = VisibleModelSpace.from_model(ToySpace(), evaluator).freeze(arch)
        engine.submit_models(model)
        assert model.status is ModelStatus.Failed
        reasons.append(model.failure_reason)
    assert reasons == [
        "ValueError: it reported None, not a finite number",
        "ValueError: it reported nan, not a finite number",
        "ValueError: it reported a result without default, not a finite number",
    ]
    assert nni.get_current_parameter() is None


def test_the_hyper_parameter_graph_has_the_choices_and_nothing_else(engines):
    """NNI's page takes every top-level key of a trial's parameters for an axis, unless there is this one."""
    parameters = json.loads(nni.dump(frozen(ARCHS[0])))
    assert parameters["mutation_summary"] == ARCHS[0] == {k: parameters[k] for k in ARCHS[0]}
    page = next((HOME / "static" / "static" / "js").glob("main.*.js")).read_text()
    assert '="mutation_summary"' in page


def test_repairs_step_aside_when_a_later_nni_is_fixed(engines, monkeypatch):
    assert all(runtime.still_defective(name) for name in runtime.STILL_DEFECTIVE)
    monkeypatch.setattr(runtime, "still_defective", lambda name: False)
    assert "a" not in json.loads(nni.dump(frozen(ARCHS[0])))


# ---- in node ----

RACE = """
const { V3asV1 } = fromNode('./training_service/v3/compat');
const fs = require('fs');
const service = Object.create(V3asV1.prototype);
const given = {};
let count = 0, ask;
Object.assign(service, {
    config: {}, trialJobs: {}, parameters: [], allocatedParameters: new Map(), lastEnvId: '',
    environments: [{ id: 'e' }],
    startDeferred: { promise: Promise.resolve(), resolve() {} },
    v3: {
        createTrial: async () => 'trial' + count++,
        sendParameter: async (trial, parameter) => { given[trial] = parameter },
        init() {}, start: async () => [{ id: 'e' }], uploadDirectory() {},
        onRequestParameter(callback) { ask = callback },
        onMetric() {}, onTrialStart() {}, onTrialEnd() {}, onEnvironmentUpdate() {},
        downloadTrialDirectory: async () => HERE + '/trial',
    },
});
(async () => {
    await service.start();
    const form = value => ({ hyperParameters: { value }, sequenceId: 0 });
    await service.submitTrialJob(form('for trial0'));
    await service.submitTrialJob(form('for trial1'));
    await ask('trial1');
    await ask('trial0');
    say(given);
    const files = {};
    const names = ['stderr', 'own.txt', '../secret', 'link', 'away/secret', '/etc/hostname', '.', 'none'];
    for (const name of names) {
        files[name] = await service.getTrialFile('trial0', name).then(String, () => 'error');
    }
    say(files);
    const server = require('net').createServer().listen(0, () => {
        say(server.address().address, process.env.NODE_OPTIONS ?? null);
        process.exit(0);
    });
})();
"""


@pytest.mark.parametrize("repaired", [False, True], ids=["stock", "ours"])
def test_the_manager_gives_each_trial_its_own_parameters_and_files_and_listens_on_loopback(
    tmp_path, repaired
):
    (tmp_path / "secret").write_text("private")
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / "trial.stderr").write_text("what went wrong")
    (trial / "own.txt").write_text("mine")
    (trial / "link").symlink_to(tmp_path / "secret")
    (trial / "away").symlink_to(tmp_path)
    given, files, (address, options) = run_in_node(tmp_path, RACE, repaired=repaired)
    assert files["stderr"] == "what went wrong" and files["own.txt"] == "mine"
    outside = {name: files[name] for name in ("../secret", "link", "away/secret")}
    if repaired:
        assert given == {"trial0": "for trial0", "trial1": "for trial1"}
        refused = {*outside.values(), files["/etc/hostname"], files["."], files["none"]}
        assert refused == {"Not a file of this trial."}
        assert address == "127.0.0.1" and options is None
    else:
        assert given == {"trial0": "for trial1", "trial1": "for trial0"}
        assert set(outside.values()) == {"private"}
        assert address == "::"
