"""A backup streams: its memory does not grow with the database."""

import os
import subprocess
import sys

LIMIT_MIB = 150


def test_memory_of_a_backup_is_bounded(run_opsctl, database):
    """A database of 300 MB that hardly compresses is backed up with less than 150 MiB, whatever its size."""
    database.execute(
        "create unlogged table noise as select n,"
        " (select string_agg(md5((n * k)::text), '') from generate_series(1, 8) k) as text"
        " from generate_series(1, 1000000) n"
    )
    (size,) = database.execute("select pg_database_size(current_database())")[0]
    assert size > 280_000_000
    process = subprocess.Popen(
        [sys.executable, "-m", "opsctl", "backup"],
        cwd=run_opsctl.work,
        env=run_opsctl.environment(url=database.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # collected here, not by Popen
    assert process.returncode == 0
    stored = sum(path.stat().st_size for path in run_opsctl.work.rglob("dump.zst"))
    assert stored > 100_000_000
    # Linux counts in KiB: the largest of the program and of the children it has waited for.
    assert usage.ru_maxrss / 1024 < LIMIT_MIB
