from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome, duration
from opsctl.cli.run_report import concern
from opsctl.errors import ExitCode, UsageError
from opsctl.times import format_time

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.undo import Undo, UndoPlan

SHOWN_TABLES = 10


def undo_restore(session: "Session", named: str | None, yes: str | None) -> Outcome:
    """``restore --undo``: show what would be put aside, ask, swap back."""
    name = _one_database(session, named)
    undo = undo_of(session, name)
    plan = undo.plan()
    session.output.show(f"Undo: {plan.back} becomes {undo.database} again; the one in its place now is kept aside.")
    for line in _writes_text(plan):
        session.output.show(line)
    concern(session, [name])
    session.confirm(name, yes, doing="the undo")
    plan, restored = undo.execute(clock=session.clock)
    for warning in restored.warnings:
        session.log().warning("restore.warning", message=warning, database=name)
    result = {
        "backup_id": None,
        "database": restored.database,
        "previous_database": restored.previous_database,
        "swapped": True,
        "outage_seconds": restored.outage_seconds,
        "evidence": None,
        "warnings": list(restored.warnings),
        "plan": {"back": plan.back, "written_since_swap": _writes(plan)},
    }
    text = [
        f"Undone: {restored.database} is again what was {plan.back}.",
        f"  clients waited {duration(restored.outage_seconds or 0)}",
        f"  the undone database is kept as {restored.previous_database}",
        *(f"  warning: {warning}" for warning in restored.warnings),
    ]
    code = ExitCode.ATTENTION if restored.warnings else ExitCode.DONE
    return Outcome(result, text, code, fields={"database": name})


def forget(session: "Session", named: str | None, yes: str | None) -> Outcome:
    """``restore --forget-previous``: drop what restores have put aside, after asking."""
    name = _one_database(session, named)
    undo = undo_of(session, name)
    session.output.show(f"Drop for ever: {', '.join(undo.previous())}")
    concern(session, [name])
    session.confirm(name, yes, doing="forgetting the previous databases")
    dropped = undo.forget(clock=session.clock)
    result = {"database": name, "forgotten": dropped, "forgotten_at": format_time(session.clock())}
    return Outcome(result, [f"Dropped {each}." for each in dropped], fields={"database": name})


def undo_of(session: "Session", name: str) -> "Undo":
    from opsctl.undo import Undo

    server = session.server(name)
    return Undo(
        server=server,
        database=server.database,
        state_path=session.config.state_path,
        tools=session.tools,
        swap_settings=session.swap_settings(name),
    )


def _one_database(session: "Session", named: str | None) -> str:
    """The database an undo is about: the only one configured, or the one that was named."""
    names = session.database_names([named] if named else None)
    if len(names) > 1:
        raise UsageError("There are several databases.", hint=f"Name one: {', '.join(names)}.")
    return names[0]


def _writes(plan: "UndoPlan") -> list[dict[str, Any]] | None:
    if plan.writes is None:
        return None
    return [
        {"table": each.table, "inserted": each.inserted, "updated": each.updated, "deleted": each.deleted}
        for each in plan.writes
    ]


def _writes_text(plan: "UndoPlan") -> list[str]:
    """What was written since the swap: it goes aside with the undone database, and is not lost."""
    if plan.writes is None:
        return ["What was written since the swap is unknown here; it stays in the database that is put aside."]
    if not plan.writes:
        return ["Nothing was written since the swap."]
    lines = ["Written since the swap, and put aside with it:"]
    lines += [
        f"  {each.table}: {each.inserted:,} inserted, {each.updated:,} updated, {each.deleted:,} deleted"
        for each in plan.writes[:SHOWN_TABLES]
    ]
    if len(plan.writes) > SHOWN_TABLES:
        lines.append(f"  and {len(plan.writes) - SHOWN_TABLES} more tables")
    return lines
