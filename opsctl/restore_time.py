"""How long a restore will take, by what drills of the same database have measured."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from opsctl.errors import RepositoryUnreachable
from opsctl.manifest import EVIDENCE_LEVELS, Manifest
from opsctl.repository import Backup, Evidence, Repository
from opsctl.restore_plan import ExpectedTime

RESTORED = EVIDENCE_LEVELS.index("restored")
MOST_READS = 5
"""How many pieces of evidence are read at most: each is a request to the storage."""


@dataclass(frozen=True)
class MeasuredRestore:
    """A restore that a drill has timed."""

    backup_id: str
    dump_bytes: int
    seconds: float
    at: datetime


def expected_time(
    manifest: Manifest, backups: Iterable[Backup], repositories: Mapping[str, Repository]
) -> ExpectedTime | None:
    """How long this restore will take; ``None`` where nothing of its database was drilled that could be read."""
    measured = read_measured(manifest, backups, repositories)
    return in_proportion(manifest, measured) if measured else None


def in_proportion(manifest: Manifest, measured: MeasuredRestore) -> ExpectedTime:
    """The measured time; in proportion to the dump's size where it is another backup's. Pure."""
    ratio = 1.0 if measured.backup_id == manifest.id else manifest.dump.bytes / max(1, measured.dump_bytes)
    return ExpectedTime(round(measured.seconds * ratio, 3), measured.backup_id, measured.seconds, measured.at)


def read_measured(
    manifest: Manifest, backups: Iterable[Backup], repositories: Mapping[str, Repository]
) -> MeasuredRestore | None:
    """The newest timed drill of this very backup, else of another one of its database.

    It stands in the evidence, a small object. What cannot be read is passed over: a plan works without.
    """
    drilled = [
        (copy.manifest, evidence, repositories[copy.repository])
        for backup in backups
        if backup.database == manifest.database
        for copy in backup.copies
        if copy.repository in repositories
        for evidence in copy.evidence
        if evidence.passed and EVIDENCE_LEVELS.index(evidence.level) >= RESTORED
    ]
    drilled.sort(key=lambda each: (each[0].id == manifest.id, each[1].at), reverse=True)
    for drilled_manifest, evidence, repository in drilled[:MOST_READS]:
        seconds = _restore_seconds(repository, drilled_manifest, evidence)
        if seconds is not None:
            return MeasuredRestore(drilled_manifest.id, drilled_manifest.dump.bytes, seconds, evidence.at)
    return None


def _restore_seconds(repository: Repository, manifest: Manifest, evidence: Evidence) -> float | None:
    try:
        seconds = json.loads(repository.read_evidence(manifest, evidence))["details"]["restore_seconds"]
    except (RepositoryUnreachable, FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    is_duration = isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0
    return float(seconds) if is_duration else None
