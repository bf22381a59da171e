"""What is shipped: the package with its SQL, and nothing of the working folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tasklib._migrate import install_script

REPOSITORY = Path(__file__).parents[1]
SQL = {
    str(path.relative_to(REPOSITORY / "sql"))
    for path in (REPOSITORY / "sql").rglob("*.sql")
    if path.parent.name != "releases"
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    return folder


def wheel(dist: Path) -> Path:
    (found,) = dist.glob("pg_tasklib-*-py3-none-any.whl")
    return found


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
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_has_the_sql_files_and_the_tests(dist: Path) -> None:
    (path,) = dist.glob("pg_tasklib-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"sql/{name}" for name in SQL} < names
    assert {"tests/conftest.py", "LICENSE", "README.md", "pyproject.toml"} < names
    assert not [name for name in names if name.startswith((".venv", ".tasklib"))]


def test_an_installed_wheel_prints_its_sql(dist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel(dist))]
    run(programs / "python", *install, cwd=tmp_path)
    # Its dependencies are those of this environment, behind its own packages.
    print_site = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run(programs / "python", "-c", print_site, cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    assert run(programs / "tasklib", "sql", cwd=tmp_path).strip() == install_script().strip()


def run(program: Path, *arguments: str, cwd: Path) -> str:
    result = subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
