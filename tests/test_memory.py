"""A backup streams: its memory does not grow with the database."""

import subprocess
import sys

import pytest

LIMIT_MIB = 150
MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "opsctl", "backup", "--quiet"], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process in between: Linux adds the peak of the starting process, and a test run is large."""


@pytest.mark.acceptance
def test_memory_of_a_backup_is_bounded(run_opsctl, database):
    """A database of 300 MB that hardly compresses is backed up with less than 150 MiB, whatever its size."""
    database.execute(
        "create unlogged table noise as select n,"
        " (select string_agg(md5((n * k)::text), '') from generate_series(1, 8) k) as text"
        " from generate_series(1, 1000000) n"
    )
    (size,) = database.execute("select pg_database_size(current_database())")[0]
    assert size > 280_000_000
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=run_opsctl.work,
        env=run_opsctl.environment(url=database.url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    stored = sum(path.stat().st_size for path in run_opsctl.work.rglob("dump.zst"))
    assert stored > 100_000_000
    # Linux counts in KiB: the largest of the program and of the children it has waited for.
    assert int(measured.stdout) / 1024 < LIMIT_MIB
