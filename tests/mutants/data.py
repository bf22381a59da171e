"""Hand-made faults of the SQL and of the driver, as data: each has to be caught by some test.

They are in the TOML files of this folder, by name::

    [lease_any_worker_ends_an_attempt]
    file = "sql/functions/finish.sql"
    find = "and running.worker_id = _take_run.worker_id"    # occurs exactly once
    replace = ""
    tests = ["sql/test_lease.py::test_another_worker_is_refused"]    # quick ones first
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: What the fault does.
        file: Where it is, from the root of the checkout.
        find: The right text, which occurs exactly once.
        replace: The wrong text.
        tests: What is expected to catch it, from the folder ``tests`` on.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    @property
    def area(self) -> str:
        """The folder of `tests` that has to catch it when those that are named do not."""
        return "sql" if self.file.startswith("sql/") else "python"

    def applied(self, text: str) -> str:
        """Return the text of the file with the fault in it.

        Raises:
            ValueError: It does not apply any more.
        """
        count = text.count(self.find)
        if count != 1:
            raise ValueError(f"{self.name}: {self.file} has its text {count} times, not once")
        # What is left out leaves no blanks behind, which a test of the style would find.
        return re.sub(r"[ \t]+$", "", text.replace(self.find, self.replace), flags=re.M)


def all_mutants() -> dict[str, Mutant]:
    """Return every mutant by its name.

    Raises:
        ValueError: Two have the same name.
    """
    found: dict[str, Mutant] = {}
    for path in sorted(HERE.glob("*.toml")):
        for name, fields in tomllib.loads(path.read_text()).items():
            if name in found:
                raise ValueError(f"{path.name}: there are two mutants {name}")
            found[name] = Mutant(
                name, fields["file"], fields["find"], fields["replace"], tuple(fields["tests"])
            )
    return found


def faults_of_the_set(mutants: dict[str, Mutant]) -> list[str]:
    """Return what is wrong with the data itself: texts and tests that are no more."""
    wrong: list[str] = []
    for mutant in mutants.values():
        try:
            if mutant.applied((ROOT / mutant.file).read_text()) == (ROOT / mutant.file).read_text():
                wrong.append(f"{mutant.name}: it changes nothing")
        except (OSError, ValueError) as error:
            wrong.append(str(error))
        if not mutant.tests:
            wrong.append(f"{mutant.name}: it names no test")
        for test in mutant.tests:
            path, _, function = test.partition("::")
            file = ROOT / "tests" / path
            if not file.exists():
                wrong.append(f"{mutant.name}: there is no tests/{path}")
            elif function and f"def {function.partition('[')[0]}(" not in file.read_text():
                wrong.append(f"{mutant.name}: tests/{path} has no {function}")
    return wrong
