"""What repositories hold: backups, their copies, what was proven about each, and what is no backup. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from opsctl.errors import RepositoryUnreachable
from opsctl.manifest import EVIDENCE_LEVELS, EvidenceLevel, Manifest

ORPHAN_GRACE = timedelta(hours=48)
"""How long an incomplete backup may stand still before prune removes it: longer than any pause of a dump."""


@dataclass(frozen=True)
class Evidence:
    """What a verification found out: recorded in its file's name, details inside."""

    level: EvidenceLevel
    passed: bool
    at: datetime

    @property
    def key(self) -> str:
        """Where it lies in the backup's folder."""
        outcome = "pass" if self.passed else "fail"
        return f"evidence/{self.at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{self.level}-{outcome}.json"


@dataclass(frozen=True)
class StoredBackup:
    """One backup as it lies in one repository."""

    repository: str
    manifest: Manifest
    pinned: bool
    evidence: tuple[Evidence, ...]

    @property
    def proven(self) -> Evidence | None:
        """The strongest level proven since the last failure, and when."""
        if self.failed:
            return None
        passed = [evidence for evidence in self.evidence if evidence.passed]
        return max(passed, key=lambda each: (EVIDENCE_LEVELS.index(each.level), each.at), default=None)

    @property
    def failed(self) -> bool:
        """Whether a verification failed and none that looks at least as closely has passed since."""
        failures = [evidence for evidence in self.evidence if not evidence.passed]
        if not failures:
            return False
        last = max(failures, key=lambda each: each.at)
        rank = EVIDENCE_LEVELS.index(last.level)
        return not any(e.passed and e.at > last.at and EVIDENCE_LEVELS.index(e.level) >= rank for e in self.evidence)


@dataclass(frozen=True)
class Incomplete:
    """A folder that is no backup: interrupted, still being written, hidden, or with a damaged manifest."""

    repository: str
    id: str
    database: str
    bytes: int
    modified_at: datetime
    reason: str
    folder: str

    def is_orphan(self, now: datetime) -> bool:
        """Whether it may go: nothing was written to it for the grace time. Damaged or hidden ones are no orphans."""
        return self.reason == "interrupted" and now - self.modified_at > ORPHAN_GRACE


@dataclass(frozen=True)
class Backup:
    """One backup with all its copies, one per repository that has it."""

    copies: tuple[StoredBackup, ...]

    @property
    def manifest(self) -> Manifest:
        return self.copies[0].manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def database(self) -> str:
        return self.manifest.database

    @property
    def created_at(self) -> datetime:
        return self.manifest.created_at

    @property
    def repositories(self) -> list[str]:
        return [copy.repository for copy in self.copies]

    @property
    def failed(self) -> bool:
        """Whether no copy is left that is not known to be damaged."""
        return all(copy.failed for copy in self.copies)

    @property
    def pinned(self) -> bool:
        return any(copy.pinned for copy in self.copies)

    @property
    def proven(self) -> Evidence | None:
        found = [proven for copy in self.copies if (proven := copy.proven)]
        return max(found, key=lambda each: (EVIDENCE_LEVELS.index(each.level), each.at), default=None)


@dataclass
class Catalog:
    """What the repositories hold: backups newest first, and apart from them what is no backup."""

    backups: list[Backup] = field(default_factory=list)
    incomplete: list[Incomplete] = field(default_factory=list)
    unreachable: dict[str, RepositoryUnreachable] = field(default_factory=dict)

    @property
    def next_run_bytes(self) -> int:
        """What the next backups take if they are like the last ones: the newest of each database together."""
        newest: dict[str, int] = {}
        for backup in sorted(self.backups, key=lambda each: each.created_at):
            newest[backup.database] = backup.manifest.stored_bytes
        return sum(newest.values())


def merged(catalogs: Mapping[str, Catalog], unreachable: dict[str, RepositoryUnreachable]) -> Catalog:
    """One catalog out of several, each backup once with all its copies."""
    whole = Catalog(unreachable=unreachable)
    copies: dict[str, list[StoredBackup]] = {}
    for catalog in catalogs.values():
        whole.incomplete += catalog.incomplete
        for backup in catalog.backups:
            copies.setdefault(backup.id, []).extend(backup.copies)
    whole.backups = [Backup(tuple(each)) for each in copies.values()]
    whole.backups.sort(key=lambda backup: (backup.created_at, backup.id), reverse=True)
    return whole
