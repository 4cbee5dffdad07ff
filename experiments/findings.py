"""The step `evaluate`: whom the report speaks of, scored on val, and what a reader wants to see of them.

In `evaluate/<trial>/` of the run folder, from which the report is made without torch:

    result.json    the weights that the search scored, on val instead of search_val, with costs
    findings.json  of the trial's best weights: precision-recall curves, confusion matrix, some pictures
    network.json   the architecture block by block
    <n>.jpg        those pictures, small
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Sample
from experiments.job import Job, job_of, latency_reference
from experiments.measures import of_finalist
from experiments.run_folder import RunFolder
from experiments.trained import measure, trained
from utils.errors import UserError
from utils.files import write_bytes, write_text
from utils.history import Trial
from utils.report.outcomes import best_weights, on_val
from utils.report.results import extend_top, metrics_line, results_table
from utils.report.runs import quality_of, read_json, read_run
from utils.report.summary import named_trials
from utils.run_files import Files
from utils.sides import longer
from utils.training.examine import Examined
from utils.training.measure import LatencyReference

SCHEMA = 1
SPREAD, WRONG = 4, 4  # pictures drawn evenly from val, and those with the most mistakes
PICTURE = 360  # pixels of their longer side, at most


def evaluate_top(run: RunFolder) -> None:
    """Score on val whom the report names: the top k, the best in some way, and the unsearched baseline.

    Each with the weights that the search scored, so that both scores can be compared, and with its best ones
    (utils/report/outcomes.py), of which `evaluated` in `top/N.json` speaks.
    """
    job = job_of(str(run.path))
    search = job.exp.search
    trials = [t for t in run.history.load() if t.state != "infeasible"]
    ranks = {
        record["trial"]: int(path.stem)
        for path in Files(run.path).top
        if "trial" in (record := read_json(path))
    }
    if not ranks:
        raise UserError(f"{run.path} has no top models yet; run its step `search` first")
    reference = latency_reference(job)
    for trial in named_trials(trials, search.objectives, len(ranks), baseline=search.baseline):
        evaluated = evaluate_trial(job, trial, reference)
        if evaluated is None:
            continue
        if trial.number in ranks:
            extend_top(run.path, ranks[trial.number], evaluated=evaluated)
        name = f"top {ranks[trial.number]}" if trial.number in ranks else f"trial {trial.number}"
        name = "the unsearched baseline" if trial.number == 0 and search.baseline else name
        print(f"{name}, {evaluated['weights']}: {metrics_line(evaluated['metrics'])} on val")
        for metric, why in evaluated.get("void", {}).items():
            print(f"{name}: {metric} is void: {why}")
    val = on_val(read_run(run.path))
    print(results_table(trials, search.objectives, baseline=search.baseline, val=val))


def evaluate_trial(job: Job, trial: Trial, reference: LatencyReference) -> dict[str, Any] | None:
    """What `top/N.json` says of a trial's best weights on val, and the files of its folder; None without
    weights, as of a network that was once the best and whose weights were dropped."""
    path, arch = job.run.path, job.space.canonical(trial.arch)
    quality = quality_of(job.exp.search.objectives)
    folder, own = (
        Files(path).of_trial("evaluate", trial.number),
        job.run.trial_dir(trial.number) / "weights.pt",
    )
    looked: dict[Path, tuple[dict[str, Any], Examined]] = {}
    if own.is_file():
        looked[own] = look(job, arch, own, reference)
        write_text(folder / "result.json", json.dumps(looked[own][0], indent=2) + "\n")
    best = best_weights(path, trial.number, quality)
    if best is None:
        return None
    result, seen = looked.get(best) or look(job, arch, best, reference)
    samples = job.dataset.splits["val"]
    for picture in folder.glob("*.jpg"):
        if picture.stem.isdigit():  # of an earlier evaluation: ours
            picture.unlink()
    findings = {
        "schema": SCHEMA,
        "trial": trial.number,
        **{key: result[key] for key in ("weights", "split", "imgsz", "metrics")},
        "names": job.dataset.names,
        "objects": np.bincount(
            np.concatenate([s.cls for s in samples]).astype(int), minlength=len(job.dataset.names)
        ).tolist(),
        "curves": seen.curves,
        "confusion": seen.confusion,
        "pictures": pictures(job, samples, seen, folder),
    }
    write_text(folder / "findings.json", json.dumps(findings) + "\n")
    blocks = {"schema": SCHEMA, "imgsz": job.side(arch), "blocks": job.space.blocks(arch, job.exp.imgsz)}
    write_text(folder / "network.json", json.dumps(blocks) + "\n")
    return {key: result[key] for key in ("weights", "split", "metrics", "void") if result[key] != {}}


def look(
    job: Job, arch: Mapping[str, Any], weights: Path, reference: LatencyReference
) -> tuple[dict, Examined]:
    """(result, what it did in each image) of these weights on val."""
    detector, _ = trained(job.space, dict(arch), weights, job.dataset.names)
    seen: list[Examined] = []

    def score(*about: Any) -> dict[str, float]:
        seen.append(job.task.examine(*about))
        return seen[0].metrics

    result = measure(detector, job.space, job.exp, job.dataset, dict(arch), "val", reference, score)
    metrics, void = of_finalist(job, detector, dict(arch), "val")
    result["metrics"] |= metrics
    return {"weights": str(weights.relative_to(job.run.path)), **result, "void": void}, seen[0]


def pictures(job: Job, samples: Sequence[Sample], seen: Examined, folder: Path) -> list[dict[str, Any]]:
    """Write a few pictures of val into `folder`, and say what is and what was found in each."""
    import cv2

    pixels, found = type(job.task.pixels)(), []
    for why, index in chosen(seen.truths, seen.mistakes):
        sample = samples[index]
        detects = "boxes" in seen.truths[index]
        side = max(sample.shape) if detects else longer(job.exp.imgsz)
        image = pixels.get(sample, min(PICTURE, side))
        encoded, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        assert encoded, sample.image
        write_bytes(folder / f"{index}.jpg", content.tobytes())
        height, width = sample.shape if detects else image.shape[:2]
        found.append(
            {
                "file": f"{index}.jpg",
                "name": sample.image.name,
                "why": why,
                "width": int(width),
                "height": int(height),
                "mistakes": seen.mistakes[index],
                "truth": seen.truths[index],
                "found": seen.found[index],
            }
        )
    return found


def chosen(truths: Sequence[Mapping[str, Any]], mistakes: Sequence[int]) -> list[tuple[str, int]]:
    """(why, number) of the images to show: some spread evenly over those with objects, and of the others
    those with the most mistakes, if any."""
    able = [i for i, truth in enumerate(truths) if truth["labels"]]
    even = np.linspace(0, max(0, len(able) - 1), min(SPREAD, len(able))).round().astype(int)
    spread = [able[i] for i in even]
    rest = [i for i in range(len(truths)) if i not in spread and mistakes[i] > 0]
    worst = sorted(rest, key=lambda i: (-mistakes[i], i))[:WRONG]
    return [("spread", i) for i in spread] + [("mistakes", i) for i in worst]
