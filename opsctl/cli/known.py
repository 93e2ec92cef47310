"""Names and ids as they are known without asking anybody: from the configuration, from folders and from the state."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from opsctl.config_file import (
    DEFAULT_REPOSITORY,
    database_in,
    default_state_path,
    env_files_of,
    find_file,
    read_toml,
    read_variables,
)


class Known:
    """What a command line may name on this host. Nothing here opens a connection; it raises for a broken file."""

    def __init__(self, config: str | None = None) -> None:
        self._explicit = Path(config) if config else None

    def of(self, kind: str, incomplete: str = "") -> list[str]:
        """The names of a kind: ``database``, ``repository``, ``service``, ``backup``, ``incident``; else none."""
        match kind:
            case "database":
                return self.databases
            case "repository":
                return list(self._repositories)
            case "service":
                return list(self._file.get("services", {}))
            case "backup":
                of_each = [f"latest:{name}" for name in self.databases]
                return ["latest", *(of_each if incomplete.startswith("latest") else []), *self.backups]
            case "incident":
                return ["latest", *self.incidents]
        return []

    @cached_property
    def databases(self) -> list[str]:
        """Those of the configuration, then those that backups were seen of: a whole server has no names of its own."""
        from opsctl.sightings import Sightings

        names = list(self._file.get("databases", {})) or self._database_of_environment()
        return list(
            dict.fromkeys([*names, *(database for _, database in Sightings(self._state_path).read().sightings)])
        )

    @cached_property
    def backups(self) -> list[str]:
        """The ids in local folders, and those that were listed in buckets before; newest first."""
        found: set[str] = set()
        for settings in self._repositories.values():
            url = settings.get("url", "")
            found.update(_listed(self._local(url)) if _is_local(url) else self._remembered(url))
        # The time stands in an id to be read by people; here it only sorts.
        return sorted(found, key=lambda each: each.rsplit("-", 2)[1:], reverse=True)

    @cached_property
    def incidents(self) -> list[str]:
        """Newest first."""
        return sorted((path.stem for path in (self._state_path / "incidents").glob("*.jsonl")), reverse=True)

    @cached_property
    def checks(self) -> list[str]:
        """The checks of the configuration."""
        return [f"own.{each['id']}" for each in self._file.get("checks", ()) if "id" in each]

    @cached_property
    def scenarios(self) -> list[dict[str, Any]]:
        """Those of the configured runbook; none where it is the shipped one."""
        path = self._file.get("runbook", {}).get("path")
        if path is None:
            return []
        from opsctl.runbook.files import read

        found = read(self._folder / Path(path).expanduser()).scenarios
        return [{"id": each.id, "title": each.title, "steps": [step.id for step in each.steps]} for each in found]

    @cached_property
    def _path(self) -> Path | None:
        return find_file(self._explicit, Path.cwd())

    @property
    def _folder(self) -> Path:
        return self._path.parent if self._path else Path.cwd()

    @cached_property
    def _file(self) -> dict[str, Any]:
        return read_toml(self._path) if self._path else {}

    @cached_property
    def _variables(self) -> dict[str, str]:
        return read_variables(env_files_of(self._folder, Path.cwd()))

    @property
    def _state_path(self) -> Path:
        named = self._variables.get("OPSCTL_STATE_DIR") or self._file.get("state", {}).get("path")
        return self._folder / Path(named).expanduser() if named else default_state_path(self._variables)

    @property
    def _repositories(self) -> dict[str, dict[str, Any]]:
        return self._file.get("repositories") or {"local": {"url": DEFAULT_REPOSITORY}}

    def _database_of_environment(self) -> list[str]:
        url = self._variables.get("DATABASE_URL")
        return [database_in(url, self._variables)] if url else list(filter(None, [self._variables.get("PGDATABASE")]))

    def _local(self, url: str) -> Path:
        return Path(unquote(urlsplit(url).path)) if "://" in url else self._folder / Path(url).expanduser()

    def _remembered(self, url: str) -> Iterator[str]:
        from opsctl.manifest_cache import ManifestCache

        yield from ManifestCache(self._state_path).ids(url.rstrip("/"))


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def _listed(root: Path) -> Iterator[str]:
    """The backups in a folder: whatever has a manifest."""
    return (path.parent.name for path in root.glob("*/[!.]*/manifest.json"))
