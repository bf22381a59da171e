"""Look up known vulnerabilities of every package that is installed here: ``make audit``.

Exit codes: 1 when there is one; 0 when there is none, or when nobody could be asked, which is said.
So a machine without the way to the service does not stop a merge, and a finding does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# What is installed from a checkout is on no index.
OURS = "pg-tasklib"


def judge(document: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code and what to print for an answer of pip-audit."""
    packages = [each for each in document["dependencies"] if each["name"] != OURS]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}"
        f" (mended in {', '.join(flaw['fix_versions']) or 'no version yet'})"
        for each in packages
        for flaw in each.get("vulns", ())
    ]
    code = 1 if lines else 0
    known = len(packages) - len(unknown)
    lines.append(f"{known} of {len(packages)} packages audited, {len(lines)} vulnerabilities")
    if unknown and known:
        lines.append(f"not known to the service: {', '.join(unknown)}")
    if not known:
        lines.append("NOT AUDITED: the service answered for none of them")
    return code, lines


def ask() -> dict[str, Any]:
    """Ask PyPI's service.

    Raises:
        ConnectionError: It gave no answer.
    """
    program = Path(sys.executable).with_name("pip-audit")
    ran = subprocess.run(
        [program, "--progress-spinner=off", "--timeout=10", "--format=json"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return json.loads(ran.stdout)
    except json.JSONDecodeError:
        raise ConnectionError(ran.stderr.strip().rpartition("\n")[2]) from None


def main() -> int:
    """Ask, and print what is to be known."""
    try:
        code, lines = judge(ask())
    except ConnectionError as error:
        code, lines = 0, [f"NOT AUDITED: no answer from the service ({error})"]
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
