"""Sizes of images, as people and files say them."""

import pytest

from utils.sides import both, longer, pair, parse_sides, read_sides, scaled, shown, told


def test_a_square_is_its_side_and_anything_else_a_pair():
    assert read_sides(64) == read_sides([64, 64]) == 64
    assert read_sides([64, 96]) == (64, 96) == parse_sides("64x96") == parse_sides(" [64, 96]")
    assert parse_sides("64") == 64 and pair(64) == (64, 64) and pair((64, 96)) == (64, 96)
    assert [shown(64), shown((64, 96)), both(64), longer((64, 96))] == ["64", "64x96", "64 x 64", 96]
    assert [told([64, 96]), told(64), told("any"), told(None)] == ["64x96", "64", "any", "None"]


@pytest.mark.parametrize("wrong", [[64], [64, 96, 3], [64, 96.0], [True, 64], True, None, 64.0, {}, "64"])
def test_what_is_no_size(wrong):
    with pytest.raises(ValueError, match=r"a whole number is needed, or two of them, \[height, width\]"):
        read_sides(wrong)


@pytest.mark.parametrize("wrong", ["", "64x", "64x96x3", "-64", "64.5", "wide", "[64]", "64 96"])
def test_what_is_said_as_no_size(wrong):
    with pytest.raises(ValueError, match="a whole number is needed"):
        parse_sides(wrong)


def test_a_resolution_is_the_longer_side_of_the_same_shape():
    assert scaled(64, 96, 32) == 96
    assert scaled((96, 160), 160, 32) == (96, 160)
    assert scaled((96, 160), 96, 32) == (64, 96)  # 57.6 high, 1.8 strides
    assert scaled((160, 96), 96, 32) == (96, 64)
    assert scaled((32, 320), 64, 32) == (32, 64)  # 6.4: one stride at least
