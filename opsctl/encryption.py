"""age encryption of what is stored: who may open it, what opens it, and the stream itself in bounded memory.

Whoever encrypts needs public recipients alone. pyrage pulls from a reader and pushes into a writer, while our streams
are iterators: its loop runs in a thread that touches nothing but memory, so that every error of the outside, and
Ctrl-C, comes up in the caller's thread and passes through no foreign code.
"""

import base64
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opsctl.errors import ConfigurationError

SUFFIX = ".age"
HEAD_BYTES = 1 << 16
"""Enough of a file to see who can open it: the header has at most 2 KB per recipient."""

WAITING_PIECES = 2
"""How many pieces may wait for the thread; what comes out of them waits for the caller."""

RECIPIENTS_HINT = "A recipient is age1…, age1tag1…, age1tagpq1…, ssh-ed25519 … or ssh-rsa …: the public key alone."
IDENTITY_HINT = "[encryption] identity_file, identity_env or identity_command says where the identity is."
NO_MATCH = "No matching keys found"
"""The library's words for identities that open nothing; its error has no other mark."""

_KINDS = (
    ("age1tagpq1", "tagpq"),
    ("age1tag1", "tag"),
    ("ssh-ed25519 ", "ssh"),
    ("ssh-rsa ", "ssh"),
    ("age1", "x25519"),
)
"""How a recipient begins, and pyrage's module for it; the first that fits counts."""

_OPENSSH_MAGIC = b"openssh-key-v1\0"
_SSH_IDENTITY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)


class NotIntact(Exception):
    """What was to be decrypted is not what somebody encrypted: age authenticates every byte of it."""


@dataclass(frozen=True)
class Recipients:
    """The public keys a backup is encrypted to, as they were written, and as the library has them."""

    keys: tuple[str, ...]
    parsed: tuple[Any, ...]


@dataclass(frozen=True)
class Identities:
    """The secret keys that open backups. Nothing of them is ever shown.

    ``recipients`` are their public keys; ``None`` stands for one whose key file does not tell it.
    """

    parsed: tuple[Any, ...]
    recipients: frozenset[str | None] = frozenset({None})

    def open_for(self, recipients: Sequence[str]) -> bool | None:
        """Whether one of them opens what is encrypted to ``recipients``; ``None`` where only the file itself tells."""
        written = {" ".join(recipient.split()[:2]) for recipient in recipients}  # what follows is a comment
        if written & self.recipients:
            return True
        return None if None in self.recipients else False


def parse_recipients(keys: Sequence[str], *, where: str) -> Recipients:
    """The recipients of a configuration. Raises ConfigurationError that names the one that is none."""
    import pyrage

    written = tuple(" ".join(key.split()) for key in keys)
    parsed = tuple(_recipient(key, where=where) for key in written)
    try:
        pyrage.encrypt(b"", parsed)  # some do not go together
    except pyrage.EncryptError as error:
        raise ConfigurationError(
            f"{where}: these recipients do not go together: {_plain(error)}.",
            hint="A post-quantum recipient (age1tagpq1…) goes with others of its kind only.",
        ) from error
    return Recipients(written, parsed)


def _recipient(key: str, *, where: str) -> Any:
    import pyrage

    if key.upper().startswith(("AGE-SECRET-KEY-", "AGE-PLUGIN-", "-----BEGIN")):
        raise ConfigurationError(
            f"{where}: holds an identity, which is a secret key.",
            hint="Put the public key there, and take this identity for known to whoever could read the file.",
        )
    module = next((module for beginning, module in _KINDS if key.startswith(beginning)), None)
    if module is None:
        raise ConfigurationError(f"{where}: {key!r} is no recipient that opsctl knows.", hint=RECIPIENTS_HINT)
    try:
        return getattr(pyrage, module).Recipient.from_str(key)
    except pyrage.RecipientError as error:
        raise ConfigurationError(f"{where}: {key!r} is no recipient: {_plain(error)}.", hint=RECIPIENTS_HINT) from error


def parse_identities(text: str, *, where: str) -> Identities:
    """The identities in age's own file format, or in an OpenSSH key. Raises ConfigurationError that shows none."""
    if text.startswith(("age-encryption.org/", "-----BEGIN AGE ENCRYPTED FILE-----")):
        raise ConfigurationError(
            f"{where}: the identity is protected by a passphrase, which opsctl does not ask for.",
            hint='Let a command decrypt it: identity_command = "age --decrypt FILE" asks on the terminal.',
        )
    keys = [match[0] for match in _SSH_IDENTITY.finditer(text)]
    lines = [line.strip() for line in _SSH_IDENTITY.sub("", text).splitlines()]
    own = [_identity(line, where=where) for line in lines if line and not line.startswith("#")]
    parsed = [*(_ssh_identity(key, where=where) for key in keys), *own]
    if not parsed:
        raise ConfigurationError(f"{where}: there is no identity in it.", hint="`opsctl keygen` makes one.")
    public = {*map(_ssh_public_key, keys), *(str(identity.to_public()) for identity in own)}
    return Identities(tuple(parsed), frozenset(public))


def _identity(line: str, *, where: str) -> Any:
    import pyrage

    if line.upper().startswith("AGE-PLUGIN-"):
        raise ConfigurationError(
            f"{where}: holds an identity of a plugin, and opsctl starts no plugins.",
            hint="Restore by hand with the program age: the backup's manifest has the line (restore_command).",
        )
    try:
        return pyrage.x25519.Identity.from_str(line)
    except pyrage.IdentityError as error:
        raise ConfigurationError(
            f"{where}: a line of it is no identity.",  # the line may be a secret all the same
            hint="An identity is a line AGE-SECRET-KEY-1…, as `opsctl keygen` writes it, or an OpenSSH private key.",
        ) from error


def _ssh_identity(pem: str, *, where: str) -> Any:
    import pyrage

    try:
        return pyrage.ssh.Identity.from_buffer(pem.encode())
    except pyrage.IdentityError as error:
        if "decrypted first" in str(error):
            raise ConfigurationError(
                f"{where}: the OpenSSH key is protected by a passphrase, which opsctl does not ask for.",
                hint="Use a copy without one (ssh-keygen -p) that only root can read, or an age identity.",
            ) from error
        raise ConfigurationError(
            f"{where}: the OpenSSH key cannot be used: {_plain(error)}.", hint="age knows ssh-ed25519 and ssh-rsa keys."
        ) from error


def _ssh_public_key(pem: str) -> str | None:
    """The public key that an OpenSSH private key carries in the clear; older forms do not."""
    try:
        body = base64.b64decode("".join(pem.strip().splitlines()[1:-1]))
        if not body.startswith(_OPENSSH_MAGIC):
            return None
        at = len(_OPENSSH_MAGIC)
        for _ in ("cipher", "key derivation", "its options"):
            at += 4 + int.from_bytes(body[at : at + 4])
        at += 4  # the number of keys: one
        public = body[at + 4 : at + 4 + int.from_bytes(body[at : at + 4])]
        kind = public[4 : 4 + int.from_bytes(public[:4])].decode("ascii")
    except ValueError:
        return None
    return f"{kind} {base64.b64encode(public).decode()}"


def new_identity(now: datetime) -> tuple[str, str]:
    """A new X25519 key pair: the public key, and the identity as age-keygen writes it."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    public = str(identity.to_public())
    created = now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return public, f"# created: {created}\n# public key: {public}\n{identity}\n"


def opens(head: bytes, identities: Identities) -> bool:
    """Whether one of the identities opens the file that begins with ``head`` (:data:`HEAD_BYTES` of it).

    A damaged beginning may count as either: the stored file's SHA-256 tells.
    """
    import pyrage

    try:
        pyrage.decrypt(head, identities.parsed)
    except pyrage.DecryptError as error:
        return str(error) != NO_MATCH  # every other error comes after a key has matched, or before any was tried
    return True


def encrypted(pieces: Iterable[bytes], recipients: Recipients) -> Generator[bytes, None, None]:
    """``pieces`` as one age file. Close it to end early."""
    import pyrage

    return _through(lambda end: pyrage.encrypt_io(end, end, recipients.parsed), pieces)


def decrypted(pieces: Iterable[bytes], identities: Identities) -> Generator[bytes, None, None]:
    """What is in an age file, authenticated as it comes out. Close it to end early.

    Raises NotIntact, and ConfigurationError when no identity opens it.
    """
    import pyrage

    return _through(lambda end: pyrage.decrypt_io(end, end, identities.parsed), pieces)


def _through(loop: Callable[["_Thread"], None], pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    thread = _Thread(loop)
    try:
        for piece in pieces:
            if piece:
                thread.feed(piece)
            yield from thread.taken()
        thread.finish()
        yield from thread.taken()
    finally:
        thread.abandon()


class _Thread:
    """A loop of pyrage's, and both ends of it: the caller feeds and takes, the loop reads and writes."""

    def __init__(self, loop: Callable[["_Thread"], None]) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._is_complete = self._is_abandoned = self._has_ended = False
        self._error: BaseException | None = None
        self._piece = memoryview(b"")
        self._out: deque[bytes] = deque()
        self._thread = threading.Thread(target=self._run, name="age", daemon=True)
        self._thread.start()

    def feed(self, piece: bytes) -> None:
        """Hand over the next piece; waits while enough others wait. Raises what the loop has ended with."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < WAITING_PIECES or self._has_ended)
            self._waiting.append(piece)
            self._changed.notify_all()
        self._raise_error()

    def taken(self) -> Iterator[bytes]:
        """What has come out since the last call."""
        while self._out:
            yield self._out.popleft()

    def finish(self) -> None:
        """There is no more; waits until everything has come out. Raises what the loop has ended with."""
        self._end(complete=True)
        self._raise_error()

    def abandon(self) -> None:
        """End the loop, wherever it is."""
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        with self._changed:
            self._is_complete |= complete
            self._is_abandoned |= not complete
            self._changed.notify_all()
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None and not isinstance(self._error, Exception):
            raise RuntimeError("the age library failed") from self._error
        if self._error is not None:
            with _mapped_errors():
                raise self._error

    # What the loop calls, in the thread

    def read(self, size: int) -> bytes:
        if not self._piece:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_complete or self._is_abandoned)
                if self._is_abandoned or not self._waiting:
                    return b""  # whoever has abandoned it looks at nothing that comes out
                self._piece = memoryview(self._waiting.popleft())
                self._changed.notify_all()
        data, self._piece = bytes(self._piece[:size]), self._piece[size:]
        return data

    def write(self, data: bytes) -> int:
        self._out.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def _run(self) -> None:
        try:
            self._loop(self)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread; a panic is no Exception
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """The library's errors as ours."""
    import pyrage

    try:
        yield
    except (pyrage.DecryptError, OSError) as error:  # the latter behind the header; our own ends raise none
        if str(error) == NO_MATCH:
            raise ConfigurationError("No configured identity opens the backup.", hint=IDENTITY_HINT) from error
        raise NotIntact(_plain(error)) from error


def _plain(error: Exception) -> str:
    """The library's words on one line, without a last period and the marks it puts around names."""
    return re.sub(r"[\u2068\u2069]", "", str(error)).partition("\n")[0].rstrip(".")
