"""The set of hand-made faults is sound, and a few are caught; `make mutants` runs them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mutants.data import ROOT, Mutant, all_mutants, faults_of_the_set

SAMPLE = (
    "lease_any_worker_ends_an_attempt",
    "claim_does_not_count_the_attempt",
    "reap_without_looking_at_the_lease",
    "mark_passes_an_open_transaction",
    "keeper_ends_at_shutdown",
)


def test_every_mutant_applies_and_names_tests_that_are_there() -> None:
    assert faults_of_the_set(all_mutants()) == []


def test_a_mutant_that_does_not_apply_any_more_is_an_error() -> None:
    mutant = Mutant("turned", "a.sql", "a < b", "a > b", ("sql/test_ids.py",))
    assert mutant.applied("if a < b then") == "if a > b then"
    for text in ("if a <= b then", "a < b or a < b"):
        with pytest.raises(ValueError, match="turned"):
            mutant.applied(text)
    assert faults_of_the_set({"turned": mutant})


def test_every_mutant_could_be_installed(conn: Any) -> None:
    """What cannot even be installed, or imported, would be caught by every test."""
    wrong: list[str] = []
    for mutant in all_mutants().values():
        text = mutant.applied((ROOT / mutant.file).read_text())
        try:
            if mutant.file.endswith(".py"):
                compile(text, mutant.file, "exec")
            elif not mutant.file.startswith("sql/migrations/"):
                conn.execute(f"begin;\n{text};\nrollback")
        except (SyntaxError, psycopg.Error) as error:
            conn.execute("rollback")
            wrong.append(f"{mutant.name}: {error}")
    assert wrong == []


@pytest.mark.slow
def test_a_few_mutants_are_caught() -> None:
    program = Path(__file__).with_name("mutate.py")
    words = ["--trust", "--jobs", "1", "--only", *SAMPLE]
    ran = subprocess.run(
        [sys.executable, program, *words], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(SAMPLE)} mutants, 0 alive, 0 broken" in ran.stdout
