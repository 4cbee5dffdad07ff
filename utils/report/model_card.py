"""`top/N.md`: what a stranger must know to use one found network, as a Hugging Face style model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.file_measures import FILE_COSTS
from utils.files import write_text
from utils.history import Trial
from utils.report.controls import controls_info
from utils.report.drawing import difference, title
from utils.report.outcomes import alike, best_weights, outcomes, says_of
from utils.report.progress import device_cost, search_spent, supernet_info
from utils.report.results import forecast_lines, gain, load_arch_file, percent
from utils.report.runs import Run, device_hours, duration, read_json, read_run, read_yaml
from utils.report.summary import mapping, number
from utils.run_files import Files
from utils.sides import both, pair

# Measured on one network at 96 px.
ULTRALYTICS_VAL = (
    "YOLO(...).val(data=..., rect=False) sees the pictures as we do, but interpolates precision otherwise "
    "than COCO's protocol, ours: where ours said .321, as pycocotools did, it once said .293"
)


def write_model_card(run_dir: str | Path, n: int) -> Path:
    """Write `top/<n>.md` from `top/<n>.json` and the run around it. UserError when there is no such rank.

    Each score on val (outcomes.py) gets a column, and so does the baseline's. A record extended by
    `retrained={"epochs", "metrics", "spread", "seeds", "seconds"}` (all optional) shows the spread of seeds.
    """
    run = read_run(run_dir)
    path = run.folder / "top" / f"{n}.json"
    if not path.exists():
        ranks = sorted(p.stem for p in path.parent.glob("*.json") if p.stem.isdigit())
        raise UserError(f"no top model {n} in {run.folder}; there are: {', '.join(ranks) or 'none'}")
    card = path.with_suffix(".md")
    write_text(card, card_text(run, n, load_arch_file(path)))
    return card


def card_text(run: Run, n: int, record: dict[str, Any]) -> str:
    """The card itself, Markdown with the YAML header that model hubs read."""
    trial = next((t for t in run.complete if t.number == record["trial"]), None)
    # A YAML with this key is of an elastic network (models/elastic/space.py); YOLO's have none.
    network = read_yaml(Path(record["space"])).get("network")
    made = f"It is the network {network!r} of this package, in plain torch modules." if network else STOCK
    found = "A classifier" if run.task == "classify" else "A detector"
    parts = [
        _header(run.task, stock=network is None),
        f"# {run.name}, number {n}\n",
        f"{found} found by architecture search: trial {record['trial']} of {len(run.trials)}, rank {n} by "
        f"reward. {made}\n",
        "## Metrics\n",
        _metrics(run, record),
        *(["## Weights\n", _weights(run, record)] if run.shares_weights else []),
        "## Data\n",
        _data(run, record),
        "## Cost\n",
        _cost(run, record, trial),
        "## Use\n",
        _use(run, n, record) if network is None else _use_here(run, record),
        "## Architecture\n",
        _architecture(run, record),
        "## Licence\n",
        _licence(run, stock=network is None),
    ]
    return "\n".join(parts)


STOCK = "It is made of stock Ultralytics modules only."


def _header(task: str, stock: bool) -> str:
    subject = "image-classification" if task == "classify" else "object-detection"
    return f"""---
license: agpl-3.0
library_name: {"ultralytics" if stock else "pytorch"}
pipeline_tag: {subject}
tags: [{subject}, neural-architecture-search{", yolo" if stock else ""}]
---
"""


def _metrics(run: Run, record: dict[str, Any]) -> str:
    """A row a metric: in the search, its gain on the baseline, then each score on val and the baseline's."""
    base, later = run.baseline, mapping(record.get("retrained"))
    spread = mapping(later.get("spread"))
    columns = _columns(run, record)
    heads = ["metric", f"{'as a slice, ' if run.shares_weights else ''}on search_val", "gain on the baseline"]
    rows = [heads + [head for head, _ in columns]]
    rows.append(["---"] * len(rows[0]))
    scores = [m for _, m in columns]
    everything = dict.fromkeys(k for m in (record["metrics"], *scores) for k in m)
    keys = [k for k in everything if not k.startswith("val_") and not k.endswith("_spread")]
    for key in keys:
        value = record["metrics"].get(key)
        start = base.metrics.get(key) if base else None
        change = "" if value is None or start is None else percent(gain(value, start, key)[1])
        own = record["metrics"].get(f"{key}_spread")
        row = [title(key), number(value) + (f" ± {number(own)}" if own is not None else ""), change]
        for head, metrics in columns:
            varies = key in spread and head == "retrained, on val"
            row.append(number(metrics.get(key)) + (f" ± {number(spread[key])}" if varies else ""))
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{' '.join(_notes(run, record, list(everything)))}\n"


def _notes(run: Run, record: dict[str, Any], metrics: list[str]) -> list[str]:
    """What has to be known to read the table of metrics."""
    later, notes = mapping(record.get("retrained")), [_of_search(run), _on_val(run, record)]
    beaten = controls_info(run)
    if beaten and any("winner" in r.names and r.trial == record["trial"] for r in beaten.rows):
        notes += [f"It and others {beaten.how}, on val: {d}." for d in beaten.differences]
    if beaten and beaten.noise:
        notes.append(f"{beaten.noise}.")
    elif not mapping(later.get("spread")).get(run.quality):
        notes.append("The spread between seeds is not known: small gains may be chance.")
    if later.get("metrics"):
        seeds = later.get("seeds")
        on = f" with seeds {', '.join(map(str, seeds))}" if isinstance(seeds, list) and seeds else ""
        notes.append(
            f"Retrained for {later.get('epochs', '?')} epochs on the full training split{on}, scored on val."
        )
    if "latency_ms" in metrics:
        notes.append(f"Latency was measured on {run.meta.get('device') or 'an unrecorded device'}.")
    notes += _of_files(run, record, metrics)
    return [note for note in notes if note]


def _of_files(run: Run, record: dict[str, Any], metrics: list[str]) -> list[str]:
    """What was timed of the exported files, and what of that is void."""
    if not set(FILE_COSTS) & set(metrics):
        return []
    known = read_json(Files(run.folder).target / "calibration.json")
    host = mapping(known.get("target")).get("host") or "the machine of the search"
    notes = [f"Exported files were timed on {host}, {known.get('hardware') or 'of unrecorded hardware'}."]
    notes += [f"{title(key)} of the search is {said}." for key, said in forecast_lines(run.folder).items()]
    void = mapping(mapping(record.get("evaluated")).get("void"))
    return notes + [f"{title(key)} is void: {why}." for key, why in void.items()]


def _columns(run: Run, record: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """(heading, metrics) of the scores on val: of each kind of weights, the baseline's beside them."""
    known, says = outcomes(run), says_of(run.shares_weights)
    ours, theirs = known.get(record["trial"], {}), known.get(0, {}) if run.has_baseline else {}
    found = []
    for kind, outcome in ours.items():
        how = f"{says[kind]}, " if says[kind] else ""
        found.append((f"{how}on val", outcome.metrics))
        if kind in theirs and record["trial"] != 0:
            found.append((f"baseline {how}on val", theirs[kind].metrics))
    return found


def _on_val(run: Run, record: dict[str, Any]) -> str:
    """Whether val, which no search saw, keeps the gain that chose this network."""
    base, trial = run.baseline, record["trial"]
    if base is None or trial == base.number:
        return ""
    pairs = alike(run, trial)
    if not pairs:
        return "Not compared with the baseline on val."
    kind, ours, theirs = pairs[-1]
    how = says_of(run.shares_weights)[kind]
    text = f"On val, which the search never saw{f', {how}' if how else ''}: {number(ours)}, the baseline "
    text += f"{number(theirs)}"
    before, start = record["metrics"].get(run.quality), base.metrics.get(run.quality)
    if before is not None and start is not None and before > start and ours <= theirs:
        return f"{text}: val does not confirm the gain seen in the search."
    return f"{text}."


def _of_search(run: Run) -> str:
    if run.shares_weights:
        return (
            "In the search: its slice of the supernet, not trained by itself, scored on images set apart "
            "from the training split."
        )
    epochs = mapping(run.experiment.get("train")).get("epochs")
    trained = f"{epochs} epochs" if epochs else "the short schedule of a trial"
    return f"In the search: one training of {trained}, scored on images set apart from the training split."


def _weights(run: Run, record: dict[str, Any]) -> str:
    """Where the weights of a slice come from, and what was done to them since."""
    info, block = supernet_info(run), mapping(run.experiment.get("supernet"))
    trained = f" in {_epochs(info.epochs)} ({duration(info.seconds)})" if info else ""
    images = block.get("calibration")
    tuned, alone = mapping(record.get("finetuned")), mapping(record.get("retrained"))
    lines = [
        "They began as a slice of a supernet: one set of weights for all architectures of the space, "
        f"trained{trained} on the training images that the search was not scored on. The slice's batch norm "
        f"was re-estimated{f' on {images} of these images' if images else ''}."
    ]
    if tuned:
        lines.append(f"From there: fine-tuned for {_epochs(tuned.get('epochs'))} on the full training split.")
    if alone:
        lines.append(f"Trained from scratch as well, for {_epochs(alone.get('epochs'))}.")
    if not tuned and not alone:
        lines.append("They were not trained on since: fine-tune before you use them.")
    return "\n".join(lines) + f"\nThe best on val: `{_weight_file(run, record)}`.\n"


def _epochs(n: Any) -> str:
    return f"{'?' if n is None else n} epoch{'s' * (n != 1)}"


def _weight_file(run: Run, record: dict[str, Any]) -> str:
    """The best weights of this network in its run folder, which `export` and `evaluate` take too."""
    trial = record["trial"]
    if not isinstance(trial, int):
        return "WEIGHTS"
    path = best_weights(run.folder, trial, run.quality) or run.folder / "trials" / f"{trial:04d}/weights.pt"
    return str(path.relative_to(run.folder))


def _data(run: Run, record: dict[str, Any]) -> str:
    data = mapping(run.meta.get("data"))
    names = run.meta.get("names")
    lines = [f"- data set: {data.get('name') or record['data'] or 'not recorded'}"]
    if data.get("source"):
        lines.append(f"- source: {data['source']}")
    lines.append(f"- licence of the data: {data.get('licence') or 'not recorded'}")
    lines.append(f"- input: RGB, {both(record['imgsz'])} pixels")
    if isinstance(names, list) and names:
        shown = ", ".join(map(str, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        lines.append(f"- {len(names)} classes: {shown}")
    return "\n".join(lines) + "\n"


def _cost(run: Run, record: dict[str, Any], trial: Trial | None) -> str:
    parts = search_spent(run)
    cost = parts["trials"]
    if run.shares_weights:
        shared = {"pretrain": "pre-training its backbone", "supernet": "the supernet"}
        lines = [f"- {said}: {duration(parts[k].trial_seconds)}" for k, said in shared.items() if k in parts]
        slices = cost.trials + (parts["sampled"].trials if "sampled" in parts else 0)
        took = cost.trial_seconds + (parts["sampled"].trial_seconds if "sampled" in parts else 0)
        lines.append(f"- the search: {slices} slices scored in {duration(took)}")
        lines.append(f"- all together: {device_hours(device_cost(parts), run.meta)}")
    else:
        lines = [f"- the search: {cost.trials} trials, {device_hours(cost, run.meta)}"]
        if "reignition" in parts:
            learnt = parts["reignition"]
            lines.append(f"- reigniting {learnt.trials} backbones: {duration(learnt.trial_seconds)}")
        lines += [f"- training this one in it: {duration(trial.seconds)}"] if trial is not None else []
    tuning = mapping(record.get("finetuned")).get("seconds")
    if isinstance(tuning, int | float):
        lines.append(f"- fine-tuning: {duration(tuning)}")
    seconds = mapping(record.get("retrained")).get("seconds")
    if isinstance(seconds, int | float):
        lines.append(f"- retraining: {duration(seconds)}")
    return "\n".join(lines) + "\n"


def _use(run: Run, n: int, record: dict[str, Any]) -> str:
    weights = run.folder / "top" / f"{n}.pt"
    code = f"""```python
from ultralytics import YOLO
model = YOLO("{n}.pt")
for result in model.predict("picture.jpg", imgsz={json.dumps(record["imgsz"])}):
    print(result.boxes.xyxy, result.boxes.cls, result.boxes.conf)
    result.save("out.jpg")
```
"""
    code += f"\nTo score it there: {ULTRALYTICS_VAL}.\n"
    if weights.exists():
        return code
    source = _weight_file(run, record)
    return f"First `python hello_nas.py export top/{n}.json --weights {source} --format pt`, then\n\n{code}"


def _use_here(run: Run, record: dict[str, Any]) -> str:
    """For a network of this package: how to build it, load it and run it."""
    weights = _weight_file(run, record)
    height, width = pair(record["imgsz"])
    if run.task == "classify":
        result = (
            f"probabilities = net.predict(images)  # [B, {len(run.meta.get('names') or []) or 'classes'}]"
        )
    else:
        result = "detections = net.predict(images)  # for each image boxes (xyxy, pixels), scores, labels"
    return f"""In the folder of this package, with the run's `{weights}`:

```python
from models.networks import build, open_any_space
from models.weights import load_weights, read_weights
file = read_weights("{weights}")
net = build(open_any_space(file.space, file.nc, file.ch), file.arch, file.names)
load_weights(net, file, whole=True)
images = ...  # float32 [B, 3, {height}, {width}], RGB, 0..1
{result}
```
"""


def _architecture(run: Run, record: dict[str, Any]) -> str:
    base = run.baseline
    changed = difference(record["arch"], base.arch if base else None)
    text = json.dumps(changed, indent=2)
    head = "The default of the space, unchanged." if not changed and base else ""
    if changed:
        head = "What differs from the default of the space:" if base else "The choices taken:"
        head += f"\n\n```json\n{text}\n```"
    versions = ", ".join(f"{k} {v}" for k, v in mapping(record.get("versions")).items()) or "not recorded"
    return f"Space: `{Path(record['space']).name}`. {head}\n\nMade with: {versions}.\n"


def _licence(run: Run, stock: bool) -> str:
    licence = mapping(run.meta.get("data")).get("licence") or "not recorded"
    whose = "the network and its training code are Ultralytics', which are" if stock else "this package is"
    return (
        f"AGPL-3.0, because {whose} under that licence. "
        f"The weights also learnt from the data above; its licence: {licence}.\n"
    )
