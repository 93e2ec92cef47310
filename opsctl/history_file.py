"""The file the history is in: opened, shared with its folder's group, put aside when it is damaged."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from opsctl.errors import HistoryUnavailable

BUSY_SECONDS = 0.8
"""How long another run may keep us from it: a run is not to wait for its own record."""

VERSION = 2

HINT = "opsctl's own user must be able to write in the state folder. No backup depends on it."

SCHEMA = """
create table if not exists runs (
    run_id text not null, command text not null, database text not null, started_at text not null, finished_at text,
    outcome text not null, exit_code integer, error_code text, message text, backup_id text, bytes integer,
    stored_bytes integer, host text not null, pid integer not null, process text not null,
    primary key (run_id, database)
) without rowid;
create index if not exists runs_by_time on runs (started_at desc);
create index if not exists runs_by_command on runs (command, started_at desc);
create index if not exists runs_by_database on runs (database, started_at desc);
create index if not exists runs_by_outcome on runs (outcome, started_at desc);
create table if not exists subjects (
    command text not null, database text not null, last_run text, last_success text, primary key (command, database)
) without rowid;
create table if not exists totals (
    command text not null, database text not null, outcome text not null, runs integer not null,
    primary key (command, database, outcome)
) without rowid;
create table if not exists checks (
    id text not null, target text not null, status text not null, since text not null, at text not null,
    entry text not null, primary key (id, target)
);
create table if not exists restores (
    database text not null, server text not null, backup_id text not null, dump_bytes integer not null,
    seconds real not null, at text not null, primary key (database, server)
) without rowid;
create table if not exists verdicts (name text primary key, at text not null, entry text not null) without rowid;
"""


class HistoryFile:
    """Everything here raises HistoryUnavailable where the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of everything; a file that does not exist yet is an empty one."""
        with self._mapped():
            if not self._path.exists():
                with closing(sqlite3.connect(":memory:")) as empty:
                    empty.executescript(SCHEMA)
                    yield empty
                return
            # Who may write undoes what a killed run has left half done; who may not, reads.
            uri = f"{self._path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("pragma query_only = on")
                connection.execute("begin")
                if connection.execute("pragma user_version").fetchone()[0] == 0:
                    connection.execute("pragma query_only = off")
                    raise HistoryUnavailable(f"The history {self._path} is just being made.", hint="Try again.")
                yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside, or nothing of it."""
        with self._mapped(), self._putting_aside():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._share()
            with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("pragma synchronous = normal")
                connection.execute("begin immediate")
                try:
                    self._upgrade(connection)
                    yield connection
                    connection.execute("commit")
                except BaseException:
                    with suppress(sqlite3.Error):
                        connection.execute("rollback")
                    raise

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("pragma user_version").fetchone()
        if version > VERSION:
            raise HistoryUnavailable(
                f"The history {self._path} was written by a newer opsctl.", hint="Use that one on this host."
            )
        if version < VERSION:
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"pragma user_version = {VERSION}")

    def _share(self) -> None:
        """Who may read the folder may read the history: its group, never others. The journal gets the same mode."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            folder, file = self._path.parent.stat(), os.fstat(descriptor)
            wanted = 0o600 | folder.st_mode & 0o060
            with suppress(PermissionError):  # another user's, who has seen to it
                if wanted & 0o060 and file.st_gid != folder.st_gid:
                    os.fchown(descriptor, -1, folder.st_gid)
                if file.st_mode & 0o777 != wanted:
                    os.fchmod(descriptor, wanted)
        finally:
            os.close(descriptor)

    @contextmanager
    def _putting_aside(self) -> Iterator[None]:
        """A file that is no database any more is put aside: the next one who writes begins a new one."""
        before = _identity(self._path)
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise
            aside = self._path.with_name(f"{self._path.name}.damaged")
            if before is not None and before == _identity(self._path):  # else another run has done it
                self._path.with_name(f"{self._path.name}-journal").unlink(missing_ok=True)
                self._path.replace(aside)
            message = f"The history {self._path} is damaged ({error}). It is now {aside.name}, and a new one begins."
            raise HistoryUnavailable(message, hint="No backup depends on it.") from error

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise HistoryUnavailable(f"The history {self._path} cannot be used: {error}.", hint=HINT) from error
        except OSError as error:
            raise HistoryUnavailable(
                f"The history {self._path} cannot be used: {error.strerror}.", hint=HINT
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise HistoryUnavailable(f"The history {self._path} cannot be read: {error}.", hint=HINT) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
