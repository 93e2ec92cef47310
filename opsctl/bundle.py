"""A bundle: what somebody elsewhere needs to judge an incident, in one tar.gz with a list of what is in it.

It is read without unpacking anything: whoever sent it may be an enemy.
"""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import PurePosixPath
from typing import IO, Any

from opsctl.errors import UsageError
from opsctl.times import format_time

MANIFEST = "manifest.json"
SCHEMA = "opsctl.bundle/1"

LONGEST_BYTES = 64 * 1024 * 1024
"""Of all that is in a bundle, unpacked; ours have a few megabytes."""

MOST_MEMBERS = 1000
BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError)
"""What tarfile, gzip and zlib raise for bytes that are not theirs."""


def write_bundle(
    sink: IO[bytes], folder: str, members: Mapping[str, bytes], *, made_at: datetime, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Write the members and, first of all, their list; the list. The same members make the same bytes."""
    listed = [
        {"name": name, "bytes": len(data), "sha256": sha256(data).hexdigest()} for name, data in sorted(members.items())
    ]
    manifest = {"schema": SCHEMA, "made_at": format_time(made_at), **about, "members": listed}
    whole = {MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False).encode("utf-8", "replace"), **members}
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", filename="", mtime=int(made_at.timestamp())) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in (MANIFEST, *sorted(members)):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode, member.mtime = len(whole[name]), 0o600, int(made_at.timestamp())
            tar.addfile(member, io.BytesIO(whole[name]))
    return listed


def safe_name(name: str) -> str:
    """A name for a member: one part, nothing that a shell or a file system takes for something else."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:100] or "_"


def read_bundle(source: IO[bytes]) -> dict[str, bytes]:
    """The members by name, each what the bundle's list says. Raises UsageError for anything a bundle has no need of."""
    with _mapped(), gzip.GzipFile(fileobj=source) as packed:
        found = dict(_members(_Limited(packed)))
    return _checked(found)


def _members(stream: "_Limited") -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=0) as tar:  # type: ignore[call-overload]
        for count, member in enumerate(tar, 1):
            path = PurePosixPath(member.name)
            name = "/".join(path.parts[1:])
            if count > MOST_MEMBERS:
                raise _refused(f"it has more than {MOST_MEMBERS} members")
            if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse():
                raise _refused(f"{member.name!r} is no plain file")
            if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or name in seen:
                raise _refused(f"{member.name!r} is no name of a member")
            if member.size > LONGEST_BYTES:
                raise _refused(f"{member.name!r} is larger than {LONGEST_BYTES} bytes")
            seen.add(name)
            content = tar.extractfile(member)
            yield name, content.read() if content else b""


def _checked(found: dict[str, bytes]) -> dict[str, bytes]:
    try:
        manifest = json.loads(found.pop(MANIFEST))
        if manifest["schema"] != SCHEMA:
            raise _refused(f"its schema is {manifest['schema']!r}, this opsctl reads {SCHEMA}")
        listed = {each["name"]: (each["bytes"], each["sha256"]) for each in manifest["members"]}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _refused("it has no list of its members") from None
    there = {name: (len(data), sha256(data).hexdigest()) for name, data in found.items()}
    wrong = sorted(str(name) for name in listed.keys() | there.keys() if listed.get(name) != there.get(name))
    if wrong:
        raise _refused(f"{wrong[0]!r} is not what its list says")
    return found


class _Limited:
    """A stream that refuses to become too long, whatever its headers claim."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left = LONGEST_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise _refused(f"unpacked it has more than {LONGEST_BYTES} bytes")
        return data


def _refused(reason: str) -> UsageError:
    return UsageError(f"This is not a bundle of opsctl: {reason}.", hint="`opsctl bundle` makes one.")


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise _refused("it is not a whole tar.gz") from error
