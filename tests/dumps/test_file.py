"""A folder of pg_dump's as one stream: whatever its files' sizes, nothing of it is lost on the way."""

import io
import tarfile

from opsctl.dumps.archive import ArchiveHead, uncompressed
from opsctl.dumps.file import DumpFile
from opsctl.stream import READ_BYTES

HEAD = b"PGDMP\x01\x10\x00\x04\x08\x03" + b"\x01"  # format 1.16, compressed with gzip


class Listing:
    """In place of pg_restore: it lists one table."""

    def for_restore(self, *, archive_major, server_major):
        return None

    def list_folder(self, binaries, folder):
        return b"7; 0 16385 TABLE DATA public one postgres\n"


def test_files_that_fill_their_blocks_do_not_end_the_stream(tmp_path):
    """No padding follows them: an empty piece is not the end, as an empty read would be."""
    for size in (512 - len(HEAD), 0, 1):
        contents = HEAD + b"x" * size
        (tmp_path / "toc.dat").write_bytes(contents)
        (tmp_path / "7.dat").write_bytes(b"1\n" * 256 + b"\\.\n")
        dump = DumpFile(tmp_path, "directory", "none", ArchiveHead(None, "one", "18.4", "18.4"), Listing())
        with dump.open() as file:
            data = b"".join(iter(lambda reader=file: reader.read(READ_BYTES), b""))

        assert data.endswith(bytes(1024))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert tar.getnames() == ["toc.dat", "7.dat"]
            assert tar.extractfile("toc.dat").read() == uncompressed(contents)
            assert tar.extractfile("7.dat").read() == b"1\n" * 256 + b"\\.\n"
