"""pg_dump's bytes on their way into every repository at once, and back.

Out: plain bytes → SHA-256 → zstd frame with a content checksum → SHA-256 → writers. Back: the same, checked.
The checksum inside the frame and the digest outside of it are both needed: pg_restore notices neither a flipped bit nor
every truncation.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol, cast

from opsctl.errors import BackupDamaged
from opsctl.manifest import StoredFile

READ_BYTES = 1 << 20
JOB_BYTES = 1 << 21
"""What one compression thread is given at a time. zstd's own choice is 8 MiB: with four threads 50 MiB more memory."""

MAX_THREADS = 4

Advance = Callable[[int], None]
"""Called with the number of bytes that have passed since the last call."""


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Compression:
    level: int = 3
    threads: int = 0
    """0: as many as there are processors, up to four; more only cost memory at these speeds."""

    @property
    def worker_count(self) -> int:
        return self.threads or min(MAX_THREADS, os.cpu_count() or 1)


def store(name: str, chunks: Iterable[bytes], writer: Writer, compression: Compression, advance: Advance) -> StoredFile:
    """Compress ``chunks`` into ``writer`` and describe what was written."""
    import zstandard

    plain, stored = hashlib.sha256(), hashlib.sha256()
    plain_bytes = stored_bytes = 0
    parameters = zstandard.ZstdCompressionParameters.from_level(
        compression.level,
        threads=compression.worker_count,
        job_size=JOB_BYTES,
        write_checksum=True,
        write_content_size=False,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def write(data: bytes) -> int:
        if data:
            stored.update(data)
            writer.write(data)
        return len(data)

    for chunk in chunks:
        plain.update(chunk)
        plain_bytes += len(chunk)
        stored_bytes += write(compressor.compress(chunk))
        advance(len(chunk))
    stored_bytes += write(compressor.flush())
    return StoredFile(name, plain_bytes, stored_bytes, stored.hexdigest(), plain.hexdigest())


def load(file: StoredFile, reader: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """The plain bytes of a stored file, checked against the manifest while they pass.

    Raises BackupDamaged as soon as the damage shows; the digests are complete only after the last piece, so what was
    made of the pieces before is worth nothing when it raises.
    """
    import zstandard

    plain, stored = hashlib.sha256(), hashlib.sha256()
    plain_bytes = 0
    hashing = _HashingReader(reader, stored)
    frames = zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", hashing), read_size=READ_BYTES, read_across_frames=False
    )
    try:
        while chunk := frames.read(READ_BYTES):
            plain.update(chunk)
            plain_bytes += len(chunk)
            yield chunk
            advance(len(chunk))
    except zstandard.ZstdError as error:
        raise _damaged(file, f"its zstd frame is broken ({error})") from error
    hashing.drain()
    if hashing.total != file.stored_bytes or stored.hexdigest() != file.sha256:
        raise _damaged(file, "its SHA-256 is not the manifest's")
    if plain_bytes != file.bytes or plain.hexdigest() != file.plain_sha256:
        raise _damaged(file, "what it decompresses to is not what was dumped")


def check_stored(file: StoredFile, reader: BinaryIO, advance: Advance) -> None:
    """Read a stored file whole and compare size and SHA-256 with the manifest. Raises BackupDamaged."""
    digest = hashlib.sha256()
    total = 0
    while chunk := reader.read(READ_BYTES):
        digest.update(chunk)
        total += len(chunk)
        advance(len(chunk))
    if total != file.stored_bytes:
        raise _damaged(file, f"it has {total} bytes instead of {file.stored_bytes}")
    if digest.hexdigest() != file.sha256:
        raise _damaged(file, "its SHA-256 is not the manifest's")


class _HashingReader:
    """What zstandard reads from, hashed and counted on the way."""

    def __init__(self, reader: BinaryIO, digest: "hashlib._Hash") -> None:
        self._reader = reader
        self._digest = digest
        self.total = 0

    def read(self, size: int = -1) -> bytes:
        data = self._reader.read(size)
        self._digest.update(data)
        self.total += len(data)
        return data

    def drain(self) -> None:
        """Read what follows the frame: an intact file has nothing there."""
        while self.read(READ_BYTES):
            pass


def _damaged(file: StoredFile, how: str) -> BackupDamaged:
    return BackupDamaged(
        f"{file.name} is damaged: {how}.",
        hint="Restore from another repository or an earlier backup; `opsctl verify --all` shows what is intact.",
    )
