"""Where the configuration, its variables and the state are: what can be said before anything in it is checked.

``opsctl.config`` makes settings of it. This module loads no library that takes time: the shells ask it at every tab.
"""

import os
import pwd
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from opsctl.errors import ConfigurationError

DEFAULT_REPOSITORY = "./backups"


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", hint="Name another file with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.", hint="Correct that line.") from error


def find_file(explicit: Path | None, here: Path) -> Path | None:
    named = explicit or (Path(os.environ["OPSCTL_CONFIG"]) if os.environ.get("OPSCTL_CONFIG") else None)
    if named is not None:
        named = named.expanduser().absolute()
        if not named.is_file():
            raise ConfigurationError(
                f"There is no configuration file {named}.", hint="Check --config or OPSCTL_CONFIG."
            )
        return named
    places = [here / "opsctl.toml", Path("/etc/opsctl/opsctl.toml")]
    home = os.environ.get("XDG_CONFIG_HOME") or (f"{os.environ['HOME']}/.config" if os.environ.get("HOME") else None)
    if home:
        places.insert(1, Path(home) / "opsctl/opsctl.toml")
    return next((place.absolute() for place in places if place.is_file()), None)


def variables_at(folder: Path) -> dict[str, str]:
    """Every variable that a configuration in ``folder`` would see. Raises ConfigurationError."""
    return read_variables(env_files_of(folder, folder))


def read_variables(env_files: list[Path]) -> dict[str, str]:
    """Every variable there is, for ``url_env``, ``dsn_env`` and the child processes."""
    merged: dict[str, str] = {}
    for path in env_files:
        if path.is_file():
            merged |= read_env_file(path)
    return merged | dict(os.environ)


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a ``.env`` file. Raises ConfigurationError."""
    from dotenv import dotenv_values  # comes with pydantic-settings

    try:
        values = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read.", hint=str(error)) from error
    return {key: value for key, value in values.items() if value is not None}


def env_files_of(folder: Path, here: Path) -> list[Path]:
    """The ``.env`` files beside a configuration in ``folder`` and in the working folder, whether they exist or not."""
    return [each / name for each in dict.fromkeys([folder, here]) for name in (".env", ".env.local")]


def database_in(url: str, variables: Mapping[str, str]) -> str:
    """The database that a URL of the environment leads to, as libpq reads it."""
    parts = urlsplit(url)
    return unquote(parts.path.lstrip("/")) or variables.get("PGDATABASE") or unquote(parts.username or "") or "postgres"


def environment_state_path() -> Path:
    """Where this host's state lives as far as the environment alone says."""
    named = os.environ.get("OPSCTL_STATE_DIR")
    return Path(named).absolute() if named else default_state_path(os.environ)


def default_state_path(variables: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/opsctl")
    if variables.get("XDG_STATE_HOME"):
        return Path(variables["XDG_STATE_HOME"]) / "opsctl"
    home = variables.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir
    return Path(home) / ".local/state/opsctl"
