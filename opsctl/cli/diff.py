from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from opsctl.cli.catalog import choose_from, read_catalog
from opsctl.cli.output import Outcome, PlainTable, age, size
from opsctl.errors import ExitCode, UsageError
from opsctl.times import format_time

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from opsctl.catalog import Backup
    from opsctl.cli.session import Session
    from opsctl.comparison import Comparison, State, TableDifference
    from opsctl.postgres.facts import FactsLevel

LIVE = "live"

First = Annotated[str, typer.Argument(metavar="A", help="A backup: its id or its beginning, latest, latest:DATABASE.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another backup, or live: the database as it is now.")]

WORDS = {"added": "only in B", "removed": "only in A", "unknown": "not compared", "same": "", "same_rows": ""}


@dataclass(frozen=True)
class _Side:
    """What is compared: a backup, or a live database."""

    database: str
    at: "datetime"
    state: "State"
    backup: "Backup | None" = None


def diff(session: "Session", a: First, b: Second) -> Outcome:
    """Show what is different in B, table by table: rows, and contents where both backups have hashes of them.

    With live the tables of the database are counted now; where A has hashes they are read whole.

    Example: [bold]opsctl diff latest live[/bold]
    """
    from opsctl.comparison import TableStatus, compare

    if a == b == LIVE:
        raise UsageError(
            "The live database is no different from itself.", hint="Name a backup: `opsctl diff latest live`."
        )
    catalog = read_catalog(session)
    chosen = [None if wanted == LIVE else choose_from(session, catalog, wanted) for wanted in (a, b)]
    known = next(backup for backup in chosen if backup is not None)
    first, second = (_of_backup(each) if each is not None else _of_live(session, known) for each in chosen)
    comparison = compare(first.state, second.state)
    result = {
        "a": _side_entry(first),
        "b": _side_entry(second),
        "same": comparison.is_same,
        "counts": {status: comparison.counts[status] for status in get_args(TableStatus)},
        "tables": [_table_entry(each) for each in comparison.tables],
        "large_objects": _large_objects_entry(comparison),
        "extensions": [
            {"name": each.name, "a_version": each.a_version, "b_version": each.b_version}
            for each in comparison.extensions
        ],
        "definitions": comparison.definitions,
    }
    unseen = [each for each in comparison.tables if each.status == "unknown" and not each.left_out]
    fields = {"database": known.database, "backup_id": known.id}
    text = _text(session, first, second, comparison)
    return Outcome(result, text, ExitCode.ATTENTION if unseen else ExitCode.DONE, fields=fields)


def _of_backup(backup: "Backup") -> _Side:
    from opsctl.comparison import State

    manifest = backup.manifest
    state = State(manifest.facts, frozenset(manifest.excluded_tables), manifest.pg_dump_version)
    return _Side(backup.database, manifest.created_at, state, backup)


def _of_live(session: "Session", backup: "Backup") -> _Side:
    """The database that a backup is of, looked at as closely as the backup was."""
    from opsctl.comparison import State
    from opsctl.postgres.facts import live_facts

    name, at = backup.database, session.clock()
    server = session.server(name)
    level: FactsLevel = "content" if backup.manifest.facts.level == "content" else "counts"
    with server.connect(application_name="opsctl diff") as connection:
        facts = live_facts(connection, server.database, level)
    return _Side(name, at, State(facts))


def _side_entry(side: _Side) -> dict[str, Any]:
    return {
        "id": side.backup.id if side.backup else None,
        "database": side.database,
        "at": format_time(side.at),
        "bytes": side.backup.manifest.dump.bytes if side.backup else None,
        "rows": side.state.facts.rows,
        "facts": side.state.facts.level,
    }


def _table_entry(table: "TableDifference") -> dict[str, Any]:
    return {
        "schema": table.schema,
        "name": table.name,
        "status": table.status,
        "a_rows": table.a_rows,
        "b_rows": table.b_rows,
        "more_rows": table.more_rows,
        "a_hash": table.a_hash,
        "b_hash": table.b_hash,
        "left_out": table.left_out,
    }


def _large_objects_entry(comparison: "Comparison") -> dict[str, Any]:
    found = comparison.large_objects
    return {"status": found.status, "a_count": found.a_count, "b_count": found.b_count}


# For people


def _text(session: "Session", a: _Side, b: _Side, comparison: "Comparison") -> list["RenderableType"]:
    now = session.clock()
    sides = PlainTable()
    for column in ("", "Backup", "Age"):
        sides.add_column(column, no_wrap=column != "Backup", overflow="fold")
    for column in ("Dump", "Rows"):
        sides.add_column(column, justify="right", no_wrap=True)
    for letter, side in (("A", a), ("B", b)):
        backup, rows = side.backup, side.state.facts.rows
        sides.add_row(
            letter,
            backup.id if backup else f"{side.database}, live",
            age(side.at, now) if backup else "now",
            size(backup.manifest.dump.bytes) if backup else "-",
            _count(rows),
        )
    differing = [each for each in comparison.tables if each.status not in {"same", "same_rows"}]
    tables: list[RenderableType] = ["", _tables(differing)] if differing else []
    return [sides, *tables, "", *_remarks(comparison)]


def _tables(differing: "list[TableDifference]") -> "RenderableType":
    table = PlainTable()
    table.add_column("Table", overflow="fold")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in differing:
        more = each.more_rows
        table.add_row(
            f"{each.schema}.{each.name}",
            "-" if each.status == "added" or (each.left_out and each.a_rows is None) else _count(each.a_rows),
            "-" if each.status == "removed" or (each.left_out and each.b_rows is None) else _count(each.b_rows),
            "?" if more is None else f"{more:+,}" if more else "0",
            _word(each),
            style="red" if each.status == "removed" else None,
        )
    return table


def _word(table: "TableDifference") -> str:
    if table.left_out and table.status == "unknown":
        return "left out"
    if table.status == "different":
        return "other content" if table.a_rows == table.b_rows else ""
    return WORDS[table.status]


def _count(rows: int | None) -> str:
    return "?" if rows is None else f"{rows:,}"


def _remarks(comparison: "Comparison") -> list[str]:
    counts, large = comparison.counts, comparison.large_objects
    lines = []
    if counts["same"]:
        lines.append(f"{_tables_have(counts['same'])} the same content.")
    if counts["same_rows"]:
        why = 'contents were not compared: that needs facts = "content" of both'
        lines.append(f"{_tables_have(counts['same_rows'])} as many rows; {why}.")
    if large.status in {"different", "unknown"} or large.a_count != large.b_count:
        what = "other content" if large.a_count == large.b_count else "another number"
        kind = what if large.status == "different" else "not compared"
        lines.append(f"Large objects: {_count(large.a_count)} in A, {_count(large.b_count)} in B; {kind}.")
    lines += [
        f"Extension {each.name}: {each.a_version or 'none'} in A, {each.b_version or 'none'} in B."
        for each in comparison.extensions
    ]
    if comparison.definitions != "unknown":
        verb = "are the same" if comparison.definitions == "same" else "DIFFER"
        lines.append(f"The definitions of tables and other objects {verb}.")
    return lines or ["Nothing to compare: there is no table in either."]


def _tables_have(count: int) -> str:
    return "1 table has" if count == 1 else f"{count:,} tables have"
