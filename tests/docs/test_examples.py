"""Every example does what its README says."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from tasklib import _binaries

from .snippets import ROOT
from .test_pages import environment, url

Run = Callable[..., str]


@pytest.fixture
def env(database: str) -> dict[str, str]:
    found = environment(database)
    if shutil.which("psql") is None:
        found["PATH"] += f":{_binaries.find().folder}"
    return found


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of the example that the test is named after."""
    name = request.node.name.removeprefix("test_the_").removesuffix("_example")
    return shutil.copytree(ROOT / "examples" / name, tmp_path / name)


@pytest.fixture
def run(folder: Path, env: dict[str, str]) -> Run:
    """Run a command in the folder of the example; it has to end well."""

    def call(*command: str) -> str:
        ran = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=90
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    return call


@pytest.fixture
def start(folder: Path, env: dict[str, str]) -> Generator[Callable[..., None]]:
    """Start a command that goes on until the test ends."""
    started: list[subprocess.Popen[bytes]] = []
    yield lambda *command: started.append(subprocess.Popen(command, cwd=folder, env=env))
    for process in started:
        process.terminate()
        process.wait(timeout=30)


def request(path: str, **options: Any) -> tuple[int, Any]:
    """Ask a web server that may be starting still; return status and JSON."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(urllib.request.Request(path, **options)) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"nobody answers at {path}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_trigger_to_task_example(run: Run, conn: Connection, folder: Path) -> None:
    conn.execute((folder / "schema.sql").read_text())
    conn.execute("insert into document (body) values ('one two three'), ('four')")
    conn.execute("update document set body = 'four five' where body = 'four'")
    assert conn.execute("select count(*) from tasklib.tasks").fetchone() == (2,)

    run("tasklib", "worker", "tasks", "--drain")

    rows = conn.execute("select words from document order by id").fetchall()
    assert rows == [(3,), (2,)]


FASTAPI = """
import app
from fastapi.testclient import TestClient

with TestClient(app.app) as client:
    posted = client.post("/send-email", json={"to": "ada@example.org", "subject": "Hi"})
    assert posted.status_code == 202, posted.text
    task_id = posted.json()["task_id"]
    assert client.get(f"/task/{task_id}").json()["state"] == "pending"
    assert client.post("/send-email", json={"to": 1}).status_code == 422
    assert client.get("/task/00000000-0000-7000-8000-000000000000").status_code == 404
print(task_id)
"""


def test_the_fastapi_app_example(run: Run, conn: Connection) -> None:
    task_id = run(sys.executable, "-c", FASTAPI).strip()
    run("tasklib", "worker", "tasks", "--drain")
    told = run(
        sys.executable,
        "-c",
        "import app; from fastapi.testclient import TestClient;"
        f"print(TestClient(app.app).get('/task/{task_id}').text)",
    )
    assert json.loads(told) == {
        "id": task_id,
        "state": "completed",
        "is_terminal": True,
        "result": "sent to ada@example.org: Hi",
        "error": None,
    }


def test_the_django_app_example(
    run: Run, start: Callable[..., None], conn: Connection, env: dict[str, str]
) -> None:
    port = free_port()
    env["PYTHONPATH"] = "."
    run(sys.executable, "manage.py", "migrate")
    start(sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}")

    status, bought = request(f"http://127.0.0.1:{port}/buy", data=b"email=ada@example.org")
    assert status == 202
    status, refused = request(f"http://127.0.0.1:{port}/buy", data=b"email=nobody")
    assert status == 400, refused

    assert conn.execute("select id::text from tasklib.tasks").fetchall() == [(bought["task"],)]
    run("tasklib", "worker", "worker", "--drain")
    assert conn.execute("select email, receipt_sent from shop_order").fetchall() == [
        ("ada@example.org", True)
    ]


def test_the_sqlalchemy_session_example(run: Run, conn: Connection) -> None:
    assert "neither order nor task is stored" in run(sys.executable, "orders.py")
    assert conn.execute("select count(*) from tasklib.tasks").fetchone() == (1,)

    run("tasklib", "worker", "orders", "--drain")

    rows = conn.execute("select email, receipt_sent from customer_order").fetchall()
    assert rows == [("ada@example.org", True)]
    assert conn.execute("select state from tasklib.tasks").fetchall() == [("completed",)]


def test_the_psql_consumer_example(run: Run, conn: Connection, database: str) -> None:
    for text in ("hello", "it's; drop schema tasklib", "fail"):
        conn.execute(
            "select tasklib.enqueue('shell.sha256', jsonb_build_object('text', %s::text))", [text]
        )

    run("./consumer.sh", url(database))

    rows = conn.execute(
        "select kwargs ->> 'text', state, left(result ->> 'sha256', 8), error"
        " from tasklib.tasks order by id"
    ).fetchall()
    assert rows == [
        ("hello", "completed", "2cf24dba", None),
        ("it's; drop schema tasklib", "completed", "b6d1b851", None),
        ("fail", "failed", None, "told to fail"),
    ]
    assert conn.execute("select status from tasklib.worker_health").fetchall() == [("ended",)]
