"""Judge faults of SQL functions in one run of pytest: most of a run is its start, not its tests.

Each test is run as it is, and then once for each mutant that names it, with the faulty function put
into the test's own database. What lives here has to be judged by a run of its own, see `mutate`: a
test may have installed a database by itself, or depend on what only an installation does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, LiteralString, cast

import pytest
from _pytest.runner import runtestprotocol

from mutants.data import ROOT, Mutant, all_mutants

FOLDER = "sql/functions/"
# A fault may make a statement wait for ever.
STATEMENT_SECONDS = 15


class Quick:
    """The plugin that does it.

    Args:
        mutants: Which ones.
        tell: Called with a mutant, the test that caught it and how many seconds that took; with
            no mutant for a test that fails without any.
        trust: Do not run the tests without a mutant first.
    """

    def __init__(
        self,
        mutants: list[Mutant],
        tell: Callable[[str | None, str, float], None],
        *,
        trust: bool = False,
    ) -> None:
        self._mutants = mutants
        self._tell = tell
        self._trust = trust
        self._caught: set[str] = set()
        self._current: Mutant | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Put the fault into a database that was just made."""
        made = yield
        if fixturedef.argname == "postgresql" and self._current is not None:
            mutant = self._current
            text = mutant.applied((ROOT / mutant.file).read_text())
            made.execute(cast("LiteralString", text))
            name = made.execute("select quote_ident(current_database())").fetchone()[0]
            made.execute(f"alter database {name} set statement_timeout = '{STATEMENT_SECONDS}s'")
            made.commit()
        return made

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        """Run a test without a mutant, and then with each that it is to catch."""
        test = item.nodeid.removeprefix("tests/")
        if not self._trust and not self._passes(item, None):
            self._tell(None, test, 0)
            return True
        for mutant in self._mutants:
            if mutant.name in self._caught or not names(mutant, item.nodeid):
                continue
            began = time.monotonic()
            if not self._passes(item, mutant):
                self._caught.add(mutant.name)
                self._tell(mutant.name, test, time.monotonic() - began)
        return True

    def _passes(self, item: Any, mutant: Mutant | None) -> bool:
        self._current = mutant
        item._initrequest()  # as plugins do that run a test again
        # The session as the next item: everything that is not its own is torn down.
        reports = runtestprotocol(item, log=False, nextitem=item.session)
        self._current = None
        return all(report.passed or report.skipped for report in reports)


def names(mutant: Mutant, nodeid: str) -> bool:
    """Tell whether a mutant names a test, or all of its file."""
    return any(
        nodeid == f"tests/{test}" or nodeid.startswith((f"tests/{test}[", f"tests/{test}::"))
        for test in mutant.tests
    )


def main() -> int:
    """Judge mutants; the words are a file for the answers, a line of JSON each, and their names.

    Among them may stand ``--trust``: the tests are not run without a mutant first.
    """
    path, *chosen = sys.argv[1:]
    trust = "--trust" in chosen
    mutants = [mutant for name, mutant in all_mutants().items() if name in chosen]
    tests = dict.fromkeys(f"tests/{test}" for mutant in mutants for test in mutant.tests)
    plugins = ("no:cacheprovider", "pytest_asyncio.plugin", "tasklib.testing")
    words = [word for plugin in (*plugins, "pytest_postgresql.plugin") for word in ("-p", plugin)]
    with open(path, "w", buffering=1) as answers:

        def tell(*answer: object) -> None:
            print(json.dumps(answer), file=answers)

        return pytest.main(["-q", *words, *tests], plugins=[Quick(mutants, tell, trust=trust)])


if __name__ == "__main__":
    sys.exit(main())
