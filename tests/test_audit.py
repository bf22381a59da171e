"""`make audit` fails for findings, and only for these."""

from __future__ import annotations

from typing import Any

from audit import judge


def package(name: str, *flaws: str, **more: Any) -> dict[str, Any]:
    vulns = [{"id": flaw, "fix_versions": ["2.0"], "aliases": []} for flaw in flaws]
    return {"name": name, "version": "1.0", "vulns": vulns, **more}


def skipped(name: str) -> dict[str, Any]:
    return {"name": name, "skip_reason": "Dependency not found on PyPI"}


def test_a_vulnerability_fails_and_is_named() -> None:
    code, lines = judge({"dependencies": [package("a"), package("b", "CVE-1"), skipped("c")]})
    assert code == 1
    assert lines == [
        "b 1.0: CVE-1 (mended in 2.0)",
        "2 of 3 packages audited, 1 vulnerabilities",
        "not known to the service: c",
    ]


def test_none_passes() -> None:
    code, lines = judge({"dependencies": [package("a"), skipped("pg-tasklib")]})
    assert (code, lines) == (0, ["1 of 1 packages audited, 0 vulnerabilities"])


def test_a_service_that_knows_nothing_is_no_audit() -> None:
    code, lines = judge({"dependencies": [skipped("a"), skipped("b")]})
    assert code == 0
    assert lines[-1].startswith("NOT AUDITED")
