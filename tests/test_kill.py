"""kill -9 at any moment: a listed backup restores, the live database is whole, and the next run goes on."""

import os
import time
from pathlib import Path

import pytest
from databases import Database, new_database_on
from servers import throwaway_server
from waiting import wait_for

KILLS = 6
"""The acceptance run kills a restore 100 times."""
ROWS = 60_000
CONTENT = "select count(*), sum(hashtextextended(t::text, 0)::numeric) from items t"


def processes_of(run_opsctl):
    """The program and its children, by the HOME of this test that all of them have."""
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


@pytest.fixture
def large(database):
    """A database whose dump takes a while: 15 MB that do not compress well, with indexes to rebuild."""
    database.execute(
        "create table items as"
        " select n, (select string_agg(md5((n * k)::text), '') from generate_series(1, 6) k) as text"
        f" from generate_series(1, {ROWS}) n"
    )
    database.execute("alter table items add primary key (n)")
    database.execute("create index on items (text)")
    return database


def killed_after(run_opsctl, seconds, *arguments, url):
    """Kill a run and wait until its children are gone; whether it had ended before."""
    process = run_opsctl.start(*arguments, url=url)
    time.sleep(seconds)
    ended = process.poll() is not None
    process.kill()
    stdout, stderr = process.communicate(timeout=30)
    if ended:
        assert process.returncode == 0, (stdout, stderr)
    wait_for(lambda: not processes_of(run_opsctl), "pg_dump or pg_restore is gone")
    return ended


def test_backup_is_killed_anywhere(run_opsctl, large):
    """Whenever a backup is killed: what is listed is whole, what is not whole is not listed, the next run succeeds."""
    started = time.monotonic()
    assert run_opsctl("backup", url=large.url).returncode == 0
    took = time.monotonic() - started
    listed = 1
    for step in range(KILLS):
        killed_after(run_opsctl, took * (step + 0.5) / KILLS, "backup", "--json", url=large.url)
        result = run_opsctl("list", "--json", url=large.url).json["result"]
        assert listed <= len(result["backups"]) <= listed + 1
        listed = len(result["backups"])
        assert all(each["reason"] == "interrupted" for each in result["incomplete"]), step
    run = run_opsctl("backup", "--json", url=large.url)
    assert run.returncode == 0, run
    verified = run_opsctl("verify", "--all", "--json", url=large.url)
    assert verified.returncode == 0, verified.stdout
    assert [each["outcome"] for each in verified.json["result"]["backups"]] == ["pass"] * (listed + 1)
    assert run_opsctl("restore", "latest", "--into", f"{large.name}_copy", url=large.url).returncode == 0
    pids = large.execute("select pid from pg_stat_activity where application_name ~ '^(opsctl|pg_dump)'")
    assert pids == []


def test_restore_is_killed_anywhere(run_opsctl, large):
    """Whenever a restore is killed, the live database is whole: as it was, or as the backup; never in between."""
    run_opsctl("backup", url=large.url)
    backed_up = large.execute(CONTENT)
    started = time.monotonic()
    assert run_opsctl("restore", "latest", "--yes", large.name, url=large.url).returncode == 0
    took = time.monotonic() - started
    large.execute("update items set text = 'changed since' where n <= 3")
    live = large.execute(CONTENT)
    outcomes = []
    for step in range(KILLS):
        ended = killed_after(
            run_opsctl, took * (step + 0.5) / KILLS, "restore", "latest", "--yes", large.name, "--json", url=large.url
        )
        found = large.execute(CONTENT)
        assert found in ([backed_up] if ended else [backed_up, live]), step
        outcomes.append(found == backed_up)
        staging = [name for name in databases_like(large) if "__opsctl_" in name]
        assert len(staging) <= 1, "the next restore removes what the last one left"
        if found == backed_up:
            large.execute("update items set text = 'changed since' where n <= 3")
    assert not all(outcomes), "no kill came before the swap: this test has tested nothing"
    run = run_opsctl("restore", "latest", "--yes", large.name, "--json", url=large.url)
    assert run.returncode == 0, run
    assert large.execute(CONTENT) == backed_up
    assert not [name for name in databases_like(large) if "__opsctl_" in name]
    assert run_opsctl("restore", "--undo", "--yes", large.name, url=large.url).returncode == 0
    assert large.execute(CONTENT) == live


def test_killed_restore_leaves_no_files(run_opsctl, large):
    """The spooled archive of a restore with several jobs has no name: a kill frees its disk at once."""
    run_opsctl("backup", url=large.url)
    for seconds in (0.4, 0.8, 1.2):
        killed_after(
            run_opsctl, seconds, "restore", "latest", "--yes", large.name, "--jobs", "2", "--json", url=large.url
        )
        files = [path for path in run_opsctl.state.rglob("*") if path.is_file() and path.stat().st_size > 4096]
        assert [path.name for path in files if path.name != "history.db"] == []
    assert [path.name for path in run_opsctl.work.iterdir()] == ["backups"]
    assert run_opsctl("restore", "latest", "--yes", large.name, url=large.url).returncode == 0


@pytest.fixture(params=["on", "off"])
def forgetful_cluster(request, binaries):
    """A server that writes its WAL when a transaction waits for it, and seldom besides."""
    settings = {"synchronous_commit": request.param, "wal_level": "replica", "wal_writer_delay": "10s"}
    with throwaway_server(binaries, settings={**settings, "autovacuum": "off"}) as running:
        yield running


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_restore_that_succeeded_outlives_the_server(run_opsctl, forgetful_cluster, jobs):
    """What loads a dump does not wait for the disk; success is reported only when a crash can take none of it."""
    with new_database_on(forgetful_cluster, "shop") as shop:
        shop.execute("create table items as select n, md5(n::text) as text from generate_series(1, 5000) n")
        shop.execute("alter table items add primary key (n)")
        there = shop.execute(CONTENT)
        backup = run_opsctl("backup", "--json", url=shop.url).json["result"]["backups"][0]["id"]
        shop.execute("delete from items")
        copy = f"{shop.name}_copy"
        for words, name in ((("--into", copy), copy), (("--yes", shop.name), shop.name)):
            done = run_opsctl("restore", backup, *words, "--jobs", jobs, url=shop.url)
            forgetful_cluster.kill()
            forgetful_cluster.start()

            assert done.returncode == 0, done
            assert Database(forgetful_cluster, name).execute(CONTENT) == there


@pytest.mark.acceptance
def test_repository_stays_prunable(run_opsctl, large):
    """What a killed backup leaves is listed apart, is no backup to anybody, and is pruned after its grace time only."""
    run_opsctl("backup", url=large.url)
    process = run_opsctl.start("backup", url=large.url)
    wait_for(lambda: list(run_opsctl.work.rglob("*.partial/dump.zst")), "the dump is being written")
    process.kill()
    process.communicate(timeout=30)
    (partial,) = run_opsctl.work.rglob("*.partial")
    (incomplete,) = run_opsctl("list", "--json", url=large.url).json["result"]["incomplete"]
    assert incomplete["reason"] == "interrupted"
    assert run_opsctl("show", incomplete["id"], "--json", url=large.url).returncode in {14, 15}
    assert run_opsctl("restore", incomplete["id"], "--yes", large.name, url=large.url).returncode in {14, 15}
    assert run_opsctl("verify", "--all", url=large.url).returncode == 0
    assert run_opsctl("prune", url=large.url).returncode == 0
    assert partial.exists()
    three_days_ago = time.time() - 3 * 86400
    for path in [*partial.iterdir(), partial]:
        os.utime(path, (three_days_ago, three_days_ago))
    assert run_opsctl("prune", url=large.url).returncode == 0
    assert not partial.exists()
    assert len(run_opsctl("list", "--json", url=large.url).json["result"]["backups"]) == 1
