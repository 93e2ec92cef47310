from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.catalog import choose_backup, read_catalog
from opsctl.cli.output import Outcome, duration
from opsctl.cli.run_report import concern
from opsctl.errors import BackupDamaged, ExitCode, NoSuchBackup, ServiceFailed, ServicesUnreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opsctl.catalog import Backup, Catalog, Incomplete
    from opsctl.cli.session import Session
    from opsctl.drill import Drills
    from opsctl.manifest import Manifest
    from opsctl.postgres.server import Server
    from opsctl.services.docker_throwaway import ThrowawayContainers
    from opsctl.verify import Verification

OUTCOMES = {"pass": "pass", "fail": "fail", "unknown": "could not verify"}

BackupIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Backups to verify; the newest of each database by default."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Verify every backup.")]
DrillOption = Annotated[
    bool, typer.Option("--drill", help="Restore them into a throwaway server and compare everything with the facts.")
]
SinceOption = Annotated[
    int | None,
    typer.Option("--since-days", metavar="N", min=0, help="Of all backups, those not verified in the last N days."),
]
SampleOption = Annotated[
    int | None,
    typer.Option("--sample", metavar="N", min=1, help="Of those, N at most: the ones longest not verified."),
]


@dataclass(frozen=True)
class Wanted:
    """Which backups were asked for, and how closely to look."""

    ids: list[str]
    every: bool
    since_days: int | None
    sample: int | None
    drill: bool

    @property
    def spreads(self) -> bool:
        return self.since_days is not None or self.sample is not None


def verify(
    session: "Session",
    backup_ids: BackupIds = None,
    all_backups: AllOption = False,
    drill: DrillOption = False,
    since_days: SinceOption = None,
    sample: SampleOption = None,
) -> Outcome:
    """Read backups back: every file's digest, then the dump decoded and its rows counted. Needs no server.

    A damaged backup is named, and the rest is verified all the same. --drill restores them as well, see opsctl drill.
    --since-days and --sample spread the work over many runs.

    Example: [bold]opsctl verify --all[/bold]
    """
    return _verified(session, Wanted(backup_ids or [], all_backups, since_days, sample, drill))


def drill(
    session: "Session",
    backup_ids: BackupIds = None,
    all_backups: AllOption = False,
    since_days: SinceOption = None,
    sample: SampleOption = None,
) -> Outcome:
    """Restore backups into a throwaway server, compare everything with the facts, and record what that proves.

    The server is made of PostgreSQL's programs on this host, or is the one of drill.scratch_url. It is removed
    afterwards, after a kill by the next drill. Three outcomes: pass, fail (exit code 15), unknown (3): the backup could
    not be judged here, and why.

    Example: [bold]opsctl drill latest[/bold]
    """
    return _verified(session, Wanted(backup_ids or [], all_backups, since_days, sample, drill=True))


def _verified(session: "Session", wanted: Wanted) -> Outcome:
    if wanted.ids and (wanted.every or wanted.spreads):
        raise UsageError("Name backups, or use --all, --since-days and --sample, not both.")
    backups, damaged = _chosen(session, wanted)
    databases = sorted({*(each.database for each in backups), *(each.database for each in damaged)})
    concern(session, databases)
    if wanted.drill:
        _remove_leftovers(session)
    results = [_unreadable(each) for each in damaged]
    results += [_verify(session, backup, drill=wanted.drill) for backup in backups]
    text = [line for each in results for line in _told(each)]
    fields = {"verified": len(results), "failed": sum(each["outcome"] == "fail" for each in results)}
    fields |= {"database": ",".join(databases)}
    outcomes = {each["outcome"] for each in results}
    if "fail" in outcomes:
        names = ", ".join(each["id"] for each in results if each["outcome"] == "fail")
        error = BackupDamaged(f"Damaged: {names}.", hint="Take a new backup; restore from an intact one only.")
        return Outcome({"backups": results}, text, error=error, fields=fields)
    code = ExitCode.ATTENTION if "unknown" in outcomes else ExitCode.DONE
    return Outcome({"backups": results}, text or ["Every backup was verified lately enough."], code, fields=fields)


def _chosen(session: "Session", wanted: Wanted) -> tuple[list["Backup"], list["Incomplete"]]:
    """The backups to verify, and the ones whose manifest cannot be read: those are damaged for certain."""
    if wanted.ids:
        return [choose_backup(session, each) for each in wanted.ids], []
    catalog = read_catalog(session)
    damaged = [each for each in catalog.incomplete if each.reason != "interrupted"]
    backups = catalog.backups
    if not backups and not damaged:
        raise NoSuchBackup("There is no backup yet.", hint="`opsctl backup` takes one.")
    if wanted.spreads:
        from opsctl.verify import due

        before = session.clock() - timedelta(days=wanted.since_days) if wanted.since_days is not None else None
        return due(backups, "restored" if wanted.drill else "stored", before=before, at_most=wanted.sample), damaged
    if not wanted.every:
        backups = _newest(session, catalog)
        newest = {backup.database: backup.id for backup in backups}  # ids of one database sort by time
        damaged = [each for each in damaged if each.id >= newest.get(each.database, "")]
    return backups, damaged


def _newest(session: "Session", catalog: "Catalog") -> list["Backup"]:
    from opsctl.manifest import choose

    databases = {backup.database for backup in catalog.backups}
    return [choose(catalog.backups, f"latest:{name}", now=session.clock()) for name in sorted(databases)]


def _verify(session: "Session", backup: "Backup", *, drill: bool) -> dict[str, Any]:
    """Verify every copy of a backup; the worst outcome counts."""
    from opsctl.manifest import EVIDENCE_LEVELS

    found = _drill_copies(session, backup) if drill else _read_copies(session, backup)
    session.output.stop_progress()
    for verification in found:
        if verification.outcome != "pass":
            session.log().error(
                "verify.failed" if verification.outcome == "fail" else "verify.unknown",
                backup_id=backup.id,
                repository=verification.repository,
                problems=list(verification.problems),
            )
    outcomes = [each.outcome for each in found]
    levels = [each.evidence for each in found]
    return {
        "id": backup.id,
        "database": backup.database,
        "outcome": next((each for each in ("fail", "unknown") if each in outcomes), "pass"),
        "evidence": None if None in levels else min(levels, key=lambda level: EVIDENCE_LEVELS.index(str(level))),
        "problems": [f"{each.repository}: {problem}" for each in found for problem in each.problems],
        "notes": [f"{each.repository}: {note}" for each in found for note in each.notes],
        "restore_seconds": max((each.restore_seconds or 0 for each in found), default=0) or None,
        "restored_on": next((each.restored_on for each in found if each.restored_on), None),
        "repositories": [{"name": each.repository, "outcome": each.outcome} for each in found],
    }


def _read_copies(session: "Session", backup: "Backup") -> "list[Verification]":
    from opsctl.verify import verify_backup

    return [
        verify_backup(
            copy.manifest,
            session.repositories[copy.repository],
            session.tools_of(backup.database),
            session.keys,
            clock=session.clock,
            start_progress=lambda doing, total: session.progress(f"{backup.id}: {doing}", total),
        )
        for copy in backup.copies
    ]


def _drill_copies(session: "Session", backup: "Backup") -> "list[Verification]":
    copies = [(session.repositories[copy.repository], copy.manifest) for copy in backup.copies]
    return _drills_of(session, backup.database).verify(copies)


def _drills_of(session: "Session", database: str) -> "Drills":
    """How backups of a database are drilled; without assertions when it is not configured any more."""
    from opsctl.drill import Assertion, Drills
    from opsctl.drill_container import InContainer
    from opsctl.drill_records import DrillRecords
    from opsctl.drill_servers import Candidate, Scratch, Throwaway, throwaways
    from opsctl.postgres.binaries import find_binaries
    from opsctl.postgres.tools import Tools

    settings, records = session.config.drill, DrillRecords(session.config.state_path)
    found = find_binaries("initdb", search_path=session.config.search_path)

    def candidates(manifest: "Manifest") -> "Iterator[Candidate]":
        if settings.scratch_url is not None:
            open_scratch = partial(_scratch_server, session)
            yield Scratch(open_scratch, records, session.config.state_path, settings.timeout_seconds)
        for binaries in throwaways(found, manifest):
            yield Throwaway(
                binaries,
                records,
                session.config.drill_folder,
                settings.max_disk_bytes,
                settings.max_memory_bytes,
                settings.allow_superuser,
                settings.timeout_seconds,
            )
        containers = _containers(session)
        if containers is not None:
            yield InContainer(
                containers,
                records,
                settings.image.replace("{major}", manifest.server_version.split(".")[0]),
                session.config.drill_environment,
                settings.pull,
                settings.max_disk_bytes,
                settings.max_memory_bytes,
                settings.timeout_seconds,
            )

    configured = session.config.databases.get(session.config.section_of(database) or "")
    return Drills(
        candidates,
        Tools(search_path=session.config.search_path, environment=session.config.drill_environment),
        session.keys,
        session.clock,
        lambda doing, total: session.progress(f"{database}: {doing}", total),
        [Assertion(each.sql, each.expect) for each in configured.assertions] if configured else [],
    )


def _remove_leftovers(session: "Session") -> None:
    """Remove what drills that were killed have left on this host and on the scratch server."""
    from opsctl.drill_records import DrillRecords
    from opsctl.services.docker_throwaway import ThrowawayContainers

    open_scratch = partial(_scratch_server, session) if session.config.drill.scratch_url else None
    containers = ThrowawayContainers(session.docker)
    removed = DrillRecords(session.config.state_path).remove_leftovers(open_scratch, containers.remove)
    if removed:
        session.log().warning("drill.leftovers_removed", drills=removed)


def _containers(session: "Session") -> "ThrowawayContainers | None":
    """Where containers can be made; None where there is no Docker."""
    from opsctl.services.docker_throwaway import ThrowawayContainers

    try:
        session.docker.version()
    except (ServiceFailed, ServicesUnreachable):
        return None
    return ThrowawayContainers(session.docker)


def _scratch_server(session: "Session", database: str) -> "Server":
    """The server that is lent for drills, with a database of that name."""
    from opsctl.postgres.server import Server

    url = session.config.drill.scratch_url
    return Server(url.get_secret_value() if url else "", database=database)


def _unreadable(incomplete: "Incomplete") -> dict[str, Any]:
    return {
        "id": incomplete.id,
        "database": incomplete.database,
        "outcome": "fail",
        "evidence": None,
        "problems": [f"{incomplete.repository}: {incomplete.reason}"],
        "notes": [],
        "restore_seconds": None,
        "restored_on": None,
        "repositories": [{"name": incomplete.repository, "outcome": "fail"}],
    }


def _told(result: dict[str, Any]) -> "Iterator[str]":
    seconds = result["restore_seconds"]
    proven = f"  {result['evidence']}" if result["outcome"] == "pass" else ""
    restored = f", restored in {duration(seconds)}" if proven and seconds else ""
    yield f"{OUTCOMES[result['outcome']]:16} {result['id']}{proven}{restored}"
    if result["restored_on"]:
        yield f"  by {result['restored_on']}"
    yield from (f"  {problem}" for problem in _once(result["problems"]))
    yield from (f"  note: {note}" for note in _once(result["notes"]))


def _once(said: list[str]) -> "Iterator[str]":
    """What is said of several repositories alike, once, with all their names."""
    places: dict[str, list[str]] = {}
    for each in said:
        place, _, what = each.partition(": ")
        places.setdefault(what, []).append(place)
    return (f"{', '.join(names)}: {what}" for what, names in places.items())
