"""What a trial reports reaches the search, however slowly NNI's manager writes to its database."""

from __future__ import annotations

import json

import pytest

from tests.experiments import toy_space
from tests.experiments.engine.test_nni_runtime import (
    Watched,
    search,  # noqa: F401
    shared_warm_process,  # noqa: F401
    warm_process,  # noqa: F401
)

SLOW_DISK = """
if (require('path').basename(process.argv[1] || '') === 'main.js') {
    const Module = require('module'), load = Module._load, slow = new Set();
    Module._load = function (request) {
        const loaded = load.apply(this, arguments);
        if (request !== 'sqlite3' || slow.has(loaded)) return loaded;
        slow.add(loaded);
        const run = loaded.Database.prototype.run;
        loaded.Database.prototype.run = function (sql, ...rest) {
            const wait = sql.includes(process.env.NAS_SLOW_TABLE) ? 700 : 0;
            setTimeout(() => run.call(this, sql, ...rest), wait);
        };
        return loaded;
    };
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("table", ["MetricData", "ExperimentProfile"])
def test_a_result_is_heard_however_slow_the_disk_is(
    search,  # noqa: F811
    shared_warm_process,  # noqa: F811
    tmp_path,
    monkeypatch,
    table,
):
    """Its trial has ended long before the result is in NNI's database, or reports before the trial is."""
    (tmp_path / "slow.js").write_text(SLOW_DISK)
    monkeypatch.setenv("NODE_OPTIONS", f"--require {tmp_path / 'slow.js'}")
    monkeypatch.setenv("NAS_SLOW_TABLE", table)
    watched = Watched()
    _, trials, _ = search(toy_space.evaluate, watched.strategy, max_trials=2)
    expected = {
        json.dumps(t["built"], sort_keys=True): ("trained", toy_space.reward_of(t["built"])) for t in trials
    }
    assert len(expected) == 2 and watched.ends == expected, watched.reasons
