"""What the report says, against answers worked out by hand; the page itself as a browser gets it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from tests.utils.synthetic import make_run, make_trials
from utils.errors import UserError
from utils.history import Trial
from utils.report.drawing import describe, difference
from utils.report.genes import (
    UNUSED,
    ParallelInfo,
    colour,
    draw_importance,
    draw_parallel,
    importance_info,
    parallel_info,
)
from utils.report.model_card import write_model_card
from utils.report.plots import (
    convergence_info,
    curves_info,
    draw_convergence,
    draw_curves,
    draw_pareto,
    failures_info,
    pareto_info,
    save_pareto_png,
)
from utils.report.report import write_report
from utils.report.results import extend_top, results_table, status, write_top
from utils.report.runs import read_run
from utils.report.summary import (
    cards,
    family_verdict,
    highlight_rows,
    number,
    retrained_rows,
    row_titles,
    verdict,
    verdict_of,
)
from utils.training.loggers import CsvLogger, open_loggers

OBJECTIVES = {"map50_95": "max", "gflops": "min"}


def trial(number: int, score: float, gflops: float, **more: Any) -> Trial:
    fields: dict[str, Any] = {
        "number": number,
        "arch": {"w": f"x{number}"},
        "reward": score,
        "seconds": 10.0,
    } | more
    return Trial(metrics={"map50_95": score, "gflops": gflops}, **fields)


FAILED = Trial(4, {"w": "x9"}, state="failed", reason="loss became NaN")
# in the plane (gflops, mAP): 0 (4, .50), 1 (5, .60), 2 (3, .55), 3 (4.5, .40), 5 (2, .30)
TRIALS = [
    trial(0, 0.50, 4.0),
    trial(1, 0.60, 5.0),
    trial(2, 0.55, 3.0),
    trial(3, 0.40, 4.5),
    FAILED,
    trial(5, 0.30, 2.0),
]


# --- Pareto ---


def test_pareto_info_orders_the_front_by_cost() -> None:
    info = pareto_info(TRIALS, "gflops")
    assert info.front == [5, 2, 1]
    assert info.baseline == 0
    assert [(p.number, p.x, p.y) for p in info.points] == [
        (0, 4.0, 0.50),
        (1, 5.0, 0.60),
        (2, 3.0, 0.55),
        (3, 4.5, 0.40),
        (5, 2.0, 0.30),
    ]


def test_pareto_info_without_the_metric_or_the_trials_is_empty() -> None:
    assert pareto_info(TRIALS, "latency_ms").points == []
    assert pareto_info([FAILED], "gflops").front == []
    assert pareto_info(TRIALS, "gflops", baseline=False).baseline is None


def test_the_unsearched_family_is_named_by_its_scale() -> None:
    family = [trial(0, 0.7, 9.0, arch={"scale": "s"}), trial(1, 0.5, 4.0, arch={"scale": "n"})]
    info = pareto_info(TRIALS, "gflops", others=family)
    assert [(p.text, p.x) for p in info.others] == [("n", 4.0), ("s", 9.0)]
    assert [s["name"] for s in draw_pareto(info)["data"]] == [
        "dominated",
        "Pareto front",
        "unsearched family",
        "baseline (not searched)",
    ]


def test_hover_names_what_differs_from_the_default_and_escapes_it() -> None:
    base = {"a": "k3", "b": "x1"}
    assert difference({"a": "k5"}, base) == {"a": "k5", "b": UNUSED}
    assert difference(base, base) == {}
    text = describe(trial(7, 0.5, 2.0, arch={"a": "<b>", "b": "x1"}), base)
    assert text == "<b>trial 7</b><br>mAP50-95 0.5<br>GFLOPs 2<br>reward 0.5<br><br>a = &lt;b&gt;"


def test_pareto_png_is_written_whole_and_also_without_trials(tmp_path: Path) -> None:
    for trials in (TRIALS, []):
        path = save_pareto_png(pareto_info(trials, "gflops"), tmp_path / "pareto.png")
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["pareto.png"]


# --- convergence ---


def test_convergence_follows_the_order_in_which_trials_ended() -> None:
    trials = [
        trial(0, 0.50, 4.0, started=100.0, seconds=10.0),  # ends 110
        trial(1, 0.40, 2.0, started=100.0, seconds=50.0),  # ends 150, after trial 2
        trial(2, 0.60, 3.0, started=110.0, seconds=10.0),  # ends 120
    ]
    info = convergence_info(trials, OBJECTIVES)
    assert info.numbers == [0, 2, 1]
    assert info.seconds == [10.0, 20.0, 50.0]
    assert info.rewards == [0.50, 0.60, 0.40]
    assert info.best == [0.50, 0.60, 0.60]
    assert info.reference == {"map50_95": 0.40, "gflops": 4.0}
    # against (0.4, 4): trial 0 sits on the edge: 0; trial 2: (0.6-0.4)*(4-3) = 0.2; trial 1 sits on the edge
    assert info.hypervolume == pytest.approx([0.0, 0.2, 0.2])


def test_convergence_without_start_times_or_trials() -> None:
    assert convergence_info(TRIALS, OBJECTIVES).seconds is None
    assert convergence_info(TRIALS, OBJECTIVES).numbers == [0, 1, 2, 3, 5]
    assert convergence_info(TRIALS, {"map50_95": "max"}).hypervolume is None
    assert convergence_info([FAILED], OBJECTIVES).best == []


# --- choices ---


def test_parallel_rows_leave_out_what_never_varied() -> None:
    trials = [
        trial(0, 0.5, 1, arch={"same": 1, "k": "k10", "gone": "a"}),
        trial(1, 0.6, 1, arch={"same": 1, "k": "k4"}),
        trial(2, 0.7, 1, arch={"same": 1, "k": "k6", "gone": "b"}),
    ]
    info = parallel_info(trials, order=["gone", "unknown"])
    assert info.labels == ["gone", "k"]
    assert info.values == [["a", "b", UNUSED], ["k4", "k6", "k10"]]
    assert info.positions == [[0, 2], [2, 0], [1, 1]]
    assert parallel_info(trials, most=1).left_out == 1


def test_a_parallel_line_ends_at_its_reward() -> None:
    info = ParallelInfo(["k"], [["k4", "k6"]], [[0], [1]], [0, 1], [0.2, 0.6], 0)
    worst, best = draw_parallel(info)["data"]
    assert (worst["x"][-1], worst["y"][-1]) == (0.0, 1.0)
    assert (best["x"][-1], best["y"][-1]) == (1.0, 1.0)
    assert worst["x"][0] < 0.5 < best["x"][0]  # k4 left, k6 right
    assert (colour(0.0), colour(1.0)) == ("#a9b4c2", "#d6336c")


def sixteen() -> list[Trial]:
    """`a` explains everything but 0.01 up and down, `b` explains nothing."""
    rows = [("k3", "u", 0.31), ("k3", "v", 0.29), ("k3", "u", 0.29), ("k3", "v", 0.31)]
    rows += [("k5", "u", 0.51), ("k5", "v", 0.49), ("k5", "u", 0.49), ("k5", "v", 0.51)]
    return [trial(i, y, 1.0, arch={"a": a, "b": b}) for i, (a, b, y) in enumerate(rows * 2)]


def test_importance_is_epsilon_squared() -> None:
    info = importance_info(sixteen())
    a, b = info.choices
    # SST = 16 * (0.1^2 + 0.01^2) = 0.1616, SSB = 16 * 0.1^2 = 0.16, MSW = 0.0016 / 14
    assert (a.label, b.label) == ("a", "b")
    assert a.share == pytest.approx((0.16 - 0.0016 / 14) / 0.1616)
    assert b.share == pytest.approx((0 - 0.1616 / 14) / 0.1616)
    assert a.effects == {"k5": (pytest.approx(0.1), 8), "k3": (pytest.approx(-0.1), 8)}
    assert info.floor is not None and b.share < info.floor < a.share
    assert info.note == "a stands out from chance in these 16 trials."


def test_importance_interval_is_the_jackknife_done_by_hand() -> None:
    rng = np.random.default_rng(3)
    trials = [
        trial(i, float(rng.normal()), 1.0, arch={"a": str(rng.choice(["x", "y", "z"])), "b": f"{i % 2}"})
        for i in range(12)
    ]
    trials.append(trial(12, 0.3, 1.0, arch={"a": "alone", "b": "0"}))

    def share(part: list[Trial]) -> float:
        y = np.array([t.metrics["map50_95"] for t in part])
        groups = [y[[t.arch["a"] == g for t in part]] for g in {t.arch["a"] for t in part}]
        total = ((y - y.mean()) ** 2).sum()
        within = sum(((g - g.mean()) ** 2).sum() for g in groups)
        free = len(y) - len(groups)
        return float((total - within - (len(groups) - 1) * within / free) / total)

    got = next(c for c in importance_info(trials).choices if c.label == "a")
    left_out = np.array([share(trials[:i] + trials[i + 1 :]) for i in range(13)])
    error = np.sqrt(12 / 13 * ((left_out - left_out.mean()) ** 2).sum())
    assert got.share == pytest.approx(share(trials))
    assert (got.low, got.high) == pytest.approx((got.share - 1.96 * error, got.share + 1.96 * error))


def test_importance_says_plainly_when_it_cannot_tell() -> None:
    few = importance_info(sixteen()[:7])
    assert few.note == "7 complete trials: too few to tell which choices matter (at least 8 are needed)."
    assert few.choices == [] and few.floor is None
    same = [replace(t, reward=0.5) for t in sixteen()]
    assert "no variation" in importance_info(same).note
    rng = np.random.default_rng(0)
    noise = [replace(t, reward=float(rng.normal())) for t in sixteen()]
    assert importance_info(noise).note.startswith("No choice stands out from chance")


def test_pure_noise_rarely_passes_the_floor() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(60):
        archs = [{f"g{j}": str(rng.integers(3)) for j in range(10)} for _ in range(24)]
        trials = [trial(i, float(rng.normal()), 1.0, arch=a) for i, a in enumerate(archs)]
        info = importance_info(trials, shuffles=100)
        assert info.floor is not None
        passed += info.choices[0].share > info.floor
    assert passed <= 8  # 5 % of 60 is 3; more than 8 would come up once in 300


# --- curves, failures, verdict ---


def test_curves_mark_the_best_and_skip_what_is_no_number() -> None:
    curve = [{"epoch": 0, "map50_95": 0.1}, {"epoch": 1, "map50_95": None}, {"epoch": 2, "map50_95": 0.3}]
    trials = [trial(0, 0.5, 1, curve=curve), trial(1, 0.6, 1, curve=curve[:1]), trial(2, 0.9, 1)]
    info = curves_info(trials, OBJECTIVES)
    assert info.curves == [(0, [0.0, 2.0], [0.1, 0.3]), (1, [0.0], [0.1])]
    assert (info.metric, info.best, info.baseline) == ("map50_95", 1, 0)
    losses = [trial(0, 0.5, 1, curve=[{"epoch": 0, "loss": 2.0}])]
    assert curves_info(losses, OBJECTIVES).metric == "loss"


def test_failures_are_counted_by_reason_and_limits_by_limit() -> None:
    infeasible = [
        Trial(-1, {}, state="infeasible", reason="gflops 4.81 breaks the limit <= 4.5"),
        Trial(-1, {}, state="infeasible", reason="params_m 3.1 breaks the limit <= 2"),
        Trial(-1, {}, state="infeasible", reason="gflops 5.02 breaks the limit <= 4.5"),
    ]
    found = failures_info([*TRIALS, replace(FAILED, number=6)], infeasible)
    assert found["failed"] == {"loss became NaN": [4, 6]}
    assert found["infeasible"] == {
        "gflops … breaks the limit <= 4.5": [-1, -1],
        "params_m … breaks the limit <= 2": [-1],
    }


def test_verdict() -> None:
    better = verdict(TRIALS, OBJECTIVES)
    assert (better.kind, better.trial) == ("better", TRIALS[2])
    assert better.text == (
        "Yes: trial 2 has mAP50-95 0.5500 (+0.0500, +10.0 %) and GFLOPs 3 (-1.0000, -25.0 %) on search_val, "
        "which chose it. "
        "Best by reward is trial 1: mAP50-95 0.6000 (+0.1000, +20.0 %) and GFLOPs 5 (+1.0000, +25.0 %)."
    )
    assert verdict(TRIALS[:2], OBJECTIVES).kind == "trade"
    assert verdict([TRIALS[0], TRIALS[3]], OBJECTIVES).kind == "no"
    assert verdict(TRIALS[:1], OBJECTIVES).kind == "open"
    assert verdict(TRIALS[1:], OBJECTIVES).kind == "open"
    nothing = verdict([trial(0, 0.0009, 4.0), trial(1, 0.0093, 3.0)], OBJECTIVES)
    assert (nothing.kind, nothing.trial) == ("open", None)
    assert nothing.text.startswith("It cannot be said: no network scores above mAP50-95 0.0093 on search_val")
    low = verdict([trial(0, 0.04, 4.0), trial(1, 0.06, 3.0)], OBJECTIVES)
    assert "mAP50-95 0.0600 (+0.0200) and GFLOPs 3 (-1.0000, -25.0 %)" in low.text and low.kind == "better"
    assert verdict([FAILED], OBJECTIVES).text == "No trial has completed, so there is nothing to compare yet."


def on_val(run: Path, kind: str, scores: dict[int, float]) -> None:
    """Scores on val as the steps leave them: evaluate, finetune or retrain."""
    for number_, score in scores.items():
        folder = run / kind / f"{number_:04d}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"metrics": {"map50_95": score}}))


def test_the_headline_says_what_val_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    assert verdict_of(read_run(run)).text.endswith("Not yet compared on val, which the search never saw.")
    on_val(run, "evaluate", {0: 0.48, 2: 0.53})
    found = verdict_of(read_run(run))
    assert found.kind == "better"
    assert found.text.endswith(
        "On val, which the search never saw: mAP50-95 0.5300 against 0.4800 (+0.0500)."
    )
    cards_ = {card["label"]: card for card in cards(read_run(run))}
    assert cards_["mAP50-95 on val"] == {
        "label": "mAP50-95 on val",
        "note": "trial 2",
        "value": "0.5300",
        "gain": "+10.4 %",
        "tone": "good",
    }
    assert cards_["best mAP50-95"]["note"] == "trial 1, on search_val"
    rows = highlight_rows(read_run(run), ["map50_95"])
    assert [(r["number"], r["names"], r["cells"][1]["value"]) for r in rows] == [
        (0, "baseline", "0.4800"),
        (1, "best mAP, best reward", "–"),
        (2, "knee of the front", "0.5300"),
    ]
    assert row_titles(["map50_95"], rows) == ["mAP50-95", "on val", "reward"]


def test_where_val_disagrees_the_headline_begins_with_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    on_val(run, "evaluate", {0: 0.48, 2: 0.53})
    on_val(run, "retrain", {0: 0.61, 2: 0.60})  # trained longer, the gain is gone
    found = verdict_of(read_run(run))
    assert found.kind == "doubt"
    assert found.text.startswith(
        "Val does not confirm it: on val, which the search never saw: mAP50-95 0.5300 against 0.4800 "
        "(+0.0500), retrained 0.6000 against 0.6100 (-0.0100). Trial 2 has mAP50-95 0.5500 (+0.0500"
    )
    assert "Yes" not in found.text and 'class="verdict doubt"' in write_report(run, png=False).read_text()


def test_the_headline_of_a_search_for_a_cost_alone(tmp_path: Path) -> None:
    """No accuracy among the objectives, and trials without one."""
    cheap = [replace(trial(n, 0.5, 4.0 - n), metrics={"gflops": 4.0 - n}) for n in (0, 1)]
    run = make_run(tmp_path / "run", cheap)
    experiment = yaml.safe_load((run / "experiment.yaml").read_text())
    experiment["search"]["objectives"] = {"gflops": "min"}
    (run / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    on_val(run, "evaluate", {0: 0.48, 1: 0.47})
    found = verdict_of(read_run(run))
    assert found.kind == "doubt" and "0.4700 against 0.4800 (-0.0100)" in found.text


def test_every_weight_file_of_a_winner_is_linked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    for kind in ("finetune", "retrain"):
        (run / kind / "0001").mkdir(parents=True)
        (run / kind / "0001" / "last.pt").write_text("x")
    assert {"finetune/0001/last.pt", "retrain/0001/last.pt"} <= set(page(run).addresses)


def test_equal_on_val_is_no_gain_but_keeps_a_saving(tmp_path: Path) -> None:
    gains, saves = trial(1, 0.55, 3.0), trial(1, 0.50, 3.0)
    for winner, kind in ((gains, "doubt"), (saves, "better")):
        run = make_run(tmp_path / kind, [trial(0, 0.50, 4.0), winner])
        on_val(run, "evaluate", {0: 0.48, 1: 0.48})
        assert verdict_of(read_run(run)).kind == kind


def test_equal_to_the_baseline_is_not_better() -> None:
    twins = [trial(0, 0.5, 4.0), trial(1, 0.5, 4.0)]
    assert verdict(twins, OBJECTIVES).kind == "no"


def test_family_verdict_counts_who_beats_whom() -> None:
    # n (4, .52) is beaten by trial 2 and beats trials 0 and 3; s (6, .7) neither
    family = [trial(0, 0.52, 4.0), trial(1, 0.7, 6.0)]
    assert family_verdict(TRIALS, family, OBJECTIVES) == (
        "Against the unsearched family: trials beat 1 of its 2 members in every objective; "
        "2 of the 5 trials are beaten by a member."
    )
    assert family_verdict(TRIALS, [], OBJECTIVES) == ""


def test_numbers_for_people() -> None:
    values = [None, 0.61234, 1.77, 12345.6, -0.5, 0.0]
    assert [number(v) for v in values] == ["–", "0.6123", "1.77", "12,346", "-0.5000", "0.0000"]


# --- the page ---


class Page(HTMLParser):
    """Text outside scripts, tags, every address that a tag could load, and the figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.figures: dict[str, Any] = {}
        self._in: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in = (tag, dict(attrs))
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._in = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attrs = self._in
        if attrs.get("id") == "figures":
            self.figures = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data


def page(run: Path, **options: Any) -> Page:
    return Page(write_report(run, png=False, **options).read_text())


def test_report_of_a_whole_run(tmp_path: Path) -> None:
    trials = make_trials()
    run = make_run(tmp_path / "demo", trials)
    write_top(run, trials, 3, space="s", data="d", imgsz=64)
    (run / "top" / "1.onnx").write_text("x")
    path = write_report(run)
    shown = Page(path.read_text())
    assert path == run / "report.html"
    assert {p.name for p in run.iterdir()} >= {"report.html", "results.csv", "pareto.png"}
    assert set(shown.figures) == {"pareto", "importance", "parallel", "convergence", "curves"}
    assert list(shown.figures["pareto"]) == ["GFLOPs", "params (M)", "latency (ms)"]
    assert list(shown.figures["convergence"]) == ["over trials", "over time"]
    for words in (
        "24 of 24",
        "22 complete, 2 failed",
        "out of memory: 1.2 GiB wanted",
        "gflops … breaks the limit <= 4.5",
        "torch 2.14.1",
        "search 0; trials 0",
        "python hello_nas.py run experiments/yolov5_multitrial.yaml",
        "Top 3 by reward",
    ):
        assert words in shown.text, words
    assert {"top/1.json", "top/1.onnx", "top/3.json"} <= set(shown.addresses)
    assert not [p.name for p in run.iterdir() if "tmp" in p.name or p.name.startswith(".")]


def test_nothing_on_the_page_can_load_from_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", make_trials())
    shown = page(run)
    assert [a for a in shown.addresses if ":" in a] == ["data:,"]
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(shown.tags)
    html = (run / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', html)
    assert policy is not None
    assert policy[1] == (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    )
    ours = html[: html.index("<script>")]
    assert "url(" not in ours and "@import" not in ours and "http://" not in ours


def test_a_run_killed_after_three_trials_shows_those_three(tmp_path: Path) -> None:
    run = make_run(tmp_path / "killed", make_trials(3, infeasible=0), bare=True)
    with open(run / "history.jsonl", "a") as file:
        file.write(make_trials(4)[3].to_json()[:200])  # torn by the kill
    shown = page(run)
    assert "3 complete, 0 failed" in shown.text
    assert "3 complete trials: too few to tell which choices matter" in shown.text
    assert "Written" in shown.text and "from 3 trials in history.jsonl" in shown.text
    assert len(shown.figures["curves"][""]["data"]) == 3


@pytest.mark.parametrize("n", [0, 1, 2])
def test_report_of_next_to_nothing(tmp_path: Path, n: int) -> None:
    shown = page(make_run(tmp_path / "run", make_trials(n, infeasible=0)))
    assert f"from {n} trial" in shown.text
    assert "nan" not in shown.text.lower()
    assert bool(shown.figures) == (n > 0)


def test_report_of_a_run_in_which_all_failed_is_small_and_escapes_reasons(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script></script>"
    failed = [Trial(i, {evil: evil}, state="failed", reason=evil, seconds=1.0) for i in range(5)]
    path = write_report(make_run(tmp_path / "run", failed))
    assert "No trial has completed" in path.read_text()
    assert "alert(1)</script>" not in path.read_text()
    assert path.stat().st_size < 100_000


def test_full_trainings_are_compared_with_the_retrained_baseline(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    assert "Retrained in full" not in page(run).text
    for n, score in ((0, 0.8), (2, 0.9)):
        (run / "retrain" / f"{n:04d}").mkdir(parents=True)
        result = {"metrics": {"map50_95": score, "gflops": 4.0 - n}, "train": {"epochs": 50}, "seed": 3}
        (run / "retrain" / f"{n:04d}" / "result.json").write_text(json.dumps(result))
    (run / "retrain" / "0005").mkdir()
    (run / "retrain" / "0005" / "result.json").write_text("{torn")
    assert "Retrained in full" in page(run).text
    winner, base = retrained_rows(read_run(run), ["map50_95", "gflops"])
    assert (winner["name"], winner["epochs"], winner["seed"]) == ("trial 2", 50, 3)
    assert winner["cells"] == [
        {"value": "0.9000", "gain": "+12.5 %", "tone": "good"},
        {"value": "2", "gain": "-50.0 %", "tone": "good"},
    ]
    assert (base["name"], [c["gain"] for c in base["cells"]]) == ("baseline", ["", ""])


def test_a_hostile_label_cannot_close_the_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    trials = [trial(i, 0.1 * i, 1.0 + i, arch={"a": f"{evil}{i}"}) for i in range(9)]
    html = write_report(make_run(tmp_path / "run", trials), png=False).read_text()
    assert "<script>alert" not in html


def test_infinite_and_missing_metrics_do_not_break_the_page(tmp_path: Path) -> None:
    odd = [
        trial(0, 0.5, float("inf")),
        replace(trial(1, 0.6, 2.0), metrics={"map50_95": 0.6}),
        replace(trial(2, 0.7, 2.0), metrics={}),
        trial(3, 0.4, 2.0, curve=[{"epoch": 0, "map50_95": float("nan")}]),
    ]
    shown = page(make_run(tmp_path / "run", odd))
    assert "4 complete, 0 failed" in shown.text


def test_values_of_the_wrong_kind_in_a_foreign_history_are_left_out(tmp_path: Path) -> None:
    lines = [
        {
            "number": 0,
            "arch": {},
            "metrics": {"map50_95": "0.5", "gflops": 4},
            "reward": 0.5,
            "started": None,
        },
        {
            "number": 1,
            "arch": {},
            "metrics": {"map50_95": 0.6, "gflops": 3},
            "reward": "0.6",
            "seconds": None,
        },
        {"number": "2", "arch": {}, "reward": 0.1},
        {"number": 3, "arch": {"a": [1]}, "metrics": {"map50_95": 0.7}, "reward": 0.7, "curve": [None, 3]},
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = page(tmp_path)
    assert "2 complete, 0 failed" in shown.text  # 1 has no reward that is a number, 2 no number at all
    assert "from 3 trials" in shown.text


def test_the_family_is_drawn_when_given_or_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    family = make_run(tmp_path / "family", [trial(0, 0.52, 4.0, arch={"scale": "n"})], bare=True)
    assert "unsearched family" not in page(run).text
    assert "trials beat 1 of its 1 members" in page(run, baselines=family).text
    (family / "history.jsonl").rename(run / "baselines.jsonl")
    shown = page(run)
    assert [s["name"] for s in shown.figures["pareto"]["GFLOPs"]["data"]][2] == "unsearched family"


def test_files_of_an_earlier_ranking_are_not_linked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TRIALS)
    write_top(run, TRIALS[:1], 1, space="s", data="d", imgsz=64)  # then trial 0 was rank 1
    assert "top/1.json" not in page(run).addresses


def test_every_drawing_is_valid_plotly() -> None:
    import plotly.graph_objects as go

    trials = make_trials()
    info = convergence_info([t for t in trials if t.number >= 0], OBJECTIVES)
    for figure in (
        draw_pareto(pareto_info(trials, "gflops", others=trials[:2])),
        draw_convergence(info),
        draw_convergence(info, "seconds"),
        draw_parallel(parallel_info(trials)),
        draw_importance(importance_info(trials)),
        draw_curves(curves_info(trials, OBJECTIVES)),
    ):
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)


# --- model card ---


def test_model_card(tmp_path: Path) -> None:
    trials = make_trials()
    run = make_run(tmp_path / "demo", trials)
    write_top(run, trials, 2, space="models/yolov5n_nas.yaml", data="d", imgsz=64, versions={"torch": "2"})
    text = write_model_card(run, 1).read_text()
    assert "license: agpl-3.0" in text
    assert "licence: CC BY 4.0 (UCI optical digits)" in text
    assert "The spread between seeds is not known" in text
    assert "First `python hello_nas.py export top/1.json --weights trials/" in text
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None and len(code[1].splitlines()) == 5
    compile(code[1], "card", "exec")

    (run / "top" / "1.pt").write_text("x")
    more = {"epochs": 50, "seeds": [0, 1], "metrics": {"map50_95": 0.8}, "spread": {"map50_95": 0.01}}
    extend_top(run, 1, retrained=more)
    text = write_model_card(run, 1).read_text()
    assert "| 0.8000 ± 0.0100 |" in text
    assert "Retrained for 50 epochs on the full training split with seeds 0, 1, scored on val." in text
    assert "not known" not in text and "export" not in text
    with pytest.raises(UserError, match="no top model 7 in .*; there are: 1, 2"):
        write_model_card(run, 7)


# --- a classifier ---


def as_classifier(trials: list[Trial]) -> list[Trial]:
    """The same trials as a classifier's search would have written them."""
    names = {"map50_95": "top1", "map50": "top5"}

    def renamed(row: dict[str, float]) -> dict[str, float]:
        return {names.get(k, k): v for k, v in row.items()}

    return [replace(t, metrics=renamed(t.metrics), curve=[renamed(e) for e in t.curve or []]) for t in trials]


@pytest.mark.parametrize("bare", [False, True])
def test_a_classifiers_run_speaks_of_top_1_alone(tmp_path: Path, bare: bool) -> None:
    run = make_run(tmp_path / "classes", as_classifier(make_trials()), bare=bare)
    space = tmp_path / "net.yaml"
    space.write_text("network: regnet\n")
    if not bare:
        experiment = yaml.safe_load((run / "experiment.yaml").read_text())
        experiment["search"]["objectives"] = {"top1": "max", "gflops": "min"}
        (run / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    (run / "retrain" / "0002").mkdir(parents=True)
    metrics = {"top1": 0.9, "top5": 1.0, "top1/cat": 0.9}
    (run / "retrain" / "0002" / "result.json").write_text(json.dumps({"metrics": metrics}))
    assert read_run(run).task == "classify"
    write_top(run, read_run(run).trials, 1, space=str(space), data="d", imgsz=32)
    shown = Page(write_report(run).read_text())
    assert "best top-1" in shown.text and "top-5" in shown.text and "Retrained in full" in shown.text
    axes = shown.figures["pareto"]["GFLOPs"]["layout"]
    assert (axes["xaxis"]["title"]["text"], axes["yaxis"]["title"]["text"]) == ("GFLOPs", "top-1")
    assert shown.figures["curves"][""]["layout"]["yaxis"]["title"]["text"] == "top-1"
    assert list(shown.figures["importance"]) == ["reward", "top-1"]
    texts = [shown.text, json.dumps(shown.figures), status(run), write_model_card(run, 1).read_text()]
    table = results_table(read_run(run).trials, read_run(run).objectives).splitlines()
    assert table[0].split()[:2] == ["trial", "top-1"] and "  best top-1" in table[2]
    for text in [*texts, *table]:
        assert not re.search(r"\bm?map(50|\b)", text, re.I), text[:2000]
    card = texts[-1]
    assert card.startswith(
        "---\nlicense: agpl-3.0\nlibrary_name: pytorch\npipeline_tag: image-classification\n"
    )
    assert "A classifier found" in card and "the network 'regnet' of this package" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None and "probabilities = net.predict(images)" in code[1]
    compile(code[1], "card", "exec")


# --- loggers ---


def test_csv_log_grows_columns_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    log = CsvLogger(tmp_path)
    log.log(0, {"loss": 0.1 + 0.2})
    log.log(1, {"loss": 2.0})
    log = CsvLogger(tmp_path)
    log.log(2, {"loss": 1.0, "map50_95": 0.5})
    log.log(3, {"map50_95": 0.6})
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == [
        "step,loss,map50_95",
        "0,0.30000000000000004,",
        "1,2.0,",
        "2,1.0,0.5",
        "3,,0.6",
    ]
    CsvLogger(tmp_path).log(2, {"loss": 0.9})  # resumed from a checkpoint after step 1
    assert (tmp_path / "log.csv").read_text().splitlines()[1:] == lines[1:3] + ["2,0.9,"]


def test_an_unknown_or_absent_logger_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        open_loggers(["tensorbord"], tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_loggers(["wandb"], tmp_path)


def test_csv_is_always_on_and_names_are_opened_once(tmp_path: Path) -> None:
    with open_loggers(["csv", "csv"], tmp_path / "new") as log:
        log.log(0, {"loss": 1.0})
    assert len(log.loggers) == 1
    assert (tmp_path / "new" / "log.csv").read_text() == "step,loss\n0,1.0\n"


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    with open_loggers(["tensorboard"], tmp_path) as log:
        log.log(2, {"map50_95": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors("map50_95")] == [(2, 0.5)]


def test_wandb_and_mlflow_get_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    run = SimpleNamespace(
        log=lambda metrics, step: seen.append((step, metrics)), finish=lambda: seen.append("finish")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: run))
    client = SimpleNamespace(log_metric=lambda i, k, v, step: seen.append((i, k, v, step)))
    mlflow = SimpleNamespace(
        set_experiment=lambda name: None,
        MlflowClient=lambda: client,
        start_run=lambda run_name: SimpleNamespace(info=SimpleNamespace(run_id="r1")),
        end_run=lambda: seen.append("end"),
        log_params=seen.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with open_loggers(["wandb", "mlflow"], tmp_path, config={"lr": 0.1}) as log:
        log.log(3, {"map50_95/dog:1": 0.5})
    assert seen == [
        {"lr": "0.1"},
        (3, {"map50_95/dog:1": 0.5}),
        ("r1", "map50_95/dog_1", 0.5, 3),
        "finish",
        "end",
    ]
