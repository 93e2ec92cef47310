"""What a run knows of a repository: what it listed there, kept true by what it did since. Nothing is listed twice."""

from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

B = TypeVar("B")


class Listing(Generic[B]):
    """The backups by database and id, as far as they were asked for; of what was not asked for nothing is said.

    ``databases`` are those that were listed; ``None`` is all of them. ``answered`` is None before the first question.
    """

    def __init__(self) -> None:
        self.answered: bool | None = None
        self.databases: set[str] | None = set()
        self.incomplete: int | None = None
        self.removed = 0
        self.copied = 0
        self._backups: dict[str, dict[str, B]] = {}

    def ask(self) -> None:
        """Until it has answered, it has not."""
        self.answered = False

    def answer(self, databases: Collection[str], found: Mapping[tuple[str, str], B], incomplete: int) -> None:
        """Everything there is, or everything of some databases."""
        self.answered = True
        if databases and self.databases is not None:
            self.databases |= set(databases)
        elif not databases:
            self.databases, self.incomplete = None, incomplete
            self._backups = {}
        self._backups |= {name: {} for name in databases}
        for (database, backup_id), backup in found.items():
            self.put(database, backup_id, backup)

    def put(self, database: str, backup_id: str, backup: B) -> None:
        """One that is new, or has changed."""
        self._backups.setdefault(database, {})[backup_id] = backup

    def drop(self, database: str, backup_id: str) -> None:
        self._backups.get(database, {}).pop(backup_id, None)

    def get(self, database: str, backup_id: str) -> B | None:
        return self._backups.get(database, {}).get(backup_id)

    def by_database(self) -> dict[str, list[B]]:
        """Of the databases that were listed: one that was only written to is not known as a whole."""
        names = self._backups.keys() if self.databases is None else self._backups.keys() & self.databases
        return {name: list(self._backups[name].values()) for name in names}

    def database_of(self, backup_id: str) -> str | None:
        return next((name for name, backups in self._backups.items() if backup_id in backups), None)
