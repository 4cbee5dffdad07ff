"""Texts that no reader survives are one line; all others are what PyYAML and json say."""

import json
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import Malformed, UserError
from utils.json_text import parse_json
from utils.yaml_text import DEEPEST, load_yaml, parse_yaml, short

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
)
CHAIN = "- &a0 [x]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 5000))
YAMLS = {
    "flow levels": ("a: " + "[" * 100_000, "nested too deeply, more than 100 levels at line 1"),
    "flow mappings": ("{a: " * 100_000, "nested too deeply, more than 100 levels"),
    "block levels": ("- " * 100_000 + "x", "nested too deeply, more than 100 levels"),
    "indents": (
        "".join(f"{' ' * i}a:\n" for i in range(1000)),
        "nested too deeply, more than 100 levels at line 101",
    ),
    "a billion laughs": (LAUGHS, "its aliases (*) stand for more than 1,000,000 values at line 7"),
    "a billion merges": (MERGES, "its aliases (*) stand for more than 1,000,000 values"),
    "a chain of aliases": (CHAIN, "nested too deeply, more than 100 levels at line 101"),
    "a list in itself": ("a: &a [*a]", "its aliases (*) stand for themselves: *a at line 1"),
    "a mapping in itself": ("&a {b: {c: *a}}", "its aliases (*) stand for themselves: *a"),
    "no such anchor": ("a: *b", "found undefined alias 'b' at line 1"),
    "an open list": ("a: 1\nb: [1, 2\n", "expected ',' or ']', but got '<stream end>' at line 3"),
    "two documents": ("a: 1\n---\nb: 2\n", "but found another document at line 2"),
    "python": ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    "a date that is none": ("when: 2024-13-45", "month must be in 1..12"),
    "a tagged date": ("when: !!timestamp soon", ""),
    "a tagged truth": ("a: !!bool maybe", "'maybe'"),
    "a tagged nothing": ("a: !!int ''", "index out of range"),
    "a number of no digits": ("a: 0x_", "invalid literal"),
    "a number of many digits": ("a: " + "9" * 5000, "Exceeds the limit"),
    "a control character": ("a: \x00", "special characters are not allowed"),
    "a list as key": ("? [a]\n: b", "found unhashable key at line 1"),
}
JSONS = {
    "lists": ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "it is nested too deeply"),
    "a few hundred": ("[" * 500 + "]" * 500, "it is nested too deeply, more than 100 levels"),
    "open": ('{"a": ', "Expecting value: line 1 column 7 (char 6)"),
    "a number of many digits": ("[" + "9" * 5000 + "]", "Exceeds the limit"),
    "no text": (b"\xff\xfe\x00\x01\x02", ""),
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_bad_yaml_is_one_line_at_once(name):
    text, message = YAMLS[name]
    started = time.process_time()
    with pytest.raises(Malformed) as caught:
        parse_yaml(text)
    assert time.process_time() - started < 2
    said = str(caught.value)
    assert message in said and said and "\n" not in said and len(said) < 300


@pytest.mark.parametrize("name", JSONS)
def test_a_bad_json_is_one_line(name):
    text, message = JSONS[name]
    with pytest.raises(Malformed) as caught:
        parse_json(text)
    said = str(caught.value)
    assert message in said and said and "\n" not in said and len(said) < 300


def test_what_people_write_is_read_as_before():
    shared = "base: &base {epochs: 3, lr: [1e-3, 0.1]}\nlong: {<<: *base, epochs: 60}\nsame: *base\n"
    assert parse_yaml(shared) == yaml.safe_load(shared)
    assert parse_yaml("") is None and parse_yaml("a: 2024-01-02") == yaml.safe_load("a: 2024-01-02")
    assert parse_yaml("names: [no, 007, {1e3: yes}]\nb: no", as_text=("names",)) == {
        "names": ["no", "007", {"1e3": "yes"}],
        "b": False,
    }
    many = "names: &n [" + ", ".join(map(str, range(6_000))) + "]\nagain: *n\n"
    assert len(parse_yaml(many)["again"]) == 6_000
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST) is not None  # the limit itself
    with pytest.raises(Malformed):
        parse_yaml("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    with pytest.raises(Malformed):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    assert parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), deepest=None) is not None
    assert parse_json('{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}


def test_the_error_of_a_user_names_the_file_and_shows_a_part_of_the_value():
    with pytest.raises(UserError, match=r"^space s.yaml is not YAML: found undefined alias 'b' at line 2$"):
        load_yaml("c: 1\na: *b", "space s.yaml")
    assert short("a\nb") == r"'a\nb'" and short([0] * 100) == "[" + "0, " * 18 + "0," + "..."


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_each_reader_of_a_text_has_values_of_its_own():
    text = "a: [1, {b: 2}]"
    first = parse_yaml(text)
    first["a"][1]["b"] = 3
    assert parse_yaml(text) == {"a": [1, {"b": 2}]}
    assert parse_yaml(text, as_text=("a",)) == {"a": ["1", {"b": "2"}]}


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_what_was_dumped_comes_back(value):
    assert parse_json(json.dumps(value)) == value
    text = yaml.safe_dump(value)
    assert parse_yaml(text) == yaml.safe_load(text)


@settings(max_examples=300, deadline=None)
@given(st.text("{}[]&*!<:?-, |>'\"\n\t#%@`ab01.~=_", max_size=40))
def test_any_text_is_read_as_pyyaml_reads_it_or_is_malformed(text):
    try:
        found = parse_yaml(text)
    except Malformed as error:
        assert str(error) and "\n" not in str(error)
        return
    assert repr(found) == repr(yaml.safe_load(text))
