"""The command `tasklib doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from ._app import FAILED, pass_settings
from ._checks import CHECKS, Finding, examine
from ._output import print_json
from ._probes import examine_liveness, examine_readiness
from ._session import ADMIN, OBSERVER, Settings
from ._types import names, seconds

COLOURS = {"ok": "green", "note": "yellow", "act": "red"}


@click.command(short_help="Find what is wrong, and say what to do about it.")
@click.option("--only", type=names, metavar="NAMES", help=f"Of {', '.join(CHECKS)}.")
@click.option("--live", is_flag=True, help="Only whether this container's workers move.")
@click.option("--ready", is_flag=True, help="Only whether they are at work with the database.")
@click.option(
    "--within",
    type=seconds,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="With --live: how long an event loop may stand still.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all findings.")
@pass_settings
def doctor(
    settings: Settings,
    only: list[str] | None,
    live: bool,
    ready: bool,
    within: float,
    as_json: bool,
) -> None:
    """Examine server, schema, workers and tasks; exit with 1 when something needs action.

    Findings are ok, note (worth knowing) or act (do something). Nothing is changed.

    With --live and --ready it is a probe for containers. They look at the processes of `tasklib
    worker` that this user runs on this machine, which is to say: in this container. They are alive
    when each of their event loops has moved lately, whatever the database does. They are ready when
    the database answers, has the right schema, and knows one of them as registered.

    Examples:
      tasklib doctor
      tasklib doctor --only schema,workers,tasks --json
      tasklib doctor --live --within 5m
      tasklib doctor --ready
    """
    wanted = set(only or ())
    if unknown := sorted(wanted - set(CHECKS)):
        raise click.UsageError(f"No check {unknown[0]!r}; there are {', '.join(CHECKS)}.")
    if live + ready + bool(wanted) > 1:
        raise click.UsageError("--live, --ready and --only are three questions: ask one.")
    if live:
        found = list(examine_liveness(within))
    elif ready:
        found = list(examine_readiness(settings))
    else:
        with settings.session(OBSERVER, ADMIN) as session:
            found = list(examine(session, wanted))
    healthy = all(finding.level != "act" for finding in found)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            click.echo(_line(finding))
    if not healthy:
        raise click.exceptions.Exit(FAILED)


def _line(finding: Finding) -> str:
    level = click.style(f"{finding.level:<5}", fg=COLOURS[finding.level])
    line = f"{level} {finding.check:<13} {finding.message}"
    if finding.advice and finding.level != "ok":
        line += f"\n{'':<20}→ {finding.advice}"
    return line
