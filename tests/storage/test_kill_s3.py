"""kill -9 at many points of a backup, a sync and a prune in a bucket: what is listed is whole, the next run goes on."""

import shutil
import time
from datetime import UTC, datetime, timedelta

import pytest

from opsctl import prune, sync
from opsctl.catalog import ORPHAN_GRACE
from opsctl.repository import Repository
from opsctl.retention import Policy
from opsctl.storage.local import LocalStorage

NEWEST = datetime(2026, 5, 1, 12, tzinfo=UTC)
pytestmark = [pytest.mark.end_to_end, pytest.mark.acceptance, pytest.mark.timeout(600)]
KILLS = 12


@pytest.fixture
def bucket(moto):
    return moto.new_bucket()


@pytest.fixture
def offsite(moto, bucket):
    return Repository("offsite", moto.storage(bucket, "backups"))


@pytest.fixture
def run(run_opsctl, credentials):
    def start(*arguments, code=0):
        done = run_opsctl(*arguments, "--json", env=credentials)
        assert done.returncode == code, done
        return done.json["result"]

    return start


@pytest.fixture
def killed_after(run_opsctl, credentials):
    """``killed_after(0.2, "backup")``: a run, killed then; whether it had ended before."""

    def kill(seconds, *arguments):
        process = run_opsctl.start(*arguments, env=credentials)
        time.sleep(seconds)
        ended = process.poll() is not None
        process.kill()
        process.communicate(timeout=30)
        return ended

    return kill


def timed(work):
    started = time.monotonic()
    result = work()
    return result, time.monotonic() - started


def assert_only_whole_ones_are_left(offsite, moto, bucket, expected):
    """After the next prune, once the grace is over: the files of those backups and nothing else."""
    later = datetime.now(UTC) + ORPHAN_GRACE + timedelta(minutes=1)
    prune.execute(prune.plan({"offsite": offsite.catalog()}, {"offsite": Policy()}, now=later), [offsite])
    folders = {"/".join(entry.key.split("/")[:2]) for entry in offsite.storage.entries() if "/" in entry.key}
    assert {folder.partition("/")[2] for folder in folders} == set(expected)
    assert not moto.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_backup(run_opsctl, run, killed_after, moto, bucket, offsite, saas):
    """Listed means whole, at whatever moment the run was killed."""
    text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.offsite]\n{moto.toml(bucket)}'
    (run_opsctl.work / "opsctl.toml").write_text(text)
    _, took = timed(lambda: run("backup"))
    for step in range(KILLS):
        killed_after(took * (step + 0.5) / KILLS, "backup")
    listed = run("list")["backups"]
    last = run("backup")["backups"][0]["id"]
    outcomes = run("verify", "--all")["backups"]

    assert [each["outcome"] for each in outcomes] == ["pass"] * (len(listed) + 1)
    assert_only_whole_ones_are_left(offsite, moto, bucket, [last, *(each["id"] for each in listed)])


def test_sync_and_prune(run_opsctl, run, killed_after, moto, bucket, offsite, stored):
    """A sync that is killed leaves whole copies or none; so does a prune; each is finished by the next one."""
    backups = [stored.copy(NEWEST - timedelta(days=days)) for days in range(8)]
    shutil.rmtree(stored.folder)
    text = f'[repositories.local]\nurl = "backups"\n[repositories.offsite]\n{moto.toml(bucket)}'
    (run_opsctl.work / "opsctl.toml").write_text(text)
    database = backups[0].manifest["database"]
    whole = {each.id for each in backups}
    for step in range(KILLS):
        killed_after(0.3 + 0.8 * step / KILLS, "sync")
        copies = offsite.catalog().backups
        assert {each.id for each in copies} <= whole
        for each in copies:
            for file in each.manifest.files:
                assert offsite.storage.read(f"{database}/{each.id}/{file.name}")
    local = Repository("local", LocalStorage(run_opsctl.work / "backups"))
    catalogs = {each.name: each.catalog() for each in (local, offsite)}
    later = datetime.now(UTC) + sync.STALLED + timedelta(minutes=1)
    missing = sync.plan(catalogs, dict.fromkeys(catalogs, Policy()), {database: list(catalogs)}, now=later)
    synced = sync.execute(missing, {"local": local, "offsite": offsite}, now=later, advance=lambda _count: None)
    assert synced.failures == ()
    assert {each.id for each in offsite.catalog().backups} == whole

    (run_opsctl.work / "opsctl.toml").write_text(
        f"[repositories.offsite]\n{moto.toml(bucket)}retention = {{ keep_last = 2 }}\n"
    )
    for step in range(KILLS):
        killed_after(0.3 + 0.8 * step / KILLS, "prune")
        outcomes = run("verify", "--all")["backups"]
        assert {each["outcome"] for each in outcomes} == {"pass"}
        assert {backups[0].id, backups[1].id} <= {each["id"] for each in outcomes}
    run("prune")
    assert {each.id for each in offsite.catalog().backups} == {backups[0].id, backups[1].id}
    assert_only_whole_ones_are_left(offsite, moto, bucket, [backups[0].id, backups[1].id])
