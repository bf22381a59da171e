"""Run the snippets of one page as a reader would: from top to bottom, in an empty folder.

    TASKLIB_DATABASE_URL=… python tests/docs/run_page.py docs/tutorial.md

Python snippets share one namespace and one event loop, SQL snippets one psql session, commands one
folder. A Python snippet whose first line is a path (``# app/tasks.py``) is written to that file.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import types
from pathlib import Path

import psycopg
import yaml
from snippets import PARSED, Snippet, missing, parse

from tasklib import _binaries

DONE = "-- done --"
_PATH = re.compile(r"# ([\w/.-]+\.\w+)\n")


class Failure(Exception):
    """A snippet does not do what the page says."""


class Page:
    """What the snippets of a page share."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._loop = asyncio.Runner()
        self._module = types.ModuleType("page")
        self._psql: subprocess.Popen[str] | None = None
        self._others: list[tuple[str, subprocess.Popen[bytes]]] = []
        sys.modules["page"] = self._module
        sys.path.insert(0, os.getcwd())

    def run(self, snippet: Snippet) -> None:
        """Do what a reader does with the snippet."""
        if snippet.marker == "not run:":
            if not snippet.argument:
                raise Failure("'not run' says no reason")
            return
        match snippet.language:
            case "python" if path := _PATH.match(snippet.text):
                self._write(path[1], snippet.text)
            case "python":
                self._expect(snippet, self._python(snippet.text))
            case "sql":
                self._expect(snippet, self._sql(snippet))
            case "console":
                self._console(snippet)
            case "yaml":
                list(yaml.safe_load_all(snippet.text))
            case "json":
                json.loads(snippet.text)
            case "toml":
                tomllib.loads(snippet.text)
            case language if language not in PARSED:
                raise Failure(f"a fence of an unknown language {language!r}")
            case _:
                pass

    def close(self) -> None:
        """End what goes on; every command has to end well."""
        for command, process in self._others:
            process.send_signal(signal.SIGTERM)
            if code := process.wait(timeout=30):
                raise Failure(f"{command}: exit code {code}")
        if self._psql is not None:
            self._psql.communicate()
        self._loop.close()

    def kill(self) -> None:
        """End what goes on, whatever comes of it."""
        for _, process in self._others:
            process.kill()

    def _write(self, name: str, text: str) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _python(self, text: str) -> str:
        code = compile(text, "<snippet>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        namespace = self._module.__dict__
        with contextlib.redirect_stdout(io.StringIO()) as output:
            if code.co_flags & inspect.CO_COROUTINE:
                self._loop.run(eval(code, namespace))
            else:
                exec(code, namespace)
        return output.getvalue()

    def _sql(self, snippet: Snippet) -> str:
        raises = snippet.marker == "raises"
        if self._psql is None:
            self._psql = subprocess.Popen(
                ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", self.url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
        assert self._psql.stdin
        assert self._psql.stdout
        stop = "off" if raises else "on"
        self._psql.stdin.write(
            f"\\set ON_ERROR_STOP {stop}\n{snippet.text}\n\\echo {DONE} :LAST_ERROR_SQLSTATE\n"
        )
        self._psql.stdin.flush()
        lines: list[str] = []
        for line in self._psql.stdout:
            if line.startswith(DONE):
                code = line.removeprefix(DONE).strip()
                break
            lines.append(line)
        else:
            raise Failure("".join(lines))
        output = "".join(lines)
        if raises and not ("ERROR:" in output and code == snippet.argument):
            raise Failure(f"{snippet.argument} was to be raised, not {code}:\n{output}")
        return output

    def _console(self, snippet: Snippet) -> None:
        words = re.split(r"^\$ ", snippet.text, flags=re.MULTILINE)
        if words[0].strip():
            raise Failure("a console snippet begins with a command: $ …")
        for part in words[1:]:
            command, shown = _split(part)
            if snippet.marker == "second terminal":
                self._start(command)
                continue
            ran = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {command}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=90,
            )
            if ran.returncode != 0:
                raise Failure(f"$ {command}\nexit code {ran.returncode}:\n{ran.stdout}")
            if line := missing(shown, ran.stdout):
                raise Failure(f"$ {command}\nno such line: {line}\n{ran.stdout}")

    def _start(self, command: str) -> None:
        """Start a worker that goes on; readers look at it when it has said hello."""
        process = subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL)
        self._others.append((command, process))
        with psycopg.connect(self.url, autocommit=True) as connection:
            for _ in range(300):
                if connection.execute("select 1 from tasklib.worker_health where alive").fetchone():
                    return
                time.sleep(0.1)
        raise Failure(f"{command}: no worker registered")

    def _expect(self, snippet: Snippet, output: str) -> None:
        if snippet.output and (line := missing(snippet.output, output)):
            raise Failure(f"no such line: {line}\nThe output is:\n{output}")


def _split(part: str) -> tuple[str, str]:
    """Return a command, which a backslash continues, and the output below it."""
    lines = part.splitlines()
    end = 1
    while lines[end - 1].endswith("\\"):
        end += 1
    return "\n".join(lines[:end]), "\n".join(lines[end:])


def main(path: Path) -> None:
    """Run a page; say where it fails."""
    if shutil.which("psql") is None:
        os.environ["PATH"] += f":{_binaries.find().folder}"
    page = Page(os.environ["TASKLIB_DATABASE_URL"])
    snippet = None
    try:
        for snippet in parse(path.read_text()):
            page.run(snippet)
        page.close()
    except BaseException as error:
        where = f"{path}:{snippet.line}" if snippet else str(path)
        print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr)
        page.kill()
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
