"""What is told of a text that an edit did not find; pure functions."""

from __future__ import annotations

import random
import time

import pytest

from box_mcp.capabilities.nearest import MAX_SECONDS, explain, nearest

PROGRAM = """\
import os


def first(one, two):
    total = one + two
    return total


def second(three):
\treturn three * 2


def third():
    pass
"""
LINES = PROGRAM.splitlines()


@pytest.mark.parametrize(
    ("wanted", "first", "last", "spaces"),
    [
        ("def first(one, two):\n  total = one + two", 4, 5, True),
        ("def second(three):\n    return three * 2\n", 9, 10, True),
        ("total=one+two", 5, 5, True),
        ("two):\ntotal = one + two\n    ret", 4, 6, True),
        ("def first(one, two):\n    total = one - two\n    return total", 4, 6, False),
        ("def frist(one, two):", 4, 4, False),
        ("    return three * 3", 10, 10, False),
        ("# gone\ndef third():\n    pass", 12, 14, False),
        ("# gone\nimport os\n", 1, 1, False),
    ],
)
def test_the_nearest_lines_are_found(wanted: str, first: int, last: int, spaces: bool):
    place = nearest(LINES, wanted.splitlines())
    assert place is not None
    assert (place.first, place.last, place.spaces) == (first, last, spaces)


@pytest.mark.parametrize("wanted", ["", " \n\t\n", "completely different words", "§" * 1000])
def test_what_is_like_nothing_is_said_to_be_so(wanted: str):
    assert nearest(LINES, wanted.splitlines()) is None
    assert explain(PROGRAM, wanted) == "There is nothing like it: read the file again"


def test_an_explanation_shows_the_lines_and_the_first_difference():
    said = explain(PROGRAM, "def second(three):\n    return three * 2\n")
    assert said.splitlines() == [
        (
            "The nearest text is on lines 9-10: only white space is different, line 10 is "
            r"'\treturn three * 2', where `old` has '    return three * 2':"
        ),
        "9\tdef second(three):",
        "10\t\treturn three * 2",
    ]


def test_of_one_line_it_is_enough_to_tell_the_difference():
    assert explain(PROGRAM, "total = one - two") == (
        "The nearest text: line 5 is '    total = one + two', where `old` has 'total = one - two'"
    )


@pytest.mark.parametrize(
    "wanted",
    [
        "9\tdef second(three):\n10\t\treturn three * 2",
        "     5→    total = one + two\n     6→    return total\n",
        "10:\treturn three * 2",
    ],
)
def test_line_numbers_that_were_copied_with_the_text_are_told(wanted: str):
    assert explain(PROGRAM, wanted).startswith("Without the line numbers in `old` it is there")
    assert "nearest" in explain(PROGRAM, wanted.replace("three", "3").replace("two", "2"))


def test_lines_are_counted_as_in_files():
    said = explain("one\x0c\u2028\r\ntwo\r\nthree words here\r\n", "three wordz here")
    assert "line 3 is 'three words here'" in said


def test_a_line_break_that_is_not_there_is_told():
    assert "`old` has a line break" in explain("one\ntwo", "two\n")


def test_long_places_and_long_lines_are_shown_in_part():
    text = "".join(f"{n} {'x' * 1000}\n" for n in range(100))
    said = explain(text, text.replace("50 x", "50 y"))
    assert said.startswith("The nearest text is on lines 1-100: line 51 is '50 xxx")
    assert said.endswith("\n...\n")
    assert len(said) < 4_000


@pytest.mark.parametrize("line", ["x = compute(value, {}) # the same", "{}"])
def test_a_large_file_is_searched_in_bounded_time(line: str):
    text = "\n".join(line.format(number) for number in range(150_000))
    started = time.process_time()
    assert explain(text, "x = compute(valeu, 77777) # the same\nnot there\n" * 100)
    assert time.process_time() - started < 5


def test_a_text_of_lines_that_are_hard_to_compare_takes_no_longer_than_it_may():
    letters = random.Random(1)
    lines = ["".join(letters.choices("ab", k=400)) for _ in range(1000)]
    start = time.monotonic()
    explain("\n".join(lines[1:]), lines[0])
    assert time.monotonic() - start < MAX_SECONDS + 5
