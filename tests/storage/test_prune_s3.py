"""Pruning in buckets that do not let everything go: locks, credentials that may not delete, clocks that are apart."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.acceptance]
KEEP_ONE = "retention = { keep_last = 1 }\n"


@pytest.fixture
def proxy(moto, proxied):
    with proxied.Proxy(moto.endpoint) as running:
        yield running


@pytest.fixture
def program(run_opsctl, credentials, saas):
    """``program("backup", code=0)`` with ``program.configure(local=…, offsite=…)``."""

    class Program:
        def configure(self, **repositories):
            text = f'[databases.shop]\nurl = "{saas.url}"\nfacts = "none"\n'
            text += "".join(f"[repositories.{name}]\n{body}{KEEP_ONE}" for name, body in repositories.items())
            (run_opsctl.work / "opsctl.toml").write_text(text)

        def __call__(self, *arguments, code=0, env=None):
            done = run_opsctl(*arguments, "--json", env={**credentials, **(env or {})})
            assert done.returncode == code, done
            return done.json["result"]

        def text(self, *arguments):
            return run_opsctl(*arguments, env=credentials).stdout

    return Program()


def ids(result, key="backups"):
    return [each["id"] for each in result[key]]


def test_credentials_that_may_not_delete(program, moto, proxied, proxy):
    """Backups end with 0 and one line; prune ends with 3 and names it once; nothing is hidden or lost."""
    bucket = moto.new_bucket()
    program.configure(offsite=moto.toml(bucket).replace(moto.endpoint, proxy.endpoint), local='url = "here"\n')
    proxy.faults = [
        lambda request: proxied.deny if request.startswith("DELETE") and "uploadId" not in request else None
    ]
    taken = [ids(program("backup"))[0] for _ in range(2)]
    said = program.text("backup")
    assert said.count("due in offsite") == 1
    assert "2 backups are due" in said
    listed = program("list")["backups"]
    assert {*taken} <= {each["id"] for each in listed if "offsite" in each["repositories"]}
    assert [each["repositories"] for each in listed if "local" in each["repositories"]] == [["offsite", "local"]]
    asked = len([request for request in proxy.requests if request.startswith("DELETE")])
    pruned = program("prune", code=3)

    assert (len(pruned["denied"]), len(pruned["denied"][0]["ids"]), pruned["failures"]) == (1, 2, [])
    assert len([request for request in proxy.requests if request.startswith("DELETE")]) == asked + 1
    proxy.faults = []
    assert sorted(ids(program("prune"), "remove")) == sorted(taken)


def test_a_policy_that_denies_deletion(program, ceph):
    """The same with a real bucket policy, on a bucket that keeps versions."""
    bucket = ceph.new_bucket()
    ceph.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    program.configure(offsite=ceph.toml(bucket))
    first = ids(program("backup"))[0]
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
                "Resource": [f"arn:aws:s3:::{bucket}/*"],
            }
        ],
    }
    ceph.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    second = ids(program("backup"))[0]
    before = ceph.versions(bucket)
    (checked,) = program("repository", "check", code=3)["repositories"]
    assert (checked["status"], checked["usable"]) == ("warn", True)
    assert [each["id"] for each in checked["checks"] if each["status"] == "warn"] == ["delete"]
    assert ceph.versions(bucket) == before
    assert ids(program("list")) == [second, first]
    assert program("list")["incomplete"] == []
    assert [each["ids"] for each in program("prune", code=3)["denied"]] == [[first]]
    ceph.client().delete_bucket_policy(Bucket=bucket)
    assert ids(program("prune"), "remove") == [first]
    assert ids(program("list")) == [second]


@pytest.mark.parametrize("service", ["moto", "ceph"])
def test_locked_backups_are_kept_with_their_reason(request, program, service):
    """What is due and locked stays, says until when, and is no failure: of the rotation, the dry run and the prune."""
    service = request.getfixturevalue(service)
    bucket = f"locked-{id(program)}"
    service.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    program.configure(offsite=service.toml(bucket) + 'object_lock = "governance"\nobject_lock_days = 1\n')
    first, second = (ids(program("backup"))[0] for _ in range(2))
    assert ids(program("list")) == [second, first]
    for arguments in (("prune", "--dry-run"), ("prune",)):
        found = program(*arguments)
        kept = {each["id"]: each["reasons"] for each in found["keep"]}
        assert found["remove"] == []
        assert kept[first][0].startswith(f"is locked until {datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}")
        assert kept[first][1] == "kept by no rule"


def test_a_clock_that_is_far_off(program, moto, proxied, proxy):
    """Nothing is pruned in that repository and everything in the other; backup and prune end with 3 and say so."""
    bucket = moto.new_bucket()
    program.configure(offsite=moto.toml(bucket).replace(moto.endpoint, proxy.endpoint), local='url = "here"\n')

    def ten_minutes_ago(_proxy, client, _first):
        date = format_datetime(datetime.now(UTC) - timedelta(minutes=10), usegmt=True)
        head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())

    first = ids(program("backup"))[0]
    proxy.faults = [lambda request: ten_minutes_ago if request.startswith(f"HEAD /{bucket} ") else None]
    second = program("backup", code=3)
    assert [(each["id"], each["repository"]) for each in second["pruned"]] == [(first, "local")]
    pruned = program("prune", code=3)
    assert [each["repository"] for each in pruned["not_pruned"]] == ["offsite"]
    assert pruned["remove"] == []
    proxy.faults = []
    assert [(each["id"], each["repository"]) for each in program("prune")["remove"]] == [(first, "offsite")]


def test_a_service_that_is_gone_when_its_clock_is_asked_for(program, moto, proxied, proxy):
    """It was listed a moment before: the backup is taken all the same, and the other repository is pruned."""
    bucket = moto.new_bucket()
    program.configure(offsite=moto.toml(bucket).replace(moto.endpoint, proxy.endpoint), local='url = "here"\n')
    first = ids(program("backup"))[0]
    proxy.faults = [lambda request: proxied.deny if request.startswith(f"HEAD /{bucket} ") else None]
    second = program("backup", code=3)
    assert second["backups"][0]["status"] == "stored"
    assert [(each["id"], each["repository"]) for each in second["pruned"]] == [(first, "local")]
    assert [each["repository"] for each in program("prune", code=3)["not_pruned"]] == ["offsite"]
