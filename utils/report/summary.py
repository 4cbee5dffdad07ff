"""The tables and headline of the report as plain rows: what was found, by how much it gains, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from utils.history import Trial
from utils.report.controls import ControlsInfo
from utils.report.drawing import difference, is_number, title
from utils.report.outcomes import KINDS, TRAININGS, alike, best_outcome, on_val, outcomes, says_of
from utils.report.progress import SupernetInfo, count, device_cost, later_spent, search_spent, stopped_info
from utils.report.results import NEAR_ZERO, TABLE_METRICS, gain, highlights, percent, signed
from utils.report.runs import (
    Cost,
    Objectives,
    Run,
    baseline_of,
    best_of,
    completed,
    device_hours,
    duration,
    exported_trials,
    later_trainings,
    quality_of,
    read_json,
    reward_of,
    top_trials,
)
from utils.report.supernet_report import RankReport
from utils.rewards import COST_KEYS
from utils.run_files import Files
from utils.steps import STEPS

TOP_DEFAULT = 3


@dataclass(frozen=True)
class Verdict:
    """Did the search beat the unsearched baseline?

    kind: `better` (some trial is nowhere worse and somewhere better), `trade` (only a higher reward),
    `doubt` (so it seemed, but val disagrees), `no`, or `open` when it cannot be said. trial: the one the
    sentence is about.
    """

    kind: str
    text: str
    trial: Trial | None = None


# (kind of weights, the trial's score on val, the baseline's with weights that were trained alike)
OnVal = Sequence[tuple[str, float, float]]


def verdict_of(run: Run) -> Verdict:
    """The headline of a run: what the search's own scores say, and whether val agrees."""
    found = verdict(run.trials, run.objectives, baseline=run.has_baseline)
    base = run.baseline
    if found.trial is None or base is None or found.trial is base:
        return found
    return with_val(found, base, run.objectives, alike(run, found.trial.number), says_of(run.shares_weights))


def verdict(trials: Sequence[Trial], objectives: Objectives, *, baseline: bool = True) -> Verdict:
    """What the scores say that the search went by, those on search_val."""
    done = [t for t in completed(trials) if all(k in t.metrics for k in objectives)]
    base = baseline_of(done) if baseline else None
    if not completed(trials):
        return Verdict("open", "No trial has completed, so there is nothing to compare yet.")
    if base is None:
        best = top_trials(trials, 1)[0]
        return Verdict(
            "open", f"Trial {best.number} is best by reward. There is no baseline to compare with.", best
        )
    searched = [t for t in done if t is not base]
    if not searched:
        return Verdict("open", "Only the unsearched baseline has completed so far.", base)
    if idle := _learnt_nothing(done, objectives):
        return Verdict("open", idle)
    dominating = top_trials([t for t in searched if _dominates(t, base, objectives)])
    if dominating:
        best = dominating[0]
        text = f"Yes: trial {best.number} has {_against(best, base, objectives)}{HERE}."
        top = top_trials(searched, 1)[0]
        if top is not best:
            text += f" Best by reward is trial {top.number}: {_against(top, base, objectives)}."
        return Verdict("better", text, best)
    best = top_trials(searched, 1)[0]
    if reward_of(best) > reward_of(base):
        return Verdict(
            "trade",
            f"Partly: trial {best.number} has a higher reward with {_against(best, base, objectives)}{HERE}, "
            "but no trial beats the baseline in every objective.",
            best,
        )
    return Verdict("no", "No: no trial reached the reward of the unsearched baseline.", best)


def _learnt_nothing(trials: Sequence[Trial], objectives: Objectives) -> str:
    """Why networks whose scores are all near zero cannot be compared; "" where some network has learnt."""
    key = quality_of(objectives)
    if key not in SCORES or not (scores := [t.metrics[key] for t in trials if key in t.metrics]):
        return ""
    if max(scores) >= NEAR_ZERO:
        return ""
    return (
        f"It cannot be said: no network scores above {title(key)} {number(max(scores))} on search_val, so "
        "they have learnt next to nothing, and which of them is better is chance."
    )


SCORES = ("map50_95", "map50", "top1", "top5")
HERE = " on search_val, which chose it"


def with_val(
    found: Verdict, base: Trial, objectives: Objectives, val: OnVal, says: Mapping[str, str]
) -> Verdict:
    """The verdict with what val says of it, which no search saw. Where the longest trained weights that both
    have do not keep the gain, val disagrees, and that comes first."""
    trial, quality = found.trial, quality_of(objectives)
    assert trial is not None
    if not val:
        return replace(found, text=f"{found.text} Not yet compared on val, which the search never saw.")
    parts = []
    for kind, ours, theirs in val:
        how = f"{says[kind]} " if says[kind] else ""
        parts.append(f"{how}{number(ours)} against {number(theirs)} ({signed(ours - theirs)})")
    seen = f"On val, which the search never saw: {title(quality)} {', '.join(parts)}."
    _, ours, theirs = val[-1]
    # a run without an accuracy among its objectives may have trials without one
    seemed = trial.metrics.get(quality, 0.0) - base.metrics.get(quality, 0.0)
    lost = ours <= theirs if seemed > 0 else ours < theirs
    if found.kind not in ("better", "trade") or not lost:
        return replace(found, text=f"{found.text} {seen}")
    if found.kind == "trade" and seemed <= 0:  # it never claimed to be better
        return replace(found, text=f"{found.text} {seen}")
    said = found.text.replace("Yes: trial", "Trial", 1).replace("Partly: trial", "Trial", 1)
    return Verdict("doubt", f"Val does not confirm it: {seen[:1].lower()}{seen[1:]} {said}", trial)


def named_trials(
    trials: Sequence[Trial], objectives: Objectives, top_k: int, *, baseline: bool = True
) -> list[Trial]:
    """All whom the headline and the tables speak of: the top k, the best in some way, the baseline, which
    come in this order."""
    base = baseline_of(trials) if baseline else None
    about = verdict(trials, objectives, baseline=baseline).trial
    named = [*top_trials(trials, top_k), *(t for _, t in highlights(trials, objectives, None))]
    named += [t for t in (about, base) if t is not None]
    return list({t.number: t for t in named}.values())


def family_verdict(trials: Sequence[Trial], family: Sequence[Trial], objectives: Objectives) -> str:
    """How many members of an unsearched family a trial dominates, and the other way round; "" without one."""
    members = [t for t in completed(family) if all(k in t.metrics for k in objectives)]
    done = [t for t in completed(trials) if all(k in t.metrics for k in objectives)]
    if not members or not done:
        return ""
    beaten = [m for m in members if any(_dominates(t, m, objectives) for t in done)]
    beating = [t for t in done if any(_dominates(m, t, objectives) for m in members)]
    return (
        f"Against the unsearched family: trials beat {len(beaten)} of its {len(members)} members in every "
        f"objective; {len(beating)} of the {len(done)} trials are beaten by a member."
    )


def _dominates(t: Trial, base: Trial, objectives: Objectives) -> bool:
    gains = [(t.metrics[k] - base.metrics[k]) * (1 if way == "max" else -1) for k, way in objectives.items()]
    return min(gains) >= 0 and max(gains) > 0


def _against(t: Trial, base: Trial, objectives: Objectives) -> str:
    """`mAP50-95 0.612 (+0.034, +5.9 %) and GFLOPs 3.1 (-0.4, -11.4 %)`."""
    parts = []
    for key in objectives:
        absolute, relative = gain(t.metrics[key], base.metrics[key], key)
        change = (
            "unchanged" if absolute == 0 else ", ".join(filter(None, [signed(absolute), percent(relative)]))
        )
        parts.append(f"{title(key)} {number(t.metrics[key])} ({change})")
    return " and ".join(parts)


def number(value: float | None) -> str:
    """For people: four digits after the point below 1, four significant ones above."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def metric_keys(run: Run) -> list[str]:
    """Columns of the tables: quality, objectives, then the usual costs; per-class scores stay in the CSV."""
    wanted = dict.fromkeys([run.quality, "map50", "top5", *run.objectives, *TABLE_METRICS])
    return [k for k in wanted if any(k in t.metrics for t in run.trials)]


def highlight_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    """One row a trial; a trial that is best in two ways carries both names. Behind the first of `keys` stands
    what it scores on val, where any of the rows was scored there."""
    base, val = run.baseline, on_val(run)
    rows = highlights(run.trials, run.objectives, base)
    shown = any(t.number in val for _, t in rows)
    found = []
    for names, t in rows:
        cells = [cell(t, base, k, run.objectives) for k in [*keys, "reward"]]
        if shown:
            start = val.get(base.number) if base is not None and t is not base else None
            cells.insert(1, value_cell(val.get(t.number), start))
        found.append({"names": names, "number": t.number, "cells": cells})
    return found


def row_titles(keys: list[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The headings of the columns of `highlight_rows`."""
    titles = [title(k) for k in [*keys, "reward"]]
    return [titles[0], "on val", *titles[1:]] if rows and len(rows[0]["cells"]) > len(titles) else titles


def value_cell(
    value: float | None, start: float | None, less_is_better: bool = False, key: str = "val"
) -> dict[str, str]:
    """A value and its gain on `start`; `tone` says whether that is good or bad. key: of `results.gain`."""
    if value is None or start is None:
        return {"value": number(value), "gain": "", "tone": ""}
    absolute, relative = gain(value, start, key)
    good = absolute < 0 if less_is_better else absolute > 0
    tone = "" if absolute == 0 else "good" if good else "bad"
    change = "no change" if absolute == 0 else percent(relative) or signed(absolute)
    return {"value": number(value), "gain": change, "tone": tone}


def cell(t: Trial, base: Trial | None, key: str, objectives: Objectives) -> dict[str, str]:
    """A metric, or `reward`, of a trial and what it gains on the baseline."""
    value = t.reward if key == "reward" else t.metrics.get(key)
    start = None if base is None else base.reward if key == "reward" else base.metrics.get(key)
    less = objectives.get(key) == "min" or key in COST_KEYS
    return value_cell(value, None if base is t else start, less, key)


def cards(run: Run) -> list[dict[str, str]]:
    """The headline numbers."""
    base, quality, found = run.baseline, run.quality, list[dict[str, str]]()
    scored = [t for t in run.complete if quality in t.metrics]
    best = best_of(run.complete, quality)
    if best is not None:
        shown = cell(best, base, quality, run.objectives)
        note = f"trial {best.number}{', a slice' if run.shares_weights else ''}, on search_val"
        found.append({"label": f"best {title(quality)}", "note": note} | shown)
    found += _card_of_val(run)
    costs = [k for k, way in run.objectives.items() if way == "min"]
    if costs and base is not None and costs[0] in base.metrics and quality in base.metrics:
        able = [t for t in scored if costs[0] in t.metrics and t.metrics[quality] >= base.metrics[quality]]
        cheap = min(able, key=lambda t: (t.metrics[costs[0]], -t.metrics[quality], t.number))
        shown = cell(cheap, base, costs[0], run.objectives)
        note = "none is cheaper without loss" if cheap is base else f"trial {cheap.number}"
        label = f"fewest {title(costs[0])}" if costs[0] == "gflops" else f"lowest {title(costs[0])}"
        found.append({"label": f"{label} at no loss", "note": note} | shown)
    note = counts_line(run)
    budget = run.planned
    value = f"{len(run.trials)} of {budget}" if isinstance(budget, int) else str(len(run.trials))
    found.append({"label": "trials", "value": value, "gain": "", "tone": "", "note": note})
    parts = search_spent(run)
    hours, wall = _hours(run, parts), sum(_wall(part) for part in parts.values())
    label = "supernet and search took" if "supernet" in parts else "search took"
    found.append({"label": label, "value": duration(wall), "gain": "", "tone": "", "note": hours})
    return found


def _card_of_val(run: Run) -> list[dict[str, str]]:
    """What the trial of the headline scores on val, against the baseline with weights trained alike."""
    trial = verdict_of(run).trial
    if trial is None:
        return []
    pairs, own = alike(run, trial.number), outcomes(run).get(trial.number, {})
    base = run.baseline
    if base is not None and trial is not base and pairs:
        kind, score, start = pairs[-1]
        shown = value_cell(score, start)
    else:
        best = best_outcome(own, run.quality)
        if best is None:
            return []
        kind, shown = best.kind, value_cell(best.metrics[run.quality], None)
    how = says_of(run.shares_weights)[kind]
    note = ", ".join(filter(None, [f"trial {trial.number}", how, own[kind].note]))
    return [{"label": f"{title(run.quality)} on val", "note": note} | shown]


def _hours(run: Run, parts: dict[str, Cost]) -> str:
    """ "" as long as a supernet trains, whose run says where it ran only when it is done."""
    if "supernet" in parts and not run.meta.get("device"):
        return ""
    return device_hours(device_cost(parts), run.meta)


def _wall(cost: Cost) -> float:
    return cost.trial_seconds if cost.wall_seconds is None else cost.wall_seconds


def top_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    k = run.search.get("top_k")
    base = run.baseline
    rows = []
    front = run.objectives if run.search.get("top") == "front" else None
    wanted = exported_trials(run.trials, k if isinstance(k, int) else TOP_DEFAULT, front)
    for rank, t in enumerate(wanted, start=1):
        record = read_json(run.folder / "top" / f"{rank}.json")
        written = record.get("trial") == t.number  # files of an earlier ranking are not this trial's
        found = sorted((run.folder / "top").glob(f"{rank}.*")) if written else []
        files = {p.name: f"top/{p.name}" for p in found if p.name.count(".") == 1}
        weights = f"trials/{t.number:04d}/weights.pt"
        if f"{rank}.pt" not in files and (run.folder / weights).exists():
            files["slice" if run.shares_weights else "weights"] = weights
        for step in TRAININGS:
            later = f"{step.folder}/{t.number:04d}/last.pt"
            if (run.folder / later).exists():
                files[step.column] = later
        rows.append(
            {
                "rank": rank,
                "number": t.number,
                "cells": [cell(t, base, key, run.objectives) for key in [*keys, "reward"]],
                "files": files,
                "genes": difference(t.arch, base.arch if base else None),
            }
        )
    return rows


def retrained_rows(run: Run, keys: list[str]) -> list[dict[str, Any]]:
    """The full trainings by quality, each against the baseline that was retrained in the same way."""
    results = later_trainings(run)
    trials = {n: Trial(n, {}, metrics=r["metrics"]) for n, r in results.items()}
    base = trials.get(0) if run.has_baseline else None
    ranked = sorted(trials.values(), key=lambda t: (-t.metrics.get(run.quality, 0.0), t.number))
    return [
        {
            "name": "baseline" if t is base else f"trial {t.number}",
            "epochs": mapping(results[t.number].get("train")).get("epochs", "–"),
            "seed": results[t.number].get("seed", "–"),
            "cells": [cell(t, base, key, run.objectives) for key in keys],
        }
        for t in ranked
    ]


def trial_rows(run: Run, keys: list[str], front: set[int]) -> list[dict[str, Any]]:
    base = run.baseline
    arch = base.arch if base else None
    return [
        {
            "number": t.number,
            "state": t.state,
            "front": t.number in front,
            "values": [(t.metrics.get(k), number(t.metrics.get(k))) for k in keys],
            "reward": (t.reward, number(t.reward)),
            "seconds": t.seconds,
            "parents": ", ".join(map(str, t.parents)),
            "genes": difference(t.arch, arch),
            "is_default": base is not None and t.arch == base.arch,
            "reason": t.reason or "",
        }
        for t in run.trials
    ]


def final_rows(run: Run) -> list[dict[str, Any]]:
    """All that were scored on val: the top k by rank, others by trial, the unsearched baseline last.

    `cells`: heading -> value, what it gains and a note; only the columns that some of them has. On val,
    weights as the search had them are compared with the baseline's, longer trained ones with those before.
    [] as long as none was scored on val.
    """
    found, base, key = outcomes(run), run.baseline, run.quality
    of_number = {t.number: t for t in run.complete}
    numbers = [n for n in found if n in of_number]
    kinds = [k for k in KINDS if any(k in found[n] and key in found[n][k].metrics for n in numbers)]
    if not kinds:
        return []
    costs = [k for k in dict.fromkeys([*run.objectives, "params_m", "gflops"]) if k in COST_KEYS]
    last = base.number if base else None
    if last is not None and last not in numbers:
        numbers.append(last)
    ranks = {record.get("trial"): rank for rank, record in _records(run).items()}
    rows = []
    for n in sorted(numbers, key=lambda n: (n == last, ranks.get(n, len(ranks) + 1), n)):
        scores = {k: _known(o.metrics.get(key)) for k, o in found.get(n, {}).items()}
        cells = {"search_val": _final_cell(_known(of_number[n].metrics.get(key)))}
        for kind in kinds:
            note = found[n][kind].note if kind in found.get(n, {}) else ""
            before = scores.get("trials") if kind != "trials" else None
            if kind == "trials" and n != last and last in found and "trials" in found[last]:
                before = found[last]["trials"].metrics.get(key)
            cells[heading(kind, run.shares_weights)] = _final_cell(scores.get(kind), before, note)
        values = [number(_known(of_number[n].metrics.get(k))) for k in costs]
        rank = "unsearched" if n == last else ranks.get(n, "–")
        rows.append({"rank": rank, "number": n, "costs": values, "cells": cells})
    return rows


def heading(kind: str, shares_weights: bool) -> str:
    """`as a slice, val`, `retrained, val`, or `val` for the network as a trial trained it."""
    return ", ".join(filter(None, [says_of(shares_weights)[kind], "val"]))


def final_title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the table of `final_rows` is called, by the columns that it has."""
    names = [h.removesuffix(", val") for h in (rows[0]["cells"] if rows else {}) if h.endswith(", val")]
    if not any("slice" in name for name in names):
        return "On images that the search never saw"
    text = ", ".join(names)
    return text[:1].upper() + text[1:]


def _records(run: Run) -> dict[int, dict[str, Any]]:
    """rank -> `top/<rank>.json`."""
    files = {int(p.stem): read_json(p) for p in Files(run.folder).top}
    return dict(sorted(files.items()))


def _final_cell(score: float | None, start: float | None = None, note: str = "") -> dict[str, str]:
    if score is None:
        return {"value": number(None), "gain": "", "tone": "", "note": ""}
    change = "" if start is None else signed(score - start)
    tone = "" if start is None or score == start else "good" if score > start else "bad"
    return {"value": number(score), "gain": change, "tone": tone, "note": note}


def _known(value: Any) -> float | None:
    return value if is_number(value) else None


def rank_rows(report: RankReport) -> list[dict[str, Any]]:
    """The compared architectures, best trained alone first; values as (raw, shown), places beside them."""
    rows = []
    for r in report.rows:
        low, high = min(r.alone), max(r.alone)
        rows.append(
            {
                "number": r.number,
                "costs": [(r.params_m, number(r.params_m)), (r.gflops, number(r.gflops))],
                "alone": (r.mean, number(r.mean), r.by_alone),
                "seeds": f"{low:.4f} to {high:.4f}" if len(r.alone) > 1 else "",
                "uncalibrated": (r.uncalibrated, number(r.uncalibrated), r.by_uncalibrated),
                "supernet": (r.supernet, number(r.supernet), r.by_supernet),
            }
        )
    return rows


def control_rows(info: ControlsInfo, base: Trial | None) -> list[dict[str, Any]]:
    """The networks that the winner had to beat, as the step `controls` trained them; genes: how each differs
    from the unsearched one."""
    return [
        {
            "names": ", ".join(row.names),
            "mean": number(row.mean),
            "spread": number(row.spread),
            "scores": [number(row.scores.get(seed)) for seed in info.seeds],
            "searched": number(row.searched),
            "costs": [number(row.costs.get(key)) for key in ("params_m", "gflops")],
            "genes": difference(row.arch, base.arch if base else None),
        }
        for row in info.rows
    ]


def supernet_facts(run: Run, info: SupernetInfo) -> dict[str, str]:
    """What the supernet is and took, for the list beside its curve."""
    block = mapping(run.experiment.get("supernet"))
    of = f" of {info.planned}" if info.planned else ""
    facts = {"epochs": f"{info.epochs}{'' if info.trained and info.epochs == info.planned else of}"}
    if info.steps is not None:
        facts["steps"] = f"{info.steps:,}"
    facts["time"] = duration(info.seconds) + ("" if info.trained else " so far")
    if info.devices > 1:
        facts["time"] += f" on {info.devices} devices"
    if isinstance(block.get("subnets"), list):
        facts["on each batch"] = ", ".join(
            {"max": "largest", "min": "smallest"}.get(s, str(s)) for s in block["subnets"]
        )
    sampling = block.get("sampling")
    if isinstance(sampling, dict) and sampling.get("name"):
        facts["random ones"] = str(sampling["name"])
    for kind, points in info.scores.items():
        epoch, score = points[-1]
        name = {"max": "largest", "min": "smallest"}[kind]
        facts[f"{name} scores"] = f"{title(info.quality)} {number(score)} at epoch {epoch}"
    return facts


def cost_rows(run: Run) -> dict[str, str]:
    """What the search took, and what was trained after it."""
    parts = search_spent(run)
    cost, rows = parts["trials"], dict[str, str]()
    slices = "scoring its slices" if run.shares_weights else "time in trials"
    if "pretrain" in parts:
        rows["pre-training its backbone"] = duration(_wall(parts["pretrain"]))
    if "supernet" in parts:
        rows["training the supernet"] = duration(_wall(parts["supernet"]))
    if "sampled" in parts:
        scored = parts["sampled"]
        rows["scoring sampled slices"] = f"{duration(scored.trial_seconds)}, {scored.trials} of them"
    if cost.trials or not run.shares_weights:
        rows[slices] = duration(cost.trial_seconds)
    if "reignition" in parts:
        learnt = parts["reignition"]
        rows["reigniting backbones"] = f"{duration(learnt.trial_seconds)}, {learnt.trials} of them"
    if sum(part.trials > 0 for part in parts.values()) > 1:
        rows["all together"] = duration(sum(_wall(part) for part in parts.values()))
    hours = _hours(run, parts)
    if hours:
        rows["device time"] = hours
    if cost.wall_seconds is not None:
        rows["wall time while trials ran"] = duration(cost.wall_seconds)
    if cost.parallel is not None:
        rows["trials at a time"] = f"{cost.parallel:.1f} on average"
    if cost.trials:
        rows["mean trial"] = duration(cost.trial_seconds / cost.trials)
    stopped = stopped_info(run.trials, count(run, "train", "epochs"))
    if stopped is not None:
        rows["stopped in time"] = stopped.line
    lost = sum(t.seconds for t in run.trials if t.state == "failed")
    if lost:
        rows["time in failed trials"] = duration(lost)
    for kind, (n, seconds) in later_spent(run).items():
        rows[STEPS[kind].time] = f"{duration(seconds)}, {n} training{'s' * (n != 1)}"
    if run.meta.get("device"):
        rows["device"] = str(run.meta["device"])
    return rows


def counts_line(run: Run) -> str:
    """`20 complete, 3 stopped in time, 1 failed`."""
    stopped, failed = (sum(t.state == state for t in run.trials) for state in ("stopped", "failed"))
    parts = [f"{len(run.complete)} complete", f"{stopped} stopped in time" if stopped else ""]
    return ", ".join([*filter(None, parts), f"{failed} failed"])


def mapping(value: Any) -> dict[str, Any]:
    """What a foreign file should hold a mapping for, {} if it does not."""
    return value if isinstance(value, dict) else {}
