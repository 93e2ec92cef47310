"""A restore's plan for people."""

from datetime import datetime
from typing import TYPE_CHECKING

from opsctl.amounts import age, counted, duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from opsctl.catalog import Evidence
    from opsctl.restore_plan import RestorePlan, TableLoss

SHOWN_LOSSES = 10
SHOWN_NAMES = 5


def plan_text(planned: "RestorePlan", proven: "Evidence | None", now: datetime) -> list["RenderableType"]:
    """``proven`` is the evidence of the backup, whatever it is worth."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    rows = f", {counted(planned.rows, 'row')}" if planned.rows is not None else ""
    table.add_row("Restore", f"{planned.backup_id} ({size(planned.dump_bytes)}{rows})")
    worth = f"proven: {proven.level}, {age(proven.at, now)} ago" if proven else "not proven"
    table.add_row("Taken", f"{age(planned.taken_at, now)} ago; {worth}")
    table.add_row("Server", f"PostgreSQL {planned.server_version}, restored into {planned.target_major}")
    if planned.swaps:
        table.add_row("Replaces", f"{planned.database}, which is kept as {planned.previous_database}")
        table.add_row("Sessions", f"{planned.sessions} of the live database will be ended at the swap")
    elif planned.mode == "in_place":
        table.add_row("Overwrites", f"{planned.database}, in one transaction, with {planned.sessions} sessions in it")
    else:
        table.add_row("Fills" if planned.mode == "fill" else "Creates", f"database {planned.database}")
    free = size(planned.free_bytes) if planned.free_bytes is not None else "unknown"
    table.add_row("Disk", f"needs {_about(planned)} {size(planned.database_bytes)}, free {free}")
    table.add_row("Takes", _time(planned, now))
    for number, loss in enumerate(_losses(planned)):
        table.add_row("" if number else "Loses", loss)
    for number, line in enumerate(planned.along):
        table.add_row("" if number else "Comes along", line)
    for number, line in enumerate(planned.missing):
        table.add_row("" if number else "Missing", line)
    for warning in planned.warnings:
        table.add_row("Note", warning)
    for obstacle in planned.obstacles:
        table.add_row(Text("Blocked", style="bold red"), obstacle.reason)
        table.add_row("", Text(obstacle.hint, style="dim"))
    return [table]


def _time(planned: "RestorePlan", now: datetime) -> str:
    expected = planned.expected
    if expected is None:
        return "unknown: there is no restore into this server and no drill to go by"
    if expected.backup_id == planned.backup_id:
        return (
            f"about {duration(expected.seconds)}, as in its {expected.measured_by} {age(expected.measured_at, now)} ago"
        )
    took = f"a {expected.measured_by} of {expected.backup_id} took {duration(expected.measured_seconds)}"
    return f"{_about(planned)} {duration(expected.seconds)}; {took}"


def _about(planned: "RestorePlan") -> str:
    """What is known of the whole is the most that a part of it takes."""
    return "at most" if planned.is_part else "about"


def _losses(planned: "RestorePlan") -> list[str]:
    """The largest tables by name, the others together; and what nobody could count."""
    shown, others = planned.losses[:SHOWN_LOSSES], planned.losses[SHOWN_LOSSES:]
    lines = [_loss(loss) for loss in shown]
    if others:
        lines.append(
            f"{counted(sum(loss.lost_rows for loss in others), 'row')} of {counted(len(others), 'more table')}"
        )
    if len(planned.losses) > 1:
        lines.insert(0, f"{planned.lost_rows:,} rows in all, of {len(planned.losses)} tables:")
    if planned.uncounted:
        names = ", ".join(planned.uncounted[:SHOWN_NAMES])
        more = f" and {len(planned.uncounted) - SHOWN_NAMES} more" if len(planned.uncounted) > SHOWN_NAMES else ""
        lines.append(f"an unknown number of rows of {names}{more}")
    return lines


def _loss(loss: "TableLoss") -> str:
    before = f"{loss.backup_rows:,} in the backup" if loss.in_backup else "none of its data is in the backup"
    return f"{counted(loss.lost_rows, 'row')} of {loss.schema}.{loss.name} ({loss.live_rows:,} now, {before})"
