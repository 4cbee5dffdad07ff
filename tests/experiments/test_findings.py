"""Which pictures the step `evaluate` shows."""

from __future__ import annotations

from experiments.findings import SPREAD, WRONG, chosen


def test_pictures_are_spread_evenly_and_the_worst_of_the_others_follow() -> None:
    truths = [{"labels": [0]}] * 10 + [{"labels": []}]
    mistakes = [9, 0, 3, 0, 5, 0, 0, 1, 0, 0, 4]
    # four of the ten with objects, evenly; the worst of the rest, the empty one among them
    assert chosen(truths, mistakes) == [
        ("spread", 0),
        ("spread", 3),
        ("spread", 6),
        ("spread", 9),
        ("mistakes", 4),
        ("mistakes", 10),
        ("mistakes", 2),
        ("mistakes", 7),
    ]


def test_few_images_are_shown_once_and_none_without_objects() -> None:
    assert chosen([{"labels": [0]}], [0]) == [("spread", 0)]
    assert chosen([{"labels": []}], [0]) == []
    many = chosen([{"labels": [0]}] * 100, [1] * 100)
    assert len(many) == SPREAD + WRONG and len({i for _, i in many}) == len(many)
