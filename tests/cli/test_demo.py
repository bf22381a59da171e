"""The demo: run for real on a small folder, and its check, which must see every fault."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from psycopg import Connection

from tasklib import Config
from tasklib.cli import main
from tasklib.cli.demo.check import Outcome, faults
from tasklib.cli.demo.files import default_folder, find_files, read_content
from tasklib.cli.demo.report import report
from tasklib.cli.demo.run import run
from tasklib.cli.demo.store import Store


def make_folder(folder: Path, files: int) -> list[str]:
    folder.mkdir()
    for number in range(files):
        (folder / f"{number}.txt").write_text(f"file number {number}\n" * number)
    return find_files(folder, limit=files)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {}


@pytest.fixture
def outcome(
    outcomes: dict[str, Outcome], database: str, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """The outcome of one real run, which the tests of this file share."""
    if "of a right run" not in outcomes:
        folder = tmp_path_factory.mktemp("demo") / "files"
        outcomes["of a right run"] = run(
            Config(database_url=database), make_folder(folder, 12), workers=2
        )
    return outcomes["of a right run"]


def test_a_right_run_has_no_faults(outcome: Outcome) -> None:
    assert list(faults(outcome)) == []
    assert outcome.held_by_killed
    assert len(outcome.readable) == 12


def test_the_report_tells_what_happened(outcome: Outcome) -> None:
    lines = re.sub(r"  +", "  ", report(Path("/there"), outcome)).splitlines()

    assert any(line.startswith("  files below /there  12 (") for line in lines)
    assert "  hash and words as on disk  12" in lines
    assert "  completed  14" in [line.replace("    ", "  ") for line in lines]
    assert "  retries of the broken file  2" in lines
    assert "  second task, same key  not made, got the first one's id" in lines


def _wrong(outcome: Outcome) -> dict[str, Outcome]:
    """The same outcome with one fault each."""
    first, *rest = outcome.documents
    summary = outcome.summary
    assert summary.scheduled_at
    early = summary.scheduled_at - timedelta(seconds=1)
    return {
        "hash": replace(outcome, documents=[replace(first, sha256="0" * 64), *rest]),
        "missing result": replace(outcome, documents=[replace(first, sha256=None), *rest]),
        "lost task": replace(outcome, documents=[replace(first, state="running"), *rest]),
        "fewer retries": replace(
            outcome, failures=[x for x in outcome.failures if x != outcome.broken[0]]
        ),
        "other error": replace(
            outcome, failures=[replace(failure, error="odd") for failure in outcome.failures]
        ),
        "early start": replace(outcome, summary=summary.model_copy(update={"started_at": early})),
        "wrong sum": replace(outcome, summary=summary.model_copy(update={"result": {"value": 1}})),
        "two of a key": replace(outcome, summary_asked_again=uuid4()),
        "nobody killed": replace(outcome, held_by_killed=set()),
    }


def test_the_check_sees_every_fault(outcome: Outcome) -> None:
    unseen = [what for what, wrong in _wrong(outcome).items() if not list(faults(wrong))]

    assert unseen == []


def test_the_check_reads_the_disk(outcome: Outcome) -> None:
    path = Path(outcome.readable[5].path)
    before = path.read_bytes()
    path.write_bytes(before + b"changed")
    try:
        assert any(str(path) in fault for fault in faults(replace(outcome)))
    finally:
        path.write_bytes(before)


def test_the_command_ends_with_1_when_something_differs(
    outcome: Outcome, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _wrong(outcome)["hash"]
    monkeypatch.setattr("tasklib.cli.demo.run.run", lambda *_: wrong)
    make_folder(tmp_path / "files", 3)

    words = ["--database-url", database, "demo", str(tmp_path / "files")]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 1
    assert "is not what is on disk" in result.stderr


def test_it_works_on_the_smallest_folders_and_a_second_time(database: str, tmp_path: Path) -> None:
    for files in (1, 3):
        folder = tmp_path / f"{files} files"
        make_folder(folder, files)

        words = ["--database-url", database, "demo", str(folder), "--workers", "1"]
        result = CliRunner().invoke(main, words)

        assert result.exit_code == 0, result.output
        assert "All of it was checked" in result.stdout


def test_it_gives_up_what_an_interrupted_run_left_behind(
    database: str, conn: Connection[Any]
) -> None:
    conn.execute("select tasklib.enqueue('demo.index_document', queue => 'tasklib_demo')")
    conn.execute("select tasklib.enqueue('app.other')")

    Store(conn).set_up()

    rows = conn.execute("select name, state from tasklib.tasks order by name").fetchall()
    assert rows == [("app.other", "pending"), ("demo.index_document", "cancelled")]


def test_two_demos_do_not_share_a_database(
    make_conn: Callable[[], Connection[Any]], database: str, tmp_path: Path
) -> None:
    assert Store(make_conn()).alone()
    make_folder(tmp_path / "files", 2)

    words = ["--database-url", database, "demo", str(tmp_path / "files")]
    result = CliRunner().invoke(main, words)

    assert result.exit_code == 1
    assert "another demo is running" in result.stderr


def test_ctrl_c_leaves_no_worker_behind(database: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "files", 200)
    words = ["--database-url", database, "demo", str(tmp_path / "files")]
    demo = subprocess.Popen(
        [sys.executable, "-m", "tasklib.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout
    for line in demo.stdout:
        if "finished" in line:
            break
    os.kill(demo.pid, signal.SIGINT)
    demo.communicate(timeout=30)

    assert demo.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)


def test_an_empty_folder_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", str(tmp_path)])

    assert result.exit_code == 2
    assert "no readable file" in result.stderr


def test_files_are_found_in_a_stable_order_without_links_and_hidden_folders(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", ".git/x", "node_modules/y", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to(tmp_path / "c.txt")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")

    found = [os.path.relpath(path, tmp_path) for path in find_files(tmp_path, limit=10)]

    assert found == ["c.txt", "a/1.txt", "b/2.txt"]
    assert len(find_files(tmp_path, limit=2)) == 2


def test_content_counts_words_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff two\nthree\x00 ")

    content = read_content(str(tmp_path / "x"))

    assert (content.bytes, content.words) == (13, 3)


def test_the_default_folder_has_files() -> None:
    assert len(find_files(default_folder(), limit=100)) == 100
