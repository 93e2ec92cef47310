from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsctl.cli.output import Outcome, counted, duration, size
from opsctl.cli.run_report import concern
from opsctl.cli.sync import copied_entry, described, synchronise
from opsctl.errors import ExitCode, OpsctlError, RepositoryUnreachable

if TYPE_CHECKING:
    from opsctl.backup import TakenBackup
    from opsctl.catalog import Backup, Catalog
    from opsctl.cli.session import Session
    from opsctl.prune import Line
    from opsctl.sync import Copied, Synced

Databases = Annotated[
    list[str] | None, typer.Argument(metavar="DATABASE", help="Configured databases; all of them by default.")
]


NewServer = Annotated[
    bool, typer.Option("--new-server", help="Accept that the server is another one than that of the earlier backups.")
]
NoPrune = Annotated[bool, typer.Option("--no-prune", help="Remove nothing: leave the retention to the next backup.")]


def backup(
    session: "Session", databases: Databases = None, new_server: NewServer = False, no_prune: NoPrune = False
) -> Outcome:
    """Take a backup of each database, copy what repositories lack, and apply the retention.

    Every database has its own outcome: one that fails stops no other.

    Example: [bold]opsctl backup saasdb[/bold]
    """
    names = session.database_names(databases)
    concern(session, names)
    results: list[dict[str, Any]] = []
    errors: list[OpsctlError] = []
    text: list[str] = []
    copied: list[Copied] = []
    pruned: list[Line] = []
    attention = False
    for name in names:
        try:
            taken = _take(session, name, new_server=new_server)
        except OpsctlError as error:
            if len(names) > 1:
                session.log().error("backup.failed", database=name, code=error.code, message=error.message)
            errors.append(error)
            results.append(_failure(name, error))
            text.append(f"[failed] {name}: {error.message}")
            continue
        catalogs, unlisted = _listed(session, name, taken)
        synced = _sync(session, name, taken, catalogs)
        taken = _caught_up(taken, synced)
        copied += synced.copied
        results.append(_success(taken))
        text += _described(taken)
        text += [f"  {line[0].lower()}{line[1:]}" for line in described(synced)]
        is_wanted = not (no_prune or taken.unusual)
        rotation = _rotate(session, name, taken.clock_skew_seconds, catalogs, unlisted, is_wanted=is_wanted)
        pruned += rotation.removed
        text += [f"  pruned {line.id} from {line.repository}" for line in rotation.removed]
        text += [f"  could not prune {problem}" for problem in rotation.problems]
        text += [f"  {remark}" for remark in rotation.remarks]
        forgotten = _forget(session, name) if is_wanted else []
        text += [f"  dropped {each}, put aside by a restore (keep_previous)" for each in forgotten]
        attention = attention or bool(taken.failures or synced.failures or rotation.problems or taken.needs_attention)
    result = {
        "backups": results,
        "copied": [copied_entry(each) for each in copied],
        "pruned": [{"id": line.id, "repository": line.repository} for line in pruned],
    }
    fields: dict[str, Any] = {"database": ",".join(names)}
    if len(results) == 1 and not errors:
        stored_in = [each["name"] for each in results[0]["repositories"] if each["status"] == "stored"]
        fields |= {key: results[0][key] for key in ("bytes", "stored_bytes")}
        fields |= {"backup_id": results[0]["id"], "repository": ",".join(stored_in)}
    if errors and len(errors) == len(names):
        return Outcome(result, () if len(names) == 1 else text, error=errors[0], fields=fields)
    code = ExitCode.ATTENTION if errors or attention else ExitCode.DONE
    return Outcome(result, text, code, fields=fields)


def _take(session: "Session", name: str, *, new_server: bool) -> "TakenBackup":
    from opsctl.backup import BackupPlan, take_backup
    from opsctl.staging import Staging
    from opsctl.stream import Compression
    from opsctl.unusual import sentences

    settings = session.config.database(name)
    repositories = session.repositories_of(name)
    earlier = _earlier(session, name)
    # The newest one's size is the best estimate, its server the one to expect.
    previous = earlier[0].manifest if earlier else None
    plan = BackupPlan(
        server=session.server(name),
        database=name,
        repositories=repositories,
        tools=session.tools_of(name),
        state_path=session.config.state_path,
        facts=settings.facts,
        compression=Compression(settings.compression_level, settings.compression_threads),
        recipients=session.recipients,
        signing_key=session.signing_key,
        lock_timeout_seconds=settings.lock_timeout_seconds,
        exclude_tables=settings.exclude_tables,
        role_passwords=settings.role_passwords,
        jobs=settings.jobs,
        staging=Staging(session.config.staging_path),
        expected_server=previous.system_identifier if previous and not new_server else None,
        earlier=[backup.manifest for backup in earlier if not backup.failed],
        limits=settings.unusual,
    )
    estimate = previous.dump.bytes if previous else None
    try:
        taken = take_backup(
            plan,
            clock=session.clock,
            start_progress=lambda database_bytes: session.progress(f"Backing up {name}", estimate or database_bytes),
        )
    finally:
        session.output.stop_progress()
    for repository, error in taken.failures.items():
        session.log().error("repository.failed", repository=repository, database=name, message=error.message)
    for repository in taken.slow:
        message = "it did not keep up with the dump; the backup is copied there now"
        session.log().warning("repository.slow", repository=repository, database=name, message=message)
    for warning in taken.warnings:
        session.log().warning("backup.warning", database=name, message=warning)
    for message in sentences(taken.unusual):
        session.log().warning("backup.unusual", database=name, backup_id=taken.manifest.id, message=message)
    return taken


def _earlier(session: "Session", name: str) -> "list[Backup]":
    """The backups of this database that are not dated in the future, newest first."""
    from opsctl.repository import read_all
    from opsctl.uploads import PATIENCE_SECONDS

    try:
        backups = read_all(session.repositories_of(name), [name], patience_seconds=PATIENCE_SECONDS).backups
    except OpsctlError:
        return []  # the backup itself will say what is wrong
    now = session.clock()
    return [backup for backup in backups if backup.created_at <= now]


def _listed(
    session: "Session", name: str, taken: "TakenBackup"
) -> "tuple[dict[str, Catalog], dict[str, RepositoryUnreachable]]":
    """What the repositories hold now; those that do not answer are neither copied to nor pruned."""
    from opsctl.repository import read_each
    from opsctl.uploads import PATIENCE_SECONDS

    repositories = session.repositories_of(name)
    # One that failed may be a full disk, which wants to be pruned, or a black hole, which has cost enough time.
    patience = PATIENCE_SECONDS if taken.failures else None
    try:
        return read_each(repositories, [name], patience_seconds=patience)
    except RepositoryUnreachable as error:
        return {}, dict.fromkeys((each.name for each in repositories), error)


def _sync(session: "Session", name: str, taken: "TakenBackup", catalogs: "dict[str, Catalog]") -> "Synced":
    """Copy what repositories lack, the slow ones the new backup; those that just failed are left to the next run."""
    from opsctl.sync import Synced

    wanted = [repository for repository in catalogs if repository not in taken.failures]
    if len(catalogs) < 2 or not wanted:
        return Synced()
    synced = synchronise(session, {name: wanted}, catalogs)
    for repository in {each.to for each in synced.copied}:
        try:
            catalogs[repository] = session.repositories[repository].catalog([name])
        except RepositoryUnreachable:
            del catalogs[repository]  # nothing there is pruned without having seen the copies
    return synced


def _caught_up(taken: "TakenBackup", synced: "Synced") -> "TakenBackup":
    """Where the new backup is once the slow repositories were given their copies."""
    errors = {each.to: each.error for each in synced.failures if each.id in {None, taken.manifest.id}}
    behind = OpsctlError("It did not keep up with the dump.", hint="`opsctl sync` copies the backup there.")
    failures = {name: errors.get(name, behind) for name in taken.slow}
    for each in synced.copied:
        if each.id == taken.manifest.id:
            failures.pop(each.to, None)
    caught_up = tuple(name for name in taken.slow if name not in failures)
    return replace(taken, stored_in=(*taken.stored_in, *caught_up), failures={**taken.failures, **failures})


@dataclass(frozen=True)
class _Rotation:
    removed: tuple["Line", ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    """What is as it was set up: credentials that may not delete."""


def _rotate(
    session: "Session",
    name: str,
    clock_skew_seconds: float,
    catalogs: "dict[str, Catalog]",
    unlisted: "dict[str, RepositoryUnreachable]",
    *,
    is_wanted: bool,
) -> _Rotation:
    """Apply each repository's retention to this database; rotation never fails a backup that was taken."""
    if not is_wanted:
        return _Rotation()
    from opsctl.prune import execute, plan, sparing_locked, without_skewed
    from opsctl.repository import CLOCK_LIMIT

    if abs(clock_skew_seconds) > CLOCK_LIMIT.total_seconds():
        message = f"this host's clock and the server's are {abs(clock_skew_seconds):.0f} s apart; nothing was pruned"
        session.log().error("clock.skew", database=name, message=message)
        return _Rotation(problems=(f"anything: {message}",))
    repositories = session.repositories_of(name)
    catalogs, skewed = without_skewed(catalogs, repositories, session.clock)
    for repository, problem in skewed.items():
        session.log().error("clock.skew", database=name, repository=repository, message=problem)
    now = session.clock()
    decided = sparing_locked(plan(catalogs, session.policies, now=now, databases=[name]), repositories, now)
    pruned = execute(decided, repositories)
    problems = [f"{repository}: {error.message}" for repository, error in unlisted.items()]
    problems += [f"{repository}: {problem}" for repository, problem in skewed.items()]
    problems += [f"{line.id} in {line.repository}: {error.message}" for line, error in pruned.failures]
    return _Rotation(pruned.removed, tuple(problems), tuple(denial.message for denial in pruned.denials))


def _forget(session: "Session", name: str) -> list[str]:
    """Drop the databases that restores put aside longer ago than ``keep_previous``."""
    from opsctl.cli.undo import undo_of
    from opsctl.errors import Refused
    from opsctl.retention import parse_duration

    keep = session.config.database(name).keep_previous
    if keep is None:
        return []
    try:
        return undo_of(session, name).forget(clock=session.clock, older_than=parse_duration(keep))
    except Refused:
        return []  # nothing was put aside
    except OpsctlError as error:
        session.log().warning("forget.failed", database=name, message=error.message)
        return []


def _success(taken: "TakenBackup") -> dict[str, Any]:
    manifest = taken.manifest
    repositories = [{"name": name, "status": "stored", "error": None} for name in taken.stored_in]
    repositories += [{"name": n, "status": "failed", "error": e.message} for n, e in taken.failures.items()]
    return {
        "id": manifest.id,
        "database": manifest.database,
        "status": "stored",
        "bytes": manifest.dump.bytes,
        "stored_bytes": manifest.stored_bytes,
        "duration_seconds": round(manifest.duration_seconds, 3),
        "evidence": None,
        "rows": manifest.facts.rows,
        "tables": len(manifest.facts.tables),
        "repositories": repositories,
        "warnings": list(taken.warnings),
        "unusual": [asdict(each) for each in taken.unusual],
        "compared_with": taken.compared_with,
        "error": None,
    }


def _failure(name: str, error: OpsctlError) -> dict[str, Any]:
    unknown = ("id", "bytes", "stored_bytes", "duration_seconds", "evidence", "rows", "tables", "compared_with")
    nothing: dict[str, Any] = {"repositories": [], "warnings": [], "unusual": []}
    details = {"code": error.code, "message": error.message, "hint": error.hint}
    return {**dict.fromkeys(unknown), **nothing, "database": name, "status": "failed", "error": details}


def _described(taken: "TakenBackup") -> list[str]:
    from opsctl.unusual import sentences

    manifest = taken.manifest
    rows = f"{counted(manifest.facts.rows, 'row')} in " if manifest.facts.rows is not None else ""
    sizes = f"{size(manifest.dump.bytes)} dumped, {size(manifest.stored_bytes)} stored"
    lines = [
        f"Backed up {manifest.database} as {manifest.id}",
        f"  {sizes}, {rows}{counted(len(manifest.facts.tables), 'table')}, {duration(manifest.duration_seconds)}",
        f"  stored in {', '.join(taken.stored_in)}",
    ]
    lines += [f"  NOT stored in {name}: {error.message}" for name, error in taken.failures.items()]
    lines += [f"  warning: {warning}" for warning in taken.warnings]
    lines += [f"  UNUSUAL: {message}" for message in sentences(taken.unusual)]
    if taken.unusual:
        lines.append(f"  nothing was pruned; see opsctl diff {taken.compared_with} {manifest.id}")
    return lines
