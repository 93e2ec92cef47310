"""The checks of backups and repositories, on a real repository whose backups have other ages."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.history import FILE, Ending, History

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MIB = 1 << 20


@pytest.fixture
def repository(run_opsctl, stored):
    """The one backup of the template, moved to NOW minus nine hours: 03:00."""
    backup = stored.copy(NOW - timedelta(hours=9))
    shutil.rmtree(stored.folder)
    return backup


def toml(backup, *more, second=None):
    text = f'[databases."{backup.manifest["database"]}"]\nurl = "postgresql://u@127.0.0.1:1/x"\n'
    text += f'[repositories.local]\nurl = "{backup.folder.parents[1]}"\n'
    if second:
        text += f'[repositories.offsite]\nurl = "{second}"\n'
    return text + "\n".join(more)


def every_day(backup, days, **changes):
    return [backup.copy(NOW - timedelta(days=n, hours=9), **changes) for n in range(1, days + 1)]


def by_id(results):
    return {each.id: each for each in results.values()}


def alarms(results):
    return {each.id: each.status for each in results.values() if each.status in {"warn", "crit", "unknown"}}


def with_dump(backup, size, seconds=1.0, **more):
    """Changes of a manifest: as if the dump had had that size and had taken that long."""
    files = [{**each, "bytes": size} if each["name"].startswith("dump") else each for each in backup.manifest["files"]]
    return {"files": files, "seconds": seconds, **more}


def copy(backup, taken_at, files, seconds):
    other = backup.copy(taken_at, files=files)
    other.rewrite(finished_at=(taken_at + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z"))
    return other


def test_a_healthy_repository_raises_no_alarm(look, repository):
    """A week of nightly backups, the newest from this night: everything is fine, and nothing is left in the folder."""
    every_day(repository, 7)
    root = repository.folder.parents[1]
    before = sorted(root.rglob("*"))
    results = look(
        toml(repository, '[schedule]\nbackup = "0 3 * * *"'), "backup", "repository", "schedule.ran", now=NOW
    )

    assert {each.status for each in results.values()} <= {"ok", "skip"}, results
    assert {name for name, each in by_id(results).items() if each.status == "skip"} == {"repository.clock"}
    assert sorted(root.rglob("*")) == before
    assert "8 backups" in by_id(results)["repository.reachable"].message


@pytest.mark.parametrize(
    ("hours", "schedule", "status", "code"),
    [
        (29, "", "ok", None),  # no schedule, too few backups: one a day is expected
        (31, "", "warn", "age"),
        (49, "", "crit", "age"),
        (8, 'backup = "0 */6 * * *"', "warn", "age"),
        (60, 'backup = "0 3 * * 0"', "ok", None),
        (29, 'backup = "0 3 * * *"\ntimezone = "Asia/Tokyo"', "ok", None),
    ],
)
def test_the_age_of_the_newest_backup(look, repository, hours, schedule, status, code):
    """Late by a quarter of the interval warns, twice the interval is critical; the schedule says what it is."""
    now = NOW - timedelta(hours=9) + timedelta(hours=hours)
    found = by_id(look(toml(repository, f"[schedule]\n{schedule}"), "backup.age", now=now))["backup.age"]

    assert (found.status, found.code) == (status, code), found
    assert (found.remedy is None) == (status == "ok")


def test_the_interval_is_inferred_from_the_last_backups(look, repository):
    """Hourly backups that stopped two hours ago are an alarm, without any schedule."""
    taken = NOW - timedelta(hours=9)
    for hour in range(1, 6):
        repository.copy(taken - timedelta(hours=hour))

    statuses = [
        by_id(look(toml(repository), "backup.age", now=taken + timedelta(minutes=minutes)))["backup.age"].status
        for minutes in (60, 80, 130)
    ]
    assert statuses == ["ok", "warn", "crit"]


def test_no_backup_at_all_is_critical_once(look, tmp_path):
    """Before the first backup there is one alarm, with the command that ends it."""
    text = f'[databases.saasdb]\nurl = "postgresql://u@127.0.0.1:1/x"\n[repositories.local]\nurl = "{tmp_path}/none"\n'
    results = look(text + '[schedule]\nbackup = "0 3 * * *"', "backup", "repository", "schedule.ran", now=NOW)

    assert alarms(results) == {"backup.age": "crit"}
    assert by_id(results)["backup.age"].remedy.command == "opsctl backup saasdb"
    assert not (tmp_path / "none").exists()


def test_a_backup_from_the_future_is_critical_and_counts_for_nothing(look, repository):
    """It is never the newest one: neither fresh, nor a comparison, nor a copy that is missing."""
    ahead = repository.copy(NOW + timedelta(days=400))
    fresh = by_id(look(toml(repository), "backup", now=NOW))
    stale = by_id(look(toml(repository), "backup.age", now=NOW + timedelta(days=9)))["backup.age"]

    assert (fresh["backup.age"].status, fresh["backup.age"].code) == ("crit", "future")
    assert ahead.id in fresh["backup.age"].message
    assert fresh["backup.age"].details["newest"] == repository.id
    assert (stale.status, stale.code) == ("crit", "age")


@pytest.mark.parametrize(
    ("usual", "newest", "alarm"),
    [
        ((100 * MIB, 600), (95 * MIB, 580), {}),
        ((100 * MIB, 600), (40 * MIB, 60), {"backup.size": "crit"}),  # and not backup.duration as well
        ((100 * MIB, 600), (70 * MIB, 60), {"backup.duration": "crit"}),
        ((100 * MIB, 600), (100 * MIB, 60), {}),  # a faster disk
        ((100 * MIB, 600), (100 * MIB, 2400), {"backup.duration": "warn"}),
        ((MIB // 2, 2), (100, 0.1), {}),  # too small to mean anything
    ],
)
def test_a_dump_that_shrank_or_ran_too_fast(look, repository, usual, newest, alarm):
    """Against the median of those before; a small database may do what it likes."""
    changes = with_dump(repository, usual[0])["files"]
    for day in range(1, 8):
        copy(repository, NOW - timedelta(days=day, hours=9), changes, usual[1])
    copy(repository, NOW - timedelta(hours=8), with_dump(repository, newest[0])["files"], newest[1])
    results = look(toml(repository), "backup.size", "backup.duration", now=NOW)

    assert alarms(results) == alarm
    for each in results.values():
        if each.status == "crit":
            assert "opsctl pin" in each.remedy.command


def test_another_server_is_no_comparison(look, repository):
    """After a move the first small backups of the new server are not compared with the old one's large ones."""
    for day in range(1, 8):
        copy(repository, NOW - timedelta(days=day, hours=9), with_dump(repository, 100 * MIB)["files"], 600)
    moved = copy(repository, NOW - timedelta(hours=8), with_dump(repository, 10 * MIB)["files"], 10)
    assert alarms(look(toml(repository), "backup.size", now=NOW)) == {"backup.size": "crit"}
    moved.rewrite(system_identifier="another")

    assert alarms(look(toml(repository), "backup.size", now=NOW)) == {}


def test_evidence_grows_old_and_may_be_bad(look, repository):
    """30 days without a restore that proved something warn; a newest backup that failed verification is critical."""

    def evidence(backup, level, outcome):
        folder = backup.folder / "evidence"
        folder.mkdir(exist_ok=True)
        (folder / f"20261124T050000000000Z-{level}-{outcome}.json").write_text("{}")

    def found(now=NOW):
        return by_id(look(toml(repository), "backup.evidence", now=now))["backup.evidence"]

    assert found().status == "ok"
    old = repository.copy(NOW - timedelta(days=40))
    assert (found().status, found().code) == ("warn", "unproven")
    evidence(repository, "decoded", "pass")
    assert found().status == "warn"
    evidence(repository.copy(NOW - timedelta(days=3)), "restored", "pass")
    evidence(old, "content", "pass")
    assert (found().status, found().details["level"]) == ("ok", "restored")
    assert found(NOW + timedelta(days=28)).status == "warn"
    evidence(repository, "decoded", "fail")
    (repository.folder / "evidence" / "20261124T050000000000Z-decoded-pass.json").unlink()
    assert (found().status, found().code) == ("crit", "failed")


def test_repositories_that_do_not_agree(look, repository, tmp_path):
    """What one lacks and would keep is a warning with its number; what it would prune, or gets just now, is none."""
    second = tmp_path / "second"
    text, modest = (toml(repository, *more, second=second) for more in ((), ("retention = { keep_last = 1 }",)))
    older = [repository.copy(NOW - timedelta(days=days, hours=9)) for days in (1, 2)]
    copied = second / older[0].folder.parent.name
    shutil.copytree(older[0].folder, copied / older[0].id)
    found = [by_id(look(each, "backup.copies", now=NOW))["backup.copies"] for each in (text, modest)]
    partial = copied / f".{repository.id}.partial"
    partial.mkdir()
    os.utime(partial, (NOW.timestamp(), NOW.timestamp()))
    under_way = by_id(look(modest, "backup.copies", now=NOW))["backup.copies"]

    assert [(each.status, each.code, each.value, each.details["missing_in"]) for each in found] == [
        ("warn", "missing", 2, ["offsite"]),
        ("warn", "missing", 1, ["offsite"]),
    ]
    assert found[0].remedy.command.startswith("opsctl sync ")
    assert under_way.status == "ok"


def test_one_repository_that_is_down_is_one_alarm(look, repository, tmp_path):
    """The backups are judged by the repository that answers; when none does, everything waits for that."""
    (tmp_path / "file").write_text("")
    one_down = look(toml(repository, second=tmp_path / "file"), "backup", "repository", now=NOW)
    root, alone = repository.folder.parents[1], toml(repository)
    root.rename(tmp_path / "moved")
    root.write_text("")
    all_down = look(alone, "backup", "repository", now=NOW)

    assert alarms(one_down) == {"repository.reachable": "crit"}
    assert one_down["repository.writable (offsite)"].because == "repository.reachable"
    assert by_id(one_down)["backup.age"].status == "ok"
    assert alarms(all_down) == {"repository.reachable": "crit"}
    assert {each.because for each in all_down.values() if each.id.startswith("backup.")} == {"repository.reachable"}


@contextmanager
def no_file_may_grow():
    """As a quota that is nearly used up: no file of this process gets longer than 2000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_repository_that_cannot_be_written(look, repository):
    """It can still be listed: one alarm, before the next backup fails; nothing of the attempt is left."""
    root = repository.folder.parents[1]
    before = sorted(root.rglob("*"))
    with no_file_may_grow():
        results = look(toml(repository), "repository", now=NOW)

    assert alarms(results) == {"repository.writable": "crit"}
    assert "File too large" in by_id(results)["repository.writable"].message
    assert sorted(root.rglob("*")) == before


def test_room_for_the_next_backup(look, repository):
    """Against what the newest backup of each database took, on the real disk."""
    text = toml(repository)
    needed = sum(each["stored_bytes"] for each in repository.manifest["files"])
    ample = by_id(look(text, "repository.space", now=NOW))["repository.space"]
    larger = ample.value * 10
    tight = text + f'\n[doctor.thresholds]\n"repository.space" = {{ warn = {larger * 2}, crit = {larger} }}\n'
    small = by_id(look(tight, "repository.space", now=NOW))["repository.space"]

    assert ample.status == "ok"
    assert ample.details["needed_bytes"] == needed
    assert (small.status, small.code) == ("crit", "no_room")


def test_what_interrupted_backups_leave_behind(look, repository):
    """Old leftovers warn, with prune as the remedy; a manifest that cannot be read is critical."""
    partial = repository.folder.with_name(".left-20261101T030000Z-abcd.partial")
    partial.mkdir()
    (partial / "dump.zst").write_bytes(b"x" * 5000)
    young = by_id(look(toml(repository), "backup.orphans"))["backup.orphans"]
    for path in (partial / "dump.zst", partial):
        os.utime(path, (0, 0))
    old = by_id(look(toml(repository), "backup.orphans"))["backup.orphans"]
    damaged = repository.copy(NOW - timedelta(days=1))
    (damaged.folder / "manifest.json").write_text("{")
    broken = by_id(look(toml(repository), "backup.orphans"))["backup.orphans"]

    assert (young.status, young.details["under_way"]) == ("ok", 1)
    assert (old.status, old.remedy.command, old.value) == ("warn", "opsctl prune", 1)
    assert (broken.status, broken.code) == ("crit", "damaged")
    assert json.dumps(broken.details)


def test_a_missed_run_is_critical_before_the_newest_backup_is_old(look, repository):
    """The run of 03:00 counts from 09:00 on; any backup taken since will do, one from before will not."""
    schedule = '[schedule]\nbackup = "0 3 * * *"'

    def ran(now):
        return by_id(look(toml(repository, schedule), "schedule.ran", now=now))["schedule.ran"]

    tomorrow = NOW.replace(hour=0) + timedelta(days=1)
    assert ran(NOW).status == "ok"
    assert ran(tomorrow + timedelta(hours=8)).status == "ok"  # it may still be at work
    missed = ran(tomorrow + timedelta(hours=10))
    assert (missed.status, missed.code) == ("crit", "missed")
    assert "2026-11-25 03:00" in missed.message
    repository.copy(tomorrow + timedelta(hours=9))
    assert ran(tomorrow + timedelta(hours=10)).status == "ok"


def test_a_sync_that_did_not_run_or_failed_warns(look, repository, tmp_path):
    """By the history of this host; what was due before opsctl was here is nobody's fault."""
    history = History(tmp_path / "state" / FILE)
    midnight = NOW.replace(hour=0) + timedelta(days=2)

    def synced():
        found = look(toml(repository, '[schedule]\nsync = "0 4 * * *"'), "schedule", now=midnight + timedelta(hours=12))
        assert by_id(found)["schedule.pruned"].status == "skip"
        return by_id(found)["schedule.synced"]

    def ran(name, command, hours, outcome):
        at = midnight + timedelta(hours=hours)
        history.begin(name, command, at=at, host="h", pid=1)
        history.end(name, [Ending(None, outcome, 0)], at=at)

    assert synced().status == "ok"
    ran("1", "doctor", 2, "done")
    missed = synced()
    assert (missed.status, missed.code, missed.remedy.command) == ("warn", "missed", "opsctl sync")
    ran("2", "sync", 4, "failed")
    assert (synced().status, synced().code) == ("warn", "failed")
    ran("3", "sync", 5, "attention")
    assert synced().status == "ok"


def test_a_missed_drill_warns(look, repository):
    """Any evidence of a restore since the expected time will do, also a failure; that of a decoding will not."""
    schedule = '[schedule]\ndrill = "0 5 * * *"'
    (repository.folder / "evidence").mkdir(exist_ok=True)

    def drilled(hours):
        now = NOW.replace(hour=0) + timedelta(days=2, hours=hours)
        return by_id(look(toml(repository, schedule), "schedule.drilled", now=now))["schedule.drilled"]

    def evidence(hours, level):
        at = NOW.replace(hour=0) + timedelta(days=2, hours=hours)
        (repository.folder / f"evidence/{at:%Y%m%dT%H%M%S}000000Z-{level}.json").write_text("{}")

    evidence(-18, "content-pass")
    assert drilled(10).status == "ok"  # it may still be at work
    evidence(9, "decoded-pass")
    missed = drilled(12)
    assert (missed.status, missed.code) == ("warn", "missed")
    assert missed.remedy.command.startswith("opsctl drill latest:")
    evidence(9, "counted-fail")
    assert drilled(12).status == "ok"
