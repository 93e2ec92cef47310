"""`opsctl repository check`: what works is said to, what does not has its own words, and nothing is left behind."""

import os
import signal
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.errors import RemovalRefused
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


@contextmanager
def knowing_what_is_missing(proxied, service):
    """The service through a proxy; moto answers 500 to a lock for what is not there, where others say 404."""

    def missing(_proxy, client, _first):
        body = b"<Error><Code>NoSuchKey</Code></Error>"
        client.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with proxied.Proxy(service.endpoint) as proxy:
        if service.name == "moto":
            proxy.faults = [lambda request: missing if request.startswith("PUT") and "?retention" in request else None]
        yield proxy


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
def test_buckets_that_keep_things(request, proxied, service, kind):
    """No version, no delete marker and no locked object stays behind; what could not be taken back is not tried."""
    service = request.getfixturevalue(service)
    if kind == "versions":
        bucket = service.new_bucket()
        service.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    else:
        bucket = locked_bucket(service, **({"Mode": "COMPLIANCE", "Days": 1} if kind == "default lock" else {}))
    mode = "off" if kind == "versions" else "compliance"
    with knowing_what_is_missing(proxied, service) as proxy:
        storage = service.storage(bucket, "p", object_lock=mode, endpoint_url=proxy.endpoint)
        examined, found = trials(Repository("offsite", storage))

    assert examined.usable
    assert "It keeps versions." in found["list"].message
    assert found["lock"].status == ("skip" if kind == "versions" else "ok")
    assert found["put"].status == ("skip" if kind == "default lock" else "ok")
    assert inside(service.storage(bucket, "p")) == ([], [])


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


def uploads(service, bucket):
    return [each["Key"] for each in service.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def test_credentials_that_may_not_abort(moto, proxied):
    """No upload is begun that could not be aborted: neither by the check nor by doctor, which comes every 5 minutes."""
    bucket = moto.new_bucket()
    with proxied.Proxy(moto.endpoint) as proxy:
        storage = moto.storage(bucket, "p", endpoint_url=proxy.endpoint)
        proxy.faults = [lambda request: proxied.deny if "uploadId" in request else None]
        examined, found = trials(Repository("offsite", storage))
        with pytest.raises(RemovalRefused):
            storage.try_write()

    assert (examined.status, examined.usable) == ("warn", True)
    assert "s3:AbortMultipartUpload" in found["multipart"].hint
    assert uploads(moto, bucket) == []


def test_uploads_that_may_not_be_listed(moto, proxied):
    """A warning: what is interrupted is not seen then."""
    with proxied.Proxy(moto.endpoint) as proxy:
        storage = moto.storage(moto.new_bucket(), "p", endpoint_url=proxy.endpoint)
        proxy.faults = [lambda request: proxied.deny if request.startswith("GET") and "?uploads" in request else None]
        examined, found = trials(Repository("offsite", storage))

    assert (examined.status, examined.usable) == ("warn", True)
    assert "s3:ListBucketMultipartUploads" in found["list_uploads"].hint


def test_a_bucket_that_wants_its_encryption(moto, proxied):
    """What is put for a trial is put as a backup would be: policies that deny everything else are common."""

    def plain_is_denied(proxy, client, first):
        encrypted = b"x-amz-server-side-encryption: AES256" in first
        (proxy.forward if encrypted else lambda *rest: proxied.deny(proxy, *rest))(client, first)

    with proxied.Proxy(moto.endpoint) as proxy:
        proxy.faults = [
            lambda request: plain_is_denied if request.startswith("PUT") and "partNumber" not in request else None
        ]
        options = {"endpoint_url": proxy.endpoint, "server_side_encryption": "AES256"}
        storage = moto.storage(moto.new_bucket(), "p", **options)
        assert trials(Repository("offsite", storage))[0].status == "ok"


@pytest.mark.parametrize("service", ["moto", pytest.param("ceph", marks=pytest.mark.acceptance)])
def test_credentials_that_may_not_lock(request, proxied, service):
    """Every backup would fail: said without locking anything."""
    service = request.getfixturevalue(service)
    bucket = locked_bucket(service)
    with knowing_what_is_missing(proxied, service) as proxy:
        faults = proxy.faults
        storage = service.storage(bucket, "p", endpoint_url=proxy.endpoint, object_lock="governance")
        proxy.faults = [lambda request: proxied.deny if request.startswith("PUT") and "retention" in request else None]
        examined, found = trials(Repository("offsite", storage))
        assert not examined.usable
        assert "s3:PutObjectRetention" in found["lock"].hint
        proxy.faults = faults
        found = trials(Repository("offsite", storage))[1]
        assert (found["lock"].status, "may lock" in found["lock"].message) == ("ok", True)
        assert inside(storage) == ([], [])


def test_a_removal_that_is_refused_after_all(moto, proxied):
    """The rule denies it for what is there: said, with the name of what had to stay."""
    with proxied.Proxy(moto.endpoint) as proxy:
        storage = moto.storage(moto.new_bucket(), "p", endpoint_url=proxy.endpoint)
        allowed = iter([True])
        proxy.faults = [
            lambda request: (
                proxied.deny
                if request.startswith("DELETE") and "uploadId" not in request and not next(allowed, False)
                else None
            )
        ]
        examined, found = trials(Repository("offsite", storage))
        ((left,), _) = inside(storage)

    assert (examined.status, examined.usable) == ("warn", True)
    assert left in found["delete"].message


def test_what_a_killed_check_left_goes_with_a_later_one(moto, tmp_path):
    """Objects, their versions, uploads and folders, once they are an hour old; what another check does now stays."""
    bucket = moto.new_bucket()
    moto.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    storage, folder = moto.storage(bucket, "p"), LocalStorage(tmp_path / "here")
    for _ in range(2):
        storage.put_object(".opsctl-trial-0123456789abcdee", b"x")
    folder.create(".opsctl-trial-0123456789abcdef/one", b"x")
    for each in (storage, folder):
        each.create("RESTORE.txt", b"")
        before = inside(each)
        trials(Repository("offsite", each))
        assert inside(each) == before
        if each is storage:
            storage.start_upload(".opsctl-trial-0123456789abcdef")
        each.remove_trials(datetime.now(UTC) + timedelta(minutes=1))
        assert [entry.key for entry in each.entries()] == ["RESTORE.txt"]
    assert uploads(moto, bucket) == []
    assert [key for key, _, _ in moto.versions(bucket)] == ["p/RESTORE.txt"]


STAGES = {
    "an upload begins": lambda request: request.startswith("POST") and "?uploads" in request,
    "a part is sent": lambda request: "partNumber=1" in request,
    "an object is put": lambda request: request.startswith("PUT") and "uploadId" not in request,
    "an object is read": lambda request: (
        request.startswith("GET") and "opsctl-trial" in request and "list" not in request
    ),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "stage", ["an object is put", *(pytest.param(each, marks=pytest.mark.acceptance) for each in STAGES)]
)
def test_a_check_that_is_interrupted_while_it_waits(run_opsctl, moto, proxied, credentials, stage):
    """The service did what it was asked, and Ctrl-C came before it said so: taken back all the same."""

    class Unheard:
        """A client that is gone when the answer comes."""

        def __init__(self, client):
            self.recv = client.recv

        def sendall(self, _answer):
            done.set()

        def shutdown(self, _how):
            pass

    def unanswered(proxy, client, first):
        proxy.forward(Unheard(client), first)
        proxy.wait()

    bucket, done = moto.new_bucket(), threading.Event()
    moto.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with proxied.Proxy(moto.endpoint) as proxy:
        (run_opsctl.work / "opsctl.toml").write_text(
            f"[repositories.offsite]\n{moto.toml(bucket)}".replace(moto.endpoint, proxy.endpoint)
        )
        proxy.faults = [proxied.times(1, STAGES[stage], unanswered)]
        process = run_opsctl.start("repository", "check", env=credentials)
        assert done.wait(30)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert process.returncode == 130
    assert (moto.versions(bucket), uploads(moto, bucket)) == ([], [])


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
