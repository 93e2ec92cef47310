"""What storages promise where a bucket keeps versions and has Object Lock: on moto, and on Ceph for acceptance."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from opsctl.catalog import ORPHAN_GRACE
from opsctl.errors import RemovalRefused, RepositoryUnreachable
from opsctl.manifest import parse_manifest
from opsctl.repository import HIDDEN, Repository
from opsctl.retention import Policy
from opsctl.storage import FOREVER
from opsctl.storage.local import LocalStorage
from opsctl.sync import execute, plan

MANIFEST = "manifest.json"
DAY = timedelta(days=1)
MIB = 1 << 20


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own with versions, or with locks as well."""

    service: Any
    name: str
    kind: str

    def open(self, mode="off", **options):
        return self.service.storage(self.name, "p", object_lock=mode, **options)

    @property
    def versions(self):
        return self.service.versions(self.name)

    def hide(self, key):
        """As a person with another tool does: a delete that names no version."""
        self.service.client().delete_object(Bucket=self.name, Key=f"p/{key}")

    def free(self):
        """Lift the locks, which here can be lifted, so that the service can be cleared away."""
        for key, version, is_marker in self.versions:
            if not is_marker:
                with suppress(Exception):
                    self.service.client().delete_object(
                        Bucket=self.name, Key=key, VersionId=version, BypassGovernanceRetention=True
                    )


def bucket(kind):
    @pytest.fixture(name=kind, params=["moto", pytest.param("ceph", marks=pytest.mark.acceptance)])
    def made(request):
        service = request.getfixturevalue(request.param)
        return Bucket(service, service.new_bucket(kind), kind)

    return made


versioned, locked = bucket("versioned"), bucket("locked")


def publish(storage, folder="shop/a", until=None, dump=b"x"):
    publication = storage.begin(folder, retain_until=until)
    with publication.file("dump") as file:
        file.write(dump)
    publication.publish(MANIFEST, b"{}")


def keys(storage):
    return sorted(entry.key for entry in storage.entries())


def in_(span):
    return (datetime.now(UTC) + span).replace(microsecond=0)


# Versions


def test_a_delete_marker_hides_and_is_told(versioned):
    """What somebody else's delete has hidden is named with its size; what is seen, or written again, is not."""
    storage = versioned.open()
    publish(storage, "shop/a", dump=b"12345")
    publish(storage, "shop/b")
    for key in ("shop/a/dump", f"shop/a/{MANIFEST}"):
        versioned.hide(key)
    versioned.hide("shop/b/dump")
    storage.create("shop/b/dump", b"again")

    assert {entry.key: entry.bytes for entry in storage.hidden()} == {"shop/a/dump": 5, f"shop/a/{MANIFEST}": 2}
    assert [entry.key for entry in storage.hidden("shop/a")] == ["shop/a/dump", f"shop/a/{MANIFEST}"]
    assert list(storage.hidden("shop/b")) == []
    assert keys(storage) == ["shop/b/dump", f"shop/b/{MANIFEST}"]


def test_removal_takes_versions_and_markers(versioned):
    """Those that are hidden as well, in a folder and of a single file; nothing of what lies beside."""
    storage = versioned.open()
    publish(storage)
    publish(storage, "shop/ab")
    storage.create("shop/ab/pin", b"")
    versioned.hide("shop/a/dump")
    versioned.hide("shop/ab/pin")
    storage.create("shop/ab/pin", b"")
    storage.delete_folder("shop/a")
    storage.delete("shop/ab/pin")

    assert sorted(key for key, _, _ in versioned.versions) == ["p/shop/ab/dump", f"p/shop/ab/{MANIFEST}"]


@pytest.mark.acceptance
def test_a_bucket_whose_versions_are_suspended(ceph):
    """What it kept before is removed like the rest; moto fails here."""
    versioned = Bucket(ceph, ceph.new_bucket("versioned"), "versioned")
    publish(versioned.open())
    versioned.hide(f"shop/a/{MANIFEST}")
    versioned.service.client().put_bucket_versioning(
        Bucket=versioned.name, VersioningConfiguration={"Status": "Suspended"}
    )
    storage = versioned.open()
    assert [entry.key for entry in storage.hidden()] == [f"shop/a/{MANIFEST}"]
    storage.delete_folder("shop/a")

    assert versioned.versions == []


def test_what_kind_of_bucket_it_is_is_asked_once(moto, proxied):
    """A service without versions costs no failing request per call, also where credentials may not ask."""
    bucket = moto.new_bucket()
    with proxied.Proxy(moto.endpoint) as proxy:
        proxy.faults = [lambda request: proxied.deny if "?versioning" in request or "?versions" in request else None]
        storage = moto.storage(bucket, "p", endpoint_url=proxy.endpoint)
        for name in ("a", "b", "c"):
            publish(storage, name)
            storage.delete(f"{name}/dump")
            storage.delete_folder(name)
            assert list(storage.hidden()) == []
            assert storage.locked_until(name) is None
        asked = [request for request in proxy.requests if "?version" in request or "?object-lock" in request]

    assert len(asked) == 2  # for its versioning, and then for its versions
    assert keys(moto.storage(bucket, "p")) == []


# Locks


@pytest.mark.parametrize("mode", ["governance", "compliance"])
def test_what_is_locked_stays_whole(locked, mode):
    """Every file, by parts or not, the last one included: refused by us before anything goes, and by the service."""
    until = in_(timedelta(seconds=90))
    storage = locked.open(mode)
    publish(storage, until=until, dump=bytes(17 * MIB))
    before = sorted(locked.versions)

    assert storage.locked_until("shop/a") == until
    assert storage.locked_until("shop") == until
    assert storage.locked_until("shop/b") is None
    for remove in (storage.delete_folder, storage.delete):
        for target in ("shop/a",) if remove == storage.delete_folder else ("shop/a/dump", f"shop/a/{MANIFEST}"):
            with pytest.raises(RemovalRefused, match=f"is locked until {until:%Y-%m-%d %H:%M} UTC") as caught:
                remove(target)
            assert caught.value.locked_until == until
    client = locked.service.client()
    for key, version, _ in before:
        head = client.head_object(Bucket=locked.name, Key=key, VersionId=version)
        assert head["ObjectLockMode"] == mode.upper()
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket=locked.name, Key=key, VersionId=version)
    assert sorted(locked.versions) == before


def test_what_was_not_published_is_not_locked(locked):
    """A run that fails leaves nothing, also when another one has been faster."""
    storage = locked.open("compliance")
    publication = storage.begin("shop/a", retain_until=in_(DAY))
    with publication.file("dump") as file:
        file.write(bytes(17 * MIB))
    assert storage.locked_until("shop/a") is None
    publication.abandon()

    assert locked.versions == []


def test_a_lock_becomes_longer_and_never_shorter(locked):
    """Of every file that has one; a hold has no end, and nothing gets a lock that had none."""
    storage = locked.open("governance")
    publish(storage, until=in_(DAY))
    storage.create("shop/a/pin", b"")
    longer = in_(3 * DAY)
    storage.extend_lock("shop/a", longer)
    storage.extend_lock("shop/a", in_(2 * DAY))
    assert storage.locked_until("shop/a") == longer
    storage.delete("shop/a/pin")

    key, version, _ = locked.versions[0]
    locked.service.client().put_object_legal_hold(
        Bucket=locked.name, Key=key, VersionId=version, LegalHold={"Status": "ON"}
    )
    assert storage.locked_until("shop/a") == FOREVER
    with pytest.raises(RemovalRefused, match="has a legal hold"):
        storage.delete_folder("shop/a")
    locked.service.client().put_object_legal_hold(
        Bucket=locked.name, Key=key, VersionId=version, LegalHold={"Status": "OFF"}
    )
    locked.free()


def test_a_lock_that_is_over(locked):
    """Neither asked for when it would be in the past, nor in the way once it is."""
    storage = locked.open("governance")
    publish(storage, "shop/old", until=in_(-DAY))
    assert storage.locked_until("shop/old") is None
    storage.delete_folder("shop/old")

    publish(storage, "shop/a", until=in_(timedelta(seconds=63)))
    client = locked.service.client()
    for key, version, _ in locked.versions:  # as if a minute had gone by
        client.put_object_retention(
            Bucket=locked.name,
            Key=key,
            VersionId=version,
            BypassGovernanceRetention=True,
            Retention={"Mode": "GOVERNANCE", "RetainUntilDate": in_(timedelta(seconds=2))},
        )
    while storage.locked_until("shop/a") is not None:
        time.sleep(0.2)
    storage.delete_folder("shop/a")

    assert locked.versions == []


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        ("rclone", ""),
        ("moto", ""),
        ("moto", "versioned"),
        pytest.param("ceph", "versioned", marks=pytest.mark.acceptance),
    ],
)
def test_locks_that_the_bucket_cannot_have(request, service, kind):
    """Said before anything is written, with what to do, also where the service would take the lock and forget it."""
    service = request.getfixturevalue(service)
    bucket = service.new_bucket(kind)
    storage = service.storage(bucket, "p", object_lock="governance")
    with pytest.raises(RepositoryUnreachable, match=f"the bucket {bucket} has no Object Lock") as caught:
        storage.begin("shop/a", retain_until=in_(DAY))

    assert "object_lock" in caught.value.hint
    assert keys(storage) == []


# The repository


@pytest.fixture
def manifest(stored):
    """The manifest of a real backup, under another name."""
    real = parse_manifest((stored.folder / MANIFEST).read_bytes(), where="here")
    return replace(real, database="Shop 1", id="Shop%201-20261123T020000Z-0000", started_at=in_(-DAY))


def add(repository, manifest):
    upload = repository.begin(manifest.database, manifest.id, created_at=manifest.created_at)
    with upload.file("dump.zst") as file:
        file.write(b"dump")
    upload.publish(manifest)


def test_a_locked_backup(locked, manifest):
    """Locked from when it was begun, longer with a pin; its evidence and its pin are not."""
    repository = Repository("offsite", locked.open("governance"), lock_for=3 * DAY)
    add(repository, manifest)
    until = manifest.created_at + 3 * DAY
    assert repository.locked_until(manifest) == until
    repository.record_evidence(manifest, "decoded", "pass", at=in_(timedelta(0)), details={})
    before = sorted(locked.versions)
    with pytest.raises(RemovalRefused, match="is locked until") as caught:
        repository.remove(manifest)
    assert caught.value.locked_until == until
    assert sorted(locked.versions) == before

    now = in_(timedelta(0))
    repository.pin(manifest, now=now)
    assert repository.locked_until(manifest) == now + 3 * DAY
    repository.unpin(manifest)
    (backup,) = repository.catalog().backups
    assert not backup.pinned
    assert backup.proven.level == "decoded"
    locked.free()


def test_a_hidden_backup_is_told_and_never_an_orphan(versioned, manifest):
    """Hidden by another tool, whole or in part: no backup, not gone either, and back once the markers are."""
    repository = Repository("offsite", versioned.open())
    add(repository, manifest)
    other = replace(manifest, id="Shop%201-20261123T030000Z-0000")
    add(repository, other)
    versioned.hide(f"Shop%201/{manifest.id}/{MANIFEST}")
    for name in (MANIFEST, "dump.zst"):
        versioned.hide(f"Shop%201/{other.id}/{name}")

    for databases in ([], ["Shop 1"]):
        catalog = repository.catalog(databases)
        assert catalog.backups == []
        assert sorted((each.id, each.database, each.reason) for each in catalog.incomplete) == [
            (manifest.id, "Shop 1", HIDDEN),
            (other.id, "Shop 1", HIDDEN),
        ]
        assert not any(each.is_orphan(in_(ORPHAN_GRACE + DAY)) for each in catalog.incomplete)
    client = versioned.service.client()
    for key, version, is_marker in versioned.versions:
        if is_marker:
            client.delete_object(Bucket=versioned.name, Key=key, VersionId=version)

    assert sorted(backup.id for backup in repository.catalog().backups) == [manifest.id, other.id]
    repository.remove(manifest)
    repository.remove(other)
    assert {key for key, _, _ in versioned.versions} == {"p/RESTORE.txt"}


def test_sync_leaves_a_hidden_backup_to_a_person(versioned, manifest, tmp_path):
    """What somebody deleted there is neither written anew nor removed: named, with the way to bring it back."""
    repository = Repository("offsite", versioned.open())
    elsewhere = Repository("local", LocalStorage(tmp_path / "local"))
    for each in (repository, elsewhere):
        add(each, manifest)
    versioned.hide(f"Shop%201/{manifest.id}/{MANIFEST}")
    before = versioned.versions
    repositories = {each.name: each for each in (repository, elsewhere)}

    def missing():
        catalogs = {name: each.catalog() for name, each in repositories.items()}
        return plan(catalogs, dict.fromkeys(catalogs, Policy()), {"Shop 1": list(catalogs)}, now=in_(DAY))

    synced = execute(missing(), repositories, now=in_(DAY), advance=lambda _count: None)
    assert synced.copied == ()
    ((error, to),) = [(each.error, each.to) for each in synced.failures]
    assert (to, HIDDEN in error.message) == ("offsite", True)
    assert "brings it back" in error.hint
    assert versioned.versions == before
    for key, version, is_marker in before:
        if is_marker:
            versioned.service.client().delete_object(Bucket=versioned.name, Key=key, VersionId=version)
    assert missing() == []
