"""The stream: what goes in comes out, and no damage of any kind passes unnoticed."""

import hashlib
import io
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.errors import BackupDamaged, RepositoryUnreachable
from opsctl.stream import Compression, check_stored, load, store

SINGLE = Compression(level=1, threads=1)


def stored(data, *, pieces=None, compression=SINGLE):
    sink, advanced = io.BytesIO(), []
    file = store("dump.zst", pieces if pieces is not None else [data], sink, compression, advanced.append)
    return file, sink.getvalue(), advanced


def loaded(file, raw):
    advanced = []
    data = b"".join(load(file, io.BytesIO(raw), advanced.append))
    return data, sum(advanced)


@given(st.lists(st.binary(max_size=3000), max_size=8), st.integers(1, 6))
@settings(max_examples=60)
def test_round_trip(pieces, level):
    """Whatever the pieces, their concatenation comes back, and everything about it is recorded."""
    data = b"".join(pieces)
    file, raw, advanced = stored(data, pieces=pieces, compression=Compression(level, threads=1))

    assert (file.bytes, file.plain_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (file.stored_bytes, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert sum(advanced) == len(data)
    assert loaded(file, raw) == (data, len(data))


def test_more_than_a_read_at_once_with_several_threads():
    """Megabytes through several compressing threads are the same bytes, in pieces of bounded size."""
    data = bytes(range(256)) * 20_000
    file, raw, _ = stored(data, compression=Compression(level=3, threads=2))
    pieces = list(load(file, io.BytesIO(raw), lambda _count: None))

    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    assert len(raw) < len(data) / 10


def test_it_is_an_ordinary_zstd_file_with_a_checksum():
    """Any zstd reads it, and finds damage by itself: the frame carries a checksum of its content."""
    _, raw, _ = stored(b"some rows\n" * 1000)

    assert zstandard.get_frame_parameters(raw).has_checksum
    assert zstandard.ZstdDecompressor().decompressobj().decompress(raw) == b"some rows\n" * 1000


def test_nothing_is_a_file_too():
    """An empty dump is stored and read back like any other."""
    file, raw, _ = stored(b"")

    assert file.bytes == 0
    assert loaded(file, raw) == (b"", 0)


FILE, RAW, _ = stored(b"".join(b"%d\tsome text that repeats\n" % number for number in range(200)))


def damaged(raw, file=FILE):
    """Both ways to read must refuse."""
    with pytest.raises(BackupDamaged, match=r"dump\.zst is damaged"):
        loaded(file, raw)


def test_every_single_byte_counts():
    """A changed byte anywhere in the stored file is found, by loading and by the digest alone."""
    for position in range(len(RAW)):
        changed = bytearray(RAW)
        changed[position] ^= 1 << position % 8
        damaged(bytes(changed))
        with pytest.raises(BackupDamaged):
            check_stored(FILE, io.BytesIO(changed), lambda _count: None)


def test_every_truncation_is_found():
    """A file cut anywhere is found; so is an empty one."""
    for length in range(len(RAW)):
        damaged(RAW[:length])
        with pytest.raises(BackupDamaged, match=f"{length} bytes instead of {len(RAW)}"):
            check_stored(FILE, io.BytesIO(RAW[:length]), lambda _count: None)


@pytest.mark.parametrize("more", [b"\0", b"\n", RAW, b"x" * 3_000_000], ids=["zero", "line", "frame", "long"])
def test_what_follows_is_found(more):
    """Bytes after the frame do not belong there, another frame included."""
    damaged(RAW + more)


def test_another_intact_file_is_not_this_one():
    """A whole frame of other content fits no manifest but its own."""
    _, other, _ = stored(b"something else")

    damaged(other)


@pytest.mark.parametrize("change", [{"bytes": 1}, {"plain_sha256": "0" * 64}])
def test_the_plain_bytes_are_checked_as_well(change):
    """Stored bytes that fit and plain ones that do not: that is no dump of this manifest either."""
    with pytest.raises(BackupDamaged, match="not what was dumped"):
        loaded(replace(FILE, **change), RAW)


def test_an_intact_file_passes_the_digest():
    """Reading alone raises nothing, and has advanced by every stored byte."""
    advanced = []
    check_stored(FILE, io.BytesIO(RAW), advanced.append)

    assert sum(advanced) == len(RAW)


def test_the_reader_that_fails_is_not_called_damage():
    """An error of the disk is its own error: a backup is not damaged because it could not be read."""

    class Failing(io.RawIOBase):
        def read(self, size=-1):
            raise TimeoutError("the disk does not answer")

    with pytest.raises(RepositoryUnreachable, match=r"dump\.zst cannot be read to its end: the disk does not answer"):
        list(load(FILE, Failing(), lambda _count: None))


def test_threads_are_bounded():
    """As many threads as processors, four at most, unless the configuration says otherwise."""
    assert 1 <= Compression().worker_count <= 4
    assert Compression(threads=7).worker_count == 7
