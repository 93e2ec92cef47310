"""`opsctl repository check`: what works is said to, what does not has its own words, and nothing is left behind."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.repository import Repository
from opsctl.repository_check import examine
from opsctl.storage.local import LocalStorage
from opsctl.storage.s3_check import judge_rule


def clock():
    return datetime.now(UTC)


def trials(repository, at=clock):
    examined = examine(repository, clock=at)
    return examined, {trial.id: trial for trial in examined.trials}


def inside(storage):
    """Everything there is, what is hidden included."""
    versions = storage._versions_below("") if hasattr(storage, "versions") else []
    return sorted(entry.key for entry in storage.entries()), sorted((each.key, each.id) for each in versions)


def locked_bucket(service, **retention):
    name = f"locked-{os.urandom(4).hex()}"
    service.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    if retention:
        rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
        service.client().put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=rule)
    return name


def test_a_sound_repository(place):
    """Everything is tried, nothing fails, and what was there before is there afterwards."""
    storage = place.open()
    storage.prepare()
    storage.create("shop/a/manifest.json", b"{}")
    before = inside(storage)
    examined, found = trials(Repository("offsite", storage))

    assert {each.id: each.message for each in examined.trials if each.status == "fail"} == {}
    assert examined.usable
    assert {"reachable", "put", "get", "delete", "conditional_put"} <= found.keys()
    expected = "ok" if place.has_conditional_put else "warn"
    assert found["conditional_put"].status == expected
    assert inside(storage) == before


@pytest.mark.parametrize("kind", ["versions", "locks", "default lock"])
@pytest.mark.parametrize("service", ["moto", pytest.param("ceph", marks=pytest.mark.acceptance)])
def test_buckets_that_keep_things(request, service, kind):
    """No version, no delete marker and no locked object stays behind; what could not be taken back is not tried."""
    service = request.getfixturevalue(service)
    if kind == "versions":
        bucket = service.new_bucket()
        service.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    else:
        bucket = locked_bucket(service, **({"Mode": "COMPLIANCE", "Days": 1} if kind == "default lock" else {}))
    storage = service.storage(bucket, "p", object_lock="off" if kind == "versions" else "compliance")
    examined, found = trials(Repository("offsite", storage))

    assert examined.usable
    assert "It keeps versions." in found["list"].message
    assert found["lock"].status == ("skip" if kind == "versions" else "ok")
    assert found["put"].status == ("skip" if kind == "default lock" else "ok")
    assert inside(storage) == ([], [])


def test_credentials_that_may_not_delete(moto, proxied):
    """A warning that says it is a supported set-up; nothing is put that could not be removed."""
    with proxied.Proxy(moto.endpoint) as proxy:
        storage = moto.storage(moto.new_bucket(), "p", endpoint_url=proxy.endpoint)
        proxy.faults = [
            lambda request: proxied.deny if request.startswith("DELETE") and "uploadId" not in request else None
        ]
        examined, found = trials(Repository("offsite", storage))
        proxy.faults = []

        assert (examined.status, examined.usable) == ("warn", True)
        assert "supported" in found["delete"].hint
        assert found["put"].status == "skip"
        assert inside(storage) == ([], [])


def test_credentials_that_may_not_write(moto, proxied):
    """That is no repository to back up to, and the service's own words say what is denied."""
    with proxied.Proxy(moto.endpoint) as proxy:
        storage = moto.storage(moto.new_bucket(), "p", endpoint_url=proxy.endpoint)
        proxy.faults = [lambda request: proxied.deny if request.startswith(("PUT", "POST")) else None]
        examined, found = trials(Repository("offsite", storage))

    assert not examined.usable
    assert "denies" in found["multipart"].message


def test_a_lock_that_is_configured_and_not_there(moto):
    """Every backup would fail: said before the first one does."""
    storage = moto.storage(moto.new_bucket(), "p", object_lock="governance")
    examined, found = trials(Repository("offsite", storage))

    assert not examined.usable
    assert "no Object Lock" in found["lock"].message


@pytest.mark.parametrize(("minutes", "status"), [(0, "ok"), (3, "warn"), (-10, "fail")])
def test_clocks_that_are_apart(moto, minutes, status):
    """From a minute on it is said, from five on nothing is pruned."""
    repository = Repository("offsite", moto.storage(moto.new_bucket(), "p"))
    found = trials(repository, at=lambda: clock() + timedelta(minutes=minutes))[1]

    assert found["clock"].status == status


RULES = {
    "expires backups": ({"Expiration": {"Days": 30}}, "fail", "removes backups after 30 days"),
    "aborts uploads": ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}, "fail", "aborts uploads"),
    "aborts stale uploads": ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}, None, ""),
    "forgets versions": ({"NoncurrentVersionExpiration": {"NoncurrentDays": 30}}, "warn", "30 days"),
    "moves to an archive": ({"Transitions": [{"Days": 1, "StorageClass": "DEEP_ARCHIVE"}]}, "warn", "thawed"),
    "moves to another class": ({"Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}]}, None, ""),
    "tidies markers": ({"Expiration": {"ExpiredObjectDeleteMarker": True}}, None, ""),
}


@pytest.mark.parametrize("name", RULES)
def test_what_a_lifecycle_rule_does(name):
    """Each kind of rule has its own words."""
    rule, status, said = RULES[name]
    found = list(judge_rule({"ID": "tidy", "Status": "Enabled", **rule}))

    assert [each.status for each in found] == ([status] if status else [])
    assert all(said in each.message and each.hint for each in found)


@pytest.mark.parametrize(("prefix", "concerns"), [("", True), ("p/", True), ("p/shop/", True), ("logs/", False)])
def test_rules_of_other_prefixes_are_nobodys_business(moto, prefix, concerns):
    bucket = moto.new_bucket()
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": prefix}, "Expiration": {"Days": 9}}
    moto.client().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    examined, found = trials(Repository("offsite", moto.storage(bucket, "p")))

    assert found["lifecycle"].status == ("fail" if concerns else "ok")
    assert examined.usable


def test_an_interrupted_check_leaves_nothing(moto, proxied):
    """Whoever stops listening after any of the trials, or loses the service in the middle, has nothing to tidy up."""
    storage = moto.storage(moto.new_bucket(), "p")
    for count in range(1, 9):
        walk = storage.examine()
        for _ in range(count):
            next(walk)
        walk.close()
        assert inside(storage) == ([], []), count
    with proxied.Proxy(moto.endpoint) as proxy:
        through = moto.storage(storage.bucket, "p", endpoint_url=proxy.endpoint)
        proxy.faults = [
            lambda request: proxied.deny if request.startswith("GET") and "opsctl-trial" in request else None
        ]
        assert trials(Repository("offsite", through))[1]["get"].status == "fail"
    assert inside(storage) == ([], [])


def test_folders(tmp_path):
    """One that others may read is a warning; a file, or what cannot be made, is no repository; nothing is left."""
    root = tmp_path / "repository"
    assert trials(Repository("local", LocalStorage(root)))[0].status == "ok"
    assert not root.exists()
    root.mkdir(mode=0o755)
    examined, found = trials(Repository("local", LocalStorage(root)))
    assert (examined.status, examined.usable, found["folder"].hint) == ("warn", True, f"chmod 700 {root}")
    assert list(root.iterdir()) == []
    os.chown(root, 12345, -1) if os.geteuid() == 0 else pytest.skip("only root can give a folder away")
    assert "belongs to user 12345" in trials(Repository("local", LocalStorage(root)))[1]["folder"].message
    (tmp_path / "file").touch()
    assert not trials(Repository("local", LocalStorage(tmp_path / "file")))[0].usable


def test_room_for_another_backup(stored):
    """Free space is measured in what the last backups took."""
    root = stored.folder.parents[1]
    assert trials(Repository("local", LocalStorage(root)))[1]["space"].status == "ok"
    stored.rewrite(files=[{**each, "stored_bytes": 1 << 55} for each in stored.manifest["files"]])
    assert trials(Repository("local", LocalStorage(root)))[1]["space"].status == "fail"


@pytest.mark.end_to_end
def test_the_command(run_opsctl, moto, credentials):
    """0 when all is well, 3 with a warning, 13 when one cannot be used; a table, or a document, either way."""
    good = moto.toml(moto.new_bucket())
    file = run_opsctl.work / "opsctl.toml"
    file.write_text(f'[repositories.local]\nurl = "here"\n[repositories.offsite]\n{good}')
    well = run_opsctl("repository", "check", "--json", env=credentials)
    assert well.returncode == 0, well
    assert well.json["schema"] == "opsctl.repository-check/1"
    assert [(each["name"], each["status"]) for each in well.json["result"]["repositories"]] == [
        ("local", "ok"),
        ("offsite", "ok"),
    ]
    (run_opsctl.work / "here").mkdir(mode=0o755)
    warned = run_opsctl("repository", "check", env=credentials)
    assert warned.returncode == 3, warned
    assert max(map(len, warned.stdout.splitlines())) <= 160
    assert "chmod 700" in warned.stdout
    file.write_text(f"[repositories.offsite]\n{moto.toml('there-is-none')}")
    missing = run_opsctl("repository", "check", "offsite", "--json", env=credentials)
    assert missing.returncode == 13, missing
    assert "there is no bucket there-is-none" in missing.json["error"]["message"]
    assert missing.json["result"]["repositories"][0]["usable"] is False
    assert run_opsctl("repository", "check", "offsight", env=credentials).returncode == 10
    assert "check" in run_opsctl("repository").stdout
    assert run_opsctl("repository", "mend").returncode == 2
