"""Several repositories at once, one of them in trouble: the others are never affected, and it is brought up to date."""

import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from opsctl.errors import RepositoryUnreachable
from opsctl.manifest import parse_manifest
from opsctl.repository import Repository
from opsctl.retention import Policy
from opsctl.storage.local import LocalStorage
from opsctl.stream import Compression, store
from opsctl.sync import STALLED, execute, plan
from opsctl.uploads import Uploads

MIB = 1 << 20
NOISE = [os.urandom(MIB) for _ in range(70)]
"""More than a queue and the parts on their way hold."""


def is_part(request):
    return request.startswith("PUT") and "partNumber=" in request


@pytest.fixture
def proxy(moto, proxied):
    with proxied.Proxy(moto.endpoint) as running:
        yield running


@pytest.fixture
def manifest(stored):
    """A real backup's record, to be published with other bytes."""
    found = parse_manifest((stored.folder / "manifest.json").read_bytes(), where="here")
    return replace(
        found, database="shop", id="shop-20261124T030000Z-0a1b", started_at=datetime(2026, 11, 24, 3, tzinfo=UTC)
    )


@pytest.fixture
def repositories(moto, proxy, tmp_path):
    """A folder, and a bucket behind the proxy, whose requests fail soon."""
    bucket = moto.new_bucket()
    storage = moto.storage(bucket, "p", endpoint_url=proxy.endpoint, read_timeout_seconds=2)
    direct = Repository("offsite", moto.storage(bucket, "p"))
    return Repository("local", LocalStorage(tmp_path / "local")), Repository("offsite", storage), direct


def back_up(repositories, manifest, *, patience_seconds=60.0):
    """What a backup does with its repositories: where it is then, and what became of the others."""
    uploads = Uploads(
        repositories,
        manifest.database,
        manifest.id,
        created_at=manifest.created_at,
        patience_seconds=patience_seconds,
    )
    try:
        with uploads.file("dump.zst") as writer:
            dump = store("dump.zst", NOISE, writer, Compression(1), lambda _count: None)
        written = replace(manifest, files=(dump,))
        return uploads.publish(written), uploads
    except BaseException:
        uploads.abandon()
        raise


def caught_up(local, offsite):
    """Copy what is missing, and compare it byte for byte."""
    catalogs = {each.name: each.catalog() for each in (local, offsite)}
    now = datetime.now(UTC) + 2 * STALLED  # what the failure may have left is nobody's any more
    missing = plan(catalogs, dict.fromkeys(catalogs, Policy()), {"shop": list(catalogs)}, now=now)
    synced = execute(missing, {each.name: each for each in (local, offsite)}, now=now, advance=lambda _count: None)
    assert synced.failures == ()
    assert [each.to for each in synced.copied] == ["offsite"]
    for entry in local.storage.entries("shop"):
        assert offsite.storage.read(entry.key) == local.storage.read(entry.key)


@pytest.mark.acceptance
def test_a_slow_link_beside_a_good_disk(repositories, manifest, proxy, proxied):
    """It drops out once the others have waited enough: slow, not failed; nothing of it stays; it gets its copy then."""
    local, offsite, direct = repositories
    proxy.faults = [proxied.times(None, is_part, proxied.throttle(2 * MIB))]
    stored_in, uploads = back_up([local, offsite], manifest, patience_seconds=1)

    assert (stored_in, uploads.slow, uploads.failures) == (["local"], ["offsite"], {})
    assert list(direct.storage.entries("shop")) == []
    proxy.faults = []
    caught_up(local, direct)


def test_a_link_that_breaks_in_the_middle(repositories, manifest, proxy, proxied):
    """It is a failure with its own words; the other has the backup, and the copy is made later."""
    local, offsite, direct = repositories
    proxy.faults = [proxied.times(None, lambda request: "partNumber=2" in request, proxied.reset)]
    stored_in, uploads = back_up([local, offsite], manifest)

    assert (stored_in, uploads.slow) == (["local"], [])
    assert "broke off" in uploads.failures["offsite"].message
    assert list(direct.storage.entries("shop")) == []
    proxy.faults = []
    caught_up(local, direct)


@pytest.mark.acceptance
def test_a_black_hole_beside_a_good_disk(repositories, manifest, proxy, proxied):
    """A service that takes connections and never answers costs the others their patience, and no more."""
    local, offsite, direct = repositories
    proxy.faults = [proxied.times(None, lambda _request: True, proxied.stall)]
    stored_in, uploads = back_up([local, offsite], manifest, patience_seconds=1)

    assert stored_in == ["local"]
    assert uploads.slow == [] or uploads.failures == {}
    assert {*uploads.slow, *uploads.failures} == {"offsite"}
    proxy.faults = []
    caught_up(local, direct)


def test_all_of_them_in_trouble(repositories, manifest, proxy, proxied, tmp_path):
    """When none is left the backup fails with the first one's words, and leaves nothing anywhere."""
    (tmp_path / "file").touch()
    _, offsite, direct = repositories
    proxy.faults = [proxied.times(None, is_part, proxied.reset)]
    with pytest.raises(RepositoryUnreachable):
        back_up([Repository("broken", LocalStorage(tmp_path / "file")), offsite], manifest)

    assert list(direct.storage.entries("shop")) == []


def test_a_fault_that_publishes_late(repositories, manifest, proxy, proxied):
    """A failure in the last step is that repository's alone."""
    local, offsite, direct = repositories
    proxy.faults = [proxied.times(None, lambda request: "manifest.json" in request, proxied.refuse)]
    stored_in, uploads = back_up([local, offsite], manifest)

    assert stored_in == ["local"]
    assert "503" in uploads.failures["offsite"].message
    proxy.faults = []
    caught_up(local, direct)


@pytest.fixture
def configured(run_opsctl, credentials, moto, proxy, saas):
    """The program with a folder and a bucket behind the proxy: ``configured("backup", code=0)``."""
    text = f'[databases.shop]\nurl = "{saas.url}"\n[repositories.local]\nurl = "here"\n[repositories.offsite]\n'
    text += moto.toml(moto.new_bucket()).replace(moto.endpoint, proxy.endpoint)
    (run_opsctl.work / "opsctl.toml").write_text(text)

    def run(*arguments, code=0):
        done = run_opsctl(*arguments, "--json", env=credentials, timeout=300)
        assert done.returncode == code, done
        return done.json["result"]

    return run


def where(result):
    return {each["name"]: each["status"] for each in result["backups"][0]["repositories"]}


@pytest.mark.acceptance
@pytest.mark.timeout(400)
def test_the_program_beside_a_black_hole(configured, proxy, proxied):
    """Exit code 3, the repository named; sync, and every later backup, bring it up to date."""
    proxy.faults = [proxied.times(None, lambda _request: True, proxied.stall)]
    assert where(configured("backup", code=3)) == {"local": "stored", "offsite": "failed"}
    proxy.faults = []
    assert [each["to"] for each in configured("sync")["copied"]] == ["offsite"]
    assert [each["outcome"] for each in configured("verify", "--all")["backups"]] == ["pass"]
    assert [each["repositories"] for each in configured("list")["backups"]] == [["local", "offsite"]]


@pytest.mark.acceptance
@pytest.mark.timeout(400)
def test_the_program_beside_a_hiccup_of_a_minute(configured, proxy, proxied):
    """What was too slow for the dump is caught up in the same run: exit code 0, stored in both."""
    proxy.faults = [proxied.times(1, lambda request: request.startswith("PUT") and "dump" in request, proxied.stall)]
    assert where(configured("backup")) == {"local": "stored", "offsite": "stored"}
    assert [each["outcome"] for each in configured("verify", "--all")["backups"]] == ["pass"]


def test_the_next_backup_brings_the_other_up_to_date(configured, proxy, proxied):
    """One that was down has both backups after the next run."""
    proxy.faults = [proxied.times(None, lambda request: request.startswith("PUT"), proxied.refuse)]
    assert where(configured("backup", code=3)) == {"local": "stored", "offsite": "failed"}
    proxy.faults = []
    result = configured("backup")
    assert where(result) == {"local": "stored", "offsite": "stored"}
    assert [(each["from"], each["to"]) for each in result["copied"]] == [("local", "offsite")]
    assert [each["repositories"] for each in configured("list")["backups"]] == [["local", "offsite"]] * 2
