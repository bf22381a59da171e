"""From every release to this version, and to a made-up next one, while old clients go on.

`make upgrade` is the long form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from upgrade.future import write_future
from upgrade.harness import SHORT, Upgrade
from upgrade.releases import REPOSITORY, Release, releases


@pytest.mark.slow
@pytest.mark.parametrize("target", ["this", "next"])
@pytest.mark.parametrize("release", releases(), ids=lambda release: release.version)
def test_clients_go_on_during_an_upgrade(
    empty: str, tmp_path: Path, release: Release, target: str
) -> None:
    sql = write_future(REPOSITORY / "sql", tmp_path / "sql") if target == "next" else None
    report = Upgrade(empty, release, tmp_path, SHORT, sql).run()
    assert report.wrong == [], report.facts


def test_every_release_has_its_driver() -> None:
    assert releases()
    assert [release.version for release in releases() if not release.wheel.exists()] == []
