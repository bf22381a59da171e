"""The help teaches: what a command does, with an example that can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from tasklib.cli import main
from tasklib.cli._app import Tasklib


def every_command(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *path, name)


COMMANDS = sorted(every_command(main))


def help_of(*path: str) -> str:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_and_shows_an_example(path: tuple[str, ...]) -> None:
    text = help_of(*path)

    _, _, examples = text.partition("Example")
    assert f"tasklib {' '.join(path)}" in examples or "tasklib --database-url" in examples


def examples() -> Iterator[list[str]]:
    for path in COMMANDS:
        for line in help_of(*path).splitlines():
            words = line.strip().split(" | ")[0]
            if words.startswith("tasklib "):
                yield shlex.split(words)[1:]


@pytest.mark.parametrize("words", list(examples()), ids=" ".join)
def test_examples_are_words_that_the_command_takes(words: list[str]) -> None:
    context = main.make_context("tasklib", list(words))
    while isinstance(context.command, click.Group) and context._protected_args:
        name, command, rest = context.command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert name is not None
        assert command is not None
        context = command.make_context(name, rest, parent=context)


def test_every_command_has_its_place_in_the_help() -> None:
    listed = [name for names in Tasklib.sections.values() for name in names]

    assert sorted(listed) == sorted(main.commands)


def test_the_exit_codes_are_documented() -> None:
    assert "Exit codes:" in help_of()


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["wrok"]).exit_code == 2
