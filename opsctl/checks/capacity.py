"""What runs out inside a database, and what only takes room."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import Check, Finding, Remedy, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, databases, psql
from opsctl.checks.scope import Scope
from opsctl.errors import NotPermitted

if TYPE_CHECKING:
    from opsctl.postgres.capacity import Bloats, Sequence, Sequences

NAMED = 5
BLOATED_PERCENT = 30
SEQUENCE_GRANT = (
    "SELECT on the sequences, which pg_monitor does not include: GRANT SELECT ON ALL SEQUENCES IN SCHEMA … TO …"
)
TABLE_GRANT = "SELECT on the tables, whose statistics pg_monitor does not include: GRANT pg_read_all_data TO …"


def check_sequences(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.capacity import read_sequences

    found = read_sequences(scope.session(target))
    finding = judge_sequences(found, thresholds, database=scope.server(target).database)
    if found.unreadable and finding.status == "ok":
        raise NotPermitted(f"This login does not see the values of {counted(found.unreadable, 'sequence')}.")
    return finding


def judge_sequences(found: "Sequences", thresholds: Thresholds, *, database: str) -> Finding:
    """By the share of its numbers that is used; a column may end before its sequence does."""
    near = [each for each in found.found if thresholds.judge(100 * each.used) != "ok"]
    details = {"sequences": [asdict(each) for each in near], "unreadable": found.unreadable}
    if not found.found:
        return Finding("ok", "No sequence is in use.", value=0, details=details)
    first = found.found[0]
    percent = 100 * first.used
    status = thresholds.judge(percent)
    column = f" ({first.table}.{first.column}, {first.limit_type})" if first.table else f" ({first.limit_type})"
    others = ", ".join(f"{each.name} ({100 * each.used:.0f} %)" for each in near[1:NAMED])
    return Finding(
        status,
        f"The sequence {first.name}{column} has used {percent:.0f} % of its numbers: {first.last_value:.0f} of"
        f" {first.limit:.0f}.{f' Also near their end: {others}.' if others else ''}",
        value=round(percent, 2),
        code=None if status == "ok" else "near_end",
        details=details,
        remedy=None if status == "ok" else _enlarge(first, database),
    )


def _enlarge(sequence: "Sequence", database: str) -> Remedy:
    is_column_small = sequence.table is not None and sequence.column_type in {"smallint", "integer"}
    change = f"alter sequence {sequence.name} as bigint" if sequence.limit_type != "bigint" else ""
    statements = [f"alter table {sequence.table} alter column {sequence.column} type bigint"] if is_column_small else []
    statements += [change or f"alter sequence {sequence.name} no maxvalue no minvalue"]
    text = "Give it more numbers."
    if is_column_small:
        text = (
            "Make the column a bigint, and its sequence. That writes the table anew and locks it meanwhile; columns"
            " that refer to it need the same. For a large table: a new column, filled in steps, then exchanged."
        )
    return Remedy(text, psql(*statements, database=database))


def check_bloat(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.capacity import read_bloat

    found = read_bloat(scope.session(target))
    finding = judge_bloat(found, thresholds, database=scope.server(target).database)
    if found.unreadable and finding.status == "ok":
        raise NotPermitted(f"This login does not see the statistics of {counted(found.unreadable, 'table')}.")
    return finding


def judge_bloat(found: "Bloats", thresholds: Thresholds, *, database: str) -> Finding:
    """By the table with the most to gain, of those where it is a good part of the table."""
    bloated = [each for each in found.found if 100 * each.wasted_bytes >= BLOATED_PERCENT * each.total_bytes]
    details = {"tables": [asdict(each) for each in bloated[:NAMED]], "unreadable": found.unreadable}
    if not bloated or not bloated[0].wasted_bytes:
        text = f"No table of 10 MiB or more would be {BLOATED_PERCENT} % smaller if it were written anew."
        return Finding("ok", text, value=0, details=details)
    first = bloated[0]
    status = thresholds.judge(first.wasted_bytes)
    return Finding(
        status,
        f"An estimate: {spoken_bytes(first.wasted_bytes)} of the {spoken_bytes(first.total_bytes)} of {first.table} are"
        " empty.",
        value=first.wasted_bytes,
        code=None if status == "ok" else "bloat",
        details=details,
        remedy=Remedy(
            "Written anew the table is smaller, but VACUUM FULL locks it all the time; pg_repack does not. First see"
            " why autovacuum did not keep up: long transactions, slots, its settings.",
            psql(f"vacuum (full, analyze) {first.table}", database=database),
        )
        if status != "ok"
        else None,
    )


CHECKS = (
    Check(
        id="db.sequences",
        title="the sequences have numbers left",
        probe=check_sequences,
        reads="pg_sequence and the last value of every sequence that does not begin anew; for one that belongs to a"
        " column, the column's type too",
        why="After the last number every INSERT fails. An integer ends at 2,147,483,647, and turning a large table's"
        " column into a bigint takes days to prepare: 80 % leaves them.",
        fix="ALTER TABLE … ALTER COLUMN … TYPE bigint, and ALTER SEQUENCE … AS bigint.",
        grant=SEQUENCE_GRANT,
        thresholds=Thresholds(warn=80, crit=95),
        unit="%",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.bloat",
        title="tables are no larger than they need to be",
        probe=check_bloat,
        reads="pg_class and pg_stats of the 200 largest tables, without their indexes and large values",
        why="Empty room in tables costs disk, memory and time. It is an estimate from the planner's statistics, of some"
        f" use from 1 GiB and {BLOATED_PERCENT} % of a table on; so it only runs when asked for.",
        fix="pg_repack, or VACUUM FULL while nobody uses the table.",
        grant=TABLE_GRANT,
        thresholds=Thresholds(warn=1024**3),
        unit="B",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
        opt_in=True,
    ),
)
