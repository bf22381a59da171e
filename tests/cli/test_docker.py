"""The images cannot be built here; everything in them that is ours can be run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from private_server import PrivateServer, private_server
from servers import Server
from tasklib import Config, _extension
from tasklib.cli import _supervised
from tasklib.cli.db import _psql

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
MANIFESTS = {
    document["kind"]: document
    for path in (DOCKER / "kubernetes").glob("*.yaml")
    for document in yaml.safe_load_all(path.read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
JOB = MANIFESTS["Job"]["spec"]["template"]["spec"]


def stages() -> dict[str, str]:
    """Return the lines of each stage of the Dockerfile, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    _, *parts = re.split(r"^FROM ", text, flags=re.MULTILINE)
    return {part.split("\n")[0].rpartition(" AS ")[2]: part for part in parts}


def substituted(text: str, **values: str) -> str:
    """Fill in ${NAME:?message} as Compose does."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda m: values[m[1]], text)


def environment(url: str | None, **env: str) -> dict[str, str]:
    variables = {"PATH": os.environ["PATH"], "TASKLIB_EMBEDDED": "never", **env}
    variables |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return variables | ({"TASKLIB_DATABASE_URL": url} if url else {})


def tasklib(*words: str, url: str | None, cwd: Path = ROOT, **env: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "tasklib.cli", *words],
        env=environment(url, **env),
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


# ---- Compose


def test_the_services_start_in_the_right_order() -> None:
    assert set(SERVICES) == {"db", "migrate", "worker"}
    assert SERVICES["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"}
    }
    assert "healthcheck" in SERVICES["db"]
    assert SERVICES["migrate"]["restart"] == "no"


def test_the_services_name_files_and_stages_that_exist() -> None:
    for name in ("db", "migrate"):
        build = SERVICES[name]["build"]
        context = (DOCKER / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
    assert SERVICES["db"]["build"]["target"] in stages()
    assert list(stages())[-1] == "worker"  # what is built when no stage is named
    (mount,) = SERVICES["worker"]["volumes"]
    assert (DOCKER / mount.split(":")[0] / "tasks.py").is_file()


def test_the_services_log_in_with_the_passwords_of_the_database() -> None:
    passwords = {"POSTGRES_PASSWORD": "s3", "WORKER_PASSWORD": "s4"}
    database = SERVICES["db"]["environment"]
    for name, variable, role in (
        ("migrate", "POSTGRES_PASSWORD", "postgres"),
        ("worker", "TASKLIB_WORKER_PASSWORD", "worker"),
    ):
        url = substituted(SERVICES[name]["environment"]["TASKLIB_DATABASE_URL"], **passwords)
        parts = conninfo_to_dict(url)
        assert parts["password"] == substituted(database[variable], **passwords)
        assert (parts["user"], parts["host"]) == (role, "db")


def test_no_password_is_written_down() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert value.startswith("${")
            else:
                assert ":${" in value.partition("@")[0]
    assert not re.search(r"(?i)password|secret|token|://\S+:", "".join(stages().values()))


def test_the_commands_of_the_services_run(empty_database: str) -> None:
    migrated = tasklib(*SERVICES["migrate"]["command"], url=empty_database)
    assert migrated.returncode == 0, migrated.stderr
    task_id = tasklib("enqueue", "greet", "name=Ada", url=empty_database).stdout.strip()

    app = DOCKER / "app"
    worked = tasklib(*SERVICES["worker"]["command"], "--drain", url=empty_database, cwd=app)

    assert worked.returncode == 0, worked.stderr
    shown = json.loads(tasklib("show", task_id, "--json", url=empty_database).stdout)
    assert shown["result"] == {"value": "Hello, Ada"}


# From the end of the time for running tasks to the end of the process: children that are killed,
# outcomes that are sent, good-bye to the database.
LEAVING_SECONDS = Config().kill_grace_seconds + _supervised.LEAVE_SECONDS


def test_the_worker_stops_within_its_grace_period() -> None:
    seconds = float(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= Config().shutdown_timeout_seconds + LEAVING_SECONDS


def test_the_worker_may_do_no_more_than_it_has_to() -> None:
    worker = SERVICES["worker"]
    assert worker["read_only"] is True
    assert worker["tmpfs"] == ["/tmp"]  # for what --live looks at
    assert worker["cap_drop"] == ["ALL"]
    assert worker["security_opt"] == ["no-new-privileges:true"]
    assert worker["init"] is True


# ---- the image of the worker


def json_of(instruction: str) -> list[str]:
    (words,) = re.findall(rf"^{instruction} (\[.*\])$", stages()["worker"], re.MULTILINE)
    return json.loads(words)


def test_a_container_without_a_url_refuses_to_start() -> None:
    started = tasklib("ls", url=None)

    assert started.returncode == 3
    assert "TASKLIB_EMBEDDED=never" in started.stderr
    assert "ENV TASKLIB_EMBEDDED=never" in stages()["worker"]


def test_the_bases_are_a_version_of_a_distribution() -> None:
    bases = dict(re.findall(r"^ARG (\w+)_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert bases.keys() == {"PYTHON", "POSTGRES"}
    for image in bases.values():
        assert re.fullmatch(r"\w+:\d+(\.\d+)*-[\w-]*bookworm", image)
    used = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert {*used} == {"${PYTHON_IMAGE}", "${POSTGRES_IMAGE}", "build"}


def test_the_image_runs_as_an_ordinary_user_with_all_that_the_package_needs() -> None:
    assert re.findall(r"^USER (\S+)$", stages()["worker"], re.MULTILINE) == ["10001"]
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}


def test_signals_reach_the_worker_itself() -> None:
    """A shell in between would keep SIGTERM to itself."""
    assert json_of("ENTRYPOINT") == ["tasklib"]
    assert json_of("CMD") == ["--help"]
    assert "STOPSIGNAL SIGTERM" in stages()["worker"]


def test_the_worker_of_the_image_drains_and_its_health_is_seen(
    database: str, tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text(
        "import time, tasklib\n\n@tasklib.task(name='slow')\ndef slow() -> str:\n"
        "    time.sleep(3)\n    return 'done'\n"
    )
    (words,) = re.findall(r"^ +CMD (\[.*\])$", stages()["worker"], re.MULTILINE)
    check, state = json.loads(words)[1:], str(tmp_path / "state")
    assert tasklib(*check, url=database, TASKLIB_STATE_DIR=state).returncode == 1
    task_id = tasklib("enqueue", "slow", url=database).stdout.strip()
    command = [sys.executable, "-m", "tasklib.cli", *SERVICES["worker"]["command"]]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(database, TASKLIB_STATE_DIR=state)
    ) as worker:
        try:
            with psycopg.connect(database, autocommit=True) as conn:
                wait_until(
                    lambda: conn.execute("select from tasklib.running").fetchone() is not None
                )
            assert tasklib(*check, url=database, TASKLIB_STATE_DIR=state).returncode == 0
            nowhere = "postgresql://nobody@127.0.0.1:1/none"
            assert tasklib(*check, url=nowhere, TASKLIB_STATE_DIR=state).returncode == 0
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 0
        finally:
            worker.kill()
    shown = json.loads(tasklib("show", task_id, "--json", url=database).stdout)
    assert (shown["state"], shown["attempt"]) == ("completed", 1)
    assert tasklib(*check, url=database, TASKLIB_STATE_DIR=state).returncode == 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---- the image of PostgreSQL


@pytest.fixture(scope="module")
def image() -> Generator[PrivateServer]:
    """A server with the files that the image has."""
    with private_server() as server:
        _extension.write(server.extensions)
        yield server


def test_the_database_of_the_image_has_the_queue_for_who_works(
    image: PrivateServer, tmp_path: Path
) -> None:
    """As the entry point of the official image does it: each file in the order of the names."""
    assert "tasklib sql --extension /extension" in stages()["extension"]
    assert "COPY docker/initdb /docker-entrypoint-initdb.d" in stages()["postgres"]
    name = f"image_{uuid4().hex[:12]}"
    with psycopg.connect(image.dsn, autocommit=True) as conn:
        conn.execute(f'create database "{name}"')
    url = make_conninfo(image.dsn, dbname=name)
    parts = conninfo_to_dict(url)
    variables = {
        "PATH": f"{Path(_psql()).parent}:{os.environ['PATH']}",
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts["port"]),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_DB": name,
        "TASKLIB_WORKER_PASSWORD": 'it\'s "one"',
    }
    for path in sorted((DOCKER / "initdb").iterdir()):
        words = [path] if path.suffix == ".sh" else ["psql", "-X", "-v", "ON_ERROR_STOP=1"]
        words += [] if path.suffix == ".sh" else ["--no-password", "-d", url, "-f", path]
        ran = subprocess.run(
            [str(word) for word in words],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr

    with psycopg.connect(url) as conn:
        owners = conn.execute(
            "select distinct pg_get_userbyid(proowner) from pg_proc "
            "where pronamespace = 'tasklib'::regnamespace"
        ).fetchall()
        assert owners == [("tasklib_owner",)]
        facts = conn.execute(
            "select rolcanlogin, rolpassword is not null, rolsuper from pg_authid "
            "where rolname in ('worker', 'tasklib_owner') order by rolname"
        ).fetchall()
        assert facts == [(False, False, False), (True, True, False)]
    assert tasklib(*SERVICES["migrate"]["command"], url=url).returncode == 0
    worker = make_conninfo(url, user="worker")
    task_id = tasklib("enqueue", "greet", "name=Ada", url=worker).stdout.strip()
    words = [*SERVICES["worker"]["command"], "--drain"]
    ran = tasklib(*words, url=worker, cwd=DOCKER / "app", TASKLIB_STATE_DIR=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(tasklib("show", task_id, "--json", url=worker).stdout)
    assert shown["result"] == {"value": "Hello, Ada"}


# ---- Kubernetes


@pytest.mark.parametrize("kind", ["Job", "Deployment", "PodDisruptionBudget"])
def test_kubernetes_knows_every_field(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], "1.29", strict=True)


@pytest.mark.parametrize("pod", [POD, JOB], ids=["worker", "migrate"])
def test_pods_have_no_rights_and_no_secrets_of_their_own(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}" in stages()["worker"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (variable,) = container["env"]
    assert variable["name"] == "TASKLIB_DATABASE_URL"
    assert "secretKeyRef" in variable["valueFrom"]
    assert "command" not in container  # the entry point of the image
    assert container["resources"]["limits"]["memory"]
    assert not container["image"].endswith(":latest")


def test_workers_and_migrations_have_different_secrets() -> None:
    names = {
        pod["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] for pod in (POD, JOB)
    }
    assert len(names) == 2


def test_pods_have_time_to_drain() -> None:
    (word,) = [word for word in POD["containers"][0]["args"] if word.startswith("--shutdown")]
    seconds = float(word.partition("=")[2].removesuffix("s"))
    assert POD["terminationGracePeriodSeconds"] >= seconds + LEAVING_SECONDS


def test_what_the_pods_run_runs(empty_database: str, tmp_path: Path) -> None:
    assert tasklib(*JOB["containers"][0]["args"], url=empty_database).returncode == 0
    (container,) = POD["containers"]
    (tmp_path / "app").mkdir()
    shutil.copy(DOCKER / "app/tasks.py", tmp_path / "app")
    state = {"TASKLIB_STATE_DIR": str(tmp_path / "state")}  # /tmp, which is mounted
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    command = [sys.executable, "-m", "tasklib.cli", *container["args"]]
    probes = [container[f"{name}Probe"]["exec"]["command"] for name in PROBES]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(empty_database, **state)
    ) as worker:
        try:
            for program, *words in probes:
                assert program == json_of("ENTRYPOINT")[0]
                wait_until(
                    lambda words=words: tasklib(*words, url=empty_database, **state).returncode == 0
                )
        finally:
            worker.terminate()
    assert worker.returncode == 0
    for _, *words in probes:
        assert tasklib(*words, url=empty_database, **state).returncode == 1


PROBES = ("startup", "liveness", "readiness")


def test_the_manifests_are_for_this_selector() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels
    least = MANIFESTS["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert least < MANIFESTS["Deployment"]["spec"]["replicas"]
