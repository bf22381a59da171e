"""The command line on the test's database, and a hand to play the worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from psycopg import Connection

from tasklib.cli import main


class Cli(Protocol):
    """Runs the command, and insists on its exit code."""

    def __call__(self, *words: object, code: int = 0) -> Result: ...


@pytest.fixture
def cli(database: str) -> Cli:
    def run(*words: object, code: int = 0) -> Result:
        words = ("--database-url", database, *words)
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == code, f"{result.output}\n{result.exc_info}"
        return result

    return run


@pytest.fixture
def read(cli: Cli) -> Callable[..., Any]:
    """Run a command with --json, and parse its one document."""

    def run(*words: object, code: int = 0) -> Any:
        return json.loads(cli(*words, "--json", code=code).stdout)

    return run


@dataclass
class Worker:
    """A worker that does in SQL what the test wants."""

    conn: Connection[Any]
    id: UUID

    def claim(self, *queues: str) -> tuple[UUID, int]:
        row = self.conn.execute(
            "select id, attempt from tasklib.claim(%s, %s, 1)",
            (self.id, list(queues or ("default",))),
        ).fetchone()
        assert row
        return row

    def fail(self, error: str, *, retry: bool = False) -> UUID:
        task_id, attempt = self.claim()
        self.conn.execute(
            "select tasklib.fail(%s, %s, %s, %s, %s)", (task_id, self.id, attempt, error, retry)
        )
        return task_id

    def complete(self) -> UUID:
        task_id, attempt = self.claim()
        self.conn.execute("select tasklib.complete(%s, %s, %s)", (task_id, self.id, attempt))
        return task_id


@pytest.fixture
def worker(conn: Connection[Any]) -> Worker:
    row = conn.execute("select tasklib.register_worker('by-hand')").fetchone()
    assert row
    return Worker(conn, row[0])
