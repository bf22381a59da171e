"""A private PgBouncer in transaction mode, and which tests cannot do with a session of others.

``TASKLIB_TEST_PGBOUNCER=1 make test`` runs the tests through it: the connection strings that they
are given lead to the pooler, and so do those of clients, workers and the command line.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasklib import _account

# Servers or sessions of their own, or nothing that a pooler could be in front of.
NOT_POOLED = (
    "tests/bench",
    "tests/docs",
    "tests/failover",
    "tests/fuzz",
    "tests/model",
    "tests/mutants",
    "tests/torture",
    "tests/upgrade",
    "tests/test_embedded.py",
    "tests/test_package.py",
    "tests/test_pgbouncer.py",
    "tests/test_proxy.py",
)

PORT = 6432
START_SECONDS = 20.0

# Tests that need a session of their own, and why; * stands for any part of a name.
NEEDS_A_SESSION = {
    "they set a role for the session, and look as somebody else from another one": (
        "tests/sql/test_roles*.py::*",
        "tests/sql/test_rules*.py::*",
        "tests/spec/test_sql.py::test_a_role_without_grants_can_do_nothing",
        "tests/cli/test_doctor.py::test_a_role_that_may_not_look_is_told_what_it_lacks",
    ),
    "they set a role as the session begins, by options, which PgBouncer refuses": (
        "tests/cli/test_processes.py::test_a_role_that_may_not_work_ends_the_command",
        "tests/cli/test_tasks.py::test_a_producer_is_shown_its_task_without_the_failures",
        "tests/cli/test_top.py::test_an_observer_sees_how_far_tasks_are_and_not_what_they_say",
        "tests/cli/test_worker_command.py::test_a_role_that_may_not_work_is_told_what_to_ask_for",
        "tests/python/test_roles.py::*",
    ),
    "they listen": (
        "tests/sql/test_wake.py::*",
        "tests/sql/test_hand_over.py::*",
        "tests/sql/test_enqueue.py::test_a_sleeping_worker_is_notified_once",
        "tests/python/test_claims_sent_ahead.py::*",
        "tests/python/test_worker_runs_tasks.py::test_a_sleeping_worker_starts_a_new_task_at_once",
        "tests/python/test_worker_recovers.py::test_a_worker_listens_again_when_*",
        "tests/python/test_worker_recovers.py::test_a_connection_that_broke_leaves_*",
        "tests/python/test_worker_recovers.py::test_a_connection_that_does_not_answer_*",
    ),
    "they end a session, or look for it, by the process id that it was told": (
        "tests/python/test_clients_are_alike.py::test_a_lost_connection_is_replaced",
        "tests/python/test_transactional.py::test_a_session_that_was_ended_before_*",
        "tests/python/test_transactional.py::test_a_session_that_is_ended_during_*",
        "tests/python/test_transactional.py::test_the_end_of_another_session_is_*",
        "tests/python/test_transactional.py::test_a_broken_session_is_replaced_*",
        "tests/python/test_transactional.py::test_a_session_that_died_while_idle_*",
        "tests/cli/test_doctor.py::test_long_transactions_are_told_by_what_they_do",
    ),
    "they lock for a session": (
        "tests/cli/test_demo.py::*",
        "tests/cli/test_progress.py::test_migrate_says_that_it_waits_for_another_migration",
    ),
    "they count sessions, or look at what a task has left in one": (
        "tests/python/test_transactional.py::test_a_worker_keeps_few_sessions",
        "tests/python/test_transactional.py::test_nothing_of_a_session_reaches_the_next_task",
    ),
}

CONFIG = """
[databases]
* = host={host} port={port}

[pgbouncer]
pool_mode = transaction
listen_addr =
unix_socket_dir = {folder}
listen_port = {pooler_port}
auth_type = trust
auth_file = {folder}/users.txt
auth_user = {user}
auth_query = select usename, passwd from pg_shadow where usename = $1
admin_users = {user}
max_client_conn = 500
default_pool_size = 20
# Each test has a database of its own, and leaves its sessions here.
server_idle_timeout = 5
server_lifetime = 600
autodb_idle_timeout = 30
server_login_retry = 0
logfile = {folder}/log.txt
log_connections = 0
log_disconnections = 0
{more}
"""


def is_wanted() -> bool:
    """Tell whether the tests shall run through a pooler."""
    return os.environ.get("TASKLIB_TEST_PGBOUNCER", "") not in ("", "0")


def needs_a_session(nodeid: str) -> bool:
    """Tell whether a test is among those that are not run through a pooler."""
    name = nodeid.partition("[")[0]
    return any(fnmatchcase(name, one) for group in NEEDS_A_SESSION.values() for one in group)


def program() -> str | None:
    """Return where PgBouncer is; None when the machine has none."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """A pooler in front of a server; a context manager.

    Args:
        server: The server, on a Unix socket.
        more: Lines for the section ``pgbouncer`` of its configuration.
    """

    def __init__(self, server: str, *, more: str = "") -> None:
        self._server = server
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="tasklib-pgbouncer-"))
        self._account = _account.for_data(self._folder)

    def __enter__(self) -> PgBouncer:
        parts = conninfo_to_dict(self._server)
        (self._folder / "pgbouncer.ini").write_text(
            CONFIG.format(
                host=parts["host"],
                port=parts["port"],
                user=parts["user"],
                folder=self._folder,
                pooler_port=PORT,
                more=self._more,
            )
        )
        (self._folder / "users.txt").write_text(f'"{parts["user"]}" ""\n')
        for path in (self._folder, *self._folder.iterdir()):
            self._account.own(path)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def reach(self, direct: str) -> str:
        """Return the connection string for a database, once there is a way to it.

        One of that name may just have been dropped, which ended logins: then it says for a while
        that logins fail.
        """
        through = self.conninfo(direct)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(through, autocommit=True, prepare_threshold=None) as conn:
                    conn.execute("select")  # only then it logs in to the server
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return through

    def conninfo(self, dsn: str) -> str:
        """Return a connection string of the server's as it is through the pooler."""
        return make_conninfo(dsn, host=str(self._folder), port=PORT)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        found = program()
        assert found, "PgBouncer is not on this machine"
        user = self._account.user
        self._process = subprocess.Popen(
            [found, "-q", str(self._folder / "pgbouncer.ini")],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("show version")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PgBouncer does not start:\n{self.log}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it at once; its clients' connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._process = None

    def ask(self, command: str) -> list[tuple[str, ...]]:
        """Run a command on its console."""
        target = make_conninfo(self.conninfo(self._server), dbname="pgbouncer")
        with psycopg.ClientCursor(psycopg.connect(target, autocommit=True)) as cursor:
            try:
                cursor.execute(command.encode())
                return cursor.fetchall() if cursor.description else []
            finally:
                cursor.connection.close()

    @property
    def log(self) -> str:
        """What it wrote."""
        path = self._folder / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""
