from utils.errors import UserError, did_you_mean, unknown


def test_a_near_name_is_offered():
    error = unknown("strategy", "evolutoin", ["random", "evolution"])
    assert str(error) == "unknown strategy 'evolutoin'; did you mean 'evolution'? known: random, evolution"


def test_nothing_near_lists_what_is_known():
    assert str(unknown("step", "xyz", ["search"])) == "unknown step 'xyz'; known: search"
    assert did_you_mean("xyz", ["search"]) == ""


def test_a_long_value_is_cut_in_its_middle():
    said = str(UserError(f"no file {'x' * 20_000} here"))
    assert len(said) < 4100 and said.startswith("no file xxx") and said.endswith("xxx here")
