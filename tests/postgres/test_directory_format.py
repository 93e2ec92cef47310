"""The directory format as a stream: whatever pg_dump writes comes back, and nothing else comes out of a stream."""

import io
import tarfile
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsctl.errors import BackupDamaged, DumpFailed
from opsctl.postgres.directory_format import framed, packed, unpack


class Dump:
    """A pg_dump that has written ``files`` and ended with ``code``; or is still at it until :meth:`end`."""

    def __init__(self, folder, files, *, code=0, is_done=True):
        self.folder = folder
        self._code = code
        self._ended = threading.Event()
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        if is_done:
            self.end()

    def end(self):
        self._ended.set()

    def finish(self):
        assert self._ended.wait(30)
        return self._code

    def packed(self, entries, major=18):
        listing = "".join(f"{dump_id}; 0 {dump_id} {kind} public x owner\n" for dump_id, kind in entries)
        return packed(self.folder, self, major, f"; Archive\n{listing}".encode)


def in_pieces(data, size):
    return iter([data[start : start + size] for start in range(0, len(data), size)])


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CONTENT = st.binary(max_size=1500)


@given(
    st.binary(min_size=1, max_size=600),
    st.dictionaries(st.integers(1, 50), CONTENT, max_size=6),
    st.lists(st.lists(CONTENT, min_size=1, max_size=3), max_size=2),
    st.sampled_from([16, 18]),
    st.integers(1, 2000),
)
@settings(max_examples=15)
def test_round_trip(tmp_path_factory, contents, tables, groups, major, size):
    """Tables and large objects come back from pieces of any size; tar reads the stream; it depends on nothing else."""
    files, entries, order, oid = {"toc.dat": contents}, [], ["toc.dat"], 7000
    for dump_id in tables:
        files[f"{dump_id}.dat"] = tables[dump_id]
        entries.append((dump_id, "TABLE DATA"))
        order.append(f"{dump_id}.dat")
    for number, blobs in enumerate(groups if major > 16 else groups[:1]):
        names = [f"blob_{oid + n}.dat" for n in range(len(blobs))]
        files |= dict(zip(names, blobs, strict=True))
        listed = f"blobs_{900 + number}.toc" if major > 16 else "blobs.toc"
        files[listed] = "".join(f"{oid + n} {name}\n" for n, name in enumerate(names)).encode()
        entries.append((900 + number, "BLOBS"))
        order += [*names, listed]
        oid += 100
    folder = tmp_path_factory.mktemp("packed")
    streams = [b"".join(Dump(folder / each, files).packed(entries, major)) for each in ("one", "two")]
    (folder / "back").mkdir()
    unpack(in_pieces(streams[0], size), folder / "back")

    assert read(folder / "back") == files
    assert b"".join(framed(in_pieces(streams[0], size))) == streams[0]
    assert streams[0] == streams[1]
    with tarfile.open(fileobj=io.BytesIO(streams[0])) as archive:
        assert archive.getnames() == order
    assert not any((folder / "one").iterdir())  # what has passed takes no disk any more


def test_files_pass_while_others_are_written(tmp_path):
    """A finished file passes at once; one that is open for writing waits for its end, however long it is already."""
    dump = Dump(tmp_path / "dump", {"toc.dat": b"contents", "1.dat": b"one"}, is_done=False)
    with (dump.folder / "2.dat").open("wb") as second:
        second.write(b"the first half, ")
        second.flush()
        stream = dump.packed([(1, "TABLE DATA"), (2, "TABLE DATA")])
        early = b""
        while not (early.endswith(bytes(100)) and b"one" in early):
            early += next(stream)
        late = []
        rest = threading.Thread(target=lambda: late.append(b"".join(stream)))
        rest.start()
        time.sleep(0.3)
        assert late == []
        second.write(b"and the second")
    dump.end()
    rest.join(30)
    with tarfile.open(fileobj=io.BytesIO(early + late[0])) as archive:
        assert archive.extractfile("2.dat").read() == b"the first half, and the second"


def test_a_dump_that_is_not_what_it_lists_fails(tmp_path):
    """No file that the contents name may be missing, and none may be left over: a backup would lack it."""
    entries = [(1, "TABLE DATA"), (2, "TABLE DATA")]
    with pytest.raises(DumpFailed, match=r"no 2\.dat"):
        list(Dump(tmp_path / "missing", {"toc.dat": b"c", "1.dat": b"one"}).packed(entries))
    more = {"toc.dat": b"c", "1.dat": b"one", "2.dat": b"two", "3.dat": b"three"}
    with pytest.raises(DumpFailed, match=r"do not name: 3\.dat"):
        list(Dump(tmp_path / "more", more).packed(entries))


@pytest.mark.parametrize("files", [{}, {"toc.dat": b"c"}, {"toc.dat": b"c", "1.dat": b""}])
def test_the_stream_of_a_failed_dump_has_no_end(tmp_path, files):
    """When pg_dump fails the stream stops in the middle: whoever takes it asks pg_dump why."""
    stream = b"".join(Dump(tmp_path / "dump", files, code=1).packed([(1, "TABLE DATA"), (2, "TABLE DATA")]))
    (tmp_path / "back").mkdir()
    with pytest.raises(BackupDamaged, match="ends too early"):
        unpack(iter([stream]), tmp_path / "back")


FILES = {"toc.dat": b"contents", "1.dat": b"rows\n" * 200, "blob_7.dat": b"large", "blobs_3.toc": b"7 blob_7.dat\n"}
ENTRIES = [(1, "TABLE DATA"), (3, "BLOBS")]


def test_every_cut_and_every_bit_of_its_frame(tmp_path):
    """Cut anywhere: refused. A bit of a header or a list changed: refused, or the same files; never other names."""
    stream = b"".join(Dump(tmp_path / "dump", FILES).packed(ENTRIES))
    end = stream.rindex(b"7 blob_7.dat") + 512
    for number, length in enumerate(range(0, end - 20, 97)):
        folder = tmp_path / f"cut{number}"
        folder.mkdir()
        with pytest.raises(BackupDamaged):
            unpack(iter([stream[:length]]), folder)
        with pytest.raises(BackupDamaged):
            list(framed(in_pieces(stream[:length], 100)))
    content = {start + n for name in ("toc.dat", "1.dat", "blob_7.dat") for start, n in places(stream, FILES[name])}
    for number, place in enumerate(range(0, end - 512, 11)):
        if place in content:
            continue
        changed = bytearray(stream)
        changed[place] ^= 1 << place % 8
        folder = tmp_path / f"bit{number}"
        folder.mkdir()
        try:
            unpack(iter([bytes(changed)]), folder)
        except BackupDamaged:
            continue
        assert read(folder) == FILES, place


def places(stream, data):
    start = stream.index(data)
    return [(start, n) for n in range(len(data))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../1.dat", tarfile.REGTYPE),
        ("/1.dat", tarfile.REGTYPE),
        ("sub/1.dat", tarfile.REGTYPE),
        ("restore.sql", tarfile.REGTYPE),
        ("1.dat\n", tarfile.REGTYPE),
        ("", tarfile.REGTYPE),
        ("1.dat", tarfile.SYMTYPE),
        ("1.dat", tarfile.LNKTYPE),
        ("1.dat", tarfile.DIRTYPE),
        ("1.dat", tarfile.FIFOTYPE),
        ("1.dat", tarfile.CHRTYPE),
        ("1.dat", tarfile.GNUTYPE_SPARSE),
        ("toc.dat", tarfile.REGTYPE),
    ],
)
def test_nothing_but_files_of_a_dump_comes_out(tmp_path, name, kind):
    """Other names, paths, links, devices, a second file of a name: refused, and nothing lies outside of the folder."""
    first, second = tarfile.TarInfo("toc.dat"), tarfile.TarInfo(name)
    second.type, second.linkname = kind, "/etc/passwd"
    stream = first.tobuf(tarfile.GNU_FORMAT) + second.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(BackupDamaged, match="tar is damaged"):
        unpack(iter([stream]), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "toc.dat"]
