"""The real program on s3:// repositories: everything a local one can do, and what it says when the service says no."""

import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from opsctl.catalog import ORPHAN_GRACE
from opsctl.repository import Repository

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def configure(run_opsctl):
    """``configure(database, offsite="url = …")``: an opsctl.toml with these repositories."""

    def write(database, **repositories):
        text = f'[databases."{database.name}"]\nurl = "{database.url}"\n'
        text += "".join(f"[repositories.{name}]\n{body}" for name, body in repositories.items())
        (run_opsctl.work / "opsctl.toml").write_text(text)

    return write


@pytest.fixture
def run(run_opsctl, credentials):
    """``run("list")``: the program with the credentials, its JSON document and its exit code."""

    def start(*arguments, code=0, env=None):
        done = run_opsctl(*arguments, "--json", env={**credentials, **(env or {})})
        assert done.returncode == code, done
        return done.json

    return start


def keys(service, bucket):
    return sorted(entry.key for entry in service.storage(bucket).entries())


def test_the_whole_life_of_a_backup(configure, run, run_opsctl, saas, rclone):
    """Backup, list, verify, pin, export, restore beside, prune."""
    bucket = rclone.new_bucket()
    configure(saas, offsite=rclone.toml(bucket) + "retention = { keep_last = 1 }\n")
    first = run("backup")["result"]["backups"][0]
    second = run("backup")["result"]["backups"][0]

    listed = run("list")["result"]
    assert [(each["id"], each["repositories"]) for each in listed["backups"]] == [(second["id"], ["offsite"])]
    assert listed["incomplete"] == []
    assert first["id"] not in " ".join(keys(rclone, bucket))
    assert "backups/RESTORE.txt" in keys(rclone, bucket)

    assert run("verify")["result"]["backups"][0]["evidence"] == "decoded"
    run("pin", "latest")
    third = run("backup")["result"]["backups"][0]
    assert [each["id"] for each in run("list")["result"]["backups"]] == [third["id"], second["id"]]
    assert run("list")["result"]["backups"][1]["evidence"]["level"] == "decoded"

    run("export", "latest", "-o", "saas.dump")
    assert (run_opsctl.work / "saas.dump").read_bytes()[:5] == b"PGDMP"
    beside = f"{saas.name}_beside"
    run("restore", second["id"], "--into", beside)
    (rows,) = saas.__class__(saas.cluster, beside).execute("select count(*) from public.messages")
    assert rows == saas.execute("select count(*) from public.messages")[0]

    run("unpin", second["id"])
    run("prune")
    assert [each["id"] for each in run("list")["result"]["backups"]] == [third["id"]]
    assert second["id"] not in " ".join(keys(rclone, bucket))


@pytest.mark.acceptance
def test_through_a_bad_link(configure, run, saas, moto, proxied):
    """What passes is tried again, up and down; what stays ends with 13, and nothing of it is listed."""
    bucket = moto.new_bucket()

    def is_put(request):
        return request.startswith("PUT")

    with proxied.Proxy(moto.endpoint) as proxy:
        configure(saas, offsite=moto.toml(bucket).replace(moto.endpoint, proxy.endpoint))
        proxy.faults = [
            proxied.times(2, is_put, proxied.reset),
            proxied.times(
                3, lambda request: request.startswith("GET") and "dump.zst" in request, proxied.truncate(9999)
            ),
        ]
        backup = run("backup")["result"]["backups"][0]
        assert run("verify")["result"]["backups"][0]["evidence"] == "decoded"

        proxy.faults = [proxied.times(None, is_put, proxied.refuse)]
        assert "503" in run("backup", code=13)["error"]["message"]
        proxy.faults = []
        listed = run("list")["result"]

    assert [each["id"] for each in listed["backups"]] == [backup["id"]]
    assert listed["incomplete"] == []


def test_a_repository_that_is_down_does_not_stop_the_other(configure, run, saas):
    """Stored locally, exit code 3, and the one that is down is named."""
    configure(saas, local='url = "here"\n', offsite='url = "s3://b/p"\nendpoint_url = "http://127.0.0.1:1"\n')
    backup = run("backup", code=3)["result"]["backups"][0]

    assert backup["repositories"] != []
    text = json.dumps(backup)
    assert "offsite" in text
    assert "no connection to http://127.0.0.1:1" in text


def test_a_wrong_secret(configure, run, run_opsctl, saas, rclone, credentials):
    """13, the credentials named as the cause, the secret never shown."""
    configure(saas, offsite=rclone.toml(rclone.new_bucket()))
    wrong = {"AWS_SECRET_ACCESS_KEY": "not-the-right-secret"}
    error = run("backup", code=13, env=wrong)["error"]

    assert "credentials" in error["message"] + error["hint"]
    plain = run_opsctl("list", "--debug", env={**credentials, **wrong})
    assert plain.returncode == 13, plain
    assert "not-the-right-secret" not in plain.stdout + plain.stderr + json.dumps(error)


def test_a_secret_of_a_profile_is_masked(configure, run_opsctl, saas, rclone, tmp_path):
    """It stands in no variable of ours: the storage tells the redactor."""
    bucket = rclone.new_bucket()
    secret = "a-secret-of-the-profile"
    (tmp_path / "aws").write_text(f"[backups]\naws_access_key_id = {secret}\naws_secret_access_key = {secret}\n")
    configure(saas, offsite=rclone.toml(bucket, prefix=secret) + 'profile = "backups"\n')
    done = run_opsctl("list", env={"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws")})

    assert done.returncode == 13, done
    assert secret not in done.stdout + done.stderr
    assert "***" in done.stderr


def test_a_bucket_that_is_missing(configure, run, saas, rclone):
    """13, with its name; opsctl creates none."""
    configure(saas, offsite=rclone.toml("there-is-none"))
    error = run("backup", code=13)["error"]

    assert "there is no bucket there-is-none" in error["message"]
    assert "creates no buckets" in error["hint"]
    assert run("list", code=13)["error"]["message"] == error["message"]


def test_without_credentials(configure, run_opsctl, saas, moto):
    """13, saying what to set."""
    configure(saas, offsite=moto.toml(moto.new_bucket()))
    done = run_opsctl("list", env={"AWS_EC2_METADATA_DISABLED": "true"})

    assert done.returncode == 13, done
    assert "AWS_ACCESS_KEY_ID" in done.stderr


def test_a_profile_that_is_missing(configure, run, saas, moto):
    configure(saas, offsite=moto.toml(moto.new_bucket()) + 'profile = "nobody"\n')
    error = run("list", code=13)["error"]

    assert "nobody" in error["message"]
    assert "profile" in error["hint"]


@pytest.mark.parametrize("key", ["endpoint_url", "profile"])
def test_keys_of_s3_in_a_local_repository(configure, run, saas, key):
    """A configuration error that names the key: it would silently mean nothing."""
    configure(saas, local=f'url = "here"\n{key} = "http://127.0.0.1:1"\n')
    error = run("list", code=10)["error"]

    assert f"repositories.local: {key} is for s3:// repositories only" in error["message"]


BIG = "create table big as select gen_random_uuid()::text || gen_random_uuid() as t from generate_series(1, 700000)"
"""Hardly compressible: two parts of an upload, and some more."""


def wait_for_a_part(process, service, bucket):
    """Until a part of the dump has arrived."""
    deadline = time.monotonic() + 60
    while not any(entry.bytes for entry in service.storage(bucket).entries() if entry.key.endswith("dump.zst")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline


@pytest.mark.acceptance
def test_killed_in_mid_upload(configure, run, run_opsctl, database, moto, credentials):
    """Never listed as a backup; seen as interrupted while its upload is open, gone with a prune after the grace."""
    database.execute(BIG)
    bucket = moto.new_bucket()
    configure(database, offsite=moto.toml(bucket))
    repository = Repository("offsite", moto.storage(bucket, "backups"))
    process = run_opsctl.start("backup", env=credentials)
    wait_for_a_part(process, moto, bucket)
    process.send_signal(signal.SIGKILL)
    process.wait()

    listed = run("list")["result"]
    assert listed["backups"] == []
    assert [each["reason"] for each in listed["incomplete"]] == ["interrupted"]
    (orphan,) = repository.catalog().incomplete
    assert not orphan.is_orphan(datetime.now(UTC))
    run("prune")
    assert repository.catalog().incomplete != []

    assert orphan.is_orphan(datetime.now(UTC) + ORPHAN_GRACE + timedelta(minutes=1))
    repository.remove_orphan(orphan)
    assert repository.catalog().incomplete == []
    assert keys(moto, bucket) == ["backups/RESTORE.txt"]
    assert not moto.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.acceptance
def test_interrupted_in_mid_upload(configure, run_opsctl, database, moto, credentials):
    """Ctrl-C: the upload is aborted, nothing is left."""
    database.execute(BIG)
    bucket = moto.new_bucket()
    configure(database, offsite=moto.toml(bucket))
    process = run_opsctl.start("backup", env=credentials)
    wait_for_a_part(process, moto, bucket)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert keys(moto, bucket) == ["backups/RESTORE.txt"]
