"""How long a restore will take, by what restores and drills of the same database have measured."""

import json
import math
from collections.abc import Iterable, Mapping

from opsctl.catalog import Backup, Evidence
from opsctl.errors import RepositoryUnreachable
from opsctl.history import MeasuredRestore
from opsctl.manifest import EVIDENCE_LEVELS, Manifest
from opsctl.repository import Repository
from opsctl.restore_plan import ExpectedTime

RESTORED = EVIDENCE_LEVELS.index("restored")
MOST_READS = 5
"""How many pieces of evidence are read at most: each is a request to the storage."""


LEAST_SECONDS = 1
"""What a restore takes however small the dump is: a database is made, compared and swapped in."""

ALIKE = 2
"""Dumps of which the larger has at most so many times the bytes of the other are alike."""


def expected_time(
    manifest: Manifest,
    backups: Iterable[Backup],
    repositories: Mapping[str, Repository],
    restored: MeasuredRestore | None = None,
) -> ExpectedTime | None:
    """How long this restore will take; ``None`` where nothing of its database was timed that could be read.

    ``restored`` is the last one into the same server. It tells more than a drill, which runs on another server and at
    low priority, unless its dump was of another size: little time says little about a large dump.
    """
    if restored is not None and _is_alike(manifest, restored):
        return in_proportion(manifest, restored)
    measured = read_measured(manifest, backups, repositories) or restored
    return in_proportion(manifest, measured) if measured else None


def _is_alike(manifest: Manifest, measured: MeasuredRestore) -> bool:
    smaller, larger = sorted((manifest.plain_bytes, measured.dump_bytes))
    return larger <= ALIKE * smaller


def in_proportion(manifest: Manifest, measured: MeasuredRestore) -> ExpectedTime:
    """The measured time; in proportion to the dump's size where it is another backup's. Pure."""
    ratio = 1.0 if measured.backup_id == manifest.id else manifest.plain_bytes / max(1, measured.dump_bytes)
    seconds = round(max(measured.seconds * ratio, min(measured.seconds, LEAST_SECONDS)), 3)
    return ExpectedTime(seconds, measured.backup_id, measured.seconds, measured.at, measured.by)


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
            return MeasuredRestore(drilled_manifest.id, drilled_manifest.plain_bytes, seconds, evidence.at, "drill")
    return None


def _restore_seconds(repository: Repository, manifest: Manifest, evidence: Evidence) -> float | None:
    try:
        seconds = json.loads(repository.read_evidence(manifest, evidence))["details"]["restore_seconds"]
    except (RepositoryUnreachable, FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    is_duration = isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0
    return float(seconds) if is_duration else None
