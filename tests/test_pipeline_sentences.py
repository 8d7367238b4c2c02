"""Messages that stay readable whatever value they quote."""

import pytest

from pipeline.request.sentences import one_line


@pytest.mark.parametrize(
    ("value", "begins", "ends"),
    [
        pytest.param("9" * 5000, "99", "99", id="digits"),
        pytest.param(repr("a b " * 999), "'a b", "b '", id="text"),
        pytest.param(repr(list(range(9999))), "[0, 1,", "9998]", id="list"),
        pytest.param(repr({"key": ["word "] * 99}), "{'key'", "]}", id="object"),
        pytest.param("[" * 100_000, "[[", "[[", id="brackets"),
    ],
)
def test_long_values_are_cut_in_their_middle(value, begins, ends):
    said = one_line(f"seed {value} is outside 0 to 9; use less")
    assert said.startswith(f"seed {begins}") and said.endswith(f"{ends} is outside 0 to 9; use less")
    assert " … " in said and len(said) < 250


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("width 830 is not a multiple of 16; try 816 or 832", id="short"),
        pytest.param(f"cannot read /{'folder/' * 40}file.json: Permission denied", id="path"),
        pytest.param(f"LongCat's {'word ' * 40}FastVideo's end", id="apostrophes"),
        pytest.param(f"seed {'9' * 80} is outside", id="just not long"),
    ],
)
def test_the_rest_stays(message):
    assert one_line(message) == message


def test_everything_ends_somewhere():
    said = one_line("word\n" * 99_999 + "the remedy")
    assert len(said) <= 600 and said.endswith("the remedy") and "\n" not in said
