"""Networks and services that fail: tried again, or said clearly; what is listed restores."""

import os
import subprocess
import sys
from hashlib import sha256

import pytest

from opsctl.errors import RepositoryUnreachable
from opsctl.storage.s3_transfer import LARGEST_PART_BYTES, PART_BYTES, UPLOAD_BYTES, part_bytes

MIB = 1 << 20
MANIFEST = "manifest.json"
FAST = {"connect_timeout_seconds": 2, "read_timeout_seconds": 1}


@pytest.fixture
def bucket(moto):
    return moto.new_bucket()


@pytest.fixture
def proxy(moto, proxied):
    with proxied.Proxy(moto.endpoint) as running:
        yield running


@pytest.fixture
def through(moto, bucket, proxy):
    """``through()``: the storage as it is seen through the proxy."""

    def open_storage(**options):
        return moto.storage(bucket, "p", endpoint_url=proxy.endpoint, **options)

    return open_storage


@pytest.fixture
def direct(moto, bucket):
    return moto.storage(bucket, "p")


def is_part(request):
    return request.startswith("PUT") and "partNumber=" in request


def is_put(request):
    return request.startswith("PUT") and "partNumber=" not in request


def is_manifest(request):
    return is_put(request) and MANIFEST in request


def is_read(request):
    return request.startswith("GET") and "/dump" in request


def is_complete(request):
    return request.startswith("POST") and "uploadId=" in request


def back_up(storage, data):
    publication = storage.begin("shop/a")
    try:
        with publication.file("dump") as file:
            for start in range(0, len(data), MIB):
                file.write(data[start : start + MIB])
        publication.publish(MANIFEST, b"{}")
    except BaseException:
        publication.abandon()
        raise


def stored(storage):
    return sorted(entry.key for entry in storage.entries())


WHOLE = [f"shop/a/{name}" for name in ("dump", MANIFEST)]


@pytest.mark.parametrize("act", ["reset", "refuse"])
@pytest.mark.parametrize("wanted", [is_part, is_put, is_complete], ids=["part", "put", "complete"])
def test_a_fault_that_passes(proxy, proxied, through, direct, act, wanted):
    """Two failures of the same request in a row cost time and nothing else."""
    data = os.urandom(20 * MIB)
    proxy.faults = [proxied.times(2, wanted, getattr(proxied, act))]
    back_up(through(), data)

    assert stored(direct) == WHOLE
    assert sha256(direct.open("shop/a/dump").read()).digest() == sha256(data).digest()


ON_CEPH = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("service", "wanted"),
    [
        pytest.param("rclone", is_put, id="rclone-put"),
        pytest.param("ceph", is_put, id="ceph-put", marks=ON_CEPH),
        pytest.param("ceph", is_part, id="ceph-part", marks=ON_CEPH),
    ],
)
def test_bytes_that_arrive_changed(request, proxied, service, wanted):
    """The service compares them with their MD5 and refuses: sent again, and in the end said. moto does not compare."""
    service = request.getfixturevalue(service)
    bucket, data = service.new_bucket(), os.urandom(17 * MIB)
    with proxied.Proxy(service.endpoint) as proxy:
        storage = service.storage(bucket, "p", endpoint_url=proxy.endpoint)
        proxy.faults = [proxied.times(1, wanted, proxied.spoil)]
        back_up(storage, data)
        assert storage.read("shop/a/dump") == data
        storage.delete_folder("shop/a")

        proxy.faults = [proxied.times(None, wanted, proxied.spoil)]
        with pytest.raises(RepositoryUnreachable, match="arrived changed"):
            back_up(storage, data)
    assert stored(service.storage(bucket, "p")) == []


def test_a_part_that_arrives_changed_at_rclone(rclone, proxied):
    """A service, rclone, gives up the whole upload with such a part, sometimes: an error then, and nothing is left."""
    bucket = rclone.new_bucket()
    with proxied.Proxy(rclone.endpoint) as proxy:
        proxy.faults = [proxied.times(None, is_part, proxied.spoil)]
        with pytest.raises(RepositoryUnreachable, match=r"arrived changed|NoSuchUpload"):
            back_up(rclone.storage(bucket, "p", endpoint_url=proxy.endpoint), os.urandom(17 * MIB))
    assert stored(rclone.storage(bucket, "p")) == []


def test_an_answer_that_was_lost(proxy, proxied, through, direct):
    """Done, but the answer never came: asking again neither fails nor does it twice."""
    lost = proxied.truncate(5)
    proxy.faults = [proxied.times(1, is_complete, lost), proxied.times(1, is_manifest, lost)]
    back_up(through(), os.urandom(17 * MIB))

    assert stored(direct) == WHOLE


@pytest.mark.parametrize(
    ("wanted", "act", "said"),
    [
        (is_part, "reset", "broke off"),
        pytest.param(is_part, "stall", "in time|broke off", marks=pytest.mark.acceptance),
        (is_manifest, "refuse", "503"),
    ],
)
def test_a_fault_that_stays(proxy, proxied, through, direct, wanted, act, said):
    """It is said, in bounded time, and nothing is left that could be taken for a backup, nor anything else."""
    proxy.faults = [proxied.times(None, wanted, getattr(proxied, act))]
    with pytest.raises(RepositoryUnreachable, match=said) as caught:
        back_up(through(**FAST), os.urandom(17 * MIB))

    assert caught.value.hint
    assert stored(direct) == []


@pytest.mark.parametrize("act", ["reset", "refuse", "stall"])
def test_reading_through_a_fault_that_passes(proxy, proxied, through, direct, act):
    data = os.urandom(20 * MIB)
    back_up(direct, data)
    proxy.faults = [proxied.times(1, is_read, getattr(proxied, act))]

    with through(read_timeout_seconds=3).open("shop/a/dump") as file:
        assert sha256(file.read()).digest() == sha256(data).digest()


def test_an_answer_that_breaks_off_is_continued(proxy, proxied, through, direct):
    """Several times, at any place: what has come already is not asked for again."""
    data = os.urandom(20 * MIB)
    back_up(direct, data)
    cut = [proxied.times(1, is_read, proxied.truncate(size)) for size in (MIB, 3 * MIB + 17, 600, 5 * MIB)]
    proxy.faults = cut

    with through().open("shop/a/dump") as file:
        assert sha256(file.read()).digest() == sha256(data).digest()


@pytest.mark.acceptance
def test_an_answer_that_always_breaks_off(proxy, proxied, through, direct):
    """An error in the end, never a short file."""
    back_up(direct, os.urandom(MIB))
    proxy.faults = [proxied.times(None, is_read, proxied.truncate(900))]

    with pytest.raises(RepositoryUnreachable):
        through().open("shop/a/dump").read()
    with pytest.raises(RepositoryUnreachable):
        through().read("shop/a/dump")


def test_a_file_that_changes_while_it_is_read(moto, bucket, direct):
    """Two halves of different files are no file."""
    back_up(direct, os.urandom(40 * MIB))
    with direct.open("shop/a/dump") as file:
        file.read(10)
        moto.client().put_object(Bucket=bucket, Key="p/shop/a/dump", Body=os.urandom(40 * MIB))
        with pytest.raises(RepositoryUnreachable, match="changed while it was read"):
            file.read()


def test_a_bucket_that_is_deleted_in_mid_upload(moto, bucket, direct):
    publication = direct.begin("shop/a")
    moto.client().delete_bucket(Bucket=bucket)
    with pytest.raises(RepositoryUnreachable, match="there is no bucket"), publication.file("dump") as file:
        file.write(b"x")
    publication.abandon()


def test_something_else_answers(proxy, through):
    """A console, a proxy's login page: not S3, and said so."""

    def page(_proxy, client, _first):
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n<html>hello<p></html>")

    proxy.faults = [lambda _request: page]
    with pytest.raises(RepositoryUnreachable) as caught:
        through().folders()
    assert caught.value.hint


def answer(status, code, headers=b""):
    body = f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()

    def act(_proxy, client, _first):
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/xml\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n"
        client.sendall(head % (status, headers, len(body)) + body)

    return act


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", "denies ListObjectsV2"),
        (403, "InvalidAccessKeyId", "refuses the credentials"),
        (403, "SignatureDoesNotMatch", "refuses the credentials"),
        (400, "ExpiredToken", "have expired"),
        (403, "RequestTimeTooSkewed", "clock"),
        (404, "NoSuchBucket", "there is no bucket"),
        (400, "AuthorizationHeaderMalformed", "another region"),
        (418, "Teapot", "answered Teapot: said so"),
    ],
)
def test_each_refusal_has_its_own_words(proxy, through, status, code, message):
    date = b"Date: Mon, 23 Nov 2020 12:00:00 GMT\r\n"
    proxy.faults = [lambda _request: answer(status, code, date)]
    with pytest.raises(RepositoryUnreachable, match=message) as caught:
        through().folders()
    assert caught.value.hint


def test_a_service_without_conditional_writes(proxy, through, direct):
    """501 to If-None-Match: looked first, put, read back."""
    refused = []

    def fault(request):
        if is_put(request) and not refused:
            refused.append(request)
            return answer(501, "NotImplemented")
        return None

    proxy.faults = [fault]
    storage = through()
    storage.create("shop/a", b"first")
    with pytest.raises(FileExistsError):
        storage.create("shop/a", b"second")
    assert refused
    assert direct.read("shop/a") == b"first"


# Memory


def test_parts_grow_so_that_the_largest_object_fits():
    """5 TiB in 10,000 parts, none above S3's 5 GiB, small ones at the beginning."""
    sizes = [part_bytes(number) for number in range(10_000)]

    assert sum(sizes) >= 5 << 40
    assert sizes == sorted(sizes)
    assert sizes[0] == PART_BYTES
    assert max(sizes) == LARGEST_PART_BYTES < 5 << 30
    assert UPLOAD_BYTES < 100 * MIB


STREAM = """
import sys
from opsctl.storage.s3 import S3Options, S3Storage
storage = S3Storage(sys.argv[2], "p", S3Options(endpoint_url=sys.argv[1]))
publication = storage.begin("shop/a")
piece = bytes(range(256)) * 4096
with publication.file("dump") as file:
    for _ in range(300):
        file.write(piece)
publication.publish("manifest.json", b"{}")
with storage.open("shop/a/dump") as file:
    total = 0
    while data := file.read(1 << 20):
        total += len(data)
assert total == 300 << 20, total
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.acceptance
def test_300_mib_in_bounded_memory(rclone, credentials, tmp_path):
    """Up and down again; the whole process, interpreter and boto3 included, stays below 250 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", STREAM, rclone.endpoint, rclone.new_bucket()],
        env={**credentials, "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 250 * 1024
