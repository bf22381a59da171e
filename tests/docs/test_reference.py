"""What the documentation lists is all that there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest

from tasklib import errors
from tasklib.cli import main
from tasklib.config import Config
from tasklib.registry import CallOptions, TaskOptions

from .snippets import ROOT

sys.path.insert(0, str(Path(__file__).parent))
from sql_reference import PAGE, reference


def test_the_sql_reference_is_up_to_date(database: str) -> None:
    assert reference(database) == PAGE.read_text(), "run `make docs`"


def test_every_error_code_is_explained() -> None:
    raised = {
        code
        for file in ROOT.glob("sql/**/*.sql")
        for code in re.findall(r"'(TL\d{3})'", file.read_text())
    } | {code for code in errors.BY_SQLSTATE if code.startswith("TL")}
    explained = set(re.findall(r"^## .*(TL\d{3})", (ROOT / "docs/errors.md").read_text(), re.M))
    assert explained == raised


def test_every_class_of_errors_is_explained() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    missing = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TaskLibError)
        if f"`{name}`" not in text and name != "TaskSignal"
    ]
    assert not missing


def test_every_setting_is_explained() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert not [name for name in Config.model_fields if f"`{name}`" not in text]


def test_every_environment_variable_is_explained() -> None:
    pages = ("configuration", "command-line")
    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in pages)
    settings = {f"TASKLIB_{name.upper()}" for name in Config.model_fields}
    named = {
        name
        for file in ROOT.glob("python/tasklib/**/*.py")
        for name in re.findall(r"(?<!_)TASKLIB_[A-Z_]*[A-Z]", file.read_text())
    }
    assert not [name for name in named - settings if not re.search(rf"`{name}[`=]", text)]


@pytest.mark.parametrize("options", [TaskOptions, CallOptions])
def test_every_option_of_a_task_is_explained(options: type) -> None:
    text = (ROOT / "docs/enqueue.md").read_text()
    assert not [name for name in options.__annotations__ if f"`{name}`" not in text]


def test_every_command_is_listed() -> None:
    assert isinstance(main, click.Group)
    text = (ROOT / "docs/command-line.md").read_text()
    assert not [name for name in main.commands if f"tasklib {name}" not in text]
