"""The images cannot be built here; everything in them that is ours can be run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from servers import Server
from tasklib.cli.db import _psql

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def parse(lines: list[tuple[int, str]]) -> Any:
    """Read the part of YAML that compose.yaml is written in: blocks, plain scalars, JSON lists."""
    if lines and lines[0][1].startswith("- "):
        return [scalar(text[2:]) for _, text in lines]
    found: dict[str, Any] = {}
    while lines:
        depth, text = lines.pop(0)
        key, colon, value = text.partition(":")
        assert colon, text
        assert key not in found, key
        below = list(take(lines, depth))
        assert not (value.strip() and below), text
        found[key] = scalar(value.strip()) if value.strip() else parse(below)
    return found


def take(lines: list[tuple[int, str]], depth: int) -> Iterator[tuple[int, str]]:
    while lines and lines[0][0] > depth:
        yield lines.pop(0)


def scalar(text: str) -> Any:
    return json.loads(text) if text[0] in '["{' else text


def compose() -> dict[str, Any]:
    lines = [line for line in (DOCKER / "compose.yaml").read_text().splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    return parse([(len(line) - len(line.lstrip()), line.strip()) for line in lines])


SERVICES = compose()["services"]


def substituted(text: str, **values: str) -> str:
    """Fill in ${NAME:-default} as Compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: values.get(m[1], m[2]), text)


def tasklib(*words: str, url: str | None, cwd: Path = ROOT, **env: str) -> Any:
    variables = {"PATH": os.environ["PATH"], "TASKLIB_EMBEDDED": "never", **env}
    if url:
        variables["TASKLIB_DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "tasklib.cli", *words],
        env=variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def empty_database(server: Server, database: str) -> Iterator[str]:
    """A database without the schema."""
    name = f"{conninfo_to_dict(database)['dbname']}_empty"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield make_conninfo(database, dbname=name)
        conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_the_services_start_in_the_right_order() -> None:
    assert set(SERVICES) == {"db", "migrate", "worker"}
    assert SERVICES["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"}
    }
    assert "healthcheck" in SERVICES["db"]
    assert SERVICES["migrate"]["restart"] == "no"


def test_the_services_name_files_that_exist() -> None:
    build = SERVICES["migrate"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    (mount,) = SERVICES["worker"]["volumes"]
    assert (DOCKER / mount.split(":")[0] / "tasks.py").is_file()


def test_all_services_use_the_password_of_the_database() -> None:
    given = substituted(SERVICES["db"]["environment"]["POSTGRES_PASSWORD"], POSTGRES_PASSWORD="s3")
    for name in ("migrate", "worker"):
        url = substituted(
            SERVICES[name]["environment"]["TASKLIB_DATABASE_URL"], POSTGRES_PASSWORD="s3"
        )
        assert conninfo_to_dict(url)["password"] == given == "s3"
        assert conninfo_to_dict(url)["host"] == "db"


def test_the_commands_of_the_services_run(empty_database: str) -> None:
    migrated = tasklib(*SERVICES["migrate"]["command"], url=empty_database)
    assert migrated.returncode == 0, migrated.stderr
    task_id = tasklib("enqueue", "greet", "name=Ada", url=empty_database).stdout.strip()

    app = DOCKER / "app"
    worked = tasklib(*SERVICES["worker"]["command"], "--drain", url=empty_database, cwd=app)

    assert worked.returncode == 0, worked.stderr
    shown = json.loads(tasklib("show", task_id, "--json", url=empty_database).stdout)
    assert shown["result"] == {"value": "Hello, Ada"}


def test_the_worker_stops_within_its_grace_period() -> None:
    from tasklib import Config

    seconds = float(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Config().shutdown_timeout_seconds


def test_the_health_check_of_the_image_works(empty_database: str, database: str) -> None:
    (words,) = re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    check = json.loads(words)[1:]
    assert tasklib(*check, url=database).returncode == 0
    assert tasklib(*check, url=empty_database).returncode == 1
    assert tasklib(*check, url="postgresql://nobody@127.0.0.1:1/none").returncode == 3


def test_a_container_without_a_url_refuses_to_start() -> None:
    started = tasklib("ls", url=None)

    assert started.returncode == 3
    assert "TASKLIB_EMBEDDED=never" in started.stderr
    assert "ENV TASKLIB_EMBEDDED=never" in DOCKERFILE


def test_the_image_runs_as_an_ordinary_user_with_all_that_the_package_needs() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["10001"]
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}


def test_the_install_script_of_the_database_image_installs(empty_database: str) -> None:
    text = (DOCKER / "postgres.Dockerfile").read_text()
    assert "RUN tasklib sql > /install.sql" in text
    assert "COPY --from=sql /install.sql /docker-entrypoint-initdb.d/" in text

    script = tasklib("sql", url=None)
    # As the image's entry point does it: statement by statement, and stop at the first error.
    installed = subprocess.run(
        [_psql(), "-X", "-v", "ON_ERROR_STOP=1", "-q", "-d", empty_database],
        input=script.stdout,
        capture_output=True,
        text=True,
        check=False,
    )

    assert installed.returncode == 0, installed.stderr
    with psycopg.connect(empty_database) as conn:
        assert conn.execute("select tasklib.enqueue('greet')").fetchone()
    assert tasklib("migrate", "--plan", url=empty_database).stdout.endswith("nothing to apply\n")
