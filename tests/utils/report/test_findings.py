"""What the report shows of the networks that `evaluate` looked at, against answers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from tests.utils.report.test_report import Page, page, trial
from tests.utils.synthetic import make_run
from utils.report.blueprint import blueprint_info
from utils.report.findings import (
    MOST_LABELS,
    class_rows,
    confusion_info,
    draw_confusion,
    draw_precision_recall,
    findings_of,
    pictures_info,
    precision_recall_info,
    score_title,
)
from utils.report.report import write_report
from utils.report.runs import read_run

TRIALS = [trial(0, 0.50, 4.0), trial(2, 0.55, 3.0)]
NAMES = ["cat", "dog <b>"]
BLOCKS: list[dict[str, Any]] = [
    {"part": "backbone", "name": "0", "kind": "Conv", "channels": 16, "side": 32, "sources": []}
    | {"facts": {"kernel": "6x6", "act": "SiLU"}},
    {"part": "backbone", "name": "1", "kind": "C3", "channels": 64, "side": 16, "sources": []}
    | {"facts": {"bottlenecks": 2, "hidden channels": 32}},
    {"part": "head", "name": "2", "kind": "Detect", "channels": None, "side": None, "sources": ["0", "1"]}
    | {"facts": {}},
]


def findings(**changes: Any) -> dict[str, Any]:
    """Three recall points instead of 101: the arithmetic is the same."""
    box = {"boxes": [[1.0, 2.0, 5.0, 10.0]], "labels": [1]}
    return {
        "weights": "retrain/0002/last.pt",
        "split": "val",
        "metrics": {"map50_95": 0.4, "map50_95/cat": 0.3, "map50_95/dog <b>": 0.5},
        "names": NAMES,
        "objects": [4, 6],
        "curves": {"recall": [0, 0.5, 1], "precision": {"cat": [1.0, 0.5, 0.0], "dog <b>": [1.0, 1.0, 0.4]}},
        "confusion": {"labels": [*NAMES, "background"], "matrix": [[3, 1, 2], [0, 4, 0], [1, 1, 0]]},
        "pictures": [
            {"file": "7.jpg", "name": "x.png", "why": "spread", "width": 20, "height": 10, "mistakes": 1}
            | {"truth": box, "found": box | {"scores": [0.876]}}
        ],
    } | changes


def evaluated(folder: Path, **changes: Any) -> Path:
    """A run whose winner, trial 2, and baseline were looked at."""
    run = make_run(folder, TRIALS)
    for number, kind in ((0, "trials"), (2, "retrain")):
        there = run / "evaluate" / f"{number:04d}"
        there.mkdir(parents=True)
        weights = {"weights": f"{kind}/{number:04d}/x.pt"}
        metrics = {} if number else {"metrics": {"map50_95": 0.3, "map50_95/cat": 0.4}}
        (there / "findings.json").write_text(json.dumps(findings(**weights, **metrics) | changes))
        (there / "network.json").write_text(json.dumps({"imgsz": 64, "blocks": BLOCKS}))
        (there / "7.jpg").write_bytes(b"\xff\xd8 a picture")
    return run


def test_the_winner_comes_first_and_says_which_weights_it_has(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run")
    assert [(f.name, f.trial) for f in findings_of(read_run(run))] == [
        ("trial 2, retrained", 2),
        ("unsearched", 0),
    ]
    (run / "evaluate/0002/findings.json").write_text("{torn")
    assert [f.name for f in findings_of(read_run(run))] == ["unsearched"]
    assert findings_of(read_run(make_run(tmp_path / "none", TRIALS))) == []


def test_precision_recall_is_averaged_over_the_classes(tmp_path: Path) -> None:
    winner, base = findings_of(read_run(evaluated(tmp_path / "run")))
    info = precision_recall_info(winner)
    assert info is not None
    assert info.mean == [1.0, 0.75, 0.2]
    assert info.ap == {"": pytest.approx(0.65), "cat": 0.5, "dog <b>": pytest.approx(0.8)}
    figures = draw_precision_recall([info, info])
    assert list(figures) == ["all classes", "trial 2, retrained, by class"]
    assert [s["name"] for s in figures["all classes"]["data"]] == ["trial 2, retrained, mAP50 0.650"] * 2
    for figure in figures.values():
        go.Figure(figure)
    classifier = evaluated(tmp_path / "classes", curves=None)
    assert precision_recall_info(findings_of(read_run(classifier))[0]) is None


def test_confusion_is_a_share_of_what_is_truly_there(tmp_path: Path) -> None:
    info = confusion_info(findings_of(read_run(evaluated(tmp_path / "run")))[0])
    assert info is not None and info.labels[-1] == "background"
    assert info.counts == [[3, 1, 2], [0, 4, 0], [1, 1, 0]]
    assert [row[0] for row in info.shares] == [0.75, 0.0, 0.25]  # of four cats
    assert [row[1] for row in info.shares] == [pytest.approx(v) for v in (1 / 6, 4 / 6, 1 / 6)]
    go.Figure(draw_confusion(info))


def test_a_large_confusion_keeps_what_is_confused_most_and_the_background(tmp_path: Path) -> None:
    n = 60
    matrix = [[0] * (n + 1) for _ in range(n + 1)]
    for i in range(n):
        matrix[i][i] = 5
    matrix[50][51] = 3  # 51 is taken for 50
    labels = [*(f"c{i}" for i in range(n)), "background"]
    run = evaluated(tmp_path / "run", confusion={"labels": labels, "matrix": matrix})
    info = confusion_info(findings_of(read_run(run))[0])
    assert info is not None
    assert {"c50", "c51", "background"} <= set(info.labels)
    assert len(info.labels) == MOST_LABELS + 1 and info.left_out == n - MOST_LABELS
    assert info.counts[info.labels.index("c50")][info.labels.index("c51")] == 3


def test_classes_have_their_names_and_their_gain_on_the_unsearched_network(tmp_path: Path) -> None:
    rows = class_rows(findings_of(read_run(evaluated(tmp_path / "run"))), "map50_95")
    assert [(r["name"], r["objects"]) for r in rows] == [("cat", 4), ("dog <b>", 6)]
    assert rows[0]["cells"][0] == (0.3, {"value": "0.3000", "gain": "-25.0 %", "tone": "bad"})
    assert [raw for raw, _ in rows[1]["cells"]] == [0.5, None]
    assert (score_title("map50_95"), score_title("top1")) == ("AP50-95", "top-1")


def test_pictures_are_embedded_with_what_is_in_them_and_what_was_found(tmp_path: Path) -> None:
    (shown,) = pictures_info(findings_of(read_run(evaluated(tmp_path / "run")))[0])
    assert shown["uri"] == "data:image/jpeg;base64,/9ggYSBwaWN0dXJl"
    box = {key: shown["truth"][0][key] for key in ("x", "y", "w", "h", "text")}
    assert box == {"x": 1.0, "y": 2.0, "w": 4.0, "h": 8.0, "text": "dog <b>"}
    assert shown["found"][0]["text"] == "dog <b> 0.88" and shown["wrong"] == 1


def test_a_picture_that_is_absent_or_elsewhere_is_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"\xff\xd8 not of this run")
    odd = findings()["pictures"][0]
    pictures = [odd | {"file": "../../../secret.jpg"}, odd | {"truth": None}, odd | {"file": "8.jpg"}, 3]
    found = findings_of(read_run(evaluated(tmp_path / "run", pictures=pictures)))[0]
    assert pictures_info(found) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"curves": 3, "confusion": [], "pictures": {}, "names": None, "objects": "x"},
        {"curves": {"precision": {"cat": [1, "x"]}, "recall": [0, 1]}, "confusion": {"labels": ["a"]}},
        {"confusion": {"labels": ["a"], "matrix": [[1, 2], [3]]}, "pictures": [{"file": 3, "truth": []}]},
    ],
)
def test_findings_that_somebody_spoiled_do_not_break_the_page(tmp_path: Path, changes: Any) -> None:
    assert "What the search found" in page(evaluated(tmp_path / "run", **changes)).text


def test_the_page_shows_all_of_it_offline_and_escaped(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run")
    path = write_report(run, png=False)
    shown = Page(path.read_text())
    for words in ("What it finds", "Precision and recall", "What is taken for what", "Class by class"):
        assert words in shown.text, words
    assert "The architecture of trial 2" in shown.text
    assert list(shown.figures["confusion"]) == ["trial 2, retrained", "unsearched"]
    assert {a.partition(",")[0] for a in shown.addresses if ":" in a} == {"data:", "data:image/jpeg;base64"}
    assert shown.text.count("dog <b>") >= 3 and "dog <b>" not in path.read_text().split("<script>")[0]
    assert path.stat().st_size < 6_000_000


def test_a_classifiers_pictures_have_captions(tmp_path: Path) -> None:
    wrong = {"truth": {"labels": [0]}, "found": {"labels": [1], "scores": [0.6]}}
    pictures = [findings()["pictures"][0] | wrong]
    run = evaluated(tmp_path / "run", pictures=pictures, curves=None)
    history = (run / "history.jsonl").read_text().replace("map50_95", "top1")
    (run / "history.jsonl").write_text(history)
    (run / "experiment.yaml").unlink()
    text = " ".join(page(run).text.split())
    assert "each with its class and what the network says" in text
    assert "dog <b> 0.60 , truly cat" in text or "dog <b> 0.60, truly cat" in text
    assert "Precision and recall" not in text and "What is taken for what" in text


# The drawing of the architecture ----------------------------------------------------------------------------


def drawn(*ours: dict[str, Any], theirs: list[dict[str, Any]] = BLOCKS) -> Any:
    info = blueprint_info(2, {"imgsz": 64, "blocks": list(ours)}, {"imgsz": 32, "blocks": theirs})
    assert info is not None
    return info


def test_the_drawing_says_what_changed_in_each_block() -> None:
    deeper = BLOCKS[1] | {"channels": 16, "facts": {"bottlenecks": 1, "hidden channels": 32}}
    info = drawn(BLOCKS[0], deeper, BLOCKS[2])
    assert (list(info.parts), info.imgsz, info.before, info.changed) == (["backbone", "head"], "64", "32", 1)
    first, second = info.parts["backbone"]
    assert (first.kind, first.size, first.state, first.changes) == (
        "Conv 6x6 SiLU",
        "16 channels, 32 x 32",
        "same",
        [],
    )
    assert second.changes == [("channels", "64", "16"), ("bottlenecks", "2", "1")]
    # 16 of 64 channels are half of the widest by their root, above the least width of 18 %
    assert (second.kind, second.wide, second.before) == ("C3 x 1", 59.0, 100.0)
    assert info.parts["head"][0].reads == "0, 1"


def test_blocks_that_only_one_of_both_has_are_drawn_too() -> None:
    info = drawn(BLOCKS[0], BLOCKS[2])
    assert [b.state for b in info.parts["backbone"]] == ["same", "removed"]
    info = drawn(*BLOCKS, theirs=BLOCKS[:1])
    assert [b.state for b in info.parts["backbone"]] == ["same", "added"]
    assert drawn(*BLOCKS, theirs=[]).changed == 0  # with nothing to compare nothing differs
    assert blueprint_info(2, {"blocks": [3, {"name": "x"}]}, {}) is None
