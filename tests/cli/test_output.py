"""How values are read from the command line, and how they are printed."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import click
import pytest

from tasklib.cli._output import as_called, format_cell, format_duration, format_table
from tasklib.cli._types import duration, names


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("250ms", 0.25),
        ("15m", 900),
        ("15min", 900),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2W", 1209600),
        ("30d", 2592000),
    ],
)
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "5 parsecs", "-5s", "1h!", "h", "1e3", "9" * 30 + "d"]
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"length of time|longer than"):
        duration(text)


def test_names_lose_spaces_and_repetitions() -> None:
    assert names("mail, default,mail") == ["mail", "default"]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="empty name"):
        names("mail,,default")


def test_a_table_aligns_numbers_right_and_text_left() -> None:
    table = format_table(["name", "n_tasks"], [["a", 5], ["long", 1234], ["b", None]])

    assert table.splitlines() == [
        "name  n tasks",
        "a           5",
        "long     1234",
        "b           -",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4 ms"),
        (2.25, "2.2 s"),
        (61, "1 min 1 s"),
        (3661, "1 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_cell_keeps_to_one_line() -> None:
    assert format_cell("two\n  lines") == "two lines"


def test_who_has_not_activated_the_environment_is_told_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "tasklib"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")

    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    assert as_called() == "bin/tasklib"
    monkeypatch.setattr(sys, "argv", ["/lib/tasklib/cli/__main__.py"])
    assert as_called() == f"{sys.executable} -m tasklib.cli"
    monkeypatch.setenv("PATH", str(program.parent))
    assert as_called() == "tasklib"
