"""Repositories brought up to date from each other: what one lacks, and its retention would keep, is copied as it is.

Nothing is decrypted or compressed anew: the stored bytes pass, and are compared with the manifest while they do.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import BinaryIO

from opsctl.catalog import Backup, Catalog, Incomplete, StoredBackup
from opsctl.errors import BackupDamaged, LockHeld, OpsctlError, RepositoryUnreachable
from opsctl.manifest import Manifest
from opsctl.repository import HIDDEN, Repository
from opsctl.retention import Policy, candidate, plan_prune
from opsctl.stream import Advance, check_stored

STALLED = timedelta(minutes=15)
"""When a copy that stands still is taken for what a killed run left. A copy waits for nothing but its link, and a part
of it comes every minute even through a bad one; prune's 48 hours are for dumps, which wait for locks."""


@dataclass(frozen=True)
class Missing:
    """A backup that the repository ``to`` lacks, and its intact copies elsewhere, the first to be asked first."""

    to: str
    backup: Backup
    begun: Incomplete | None = None
    """What stands in its place there: a copy being written, or what is left of one."""

    @property
    def stored_bytes(self) -> int:
        return self.backup.manifest.stored_bytes

    def is_under_way(self, now: datetime) -> bool:
        """Whether somebody is writing it there."""
        return self.begun is not None and now - self.begun.modified_at < STALLED


@dataclass(frozen=True)
class Copied:
    id: str
    database: str
    source: str
    to: str
    bytes: int


@dataclass(frozen=True)
class Failure:
    """What could not be copied, or not with all that belongs to it; ``id`` is None when it concerns the repository."""

    id: str | None
    database: str | None
    to: str
    error: OpsctlError


@dataclass(frozen=True)
class Synced:
    copied: tuple[Copied, ...] = ()
    failures: tuple[Failure, ...] = ()


def plan(
    catalogs: Mapping[str, Catalog],
    policies: Mapping[str, Policy],
    homes: Mapping[str, Collection[str]],
    *,
    now: datetime,
) -> list[Missing]:
    """What each repository lacks, newest first; ``homes`` are the repositories that a database's backups belong in.

    A prune after this removes none of it: it decides by the same rules over the same backups, and what it keeps of a
    set it keeps of every part of it that has all of that.
    """
    missing: list[Missing] = []
    for database, names in homes.items():
        known: dict[str, list[StoredBackup]] = {}
        for catalog in catalogs.values():
            for backup in catalog.backups:
                if backup.database == database:
                    known.setdefault(backup.id, []).extend(backup.copies)
        for name in names:
            if name in catalogs:
                missing += _missing_in(name, catalogs[name], known, policies[name], now)
    return sorted(missing, key=lambda each: (each.backup.created_at, each.backup.id, each.to), reverse=True)


def _missing_in(
    name: str, catalog: Catalog, known: Mapping[str, Sequence[StoredBackup]], policy: Policy, now: datetime
) -> Iterator[Missing]:
    own = {identifier for identifier, copies in known.items() if any(copy.repository == name for copy in copies)}
    intact = {
        identifier: Backup(tuple(copy for copy in copies if not copy.failed))
        for identifier, copies in known.items()
        if identifier not in own and not all(copy.failed for copy in copies)
    }
    here = [copy for identifier in own for copy in known[identifier] if copy.repository == name]
    begun = {each.id: each for each in catalog.incomplete}
    candidates = [candidate(copy, known[copy.manifest.id]) for copy in here]
    # Its proofs are those of other copies: one of its own would bring back what a prune of this repository let go.
    candidates += [replace(candidate(backup, known[identifier]), proven=None) for identifier, backup in intact.items()]
    for decision in plan_prune(candidates, policy, now=now):
        if decision.keep and decision.id in intact:
            yield Missing(name, intact[decision.id], begun.get(decision.id))


def execute(
    missing: Iterable[Missing], repositories: Mapping[str, Repository], *, now: datetime, advance: Advance
) -> Synced:
    """Copy one after the other. One that fails stops no other; a repository that cannot be written is left alone."""
    copied: list[Copied] = []
    failures: list[Failure] = []
    given_up: dict[str, int] = {}
    for each in missing:
        if each.to in given_up:
            given_up[each.to] += 1
            continue
        copying = _Copying(each, repositories, now, advance)
        try:
            if (done := copying.run()) is not None:
                copied.append(done)
                copying.add_pin_and_evidence()
        except OpsctlError as error:
            failures.append(Failure(each.backup.id, each.backup.database, each.to, error))
            if isinstance(error, RepositoryUnreachable):
                given_up[each.to] = 0
    failures += [Failure(None, None, name, _not_tried(count)) for name, count in given_up.items() if count]
    return Synced(tuple(copied), tuple(failures))


def _not_tried(count: int) -> OpsctlError:
    return OpsctlError(
        f"{count} more of its missing backups were not tried after that.", hint="Run `opsctl sync` again."
    )


class _SourceUnusableError(Exception):
    """A copy cannot be read, or is not what its manifest says: another one may do."""


class _Copying:
    """One missing backup on its way."""

    def __init__(
        self, missing: Missing, repositories: Mapping[str, Repository], now: datetime, advance: Advance
    ) -> None:
        self._missing = missing
        self._repositories = repositories
        self._target = repositories[missing.to]
        self._manifest = missing.backup.manifest
        self._now = now
        self._advance = advance

    def run(self) -> Copied | None:
        """Copy from the first source that turns out intact; None when another run was faster."""
        self._clear_the_place()
        problems = []
        for source in self._missing.backup.copies:
            try:
                total = self._copy_from(self._repositories[source.repository])
            except _SourceUnusableError as error:
                problems.append(f"{source.repository}: {error}")
                continue
            except FileExistsError:
                return None
            return Copied(self._manifest.id, self._manifest.database, source.repository, self._target.name, total)
        raise BackupDamaged(
            f"There is no intact copy of {self._manifest.id} to copy ({'; '.join(problems)}).",
            hint="`opsctl verify --all` shows which backups are intact.",
        )

    def _clear_the_place(self) -> None:
        """Remove what a killed run left; what another one is writing is left alone."""
        begun = self._missing.begun
        if begun is None:
            return
        if begun.reason == HIDDEN:  # somebody deleted it there: that is for a person to undo, or to finish
            raise BackupDamaged(
                f"{self._manifest.id} in {self._target.name} is {HIDDEN}.",
                hint="Removing the marker brings it back, see docs/s3.md.",
            )
        if begun.reason != "interrupted":
            raise BackupDamaged(
                f"{self._manifest.id} in {self._target.name} is no whole backup: {begun.reason}",
                hint="Remove its folder there by hand, then run `opsctl sync` again.",
            )
        if self._missing.is_under_way(self._now):
            raise _being_written(self._manifest, self._target)
        self._target.remove_orphan(begun)

    def _copy_from(self, source: Repository) -> int:
        with _reading():
            raw, manifest = source.reread(self._manifest)
        if manifest.id != self._manifest.id:
            raise _SourceUnusableError(f"its manifest is that of {manifest.id}")
        passed = 0

        def advance(count: int) -> None:
            nonlocal passed
            passed += count
            self._advance(count)

        try:
            upload = self._target.begin(manifest.database, manifest.id, created_at=manifest.created_at)
        except FileExistsError:
            raise _being_written(manifest, self._target) from None
        try:
            for file in manifest.files:
                with _reading():
                    reader = source.open(manifest, file)
                with reader, upload.file(file.name) as writer:
                    try:
                        check_stored(file, _Source(reader), advance, writer)
                    except BackupDamaged as error:
                        raise _SourceUnusableError(error.message) from error
            upload.publish_raw(raw, manifest)  # verbatim: a signature is over these very bytes
        except BaseException:
            self._advance(-passed)
            upload.abandon()
            raise
        return passed

    def add_pin_and_evidence(self) -> None:
        """What hangs on the backup. Evidence that passed is about bytes, and these are the same bytes.

        Evidence that failed stays behind: it tells of the place whose bytes were damaged.
        """
        try:
            if self._missing.backup.pinned:
                self._target.pin(self._manifest, now=self._now)
            for copy in self._missing.backup.copies:
                source = self._repositories[copy.repository]
                for evidence in copy.evidence:
                    if evidence.passed:
                        with suppress(FileNotFoundError, FileExistsError):
                            self._target.add_evidence(
                                self._manifest, evidence, source.read_evidence(self._manifest, evidence)
                            )
        except OpsctlError as error:
            raise OpsctlError(
                f"{self._manifest.id} was copied to {self._target.name}, but not its pin and evidence: {error.message}",
                hint=error.hint,
            ) from error


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OpsctlError as error:
        raise _SourceUnusableError(error.message) from error


class _Source:
    """A stored file whose failures are told apart from those of the repository that is written to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OpsctlError as error:
            raise _SourceUnusableError(error.message) from error
        except OSError as error:
            raise _SourceUnusableError(error.strerror or str(error)) from error


def _being_written(manifest: Manifest, target: Repository) -> LockHeld:
    return LockHeld(
        f"{manifest.id} is being written to {target.name} by another run, or one was interrupted a moment ago.",
        hint=f"`opsctl sync` does it again once it has stood still for {STALLED.seconds // 60} minutes.",
    )
