"""Ctrl-C, SIGTERM and SIGHUP end a run in order, wherever they find it."""

import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
from waiting import wait_for

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
OTHERS = [pytest.param(number, marks=pytest.mark.acceptance) for number in EXIT_CODES if number != signal.SIGTERM]
each_signal = pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS], ids=lambda number: number.name)
"""All of them take the same way; a terminal and a dropped connection are tried in the acceptance run."""


def write_programs(folder, binaries, **bodies):
    """PostgreSQL's client programs as scripts: those in ``bodies`` misbehave, the others run the real ones."""
    folder.mkdir(exist_ok=True)
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = shlex.quote(str(binaries.path(name)))
        body = bodies.get(name, 'exec "$real" "$@"')
        script = folder / name
        script.write_text(f'#!/bin/bash\nreal={real}\n[ "$1" = --version ] && exec "$real" --version\n{body}\n')
        script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def children_of(run_opsctl):
    """Processes with the HOME of this test: the program and its children."""
    home = f"HOME={run_opsctl.home}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if home in environment + b"\0":
                found.append(int(folder.name))
    return found


def databases_like(database):
    found = database.execute("select datname from pg_database where starts_with(datname, %s) order by 1", database.name)
    return [name for (name,) in found]


def sessions_of(database):
    return database.execute(
        "select count(*) from pg_stat_activity where application_name ~ '^(opsctl|pg_)' and starts_with(datname, %s)",
        database.name,
    )[0][0]


def assert_ended(process, number, *, seconds=30):
    """The documented exit code, one document, one last log line, and nothing but log lines."""
    stdout, stderr = process.communicate(timeout=seconds)
    assert process.returncode == EXIT_CODES[number], stderr
    document = json.loads(stdout)
    assert document["exit_code"] == EXIT_CODES[number]
    assert document["error"]["code"] == "interrupted"
    assert document["error"]["hint"]
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert lines[-1]["event"] == "run.failed"
    assert [line["event"] for line in lines].count("run.failed") == 1


@each_signal
def test_backup_is_interrupted_in_the_dump(run_opsctl, saas, binaries, tmp_path, number):
    """Nothing half-written, no process and no session on the server is left at the moment the program ends."""
    marker = tmp_path / "streaming"
    body = f'"$real" "$@" | {{ head -c 500000; touch {marker}; sleep 600; }}'
    programs = write_programs(tmp_path / "bin", binaries, pg_dump=body)
    process = run_opsctl.start("backup", "--json", url=saas.url, env=programs)
    wait_for(marker.exists, "the dump streams")
    process.send_signal(number)
    assert_ended(process, number)
    assert children_of(run_opsctl) == []
    assert not [path for path in run_opsctl.work.rglob("*") if path.suffix in {".partial", ".zst", ".json"}]
    wait_for(lambda: sessions_of(saas) == 0, "the server has noticed")
    assert run_opsctl("backup", url=saas.url).returncode == 0


@each_signal
def test_backup_is_interrupted_while_it_waits_for_a_lock(run_opsctl, saas, number):
    """A query that waits on the server is cancelled there: no session of ours goes on waiting."""
    with saas.connect(autocommit=False) as holder:
        holder.execute("lock table messages in access exclusive mode")
        process = run_opsctl.start("backup", "--json", url=saas.url)
        query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = %s"
        wait_for(lambda: saas.execute(query, saas.name) == [(1,)], "the backup waits")
        process.send_signal(number)
        assert_ended(process, number)
        wait_for(lambda: saas.execute(query, saas.name) == [(0,)], "nothing waits")
    assert not list(run_opsctl.work.rglob("*.partial"))


@each_signal
def test_restore_is_interrupted_in_the_load(run_opsctl, saas, binaries, tmp_path, number):
    """The staging database is gone when the program ends, and the live one is as it was."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    saas.execute("delete from messages")
    marker = tmp_path / "loading"
    body = f'case "$*" in *--dbname=*) touch {marker}; sleep 600;; esac; exec "$real" "$@"'
    programs = write_programs(tmp_path / "bin", binaries, pg_restore=body)
    process = run_opsctl.start("restore", "latest", "--yes", saas.name, "--json", url=saas.url, env=programs)
    wait_for(marker.exists, "the load has begun")
    assert len(databases_like(saas)) == 2
    process.send_signal(number)
    assert_ended(process, number)
    assert databases_like(saas) == [saas.name]
    assert children_of(run_opsctl) == []
    assert saas.execute("select count(*) from messages") == [(0,)]
    assert run_opsctl("restore", "latest", "--yes", saas.name, url=saas.url).returncode == 0
    assert saas.execute("select count(*) from messages") == [(20000,)]


def test_signal_ends_a_run_over_several_databases(run_opsctl, saas, rich, binaries, tmp_path):
    """Being told to end is no failure of one database: the next one is not begun."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.first]\nurl = "{saas.url}"\n[databases.second]\nurl = "{rich.url}"\n'
    )
    marker = tmp_path / "hangs"
    body = f'[ -e {marker} ] && exec "$real" "$@"; touch {marker}; exec sleep 600'
    programs = write_programs(tmp_path / "bin", binaries, pg_dump=body)
    process = run_opsctl.start("backup", "--json", env=programs)
    wait_for(marker.exists, "pg_dump was started")
    process.send_signal(signal.SIGTERM)
    assert_ended(process, signal.SIGTERM)
    assert not list(run_opsctl.work.rglob("manifest.json"))


def test_second_signal_does_not_stop_the_cleaning_up(run_opsctl, saas, binaries, tmp_path):
    """Whoever sends SIGTERM twice gets the same clean end: pg_dump is waited for, the partial folder goes."""
    marker = tmp_path / "hangs"
    programs = write_programs(tmp_path / "bin", binaries, pg_dump=f"trap '' TERM; touch {marker}; sleep 600")
    process = run_opsctl.start("backup", "--json", url=saas.url, env=programs)
    wait_for(marker.exists, "pg_dump was started")
    time.sleep(0.5)  # it can only be waited for once it is known to have started
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.2)
    assert_ended(process, signal.SIGTERM)
    assert not list(run_opsctl.work.rglob("*.partial"))
    assert children_of(run_opsctl) == []


def test_nohup_keeps_its_meaning(run_opsctl, saas, binaries, tmp_path):
    """A run begun under nohup survives the end of its terminal."""
    marker = tmp_path / "dumping"
    programs = write_programs(tmp_path / "bin", binaries, pg_dump=f'touch {marker}; sleep 0.5; exec "$real" "$@"')
    process = run_opsctl.start(
        "backup",
        "--json",
        url=saas.url,
        env=programs,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(marker.exists, "pg_dump was started")
    process.send_signal(signal.SIGHUP)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["ok"]


MOMENTS = 5


@pytest.mark.acceptance
@each_signal
def test_any_moment(run_opsctl, saas, number):
    """At no moment of a backup a signal is lost, shows a traceback, or leaves anything but a whole backup behind."""
    started = time.monotonic()
    whole = run_opsctl.start("backup", url=saas.url)
    whole.communicate(timeout=60)
    took = time.monotonic() - started
    assert whole.returncode == 0
    allowed = {EXIT_CODES[number], -number, 0}  # -number: before Python has begun to look after signals
    for step in range(MOMENTS):
        process = run_opsctl.start("backup", "--json", url=saas.url)
        time.sleep(took * (step + 0.5) / MOMENTS)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        is_interpreters = step == 0 and "Fatal Python error" in stderr  # it had not even found its modules
        assert process.returncode in allowed or is_interpreters, (step, process.returncode, stderr)
        if step > 0:  # Python itself comes first
            assert "Traceback" not in stderr, (step, stderr)
        assert not list(run_opsctl.work.rglob("*.partial")), step
        assert children_of(run_opsctl) == [], step
    assert run_opsctl("verify", "--all", url=saas.url).returncode == 0


def test_signal_that_breaks_a_lock_is_a_signal():
    """One that comes while a thread's start is waited for leaves as Python's complaint about a lock; it is no bug."""
    from opsctl.cli.boundary import outcome_of
    from opsctl.cli.session import Options, Session

    def broken(_session):
        lock = threading.Lock()
        try:
            raise KeyboardInterrupt
        finally:
            lock.release()

    with pytest.raises(RuntimeError, match="release unlocked lock"):
        broken(None)
    with pytest.raises(KeyboardInterrupt):
        outcome_of(Session("list", Options()), broken, {})
