"""How a dump is loaded: by one session while it is read, or by several from a file."""

import os
import resource
import shlex
from dataclasses import replace
from datetime import UTC, datetime

import pyrage  # noqa: TID253
import pytest

from opsctl.loading import LARGE_BYTES, MOST_JOBS, fitting_sessions
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
        ({"format": "directory"}, 8, 4),
        ({"format": "plain"}, 8, 1),
    ],
)
def test_several_sessions_work_where_they_pay(changes, processors, jobs):
    """A large dump, and a session for each processor, where those are known."""
    assert fitting_sessions(replace(MANIFEST, **changes), processors=processors) == jobs


@pytest.fixture
def calls(binaries, tmp_path):
    """``calls()``: how pg_restore was called by whoever runs with ``calls.environment``."""
    log, programs = tmp_path / "calls", tmp_path / "programs"
    programs.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = shlex.quote(str(binaries.path(name)))
        note = f'echo "$*" >> {shlex.quote(str(log))}; ' if name == "pg_restore" else ""
        (programs / name).write_text(f'#!/bin/sh\n{note}exec {real} "$@"\n')
        (programs / name).chmod(0o755)

    def read():
        return [line for line in log.read_text().splitlines() if "--dbname=" in line]

    read.environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    return read


@pytest.mark.end_to_end
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_large_dump_is_loaded_by_as_many_as_may(run_opsctl, rich, facts_of, schema_of, calls, is_encrypted):
    """Nobody said how many: rows by several sessions, unless they would lie on the disk; indexes always."""
    rich.execute(
        "CREATE TABLE large AS SELECT n, repeat(md5(n::text), 30) AS body FROM generate_series(1, 80000) n;"
        "CREATE INDEX ON large (n); ALTER TABLE large ADD PRIMARY KEY (n)"
    )
    identity = pyrage.x25519.Identity.generate()
    encryption = f'[encryption]\nrecipients = ["{identity.to_public()}"]\nidentity_file = "key"\n'
    (run_opsctl.work / "key").write_text(str(identity))
    (run_opsctl.work / "key").chmod(0o600)
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{rich.name}"]\nurl = "{rich.url}"\nfacts = "content"\n{encryption if is_encrypted else ""}'
    )
    assert run_opsctl("backup").returncode == 0
    copy = replace(rich, name=f"{rich.name}_copy")
    run = run_opsctl("restore", "latest", "--into", copy.name, "--json", env=calls.environment)

    assert (run.returncode, run.json["result"]["evidence"]) == (0, "content"), run
    assert facts_of(copy).tables == facts_of(rich).tables
    assert schema_of(copy) == schema_of(rich)
    several = f"--jobs={min(MOST_JOBS, os.cpu_count() or 1)}"
    if is_encrypted and several != "--jobs=1":
        rows, indexes = calls()
        assert "--section=data" in rows
        assert "--jobs=1" in rows
        assert "--section=post-data" in indexes
        assert several in indexes
        assert not (run_opsctl.state / "spool").exists()
    else:
        (everything,) = calls()
        assert "--section" not in everything
        assert several in everything


@pytest.mark.end_to_end
@pytest.mark.parametrize("jobs_of_dump", [1, 2], ids=["custom", "directory"])
def test_a_disk_that_fills_up_meanwhile(run_opsctl, saas, databases_like, jobs_of_dump):
    """One line that names the folder and what to do, nothing created, nothing left."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{saas.name}"]\nurl = "{saas.url}"\njobs = {jobs_of_dump}\n'
    )
    assert run_opsctl("backup").returncode == 0
    before = databases_like(saas)
    limit = (1 << 20, resource.RLIM_INFINITY)
    run = run_opsctl(
        *("restore", "latest", "--into", f"{saas.name}_copy", "--jobs", "2", "--json"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )

    assert (run.returncode, run.json["error"]["code"]) == (10, "configuration"), run
    assert "spool, cannot be used: File too large" in run.json["error"]["message"]
    assert "staging_path" in run.json["error"]["hint"]
    assert databases_like(saas) == before
    assert list((run_opsctl.state / "spool").iterdir()) == []
