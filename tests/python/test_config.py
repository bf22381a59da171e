"""Where the configuration comes from, and what it refuses."""

from typing import Any

import pytest

from tasklib import Config, ConfigurationError
from tasklib.config import redacted, resolve


def test_the_database_is_found_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "from-pg")
    assert (Config().database_url, Config().is_embedded) == (None, False)
    assert resolve(Config()).conninfo == ""
    monkeypatch.setenv("DATABASE_URL", "postgresql://from-url/db")
    assert Config().database_url == "postgresql://from-url/db"
    monkeypatch.setenv("TASKLIB_DATABASE_URL", "postgresql://from-tasklib/db")
    assert Config().database_url == "postgresql://from-tasklib/db"
    assert Config(database_url="postgresql://given/db").database_url == "postgresql://given/db"


def test_no_database_means_the_embedded_one_unless_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    assert Config().is_embedded
    monkeypatch.setenv("TASKLIB_EMBEDDED", "never")

    with pytest.raises(ConfigurationError, match=r"(?s)never.*Set TASKLIB_DATABASE_URL"):
        resolve(Config())


def test_every_field_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_MAX_RETRIES", "7")
    monkeypatch.setenv("TASKLIB_LOCK_TIMEOUT_SECONDS", "12.5")
    monkeypatch.setenv("TASKLIB_LISTEN", "false")

    config = Config()
    assert (config.max_retries, config.lock_timeout_seconds, config.listen) == (7, 12.5, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_retries": -1}, "max_retries=-1: Input should be greater than or equal to 0"),
        ({"max_retries": "many"}, "max_retries='many': Input should be a valid integer"),
        ({"lock_timeout_seconds": 0}, "lock_timeout_seconds"),
        ({"retry_jitter": 2}, "retry_jitter"),
        ({"colour": "secret"}, r"colour: Extra inputs are not permitted\nHint: .*max_retries"),
        ({"database_url": 5}, "database_url: Input should be a valid string"),
        ({"database_url": "mysql://me:secret@host/db"}, "not a PostgreSQL URL"),
        ({"database_url": "me:secret@host"}, "not a PostgreSQL URL"),
    ],
)
def test_what_cannot_work_is_refused_and_no_secret_told(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Config(**values)

    assert "secret" not in str(caught.value)


def test_a_bad_variable_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLIB_MAX_RETRIES", "abc")

    with pytest.raises(ConfigurationError, match="TASKLIB_MAX_RETRIES='abc': Input"):
        Config()


def test_a_slip_in_the_refusal_of_the_embedded_server_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TASKLIB_EMBEDDED", "nver")

    with pytest.raises(ConfigurationError, match=r"TASKLIB_EMBEDDED='nver'.*\n.*never"):
        resolve(Config())


def test_a_password_is_never_shown() -> None:
    config = Config(database_url="postgresql://me:secret@host/db")

    assert "secret" not in repr(config)
    assert "host=host" in repr(config)
    assert redacted("not a connection string secret") == "***"


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+asyncpg", "postgres+x"])
def test_urls_of_other_libraries_are_understood(scheme: str) -> None:
    assert Config(database_url=f"{scheme}://host/db").database_url == "postgresql://host/db"
