"""Dumps with several sessions: by hand, under locks, with a full disk, and killed anywhere."""

import os
import random
import signal
import subprocess
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

KILLS = {"opsctl": 20, "pg_dump": 6}
SEED = 20261124


@pytest.fixture
def configure(run_opsctl):
    def write(database, more="", jobs=2):
        text = f'[databases."{database.name}"]\nurl = "{database.url}"\njobs = {jobs}\nfacts = "content"\n{more}'
        (run_opsctl.work / "opsctl.toml").write_text(text)

    return write


def staged(folder):
    return [path.name for path in folder.glob("opsctl-staging-*")]


def only(run):
    (backup,) = run.json["result"]["backups"]
    return backup


# What a backup of theirs is worth


@pytest.mark.parametrize("major", [15, 18])
def test_every_way_back(run_opsctl, configure, cluster_of, new_database, only_backup, facts_of, need, major):
    """Encrypted and signed, copied, exported, drilled; by opsctl, and by hand in both ways that the texts give."""
    rich = new_database(cluster_of(major), "rich")
    rich.execute((Path(__file__).parents[1] / "rich_schema.sql").read_text())
    key, signing = (run_opsctl.work / name for name in ("KEY", "SIGN"))
    public = run_opsctl("keygen", "-o", key).stdout.strip()
    signs = run_opsctl("keygen", "--signing", "-o", signing).stdout.strip()
    configure(
        rich,
        f'[encryption]\nrecipients = ["{public}"]\nidentity_file = "{key}"\n'
        f'[signing]\nkey_file = "{signing}"\npublic_keys = ["{signs}"]\n[drill]\nallow_superuser = true\n'
        '[repositories.first]\nurl = "first"\n[repositories.second]\nurl = "second"\n',
        jobs=3,
    )
    assert run_opsctl("backup").returncode == 0
    backup = only_backup(run_opsctl.work / "first")
    subprocess.run(["rm", "-r", run_opsctl.work / "second"], check=True)
    assert run_opsctl("sync").returncode == 0
    verified = only(run_opsctl("verify", "--json"))
    assert (verified["evidence"], len(verified["repositories"])) == ("decoded", 2), verified
    drilled = only(run_opsctl("drill", "--json"))
    assert (drilled["outcome"], drilled["evidence"]) == ("pass", "content"), drilled
    assert "dump.tar.zst.age" in run_opsctl("show", "latest").stdout
    facts, names = facts_of(rich), []
    for jobs in (1, 4):
        names.append(f"{rich.name}_jobs{jobs}")
        run = run_opsctl("restore", "latest", "--into", names[-1], "--jobs", str(jobs), "--json")
        assert (run.returncode, run.json["result"]["evidence"]) == (0, "content"), run

    environment = {
        "PATH": os.pathsep.join([str(rich.cluster.binaries.folder), str(need("age").parent), os.environ["PATH"]]),
        "PGHOST": str(rich.cluster.socket_folder),
        "PGPORT": str(rich.cluster.port),
        "PGUSER": rich.cluster.user,
    }
    need("zstd")
    recipe = (run_opsctl.work / "first/RESTORE.txt").read_text().partition("With several sessions:\n\n")[2]
    unpacked = textwrap.dedent(recipe.partition("\n\n")[0])
    by_hand = {
        "line": backup.manifest["restore_command"].replace("DATABASE", f"{rich.name}_line"),
        "unpacked": unpacked.replace(
            "zstd --decompress --stdout dump.tar.zst",
            "age --decrypt --identity KEY dump.tar.zst.age | zstd --decompress --stdout",
        ).replace("restored", f"{rich.name}_unpacked"),
        "exported": f"{run_opsctl.work}/export | pg_restore --exit-on-error --dbname={rich.name}_exported",
    }
    assert run_opsctl("export", "latest", "-o", run_opsctl.work / "export").returncode == 0
    by_hand["exported"] = f"cat {by_hand['exported']}"
    for way, script in by_hand.items():
        names.append(f"{rich.name}_{way}")
        rich.execute(f'CREATE DATABASE "{names[-1]}" TEMPLATE template0')
        command = ["bash", "-euo", "pipefail", "-c", script.replace("KEY", str(key))]
        subprocess.run(command, check=True, cwd=backup.folder, env=environment, timeout=120)
    for name in names:
        found = facts_of(replace(rich, name=name))
        assert (found.tables, found.large_objects_hash) == (facts.tables, facts.large_objects_hash), name
    assert staged(run_opsctl.state / "spool") == []


# Locks


def test_one_who_waits_for_a_lock_stops_no_backup(run_opsctl, configure, database):
    """A session of pg_dump takes no lock that others wait for: the dump is taken anew with one, and says so."""
    for number in range(3):
        database.execute(
            f"CREATE TABLE large_{number} AS SELECT n, repeat(md5(n::text), 20) AS body"
            " FROM generate_series(1, 40000) n"
        )
    database.execute("CREATE TABLE tiny AS SELECT 1 AS one")
    configure(database)
    held = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE relation = 'tiny'::regclass AND application_name = 'pg_dump'"
    )
    with database.connect() as looking, database.connect() as application:
        process = run_opsctl.start("backup", "--json")
        wait_for(lambda: looking.execute(held).fetchone() != (0,), "pg_dump has its locks")
        thread = threading.Thread(target=application.execute, args=("TRUNCATE tiny",))
        thread.start()
        _, stderr = process.communicate(timeout=120)
        thread.join(timeout=60)
    assert process.returncode == 0, stderr
    shown = run_opsctl("show", "latest", "--json").json["result"]["manifest"]
    assert shown["format"] == "custom"
    assert ["tiny" in warning and "one session" in warning for warning in shown["warnings"]] == [True]
    assert database.execute("SELECT count(*) FROM tiny") == [(0,)]
    assert run_opsctl("list", "--json").json["result"]["incomplete"] == []
    assert run_opsctl("verify").returncode == 0
    assert staged(run_opsctl.state / "spool") == []


# The disk


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_too_small_a_disk(run_opsctl, configure, database):
    """Smaller than the database: 16, and nothing is made. Filled by what was compressed there: 1, and empty again."""
    database.execute("CREATE TABLE t AS SELECT n, repeat('text ', 20000) AS body FROM generate_series(1, 400) n")
    with small_disk(run_opsctl.work / "disk", "20m") as disk:
        configure(database, f'[state]\nstaging_path = "{disk}"\n')
        filled = run_opsctl("backup", "--json")
        assert filled.returncode == 1, filled
        assert "No space left" in filled.json["error"]["message"]
        assert "staging_path" in filled.json["error"]["hint"]
        assert list(disk.iterdir()) == []
        database.execute("CREATE TABLE wide AS SELECT md5(n::text) FROM generate_series(1, 300000) n")
        refused = run_opsctl("backup", "--json")
        assert refused.returncode == 16, refused
        assert all(word in refused.json["error"]["message"] for word in ("2 jobs", "of free disk", str(disk)))
        assert list(disk.iterdir()) == []
    listed = run_opsctl("list", "--json").json["result"]
    assert (listed["backups"], listed["incomplete"]) == ([], [])


# Killed


def processes_of(run_opsctl, name=b""):
    """The program and its children, by the HOME of this test; ``name`` is part of the command line."""
    home = f"HOME={run_opsctl.home}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if home in (folder / "environ").read_bytes() + b"\0" and name in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", list(KILLS))
def test_killed_at_random_points(run_opsctl, configure, database, victim):
    """The program or a process of pg_dump: no backup or a whole one, no process, no file once the next run began."""
    for number in range(4):
        database.execute(
            f"CREATE TABLE t{number} AS SELECT n, md5(n::text) AS body FROM generate_series(1, {60000 + number}) n"
        )
    configure(database)
    spool = run_opsctl.state / "spool"
    chance = random.Random(SEED)  # noqa: S311
    started = time.monotonic()
    process = run_opsctl.start("backup", "--json")
    process.communicate(timeout=60)
    assert process.returncode == 0
    duration = time.monotonic() - started
    taken, left = 1, 0
    for _ in range(KILLS[victim]):
        process = run_opsctl.start("backup", "--json")
        if victim == "opsctl":
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.3, 1) * duration)
            process.kill()
        else:
            wait_for(
                lambda: processes_of(run_opsctl, b"--format=directory") or process.poll() is not None,  # noqa: B023
                "it dumps",
                every=0.002,
            )
            time.sleep(chance.uniform(0, 0.2))
            for pid in chance.sample(found := processes_of(run_opsctl, b"--format=directory"), min(1, len(found))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        wait_for(lambda: not processes_of(run_opsctl), "every child has ended")
        taken += process.returncode == 0
        assert len(staged(spool)) <= (1 if victim == "opsctl" else 0), "whoever can clean up does"
        left += len(staged(spool))
    listed = run_opsctl("list", "--json").json["result"]
    assert len(listed["backups"]) >= taken  # one that was killed after it had published is a backup
    run = run_opsctl("backup", "--json")
    print(f"{victim} killed {KILLS[victim]} times: {taken - 1} backups, {left} staging folders left and removed")  # noqa: T201

    assert run.returncode == 0, run
    assert staged(spool) == []
    assert left > 0 or victim == "pg_dump", "no kill hit the dump: nothing was shown"
    assert {each["reason"] for each in listed["incomplete"]} <= ({"interrupted"} if victim == "opsctl" else set())
    verified = run_opsctl("verify", "--all", "--json").json["result"]["backups"]
    assert {each["outcome"] for each in verified} == {"pass"}
    pids = database.execute("SELECT pid FROM pg_stat_activity WHERE application_name ~ '^(opsctl|pg_dump)'")
    assert pids == []


@pytest.mark.timeout(400)
def test_killed_restore_of_several_sessions(run_opsctl, configure, database):
    """What a killed ``restore --jobs`` has unpacked goes with the next run; the live database is as it was."""
    for number in range(4):
        database.execute(f"CREATE TABLE t{number} AS SELECT n, md5(n::text) AS body FROM generate_series(1, 60000) n")
        database.execute(f"ALTER TABLE t{number} ADD PRIMARY KEY (n)")
    configure(database)
    assert run_opsctl("backup").returncode == 0
    database.execute("UPDATE t0 SET body = 'newer' WHERE n = 1")
    spool = run_opsctl.state / "spool"
    left = 0
    for number in range(6):
        process = run_opsctl.start("restore", "latest", "--yes", database.name, "--jobs", "2")
        wait_for(lambda: staged(spool) or process.poll() is not None, "it unpacks", every=0.002)  # noqa: B023
        time.sleep(0.1 * number)
        process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not processes_of(run_opsctl), "every child has ended")
        left += len(staged(spool))
        if database.execute("SELECT body FROM t0 WHERE n = 1") != [("newer",)]:
            database.execute("UPDATE t0 SET body = 'newer' WHERE n = 1")
    assert left > 0
    assert run_opsctl("backup", "--json").returncode == 0  # any run does
    assert staged(spool) == []
