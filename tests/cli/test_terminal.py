"""What a person at a terminal sees, and a log does not."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import Cli, Worker


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, *words: str, **env: str) -> None:
        self._screen, end = pty.openpty()
        # A shell that starts the tests in the background has them ignore SIGINT, and so their
        # children; a handler, unlike that, ends at exec.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasklib.cli", *words],
                stdin=end,
                stdout=end,
                stderr=end,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **env},
            )
        finally:
            signal.signal(signal.SIGINT, before)
        os.close(end)

    def read_until(self, word: str) -> str:
        """Read the screen until a word is on it, or to the end; fail after a minute."""
        seen = b""
        deadline = time.monotonic() + 60
        with suppress(OSError):  # the last writer is gone
            while word.encode() not in seen:
                assert time.monotonic() < deadline, f"no end, and no {word!r}: {seen[-500:]!r}"
                if select.select([self._screen], [], [], 1)[0]:
                    more = os.read(self._screen, 4096)
                    if not more:
                        break
                    seen += more
        return seen.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(database: str) -> Generator[Open]:
    opened: list[Terminal] = []

    def run(*words: str, **env: str) -> Terminal:
        opened.append(Terminal("--database-url", database, *words, **env))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def test_states_have_colours_unless_somebody_does_not_want_them(
    cli: Cli, terminal: Open, worker: Worker
) -> None:
    cli("enqueue", "app.mail")
    worker.complete()

    assert "\x1b[32mcompleted\x1b[0m" in terminal("ls").read_until("never")
    assert "\x1b[" not in terminal("ls", NO_COLOR="1").read_until("never")
    assert "\x1b[" not in cli("ls").stdout


def test_long_lines_are_cut_at_the_edge(cli: Cli, terminal: Open, worker: Worker) -> None:
    cli("enqueue", "app.mail")
    worker.fail("ValueError: " + "x" * 500)

    line = terminal("ls", NO_COLOR="1").read_until("never").splitlines()[1]

    assert len(line) == 100
    assert line.endswith("…")
    assert "x" * 500 in cli("ls").stdout


def test_top_is_renewed_until_ctrl_c(cli: Cli, terminal: Open, worker: Worker) -> None:
    live = terminal("top", "--every", "0.1s")
    live.read_until("by-hand")
    cli("enqueue", "app.mail", "-q", "brand-new")

    assert "brand-new" in live.read_until("brand-new")

    live.process.send_signal(signal.SIGINT)
    live.read_until("never")
    assert live.process.wait(timeout=10) == 0


def test_the_banner_fits_the_screen(
    terminal: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many.py").write_text(
        "import tasklib\nfor n in range(50):\n    tasklib.task(name=f'app.task{n}')(lambda: None)\n"
    )
    monkeypatch.chdir(tmp_path)

    lines = terminal("worker", "many", "--drain").read_until("takes tasks").splitlines()

    (first,) = [n for n, line in enumerate(lines) if line.startswith("  tasks ")]
    assert lines[first + 1].startswith(" " * 15 + "app.task")
    assert max(map(len, lines[: first + 5])) <= 100


def test_a_drain_shows_how_far_it_is_and_prints_above_that(
    cli: Cli, terminal: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(
        "import os, time, tasklib\n"
        "@tasklib.task(name='app.hold')\n"
        "def hold():\n"
        "    print('held', flush=True)\n"
        "    while not os.path.exists('go'):\n"
        "        time.sleep(0.05)\n"
    )
    monkeypatch.chdir(tmp_path)
    cli("enqueue", "app.hold")
    screen = terminal("worker", "app", "--drain")

    screen.read_until("0 completed, 1 in hand")
    (tmp_path / "go").touch()

    assert "done: 1 completed" in screen.read_until("never")
    assert screen.process.wait(timeout=10) == 0


def test_an_error_is_red_on_a_terminal(terminal: Open) -> None:
    assert "\x1b[31merror:\x1b[0m" in terminal("show", "0" * 32).read_until("never")
