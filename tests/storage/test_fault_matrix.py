"""Whatever happens to a bucket during a backup: what is listed restores, nothing is left, the run says what it was.

The same for a local repository is in tests/test_failures.py.
"""

from datetime import UTC, datetime, timedelta

import pytest

from opsctl.catalog import ORPHAN_GRACE
from opsctl.prune import execute, plan
from opsctl.repository import Repository
from opsctl.retention import Policy

pytestmark = [pytest.mark.end_to_end, pytest.mark.acceptance]

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"


@pytest.fixture(scope="module")
def large(cluster):
    """A database whose dump is two parts of an upload: 20 MiB that nothing compresses. Backups only read it."""
    from psycopg import connect

    name = "fault_matrix"
    with connect(cluster.url("postgres"), autocommit=True) as admin:
        admin.execute(f"create database {name}")
        with connect(cluster.url(name), autocommit=True) as inside:
            inside.execute(
                "create table noise as select n, (select string_agg(sha512((n * 1000 + k)::text::bytea), '')"
                " from generate_series(1, 250) k) as bytes from generate_series(1, 1300) n"
            )
        yield cluster.url(name)
        admin.execute(f"drop database {name} with (force)")


@pytest.fixture
def proxy(moto, proxied):
    with proxied.Proxy(moto.endpoint) as running:
        yield running


def is_part(request):
    return request.startswith("PUT") and "partNumber=" in request


def is_second_part(request):
    return is_part(request) and "partNumber=2" in request


def is_start(request):
    return request.startswith("POST") and "?uploads" in request


def is_complete(request):
    return request.startswith("POST") and "uploadId=" in request


def is_put(request):
    return request.startswith("PUT") and "partNumber=" not in request


def is_manifest(request):
    return is_put(request) and "manifest.json" in request


def is_size(request):
    return request.startswith("HEAD") and "dump" in request


def expire(_proxy, client, _first):
    """400 ExpiredToken, whatever was asked."""
    head = (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    client.sendall(head % len(EXPIRED) + EXPIRED)


PASSING = {
    "a part is reset twice": (is_part, "reset", 2),
    "a part is refused twice": (is_part, "refuse", 2),
    "the completion is reset": (is_complete, "reset", 1),
    "the answer to the completion is cut": (is_complete, "cut", 1),
    "the answer to the manifest is cut": (is_manifest, "cut", 1),
}
STAYING = {
    "parts are reset": (is_part, "reset", None, "broke off"),
    "uploads do not start": (is_start, "refuse", None, "503"),
    "the second part is refused": (is_second_part, "refuse", None, "503"),
    "the completion is refused": (is_complete, "refuse", None, "503"),
    "the size cannot be asked for": (is_size, "refuse", None, "503"),
    "the manifest is refused": (is_manifest, "refuse", None, "503"),
    "credentials expire in mid-upload": (is_second_part, "expire", None, "credentials have expired"),
    "credentials expire before the manifest": (is_manifest, "expire", None, "credentials have expired"),
}


@pytest.fixture
def matrix(run_opsctl, credentials, moto, proxied, proxy, large):
    """A bucket behind the proxy, with one backup in it that nothing happened to."""

    class Matrix:
        def __init__(self):
            self.bucket = moto.new_bucket()
            text = f'[databases.shop]\nurl = "{large}"\nfacts = "none"\ncompression_level = 1\n[repositories.offsite]\n'
            text += moto.toml(self.bucket).replace(moto.endpoint, proxy.endpoint)
            (run_opsctl.work / "opsctl.toml").write_text(text)

        def run(self, *arguments, code=0):
            done = run_opsctl(*arguments, "--json", env=credentials)
            assert done.returncode == code, done
            return done.json

        def break_off(self, wanted, act, count):
            acts = {"expire": expire, "cut": proxied.truncate(5)}
            proxy.faults = [proxied.times(count, wanted, acts.get(act) or getattr(proxied, act))]

        def heal(self):
            proxy.faults = []

        def assert_sound(self, count):
            """So many backups are listed, each of them decodes, and pruning leaves nothing that is not theirs."""
            listed = self.run("list")["result"]["backups"]
            assert len(listed) == count
            outcomes = self.run("verify", "--all")["result"]["backups"]
            assert [each["outcome"] for each in outcomes] == ["pass"] * count
            repository = Repository("offsite", moto.storage(self.bucket, "backups"))
            later = datetime.now(UTC) + ORPHAN_GRACE + timedelta(minutes=1)
            execute(plan({"offsite": repository.catalog()}, {"offsite": Policy()}, now=later), [repository])
            folders = {
                each.key.rpartition("/evidence")[0] or each.key.rpartition("/")[0] for each in entries(repository)
            }
            assert folders - {""} == {f"shop/{each['id']}" for each in listed}
            assert not moto.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads")

    return Matrix()


def entries(repository):
    return list(repository.storage.entries())


@pytest.mark.parametrize("name", PASSING)
def test_what_passes(matrix, name):
    """It costs time, and nothing else."""
    matrix.break_off(*PASSING[name])
    matrix.run("backup")
    matrix.heal()

    matrix.assert_sound(1)


@pytest.mark.parametrize("name", STAYING)
def test_what_stays(matrix, name):
    """Exit code 13 and its own words; the earlier backup is as it was, and the next one succeeds."""
    matrix.run("backup")
    *fault, said = STAYING[name]
    matrix.break_off(*fault)
    error = matrix.run("backup", code=13)["error"]
    matrix.heal()

    assert said in error["message"]
    assert error["hint"]
    matrix.assert_sound(1)


def test_a_bucket_that_is_deleted_in_mid_upload(matrix, moto, proxy, run_opsctl):
    """13, the bucket named; nothing is listed, as nothing is there."""

    def delete(_proxy, client, first):
        bucket = moto.client()
        for upload in bucket.list_multipart_uploads(Bucket=matrix.bucket).get("Uploads", ()):
            bucket.abort_multipart_upload(Bucket=matrix.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for each in bucket.list_objects_v2(Bucket=matrix.bucket).get("Contents", ()):
            bucket.delete_object(Bucket=matrix.bucket, Key=each["Key"])
        bucket.delete_bucket(Bucket=matrix.bucket)
        proxy.faults = []
        proxy.forward(client, first)

    proxy.faults = [lambda request: delete if is_second_part(request) else None]
    error = matrix.run("backup", code=13)["error"]

    assert f"there is no bucket {matrix.bucket}" in error["message"]
    assert matrix.run("list", code=13)["error"]["code"] == "repository_unreachable"


def test_a_truncated_answer_when_restoring(matrix, large, cluster, proxied, proxy):
    """Bodies that break off are continued where they broke; the copy is whole."""
    matrix.run("backup")

    def is_read(request):
        return request.startswith("GET") and "dump" in request

    proxy.faults = [proxied.times(1, is_read, proxied.truncate(size)) for size in (70_000, 600, 1_000_000)]
    restored = matrix.run("restore", "latest", "--into", "fault_matrix_copy")["result"]

    from psycopg import connect

    with connect(cluster.url("postgres"), autocommit=True) as admin:
        admin.execute("drop database fault_matrix_copy")
    assert restored["evidence"] == "restored"


def test_a_wrong_checksum_is_found(matrix, moto):
    """One byte of the stored dump is another one: no restore, no clean verification, and the place is named."""
    identifier = matrix.run("backup")["result"]["backups"][0]["id"]
    client = moto.client()
    (key,) = (
        each["Key"]
        for each in client.list_objects_v2(Bucket=matrix.bucket)["Contents"]
        if each["Key"].endswith("dump.zst")
    )
    body = bytearray(client.get_object(Bucket=matrix.bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=matrix.bucket, Key=key, Body=bytes(body))

    assert "SHA-256" in matrix.run("restore", identifier, "--into", "fault_matrix_copy", code=15)["error"]["message"]
    problems = matrix.run("verify", identifier, code=15)["result"]["backups"][0]["problems"]
    assert problems == ["offsite: dump.zst is damaged: its SHA-256 is not the manifest's."]
