"""`report.html`: one offline page that says what a search found, what it cost and what it does not show.

It reads the run folder only (`history.jsonl` is enough): of a live, stopped, crashed or foreign run.
Nothing in the page loads from anywhere; its Content-Security-Policy forbids it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from utils.files import write_text
from utils.history import History, Trial, is_real
from utils.report.blueprint import blueprint_of
from utils.report.controls import controls_info
from utils.report.drawing import Figure, title
from utils.report.findings import (
    Findings,
    class_rows,
    confusion_info,
    draw_confusion,
    draw_precision_recall,
    findings_of,
    pictures_info,
    precision_recall_info,
    score_title,
)
from utils.report.genes import (
    ImportanceInfo,
    ParallelInfo,
    draw_importance,
    draw_parallel,
    importance_info,
    parallel_info,
)
from utils.report.page import render
from utils.report.plots import (
    ConvergenceInfo,
    ParetoInfo,
    convergence_info,
    curves_info,
    draw_convergence,
    draw_curves,
    draw_pareto,
    failures_info,
    pareto_info,
    save_pareto_png,
)
from utils.report.progress import SupernetInfo, supernet_info
from utils.report.rank import warning
from utils.report.results import forecast_lines, write_csv
from utils.report.runs import (
    Run,
    completed,
    front_of,
    read_json,
    read_run,
    read_search,
    run_state,
    sampled,
    search_cost,
)
from utils.report.summary import (
    Verdict,
    cards,
    control_rows,
    cost_rows,
    family_verdict,
    final_rows,
    final_title,
    highlight_rows,
    mapping,
    metric_keys,
    number,
    rank_rows,
    retrained_rows,
    row_titles,
    supernet_facts,
    top_rows,
    trial_rows,
    verdict_of,
)
from utils.report.supernet_report import (
    RankReport,
    draw_rank,
    draw_supernet,
    predictor_line,
    rank_report,
    regret_sentence,
    tau_rows,
    tau_verdict,
)
from utils.rewards import COST_KEYS
from utils.run_files import Files
from utils.sides import told

CAUTION = (
    "Every architecture was trained once, so the spread between seeds is unknown; small gains may be chance."
)
SLICES = "Scores are of slices of one supernet, not of networks trained alone: fine-tune before you believe."


def write_report(
    run_dir: str | Path, *, baselines: str | Path | Sequence[Trial] | None = None, png: bool = True
) -> Path:
    """Write `report.html`, `results.csv` and, with `png`, `pareto.png`; each replaced in one step.

    baselines: a second series for the front, e.g. the run folder of the unsearched n/s/m family, or its
        trials; by default `baselines.jsonl` in the run folder, when there is one.
    Raises UserError when `run_dir` holds no history.
    """
    run = read_search(run_dir)
    others = _others(run, baselines)
    write_csv(run.folder, [*run.trials, *run.infeasible])
    if png:
        cost = next((k for k, way in run.objectives.items() if way == "min"), COST_KEYS[0])
        info = _pareto(run, cost, others)
        save_pareto_png(info, run.folder / "pareto.png")
    path = run.folder / "report.html"
    write_text(path, render("report_template.html", report_context(run, others)))
    return path


def _pareto(run: Run, cost: str, others: Sequence[Trial]) -> ParetoInfo:
    baseline, scored = run.has_baseline, sampled(run)
    return pareto_info(run.trials, cost, run.quality, baseline=baseline, others=others, sampled=scored)


def _others(run: Run, baselines: str | Path | Sequence[Trial] | None) -> list[Trial]:
    if baselines is None:
        return completed(History(run.folder / "baselines.jsonl").load())
    if isinstance(baselines, str | Path):
        return read_run(baselines).complete
    return completed(baselines)


def report_context(run: Run, others: Sequence[Trial] = ()) -> dict[str, Any]:
    """Everything the template shows, as plain values; no number is formatted before here."""
    cost = search_cost(run.trials)
    failures = failures_info(run.trials, run.infeasible)
    state = run_state(run)
    importance = {"reward": importance_info(run.trials)}
    if any(run.quality in t.metrics for t in run.complete):
        importance[run.quality] = importance_info(run.trials, run.quality)
    front = {t.number for t in front_of(run.trials, run.objectives)}
    parallel = parallel_info(run.trials, [c.label for c in importance["reward"].choices])
    convergence = convergence_info(run.trials, run.objectives)
    keys = metric_keys(run)
    supernet, ranked = supernet_info(run), rank_report(run)
    seen = findings_of(run)
    figures = _figures(run, others, importance, parallel, convergence)
    figures |= {name: drawn for name, drawn in _supernet_figures(supernet, ranked).items() if drawn}
    figures |= _seen_figures(seen)
    scored = len(completed(sampled(run)))
    rows = highlight_rows(run, keys)
    return {
        "name": run.name,
        "state": state,
        "live": state == "running",
        "facts": _facts(run),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "caution": _caution(run, ranked) if len(run.complete) > 1 else "",
        "verdict": _verdict(run, supernet),
        "shares_weights": run.shares_weights,
        "calibration": mapping(run.experiment.get("supernet")).get("calibration"),
        **_supernet(run, supernet, ranked),
        "sampled": scored,
        "sample_files": [n for n in ("sample.png", "sample.csv") if (run.folder / n).exists()],
        "quality": title(run.quality),
        **_final(run),
        "predictor": predictor_line(run),
        "family": family_verdict(run.trials, others, run.objectives),
        "cards": cards(run),
        "rows": rows,
        "row_titles": row_titles(keys, rows),
        "metric_titles": [title(k) for k in keys],
        "top": top_rows(run, keys),
        "retrained": retrained_rows(run, keys),
        **_controls(run),
        "trials": trial_rows(run, keys, front),
        "failures": failures["failed"],
        "infeasible": {reason: len(numbers) for reason, numbers in failures["infeasible"].items()},
        "importance_note": importance["reward"].note,
        "parallel_order": "importance" if importance["reward"].choices else "the network",
        "parallel_left_out": parallel.left_out,
        "reference": " and ".join(f"{title(k)} {number(v)}" for k, v in convergence.reference.items()),
        "figures": figures,
        **_seen(run, seen),
        "cost": cost_rows(run),
        "versions": {str(k): str(v) for k, v in mapping(run.meta.get("versions")).items()},
        "seeds": _seeds(run),
        "command": _command(run),
        "limits": _limits(run, bool(others), supernet, ranked),
        "has_png": (run.folder / "pareto.png").exists(),
        "trials_in_all": cost.trials,
    }


def _supernet(run: Run, supernet: SupernetInfo | None, ranked: RankReport | None) -> dict[str, Any]:
    """What the template shows of a supernet and of the step `rank`; empty values where there are none."""
    files = [f"rank/{n}" for n in ("rank.json", "rank.png") if (Files(run.folder).rank / n).exists()]
    return {
        "supernet": supernet_facts(run, supernet) if supernet else {},
        "supernet_trained": supernet is not None and supernet.trained,
        "ranked": rank_rows(ranked) if ranked else [],
        "ranked_before": ranked is not None and ranked.uncalibrated is not None,
        "ranked_seeds": ranked.supernet.seeds if ranked else 0,
        "ranked_files": files,
        "tau_rows": tau_rows(ranked) if ranked else [],
        "tau_verdict": tau_verdict(ranked) if ranked else "",
        "regret": regret_sentence(ranked) if ranked else "",
    }


def _controls(run: Run) -> dict[str, Any]:
    """What the template shows of the step `controls`; empty values without it."""
    info = controls_info(run)
    folder = Files(run.folder).random_search
    return {
        "controls": control_rows(info, run.baseline) if info else [],
        "controls_how": info.how if info else "",
        "controls_seeds": info.seeds if info else [],
        "controls_say": [str(d) for d in info.differences] if info else [],
        "random_search": "controls/random_search/report.html" if (folder / "report.html").exists() else "",
    }


def _final(run: Run) -> dict[str, Any]:
    """What the template shows of the scores on val."""
    final = final_rows(run)
    heads = final[0]["cells"] if final else {}
    costs = [k for k in dict.fromkeys([*run.objectives, "params_m", "gflops"]) if k in COST_KEYS]
    return {
        "final": final,
        "final_title": final_title(final),
        "final_heads": heads,
        "final_gains": any(c["gain"] for r in final for c in r["cells"].values()),
        "final_trainings": any("tuned" in head or "trained" in head for head in heads),
        "final_costs": [title(k) for k in costs],
    }


def _figures(
    run: Run,
    others: Sequence[Trial],
    importance: dict[str, ImportanceInfo],
    parallel: ParallelInfo,
    convergence: ConvergenceInfo,
) -> dict[str, dict[str, Figure]]:
    """name of the plot -> tab -> figure; a plot without anything to show is left out."""
    done = run.complete
    figures: dict[str, dict[str, Figure]] = {"pareto": {}}
    first = [k for k, way in run.objectives.items() if way == "min"]
    for key in dict.fromkeys([*first, *COST_KEYS]):
        info = _pareto(run, key, others)
        if info.points or info.sampled:
            figures["pareto"][title(key)] = draw_pareto(info)
    drawn = {title(k): draw_importance(info) for k, info in importance.items() if info.choices}
    if drawn:
        figures["importance"] = drawn
    if len(done) > 1 and parallel.labels:
        figures["parallel"] = {"": draw_parallel(parallel)}
    if len(done) > 1:
        figures["convergence"] = {"over trials": draw_convergence(convergence)}
        if convergence.seconds is not None:
            figures["convergence"]["over time"] = draw_convergence(convergence, "seconds")
    curves = curves_info(run.trials, run.objectives, baseline=run.has_baseline)
    if done and curves.curves:
        figures["curves"] = {"": draw_curves(curves)}
    return {k: v for k, v in figures.items() if v}


def _supernet_figures(
    supernet: SupernetInfo | None, ranked: RankReport | None
) -> dict[str, dict[str, Figure]]:
    found = {"supernet": draw_supernet(supernet)} if supernet else {}
    return found | ({"rank": draw_rank(ranked)} if ranked else {})


def _seen_figures(seen: Sequence[Findings]) -> dict[str, dict[str, Figure]]:
    """What the networks that `evaluate` looked at do on val."""
    curves = [info for f in seen if (info := precision_recall_info(f))]
    found = {"precision": draw_precision_recall(curves)} if curves else {}
    confusions = {f.name: draw_confusion(matrix) for f in seen if (matrix := confusion_info(f))}
    if confusions:
        found["confusion"] = confusions
    return found


def _seen(run: Run, seen: Sequence[Findings]) -> dict[str, Any]:
    """The same as far as it is no figure: pictures, classes, the architecture."""
    pictures = pictures_info(seen[0]) if seen else []
    curves = precision_recall_info(seen[0]) if seen else None
    confusion = confusion_info(seen[0]) if seen else None
    return {
        "seen": [f.name for f in seen],
        "pictures": pictures,
        "detects": run.task == "detect",
        "curves_left_out": curves.left_out if curves else 0,
        "confusion_left_out": confusion.left_out if confusion else 0,
        "classes": class_rows(seen, run.quality),
        "class_score": score_title(run.quality),
        "blueprint": blueprint_of(run, seen[0].trial) if seen else None,
    }


def _verdict(run: Run, supernet: SupernetInfo | None) -> Verdict:
    if run.shares_weights and not run.trials and (supernet is None or not supernet.trained):
        so_far = f" {supernet.epochs} epochs of its training are done." if supernet else ""
        return Verdict("open", f"The supernet is not trained yet, so nothing has been searched.{so_far}")
    return verdict_of(run)


def _caution(run: Run, ranked: RankReport | None) -> str:
    if not run.shares_weights:
        noise = _noise(run)
        return f"{noise}; smaller gains may be chance." if noise else CAUTION
    if ranked is None or not isfinite(ranked.tau.value):
        return f"{SLICES} How well they rank the architectures is not known here."
    if said := warning(ranked.supernet):
        return f"{SLICES} {said[0].upper()}{said[1:]}."
    return (
        f"{SLICES} They order {len(ranked.rows)} architectures as training alone does with tau {ranked.tau}."
    )


def _facts(run: Run) -> list[str]:
    """The line under the title: what was searched, on what, how."""
    facts = []
    if run.experiment.get("space"):
        facts.append(f"space {Path(str(run.experiment['space'])).name}")
    if run.experiment.get("data"):
        facts.append(f"data {Path(str(run.experiment['data'])).name}")
    if run.experiment.get("imgsz"):
        facts.append(f"{told(run.experiment['imgsz'])} px")
    strategy = run.search.get("strategy")
    name = strategy.get("name") if isinstance(strategy, dict) else strategy
    if name:
        facts.append(f"strategy {name}")
    if run.shares_weights:
        facts.append("weights shared in a supernet")
    return [*facts, *_starts(run)]


def _starts(run: Run) -> list[str]:
    """Where the run's trainings started, if not from scratch."""
    found, start = [], run.meta.get("start")
    if isinstance(start, dict) and start.get("from"):
        share = start.get("share")
        part = f" ({share:.0%} of the unsearched network's numbers)" if is_real(share) else ""
        found.append(f"every training starts from {start['from']}{part}")
    learnt = read_json(Files(run.folder).pretrain / "result.json").get("metrics")
    if isinstance(learnt, dict) and is_real(learnt.get("top1")):
        found.append(
            f"the supernet's backbone was a classifier first (top-1 {learnt['top1']:.2f} unsearched)"
        )
    if run.search.get("inherit") == "parent":
        found.append("children start from their parents' weights")
    return found


def _seeds(run: Run) -> str:
    trial_seeds = sorted({t.seed for t in run.trials if t.seed is not None})
    search = run.experiment.get("seed")
    parts = [f"search {search}"] if search is not None else []
    if trial_seeds:
        few = ", ".join(map(str, trial_seeds[:6])) + (", …" if len(trial_seeds) > 6 else "")
        parts.append(f"trials {few}")
    return "; ".join(parts) or "not recorded"


def _command(run: Run) -> str:
    given = run.meta.get("command")
    if isinstance(given, list):
        return " ".join(map(str, given))
    if given:
        return str(given)
    if run.experiment:
        return f"python hello_nas.py run {run.folder / 'experiment.yaml'} --run-dir NEW_FOLDER"
    return "not recorded: this folder holds only a history"


def _noise(run: Run) -> str:
    info = controls_info(run)
    return info.noise if info else ""


def _limits(
    run: Run, has_family: bool, supernet: SupernetInfo | None, ranked: RankReport | None
) -> list[str]:
    """What the reader must not conclude, for this run."""
    limits = _of_slices(run, supernet, ranked) if run.shares_weights else _of_trainings(run)
    if any("latency_ms" in t.metrics for t in run.complete):
        limits.append("Latency holds for the device it was measured on, and for no other.")
    limits += [f"{title(key)} of trials is {said}." for key, said in forecast_lines(run.folder).items()]
    if not has_family:
        limits.append(
            "No family of unsearched networks (one in several sizes, as YOLO's n, s, m) is drawn, so nothing "
            "here says whether searching beat scaling."
        )
    if run.baseline is None:
        limits.append("There is no complete unsearched baseline, so gains cannot be given.")
    return limits


def _of_trainings(run: Run) -> list[str]:
    """Where each trial trained its architecture."""
    noise = _noise(run)
    limits = [
        f"The search trained each architecture once. {noise}: a gain below twice that is not a finding."
        if noise
        else "Each architecture was trained once. Two trainings of the same one with other seeds differ too, "
        "and a gain below that spread (unknown here) is not a finding. Retrain the winner and the baseline "
        "with several seeds before you rely on it, as the step controls does."
    ]
    if len(run.complete) > 1:
        limits.append(
            f"The winner is the best of {len(run.complete)} noisy scores, so its own score is optimistic. "
            "Judge it on data that the search never scored: retrain it, and evaluate on the val split."
        )
    epochs = mapping(run.experiment.get("train")).get("epochs")
    if isinstance(epochs, int):
        limits.append(
            f"Trials trained for {epochs} epoch{'s' * (epochs != 1)}. The order after a short training need "
            "not be the order after a long one."
        )
    return limits


def _of_slices(run: Run, supernet: SupernetInfo | None, ranked: RankReport | None) -> list[str]:
    """Where each trial took its architecture's slice of the supernet."""
    limits = [
        "No architecture of this search was trained by itself: a score is that of a slice of the supernet, "
        "with the supernet's weights. Trained by itself it scores otherwise, and some architectures gain "
        "more from it than others. Fine-tune before you believe a gain, and the baseline in the same way."
    ]
    if noise := _noise(run):
        limits.append(f"{noise}: a gain below twice that is not a finding.")
    if ranked is None or not isfinite(ranked.tau.value):
        limits.append(
            "How far the order of the slices is the order of trained networks is not known here. The step "
            "rank trains a few architectures by themselves and says so (Kendall's tau)."
        )
    else:
        block = mapping(run.experiment.get("rank"))
        epochs = mapping(block.get("train")).get("epochs", mapping(run.experiment.get("train")).get("epochs"))
        schedule = f" for {epochs} epoch{'s' * (epochs != 1)}" if isinstance(epochs, int) else ""
        limits.append(
            f"The order of the slices agrees with that of {len(ranked.rows)} architectures trained by "
            f"themselves{schedule} by tau {ranked.tau}, over all sizes. Among the best, which are alike, "
            "it is usually less, and a longer training may order them otherwise."
        )
    if len(run.complete) > 1:
        limits.append(
            f"The winner is the best of {len(run.complete)} scores of search_val, so its own score is "
            "optimistic. Judge it on the val split, which the search never scored."
        )
    if supernet is not None:
        part = f" {supernet.epochs} of" if not supernet.trained else ""
        epochs = supernet.planned if supernet.planned and not supernet.trained else supernet.epochs
        limits.append(
            f"The supernet was trained once, with one seed, for{part} {epochs} epoch{'s' * (epochs != 1)}; "
            "how much the scores of its slices vary from one supernet to another is not known here."
        )
    return limits
