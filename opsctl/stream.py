"""pg_dump's bytes on their way into every repository at once, and back.

Out: plain bytes → SHA-256 → zstd frame with a content checksum → age, where it is configured → SHA-256 → writers. Back:
the same, checked.
The checksum inside the frame and the digest outside of it are both needed: pg_restore notices neither a flipped bit nor
every truncation.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Literal, Protocol, cast

from opsctl.background import ahead
from opsctl.encryption import IDENTITY_HINT, Identities, NotIntact, Recipients, decrypted, encrypted
from opsctl.errors import BackupDamaged, ConfigurationError, RepositoryUnreachable
from opsctl.manifest import StoredFile

READ_BYTES = 1 << 20
JOB_BYTES = 4 << 20
"""What one compression thread is given at a time. With 2 MiB the threads wait for each other, and pg_dump for them: a
tenth of the time. zstd's own choice is 8 MiB: no faster, and 30 MiB more memory."""

MAX_THREADS = 4

UNPACKED_BYTES = 1 << 16
"""How much of a packed file is unpacked at a time: it may become a thousand times more."""

Packing = Literal["none", "gzip", "zstd frames"]
"""How a file that others wrote is compressed. ``zstd`` alone, in a manifest, is the one frame that opsctl writes."""

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


def store(
    name: str,
    chunks: Iterable[bytes],
    writer: Writer,
    compression: Compression,
    advance: Advance,
    recipients: Recipients | None = None,
) -> StoredFile:
    """Compress ``chunks`` into ``writer``, encrypted if there are recipients, and describe what was written."""
    plain, stored = _Digest(), _Digest()
    pieces = _compressed(chunks, compression, plain, advance)
    with closing(encrypted(pieces, recipients) if recipients else pieces) as pieces:
        for piece in pieces:
            if piece:
                stored.update(piece)
                writer.write(piece)
    return StoredFile(name, plain.bytes, stored.bytes, stored.hexdigest, plain.hexdigest)


def _compressed(
    chunks: Iterable[bytes], compression: Compression, plain: "_Digest", advance: Advance
) -> Generator[bytes, None, None]:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        compression.level,
        threads=compression.worker_count,
        job_size=JOB_BYTES,
        write_checksum=True,
        write_content_size=False,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for chunk in chunks:
        plain.update(chunk)
        yield compressor.compress(chunk)
        advance(len(chunk))
    yield compressor.flush()


def load(
    file: StoredFile,
    reader: BinaryIO,
    advance: Advance,
    identities: Identities | None = None,
    *,
    packing: Packing | None = None,
) -> Generator[bytes, None, None]:
    """The plain bytes of a stored file, checked against the manifest while they pass.

    ``packing``: of a file that opsctl did not write.

    A thread reads ahead: close it before its ``reader``, when not all of it is used.

    Raises BackupDamaged as soon as the damage shows; the digests are complete only after the last piece, so what was
    made of the pieces before is worth nothing when it raises. Raises ConfigurationError when no identity opens it.
    """
    plain, stored = _Digest(), _Digest()
    with closing(ahead(_plain_pieces(file, reader, stored, identities, packing))) as chunks:
        for chunk in chunks:
            plain.update(chunk)
            yield chunk
            advance(len(chunk))
    if stored.bytes != file.stored_bytes or stored.hexdigest != file.sha256:
        raise _damaged(file, "its SHA-256 is not the manifest's")
    if plain.bytes != file.bytes or plain.hexdigest != file.plain_sha256:
        raise _damaged(file, "what it decompresses to is not what was dumped")


def _plain_pieces(
    file: StoredFile, reader: BinaryIO, stored: "_Digest", identities: Identities | None, packing: Packing | None
) -> Generator[bytes, None, None]:
    pieces = _stored_pieces(file.name, reader, stored)
    if file.is_encrypted:
        if identities is None:
            raise ConfigurationError(f"{file.name} is encrypted, and no identity is configured.", hint=IDENTITY_HINT)
        pieces = decrypted(pieces, identities)
    with closing(pieces):
        try:
            yield from unpacked(pieces, packing) if packing else _frame(pieces)
            for _rest in pieces:
                pass  # an intact file has nothing behind its frame: the digest tells
        except NotUnpacked as error:
            raise _damaged(file, str(error)) from error
        except NotIntact as error:
            raise _damaged(file, f"it does not decrypt ({error})") from error


class NotUnpacked(Exception):
    """A compressed stream that is cut or broken."""


def _frame(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What the first zstd frame holds; the digests tell of one that is cut."""
    import zstandard

    frames = zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", _Reader(pieces)), read_size=READ_BYTES, read_across_frames=False
    )
    try:
        while chunk := frames.read(READ_BYTES):
            yield chunk
    except zstandard.ZstdError as error:
        raise NotUnpacked(f"its zstd frame is broken ({error})") from error


def unpacked(pieces: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    """What a file holds that gzip or zstd made, in as many parts as they like. Raises NotUnpacked, also at its end."""
    import zstandard

    if packing == "none":
        yield from pieces
        return
    begin: Callable[[], Any] = (
        (lambda: zlib.decompressobj(wbits=31))
        if packing == "gzip"
        else zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    )
    part = begin()
    is_open = True  # nothing at all is no stream either
    try:
        for piece in pieces:
            for start in range(0, len(piece), UNPACKED_BYTES):
                rest = piece[start : start + UNPACKED_BYTES]
                while rest:
                    if chunk := part.decompress(rest):
                        yield chunk
                    is_open, rest = not part.eof, part.unused_data
                    if not is_open:
                        part = begin()
                        rest = b"" if not rest.strip(b"\0") else rest  # gzip lets zeros follow
    except (zlib.error, zstandard.ZstdError) as error:
        raise NotUnpacked(f"its {packing.split()[0]} stream is broken ({error})") from error
    if is_open:
        raise NotUnpacked(f"its {packing.split()[0]} stream ends too early: it is cut")


class Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def _stored_pieces(name: str, reader: Reader, stored: "_Digest") -> Generator[bytes, None, None]:
    """The bytes of a stored file. Raises RepositoryUnreachable for what the disk does not give back."""
    try:
        while piece := reader.read(READ_BYTES):
            stored.update(piece)
            yield piece
    except OSError as error:
        raise RepositoryUnreachable(
            f"{name} cannot be read to its end: {error.strerror or error}.", hint="Is the disk mounted and healthy?"
        ) from error


def check_stored(file: StoredFile, reader: Reader, advance: Advance, writer: Writer | None = None) -> None:
    """Read a stored file whole, into ``writer`` if there is one, and compare size and SHA-256 with the manifest.

    Raises BackupDamaged, after what is damaged has been written.
    """
    stored = _Digest()
    for piece in _stored_pieces(file.name, reader, stored):
        if writer is not None:
            writer.write(piece)
        advance(len(piece))
    if stored.bytes != file.stored_bytes:
        raise _damaged(file, f"it has {stored.bytes} bytes instead of {file.stored_bytes}")
    if stored.hexdigest != file.sha256:
        raise _damaged(file, "its SHA-256 is not the manifest's")


class _Digest:
    """A SHA-256, and over how many bytes."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        self.bytes += len(data)

    @property
    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


class _Reader:
    """Pieces as what zstandard reads from: one at a time, of whatever size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _size: int = -1) -> bytes:
        return next(self._pieces, b"")


def _damaged(file: StoredFile, how: str) -> BackupDamaged:
    return BackupDamaged(
        f"{file.name} is damaged: {how}.",
        hint="Restore from another repository or an earlier backup; `opsctl verify --all` shows what is intact.",
    )
