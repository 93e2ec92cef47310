"""What a drill makes on the way, on record for as long as it runs, so that nothing stays even after a kill.

Each drill has a record in the state folder, locked by its process. A record that nobody holds is of a drill that was
killed: what it names is removed by the next one.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from opsctl.errors import ConfigurationError, OpsctlError
from opsctl.postgres.cluster_files import remove_remains
from opsctl.postgres.databases import drop_database
from opsctl.postgres.server import Server
from opsctl.postgres.swap import find_staging


class DrillRecords:
    """The records of drills in the state folder."""

    def __init__(self, state_path: Path) -> None:
        self._folder = state_path / "drills"

    @contextmanager
    def keep(self, name: str, **content: str) -> Iterator[Callable[[], None]]:
        """Hold the record of a drill; call what is given when nothing is left of it, else the next drill sees to it.

        Raises ConfigurationError when the state folder cannot be written.
        """
        path = self._folder / f"{name}.json"
        with ExitStack() as cleanup:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                unlocked = self._folder / f".{name}"
                descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                cleanup.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.write(descriptor, json.dumps(content).encode())
                unlocked.rename(path)
            except OSError as error:
                raise ConfigurationError(
                    f"The state folder {self._folder.parent} cannot be written: {error.strerror}.",
                    hint="Set OPSCTL_STATE_DIR, or path in [state], to a folder this user owns.",
                ) from error
            yield path.unlink

    def remove_leftovers(
        self,
        open_scratch: Callable[[str], Server] | None = None,
        remove_container: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Remove what killed drills have left, and name it. What cannot be reached now waits for the next drill."""
        removed = []
        for path, content in self._unheld():
            with suppress(OSError, OpsctlError, LookupError):
                if _remove(content, open_scratch, remove_container):
                    path.unlink()
                    removed.append(path.stem)
        return removed

    def leftovers(self) -> list[str]:
        """What killed drills have left, in words."""
        return [_in_words(content) for _, content in self._unheld()]

    def _unheld(self) -> Iterator[tuple[Path, Mapping[str, str]]]:
        """The records of killed drills, each held by us while it is looked at."""
        for path in sorted(self._folder.glob("*.json")):
            with suppress(OSError, ValueError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path, json.load(file)


def _in_words(content: Mapping[str, str]) -> str:
    if "container" in content:
        return f"container {content['container']}"
    if "folder" in content:
        return f"folder {content['folder']}"
    return f"database {content.get('database')} on {content.get('address')}"


def _remove(
    content: Mapping[str, str],
    open_scratch: Callable[[str], Server] | None,
    remove_container: Callable[[str], None] | None,
) -> bool:
    if "container" in content:
        if remove_container is None:
            return False
        remove_container(content["container"])
    if "folder" in content:
        remove_remains(Path(content["folder"]))
        return True
    if open_scratch is None:
        return False
    server = open_scratch(content["database"])
    if server.address != content["address"]:
        return False
    drop_drilled(server)
    return True


def drop_drilled(server: Server) -> None:
    """The drilled database, and the staging database of one that was killed."""
    with server.connect(server.maintenance_database) as connection:
        for name in (server.database, *find_staging(connection, server.database)):
            drop_database(connection, name)
