"""Which GPU a trial gets; there is none here, so CUDA is a number that torch says and pynvml a stand-in."""

from __future__ import annotations

import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest
import torch

from experiments import rank
from experiments.engine.gpus import check_indices, gpus_to_share, hand_out, training_device
from tests.experiments.node import run_in_node
from utils.errors import UserError

SCHEDULER = """
const { TaskScheduler, UnitTestHelpers } = fromNode('./common/trial_keeper/task_scheduler/scheduler');
const info = n => ({
    gpuNumber: n, success: true, processes: [], gpus: Array.from({ length: n }, (_, index) => ({ index })),
});
const machine = async n => {  // another machine's scheduler, where nothing of ours is loaded
    UnitTestHelpers.mockGpuInfo(info(n));
    const scheduler = new TaskScheduler();
    await scheduler.init();
    return scheduler;
};
"""
ELSEWHERE = (
    SCHEDULER
    + """
const { RemoteTrialKeeper } = fromNode('./common/trial_keeper/rpc');
(async () => {
    const got = {};
    for (const n of [1, 2, 8]) {
        const scheduler = await machine(n);
        const keeper = new RemoteTrialKeeper('env', 'remote', true);
        keeper.rpc = { call: async (_, __, [trial]) => scheduler.schedule('x', trial.id, trial.gpuNumber) };
        got[n] = [];
        for (let trial = 0; trial <= n; trial++) {
            const environment = await keeper.createTrial({ id: String(trial), gpuNumber: 1 });
            got[n].push(environment && environment.CUDA_VISIBLE_DEVICES);
        }
        await scheduler.release('x', '0');
        const next = await keeper.createTrial({ id: 'next', gpuNumber: 1 });
        got[n].push(next && next.CUDA_VISIBLE_DEVICES);
        const half = await keeper.createTrial({ id: 'half', gpuNumber: 0.5 });
        got[n].push(half && half.CUDA_VISIBLE_DEVICES);
    }
    say(got);
    process.exit(0);
})();
"""
)
HERE_TRIALS = """
const { V3asV1 } = fromNode('./training_service/v3/compat');
const at_a_time = Number(process.env.AT_A_TIME);
const trialCommand = 'echo $CUDA_VISIBLE_DEVICES $NAS_DEVICE; sleep 0.05';
const config = { platform: 'local', trialCommand, trialCodeDirectory: HERE, maxTrialNumberPerGpu: 1 };
const service = new V3asV1(config);
const trials = `${HERE}/x/environments/${service.v3.env.id}/trials`;
const said = id => String(require('fs').readFileSync(`${trials}/${id}/trial.stdout`)).trim();
const rest = () => new Promise(resolve => setTimeout(resolve, 10));
const ended = async ids => {
    while (!ids.every(id => service.trialJobs[id].status === 'SUCCEEDED')) await rest();
};
(async () => {
    service.run();
    const rounds = [];
    for (let round = 0; round < 3; round++) {
        const ids = [];
        for (let i = 0; i < at_a_time; i++) {
            const form = { sequenceId: i, hyperParameters: { value: '{}', index: 0 } };
            ids.push((await service.submitTrialJob(form)).id);
        }
        await ended(ids);
        rounds.push(ids.map(said));
    }
    say(rounds);
    process.exit(0);
})();
"""


@pytest.mark.parametrize("repaired", [False, True], ids=["stock", "ours"])
def test_another_machine_gives_away_its_last_gpu_and_each_only_once(tmp_path, repaired):
    (got,) = run_in_node(tmp_path, ELSEWHERE, repaired=repaired)
    if not repaired:
        assert got["1"][:2] == [None, None], "NNI gives trials the only GPU of a machine after all"
    else:
        assert got == {
            "1": ["0", None, "0", None],
            "2": ["0", "1", None, "0", None],
            "8": [*"01234567", None, "0", None],
        }


@pytest.mark.parametrize("at_a_time", [1, 2])
@pytest.mark.parametrize("gpus", [["3"], ["0", "1"], [*"0123456", "GPU-8f6a"]], ids=["one", "two", "eight"])
def test_every_trial_here_starts_and_gets_the_gpu_that_fewest_have(tmp_path, gpus, at_a_time):
    (rounds,) = run_in_node(
        tmp_path, HERE_TRIALS, repaired=True, NAS_GPUS=",".join(gpus), AT_A_TIME=str(at_a_time)
    )
    wanted = [f"{gpus[i % len(gpus)]} cuda" for i in range(at_a_time)]
    assert rounds == [wanted] * 3


IMPATIENT = """
const { V3asV1 } = fromNode('./training_service/v3/compat');
let asked = 0;
const service = Object.create(V3asV1.prototype);
Object.assign(service, {
    config: {}, trialJobs: {}, parameters: [], allocatedParameters: new Map(), lastEnvId: '',
    environments: [{ id: 'e' }], startDeferred: { promise: Promise.resolve(), resolve() {} },
    v3: {
        createTrial: async () => {
            asked++;
            if (asked === 1) throw new Error('no room');
            await new Promise(resolve => setTimeout(resolve, 1));
            return Date.now() > until ? 'trial' : null;
        },
        init() {}, start: async () => [{ id: 'e' }], uploadDirectory() {}, onRequestParameter() {},
        onMetric() {}, onTrialStart() {}, onTrialEnd() {}, onEnvironmentUpdate() {},
    },
});
const until = Date.now() + 500;
service.start()
    .then(() => service.submitTrialJob({ hyperParameters: { value: '' } }))
    .then(() => { say(asked); process.exit(0); });
"""


@pytest.mark.parametrize("repaired", [False, True], ids=["stock", "ours"])
def test_while_there_is_no_room_for_a_trial_the_manager_rests(tmp_path, repaired):
    (asked,) = run_in_node(tmp_path, IMPATIENT, repaired=repaired)
    assert asked == 2 if repaired else asked > 20


def seen_by(run_dir: str, what: int) -> tuple[str, str]:
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["NAS_DEVICE"]


def test_trainings_of_rank_share_the_gpus_out(monkeypatch, tmp_path):
    """Forked here instead of spawned: the imports would take most of the test."""
    monkeypatch.setattr(rank, "job_of", lambda run_dir: None)
    monkeypatch.setattr(rank, "gpus_of", lambda job: ("3", "GPU-8f6a"))
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(rank.multiprocessing, "get_context", lambda kind: fork)
    search = SimpleNamespace(concurrency=3)
    run = SimpleNamespace(path=tmp_path, experiment=SimpleNamespace(search=search))
    seen = list(rank.in_turn(run, seen_by, list(range(6))))
    assert len(seen) == 6 and set(seen) == {("3", "cuda"), ("GPU-8f6a", "cuda")}


@pytest.fixture
def cuda(monkeypatch):
    """Make torch say that it sees so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)

    for name in ("CUDA_VISIBLE_DEVICES", "NAS_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return see


@pytest.mark.parametrize(
    ("count", "device", "indices", "visible", "shared"),
    [
        (1, "cuda", None, None, ["0"]),
        (2, "auto", None, None, ["0", "1"]),
        (2, "cuda:1", None, None, ["1"]),
        (2, "1", None, None, ["1"]),
        (1, "cuda", None, "3", ["3"]),
        (2, "cuda:1", None, "3,5", ["5"]),
        (2, "cuda", None, "GPU-8f6a, MIG-12", ["GPU-8f6a", "MIG-12"]),
        (2, "cuda", None, "0,1,-1,2", ["0", "1"]),
        (8, "cuda", [6, 7], None, ["6", "7"]),
        (8, "cuda", "6,7", None, ["6", "7"]),
        (8, "cuda", 5, None, ["5"]),
        (2, "cuda:1", [0, 1], "3,5", ["5"]),
    ],
)
def test_the_gpus_that_trials_share(cuda, count, device, indices, visible, shared):
    cuda(count)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert list(gpus_to_share(device, indices, environment)) == shared


@pytest.mark.parametrize(
    ("count", "device", "indices", "complaint"),
    [
        (0, "cuda", None, "this machine shows no CUDA GPU"),
        (1, "cuda", [3], "gpu_indices: 3, but there are 1 CUDA devices (CUDA_VISIBLE_DEVICES=3), from 0"),
        (2, "cuda:1", [0], "device=cuda:1 is not among training_service.gpu_indices [0]"),
    ],
)
def test_gpus_that_are_not_there_are_one_line(cuda, count, device, indices, complaint):
    cuda(count)
    with pytest.raises(UserError) as error:
        gpus_to_share(device, indices, {"CUDA_VISIBLE_DEVICES": "3"})
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("indices", ["a", "0,0", [], [-1], [0.5], [True], {"0": 1}, "", 1.5])
def test_what_is_no_list_of_gpus_is_one_line(indices):
    with pytest.raises(UserError, match="is no list of different GPUs"):
        check_indices(indices)


def test_a_process_with_a_gpu_of_its_own_trains_on_that(cuda, tmp_path):
    """cuda:1 of the experiment is cuda:0 where nothing else can be seen."""
    environment: dict[str, str] = {}
    assert training_device("cuda:1", environment) == "cuda:1"
    hand_out("GPU-8f6a", environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-8f6a"
    assert training_device("cuda:1", environment) == "cuda"
