"""What compose makes one document of: a file, its override, what it includes, what its services extend.

Variables stay as they are written. Paths become relative to the first file's folder, as the rest of opsctl reads them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opsctl.errors import ConfigurationError

Interpolate = Callable[[str], str]
JOINED = frozenset({"ports", "env_file"})
"""Keys of a service whose lists compose puts together; of other lists the later one counts."""


def whole_document(path: Path, interpolate: Interpolate) -> dict[str, Any]:
    """A compose file with everything that belongs to it. Raises ConfigurationError when a part cannot be read."""
    override = path.with_name(f"{path.stem}.override{path.suffix}")
    files = [path, override] if override.is_file() else [path]
    return _Reader(path.parent, interpolate).read(files, path.parent, ())


class _Reader:
    def __init__(self, root: Path, interpolate: Interpolate) -> None:
        self._root = root
        self._interpolate = interpolate

    def read(self, files: list[Path], folder: Path, within: tuple[Path, ...]) -> dict[str, Any]:
        """Files that are merged, with paths relative to ``folder``. ``within`` are those that lead here."""
        if files[0] in within:
            raise ConfigurationError(
                f"{files[0]} includes or extends itself.", hint="`docker compose config` says what compose makes of it."
            )
        inside = (*within, files[0])
        document: dict[str, Any] = {}
        for file in files:
            document = merged(document, self._whole(self._moved(_parsed(file), folder), folder, inside))
        return document

    def _whole(self, document: dict[str, Any], folder: Path, within: tuple[Path, ...]) -> dict[str, Any]:
        """One file with what it includes, and what its own services extend."""
        services = document["services"]
        document["services"] = {
            name: self._extended(service, services, folder, within) for name, service in services.items()
        }
        for each in _list(document.pop("include", None)):
            document = merged(self._included(each, folder, within), document)
        return document

    def _included(self, entry: Any, folder: Path, within: tuple[Path, ...]) -> dict[str, Any]:
        given = entry if isinstance(entry, Mapping) else {"path": entry}
        names = [self._interpolate(str(each)) for each in _list(given.get("path"))]
        if not names or any("://" in each for each in names):  # another machine's, which compose fetches
            return {}
        files = [_normal(folder / each) for each in names]
        named = given.get("project_directory")
        return self.read(files, folder / self._interpolate(str(named)) if named else files[0].parent, within)

    def _extended(
        self, service: Any, services: Mapping[str, Any], folder: Path, within: tuple[Path, ...], depth: int = 0
    ) -> Any:
        given = service.get("extends") if isinstance(service, Mapping) else None
        if not given or depth > len(services):  # one that extends itself
            return service
        given = given if isinstance(given, Mapping) else {"service": given}
        own = {key: value for key, value in service.items() if key != "extends"}
        name = str(given.get("service"))
        if "file" in given:
            file = _normal(folder / self._interpolate(str(given["file"])))
            base = self.read([file], file.parent, within)["services"].get(name)
        else:
            base = self._extended(services.get(name), services, folder, within, depth + 1)
        return merged(base, own) if isinstance(base, Mapping) else own

    def _moved(self, document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """With paths that are relative to ``folder`` made relative to the root."""
        prefix = os.path.relpath(folder, self._root)

        def at(path: Any) -> str:
            return str(Path(prefix, str(path)))

        services, secrets = document.get("services") or {}, document.get("secrets") or {}
        return {
            **document,
            "services": {str(name): _moved_service(each, at) for name, each in services.items()},
            "secrets": {
                str(name): {**each, "file": at(each["file"])} if isinstance(each, Mapping) and "file" in each else each
                for name, each in secrets.items()
            },
        }


def _list(value: Any) -> list[Any]:
    """What may be one thing or a list of them."""
    return value if isinstance(value, list) else [value] if value else []


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _moved_service(service: Any, at: Callable[[Any], str]) -> Any:
    if not isinstance(service, Mapping):
        return service
    files = service.get("env_file")
    paths = [each["path"] if isinstance(each, Mapping) and "path" in each else each for each in _list(files)]
    return {
        **service,
        "environment": dict(_pairs(service.get("environment"))),
        **({"env_file": [at(each) for each in paths]} if paths else {}),
    }


def _pairs(environment: Any) -> Iterator[tuple[str, str | None]]:
    """A list of ``NAME=value`` or a mapping; without a value it is taken from the environment of compose."""
    if isinstance(environment, Mapping):
        yield from ((str(name), None if value is None else str(value)) for name, value in environment.items())
    for each in environment if isinstance(environment, list) else ():
        name, separator, value = str(each).partition("=")
        yield name, value if separator else None


def merged(document: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, some lists joined, as compose does; of anything else the override's counts."""
    found = dict(document)
    for key, value in override.items():
        before = found.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found[key] = merged(before, value)
        elif key in JOINED and isinstance(value, list) and isinstance(before, list):
            found[key] = [*before, *value]
        else:
            found[key] = value
    return found


def _parsed(path: Path) -> Mapping[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Takes what compose's own tags (``!reset``, ``!override``) stand before for what it is."""

    Loader.add_multi_constructor("!", _untagged)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - it is a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or getattr(error, "strerror", None) or error).split())
        raise ConfigurationError(
            f"{path} cannot be read: {reason}.", hint="`docker compose config` says what compose makes of it."
        ) from error
    return document if isinstance(document, Mapping) else {}


def _untagged(loader: Any, _tag: str, node: Any) -> Any:
    if node.id == "scalar":
        return None if node.value in {"", "null", "~"} else node.value
    return (
        loader.construct_mapping(node, deep=True)
        if node.id == "mapping"
        else loader.construct_sequence(node, deep=True)
    )
