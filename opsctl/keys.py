"""The keys a reader of backups holds: whether a backup may be trusted, and whether it can be opened."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import BinaryIO, Protocol

from opsctl.encryption import HEAD_BYTES, IDENTITY_HINT, Identities, opens
from opsctl.errors import ConfigurationError, OpsctlError, Refused
from opsctl.manifest import Manifest, StoredFile
from opsctl.postgres.directory_format import framed
from opsctl.signing import signature_problem
from opsctl.stream import Advance, Packing, load

LONGEST_RECIPIENT = 120


class Source(Protocol):
    """Where a dump is read from: a repository, or a file that somebody made without opsctl."""

    @property
    def name(self) -> str: ...

    def open(self, manifest: Manifest, file: StoredFile) -> BinaryIO: ...

    def reread(self, manifest: Manifest) -> tuple[bytes, Manifest]: ...


class Keys:
    """``trusted`` are the public keys a manifest must be signed with one of; none: signatures are not looked at.

    ``read_identities`` is called when the first encrypted backup is opened.
    """

    def __init__(
        self, read_identities: Callable[[], Identities | None] = lambda: None, trusted: Sequence[str] = ()
    ) -> None:
        self._read_identities = read_identities
        self.trusted = tuple(trusted)

    @cached_property
    def identities(self) -> Identities | None:
        """The configured identities. Raises ConfigurationError when they cannot be read."""
        return self._read_identities()

    @contextmanager
    def plain(
        self, source: Source, manifest: Manifest, advance: Advance, *, packing: Packing | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The plain dump of a backup, checked while it is read: raises what :func:`opsctl.stream.load` raises."""
        identities = self.identities if manifest.encryption else None
        with (
            source.open(manifest, manifest.dump) as file,
            closing(load(manifest.dump, file, advance, identities, packing=packing)) as chunks,
        ):
            yield framed(chunks) if manifest.format == "directory" else chunks

    def require(self, repository: Source, manifest: Manifest) -> None:
        """Raises Refused and ConfigurationError unless the backup may be trusted and can be opened."""
        self.require_signature(repository, manifest)
        self.require_identity(repository, manifest)

    def obstacles(self, repository: Source, manifest: Manifest) -> Iterator[OpsctlError]:
        """What of :meth:`require` a restore would end with, for its plan."""
        for check in (self.require_signature, self.require_identity):
            try:
                check(repository, manifest)
            except (Refused, ConfigurationError) as error:
                yield error

    def trusts(self, repository: Source, manifest: Manifest) -> bool:
        """Whether :meth:`require_signature` passes; a copy that cannot be looked at is not trusted."""
        try:
            self.require_signature(repository, manifest)
        except OpsctlError:
            return False
        return True

    def require_signature(self, repository: Source, manifest: Manifest) -> None:
        """Look at the manifest in the repository itself, as it is now. Raises Refused."""
        if not self.trusted:
            return
        data, found = repository.reread(manifest)
        problem = signature_problem(data, self.trusted)
        if problem is None and found != manifest:
            problem = "its manifest is not the one that was read before"
        if problem is not None:
            raise Refused(
                f"{manifest.id} in {repository.name} cannot be trusted: {problem}.",
                hint="Who may write to that repository? Another repository may hold the backup as it was taken.",
            )

    def require_identity(self, repository: Source, manifest: Manifest) -> None:
        """Raises ConfigurationError, with the backup's recipients, when no identity opens it.

        The manifest tells; where it does not, the beginning of the dump is read.
        """
        if manifest.encryption is None:
            return
        recipients = ", ".join(map(_brief, manifest.encryption.recipients))
        if self.identities is None:
            raise ConfigurationError(
                f"{manifest.id} is encrypted to {recipients}, and no identity is configured.", hint=IDENTITY_HINT
            )
        fits = self.identities.open_for(manifest.encryption.recipients)
        if fits is None:
            with repository.open(manifest, manifest.dump) as file:
                fits = opens(file.read(HEAD_BYTES), self.identities)
        if not fits:
            raise ConfigurationError(
                f"{manifest.id} is encrypted to {recipients}, and no configured identity opens it.",
                hint=IDENTITY_HINT,
            )


def _brief(recipient: str) -> str:
    """A recipient for a message: a post-quantum one has 2,000 characters."""
    return recipient if len(recipient) <= LONGEST_RECIPIENT else f"{recipient[:LONGEST_RECIPIENT]}…"
