"""NNI's own JavaScript, run by its node without its server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nni_node

from experiments.engine.runtime_settings import PRELOAD

HOME = Path(nni_node.__path__[0])
START = """
const { createRequire } = require('module');
const fromNode = createRequire(NNI_NODE + '/main.js');
process.chdir(NNI_NODE);
process.argv.push('--port', '1', '--experiment-id', 'x', '--action', 'create', '--mode', 'local',
    '--experiments-directory', HERE, '--log-level', 'error', '--python-interpreter', 'echo');
fromNode('app-module-path').addPath(NNI_NODE);
fromNode('./common/globals').initGlobals();
const say = (...words) => console.log('said ' + JSON.stringify(words.length > 1 ? words : words[0]));
"""


def run_in_node(folder: Path, script: str, *, repaired: bool, **environment: str) -> list[object]:
    """What `script` says, with our preload or without. It has `fromNode` (require, from NNI's folder), `say`
    (a JSON line) and HERE (`folder`), and must end itself."""
    file = folder / "main.js"  # the preload takes the process of this name for NNI's manager
    text = (
        (START + script).replace("NNI_NODE", json.dumps(str(HOME))).replace("HERE", json.dumps(str(folder)))
    )
    file.write_text(text)
    environment |= {"HOME": str(folder), "PATH": "/usr/bin:/bin"}
    environment["NODE_OPTIONS"] = f"--require {PRELOAD}" if repaired else ""
    done = subprocess.run(
        [HOME / "node", file], env=environment, capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("said ")]
