"""The group `tasklib`: the options before the command, its help by purpose, its exit codes."""

from __future__ import annotations

import inspect
import sys
from typing import IO, Any, ClassVar

import click
import psycopg

from tasklib.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    NotInstalled,
    TaskLibError,
)

from ._session import Settings

FAILED = 1
UNREACHABLE = 3

EXIT_CODES = """\b
Exit codes:
  0  done, nothing found
  1  something failed, or doctor found something to act on
  2  the command was not understood
  3  no database, or it cannot be reached or used
"""


class Tasklib(click.Group):
    """A group that lists its commands by purpose and turns errors into exit codes."""

    sections: ClassVar[dict[str, list[str]]] = {
        "Start": ["demo", "worker", "migrate", "sql", "db"],
        "Tasks": ["enqueue", "ls", "show", "retry", "cancel", "purge"],
        "Watch": ["queues", "workers", "top", "doctor"],
    }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in the order of need, not of the alphabet."""
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(75)) for name in names]
                )

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises ends as a message, a hint and an exit code."""
        try:
            return super().invoke(ctx)
        except TaskLibError as error:
            raise Refusal.of(error) from error
        except psycopg.Error as error:
            raise Refusal(str(error)) from error


class Refusal(click.ClickException):
    """An error for people: what is wrong, and what to do next."""

    exit_code = FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message.strip())
        self.hint = hint

    @classmethod
    def of(cls, error: TaskLibError) -> Refusal:
        """Make one of an error of the library."""
        hint, kind = error.hint, cls
        if isinstance(error, NotInstalled):
            hint = "Run `tasklib migrate` on this database."
        elif isinstance(error, DatabaseUnavailable):
            hint = hint or "Is the server running? `tasklib --database-url URL ...` names another."
            kind = Unreachable
        elif isinstance(error, ConfigurationError):
            kind = Unreachable
        return kind(str(error.args[0]), hint=hint)

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the error and its hint to standard error."""
        stream = file or sys.stderr
        lines = [f"{click.style('error:', fg='red')} {self.message}"]
        if self.hint:
            lines.append(f"{click.style('hint:', fg='cyan')} {self.hint}")
        click.echo("\n".join(lines), stream, color=self.show_color)


class Unreachable(Refusal):
    """There is no database to work with."""

    exit_code = UNREACHABLE


def with_examples(command: click.Command) -> click.Command:
    """Keep lists and examples in help texts as they are written; click would fill them as prose."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(f"\b\n{text}" if "\n  " in text else text for text in paragraphs)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            with_examples(below)
    return command


pass_settings = click.make_pass_decorator(Settings)
