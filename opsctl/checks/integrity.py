"""Whether what is in a database can be relied on: its pages, its indexes, the order of its text."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from opsctl.checks.amounts import counted
from opsctl.checks.check import Check, Finding, Remedy, ServerCommand, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, databases, psql, servers
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import SESSION_GRANT, spoken

if TYPE_CHECKING:
    from opsctl.postgres.integrity import Checksums, CollationVersions, InvalidIndex, Version

NAMED = 5


def check_checksums(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.integrity import read_checksums

    return judge_checksums(read_checksums(scope.session(target)), thresholds)


def judge_checksums(found: "Checksums", thresholds: Thresholds) -> Finding:
    details = {"is_on": found.is_on, "failures": [asdict(each) for each in found.failures]}
    total = sum(each.failures for each in found.failures)
    status = thresholds.judge(total)
    if not found.failures or status == "ok":
        text = "No page has failed its checksum." if found.is_on else "Checksums are off: damage to a page is not seen."
        return Finding("ok", text, value=total if found.is_on else None, details=details)
    worst = found.failures[0]
    age = "" if worst.last_seconds is None else f", the last {spoken(worst.last_seconds)} ago"
    where = f"database {worst.database}" if worst.database else "what all databases share"
    others = f" {counted(len(found.failures) - 1, 'other database')} too." if len(found.failures) > 1 else ""
    return Finding(
        status,
        f"{counted(worst.failures, 'page')} of {where} failed the checksum{age}.{others}",
        value=total,
        details=details,
        code="damaged",
        remedy=Remedy(
            "A disk, controller or memory gave back other bytes than were written. Keep the backups there are (`opsctl"
            " pin`), restore the newest good one elsewhere. The server's log names each page; a dump that goes nowhere"
            " finds the first one in a table. The count stays until pg_stat_reset() in that database.",
            ServerCommand("pg_dump", "--format=custom --file=/dev/null", worst.database or "postgres"),
        ),
    )


def check_invalid_indexes(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.postgres.integrity import read_invalid_indexes

    return judge_invalid_indexes(read_invalid_indexes(scope.session(target)), database=scope.server(target).database)


def judge_invalid_indexes(found: Sequence["InvalidIndex"], *, database: str) -> Finding:
    """What failed while it was built: it is kept up to date by every write, and no query uses it."""
    details = {"indexes": [asdict(each) for each in found]}
    if not found:
        return Finding("ok", "Every index is valid.", value=0, details=details)
    named = ", ".join(f"{each.name} of {each.table}" for each in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return Finding(
        "warn",
        f"{len(found)} invalid {'index' if len(found) == 1 else 'indexes'}: {named}{more}.",
        value=len(found),
        details=details,
        remedy=_rebuild(found[0], database),
    )


def _rebuild(index: "InvalidIndex", database: str) -> Remedy:
    if index.is_leftover:
        text = "A REINDEX CONCURRENTLY that failed left it behind: drop it, and do the REINDEX again."
        return Remedy(text, psql(f"drop index {index.name}", database=database))
    if index.is_partitioned:
        return Remedy(
            "Make the index on every partition that lacks it and attach each with ALTER INDEX … ATTACH PARTITION.",
            psql(f"\\d+ {index.name}", database=database),
        )
    duplicates = " If rows are there twice, that fails again: remove them first." if index.is_unique else ""
    text = f"Build it again, or drop it if nobody needs it. Neither stops the application.{duplicates}"
    return Remedy(text, psql(f"reindex index concurrently {index.name}", database=database))


def check_collation(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.postgres.integrity import read_collation_versions

    return judge_collation(read_collation_versions(scope.session(target)), database=scope.server(target).database)


def judge_collation(found: "CollationVersions", *, database: str) -> Finding:
    """Text was sorted by one version of a library and is compared by another: indexes miss rows that are there."""
    whole = found.database if found.database and _changed(found.database) else None
    changed = [*([whole] if whole else []), *found.changed]
    details = {"changed": [asdict(each) for each in changed]}
    if not changed:
        return Finding("ok", _unchanged(found), value=0, details=details)
    first = changed[0]
    what = f"database {first.name}" if whole else f"collation {first.name}"
    more = f" {counted(len(changed) - 1, 'other collation')} too." if len(changed) > 1 else ""
    refresh = [f"alter database {whole.name} refresh collation version"] if whole else []
    refresh += [f"alter collation {each.name} refresh version" for each in found.changed]
    quoted = found.database.name if found.database else '"' + database.replace('"', '""') + '"'
    return Finding(
        "crit",
        f"The text of {what} was sorted by version {first.recorded} of its library, the server now has"
        f" {first.actual or 'none'}:"
        f" indexes on text may miss rows, and unique ones take duplicates.{more}",
        value=len(changed),
        details=details,
        code="mismatch",
        remedy=Remedy(
            "Go back to the image or package the data was written with, or build every index anew and record the new"
            " version. REINDEX stops writes while it works; with CONCURRENTLY it does not, and leaves out the indexes"
            " of exclusion constraints. Tables partitioned by ranges of text need to be loaded again.",
            psql(f"reindex database {quoted}", *refresh, database=database),
        ),
    )


def _changed(version: "Version") -> bool:
    return version.recorded is not None and version.recorded != version.actual


def _unchanged(found: "CollationVersions") -> str:
    if found.database is None:
        return "No collation has changed; PostgreSQL before 15 does not record that of the database itself."
    if found.database.recorded is None:
        return "No collation has changed; that of the database itself has no version."
    return f"Text is still sorted as it was, by version {found.database.actual}."


CHECKS = (
    Check(
        id="db.checksums",
        title="no page is damaged",
        probe=check_checksums,
        reads="pg_stat_database.checksum_failures of all databases, and whether checksums are on",
        why="One page that is not what was written means that the storage cannot be trusted, and backups will soon have"
        f" the damage too. Off, nobody would see it: pg_checksums --enable, on a stopped server. {PER_SERVER}",
        fix="Keep the backups there are, and restore on other hardware.",
        thresholds=Thresholds(crit=1),
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.collation",
        title="text is sorted as it was",
        probe=check_collation,
        reads="pg_database.datcollversion (PostgreSQL 15 and later) and pg_collation.collversion of the collations in"
        " use, against what the server's libraries say now",
        why="A new image of the same PostgreSQL may bring another C library or ICU. Indexes on text are then in an"
        " order the server no longer expects: queries miss rows, unique indexes take duplicates.",
        fix="REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION.",
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.invalid_indexes",
        title="every index is valid",
        probe=check_invalid_indexes,
        reads="pg_index: indexes that are not valid, but for those that are being built",
        why="No query uses an invalid index, and a unique one does not keep duplicates out; yet every write pays for"
        " it.",
        fix="REINDEX INDEX CONCURRENTLY, or DROP INDEX.",
        grant=SESSION_GRANT,
        after=("db.connect",),
        targets=databases,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
