from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome, PlainTable
from opsctl.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from opsctl.checks.check import Check, Thresholds
    from opsctl.cli.session import Session

CheckWord = Annotated[
    str | None, typer.Argument(metavar="CHECK", help="A check's id, or a prefix (db). Without it, the list of all.")
]


def explain(session: "Session", check: CheckWord = None) -> Outcome:
    """Say what a check reads, why its thresholds are what they are, what to do, and which grant it needs.

    Example: [bold]opsctl explain db.blocked[/bold]
    """
    from opsctl.checks import ALL_CHECKS, all_checks, explained

    try:
        checks = all_checks(session.config)
    except ConfigurationError:
        checks = ALL_CHECKS  # what a check means can be asked with a broken configuration, too
    found = explained(check, checks) if check else checks
    text = _overview(found) if check is None else [line for each in found for line in _told(each)]
    return Outcome({"checks": [_as_result(each) for each in found]}, text)


def _overview(found: "Sequence[Check]") -> list["RenderableType"]:
    table = PlainTable()
    for name in ("CHECK", "WARN", "CRIT", "WHAT IS WELL"):
        table.add_column(name)
    for each in found:
        table.add_row(each.id, *(limit_as_text(each, limit) for limit in _limits(each.thresholds)), each.title)
    return [table]


def _told(check: "Check") -> list["RenderableType"]:
    from rich.padding import Padding
    from rich.text import Text

    warn, crit = (limit_as_text(check, limit) for limit in _limits(check.thresholds))
    parts = {
        "Reads": check.reads,
        "Why": check.why,
        "Thresholds": f"warn {warn or 'none'}, crit {crit or 'none'}" if warn or crit else "",
        "After": ", ".join(check.after),
        "What to do": check.fix,
        "Needs": check.grant,
        "Runs": 'only when named, or enabled in opsctl.toml ([doctor] enabled = ["…"])' if check.opt_in else "",
    }
    told: list[RenderableType] = [Text.assemble((check.id, "bold"), f"  {check.title}")]
    for name, text in parts.items():
        if text:
            told += [Text(name, style="bold"), Padding(Text(text), (0, 0, 0, 2), expand=False)]
    return [*told, ""]


def limit_as_text(check: "Check", limit: float | None) -> str:
    """A threshold with its unit and direction, for a table."""
    if limit is None:
        return ""
    return f"{'<' if check.thresholds.falling else '≥'} {limit:,.10g} {check.unit or ''}".rstrip()


def _limits(thresholds: "Thresholds") -> tuple[float | None, float | None]:
    return thresholds.warn, thresholds.crit


def _as_result(check: "Check") -> dict[str, Any]:
    names = ("id", "title", "reads", "why", "fix", "grant", "unit", "after", "opt_in")
    return {name: getattr(check, name) for name in names} | asdict(check.thresholds)
