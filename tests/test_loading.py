"""How a dump is loaded: by one session while it is read, or by several from a file."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from opsctl.loading import LARGE_BYTES, fitting_jobs
from opsctl.manifest import DatabaseProperties, Facts, Manifest, StoredFile

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PROPERTIES = DatabaseProperties("alice", "UTF8", "libc", "C", "C", None, None, None, None, -1, ())
FACTS = Facts(level="none", tables=(), sequences=(), extensions=(), roles=(), database=PROPERTIES)
MANIFEST = Manifest(
    id="shop-20261123T110000Z-0000",
    database="shop",
    started_at=NOW,
    finished_at=NOW,
    opsctl_version="1",
    pg_dump_version="16.4",
    server_version="16.4",
    host="h",
    files=(StoredFile("dump.zst", LARGE_BYTES, 100, "0", "0"),),
    facts=FACTS,
    restore_command="",
    database_bytes=5000,
)


@pytest.mark.parametrize(
    ("changes", "processors", "jobs"),
    [
        ({}, 4, 4),
        ({}, 64, 4),
        ({}, 2, 2),
        ({}, 1, 1),
        ({}, None, 1),
        ({"files": (StoredFile("dump.zst", LARGE_BYTES - 1, 100, "0", "0"),)}, 8, 1),
        ({"files": (StoredFile("dump.zst.age", LARGE_BYTES, 100, "0", "0"),)}, 8, 1),
        ({"format": "directory"}, 8, 4),
        ({"format": "plain"}, 8, 1),
    ],
)
def test_several_sessions_load_where_they_pay(changes, processors, jobs):
    """A large dump, and a session for each processor, where those are known; what was encrypted stays so."""
    assert fitting_jobs(replace(MANIFEST, **changes), processors=processors) == jobs
