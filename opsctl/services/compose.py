"""The compose program: what it would make of a service today, compared with the container there is.

Restarting a container applies no change of the compose file, of an env file or of an image. Compose's own label with a
hash of the configuration is no help: several versions of compose got it wrong where an env_file is used.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import which
from threading import Lock
from typing import Any

from opsctl.errors import ServiceFailed
from opsctl.services import Drift

CONFIG_SECONDS = 60
"""On a busy machine docker-compose, in Python, takes its time; checks of doctor wait for less."""

RECREATE_SECONDS = 300
LABEL = "com.docker.compose.project"
NO_PROGRAM = "there is no compose program"
NO_COMPOSE = "Install Docker's compose plugin (or docker-compose), and keep the compose file readable for opsctl."


@dataclass(frozen=True)
class Project:
    """A compose project, as the labels of its containers tell of it."""

    name: str
    files: tuple[str, ...]
    folder: str
    env_files: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        options = ["--project-name", self.name]
        options += [word for file in self.files for word in ("--file", file)]
        options += ["--project-directory", self.folder] if self.folder else []
        return options + [word for file in self.env_files for word in ("--env-file", file)]


def project_of(described: Mapping[str, Any], file: Path | None = None) -> Project | None:
    """The project of a container; ``file`` is the compose file where the labels' own is not to be used."""
    labels = described["Config"].get("Labels") or {}
    name = labels.get(LABEL)
    if name is None:
        return None
    if file is not None:
        return Project(name, (str(file),), str(file.parent))
    folder = labels.get(f"{LABEL}.working_dir", "")
    files, env_files = (_files(labels.get(f"{LABEL}.{each}"), folder) for each in ("config_files", "environment_file"))
    return Project(name, files, folder, env_files)


def _files(label: str | None, folder: str) -> tuple[str, ...]:
    """Compose v1 notes them as they were given, relative to the project's folder."""
    return tuple(str(Path(folder, part.strip())) for part in (label or "").split(",") if part.strip())


class Compose:
    """``docker compose`` where the docker CLI has it, else ``docker-compose``; it interpolates ``variables``."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)
        self._configs: dict[Project, Mapping[str, Any] | str] = {}
        self._asking = Lock()  # checks compare several services of a project at once

    @cached_property
    def command(self) -> list[str] | None:
        """How it is called; ``None`` when there is none."""
        plugin, program = ["docker", "compose"], "docker-compose"
        with suppress(OSError, subprocess.TimeoutExpired):
            if self._run([*plugin, "version"], CONFIG_SECONDS).returncode == 0:
                return plugin
        return [program] if which(program, path=self._variables.get("PATH", "")) else None

    def services(self, project: Project) -> Mapping[str, Any] | str:
        """The services of a project as they are configured now, or why that is not known."""
        with self._asking:
            if project not in self._configs:
                self._configs[project] = self._resolved(project)
            return self._configs[project]

    def _resolved(self, project: Project) -> Mapping[str, Any] | str:
        if self.command is None:
            return NO_PROGRAM
        missing = [file for file in project.files if not Path(file).is_file()]
        if missing or not project.files:
            return f"the compose file {missing[0] if missing else ''} cannot be read here".replace("  ", " ")
        has_json = self.command[0] == "docker"
        words = [*self.command, *project.options, "config", *(["--format", "json"] if has_json else [])]
        try:
            done = self._run(words, CONFIG_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(self.command)} config: {error}"
        if done.returncode != 0:
            return f"{' '.join(self.command)} config: {_last_line(done.stderr)}"
        try:
            config = json.loads(done.stdout) if has_json else _yaml(done.stdout)
        except ValueError as error:
            return f"what compose says cannot be read: {error}"
        services: Mapping[str, Any] = config.get("services") or {}
        return services

    def recreate(self, project: Project, service: str, *, stop_timeout_seconds: int | None) -> None:
        """Make a service's containers anew, as configured now, and nothing else. Raises ServiceFailed."""
        if self.command is None:
            raise ServiceFailed("There is no compose program to recreate it with.", hint=NO_COMPOSE)
        timeout = [] if stop_timeout_seconds is None else ["--timeout", str(stop_timeout_seconds)]
        words = [*self.command, *project.options, "up", "--detach", "--no-deps", "--force-recreate", *timeout, service]
        try:
            done = self._run(words, RECREATE_SECONDS + (stop_timeout_seconds or 0))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceFailed(f"Compose could not recreate {service}: {error}.") from error
        if done.returncode != 0:
            raise ServiceFailed(
                f"Compose could not recreate {service}: {_last_line(done.stderr)}",
                hint=f"By hand: {' '.join([*words[: words.index('up')], 'up', '-d', service])}",
            )

    def _run(self, words: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


@dataclass(frozen=True)
class ImageNow:
    """What a container's image name means at this moment: the image's id, and the variables it sets."""

    id: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def drift(described: Mapping[str, Any], wanted: Mapping[str, Any] | str | None, image: ImageNow) -> Drift:
    """Compare a container with its service as configured now; ``wanted`` may be why that is not known."""
    differences = list(_image_differences(described, wanted, image))
    if isinstance(wanted, Mapping):
        differences += _variable_differences(described, wanted, image)
    if differences:
        return Drift("found", tuple(differences))
    if isinstance(wanted, str):
        return Drift("unknown", reason=wanted)
    return Drift("none")


def _image_differences(
    described: Mapping[str, Any], wanted: Mapping[str, Any] | str | None, image: ImageNow
) -> Iterator[str]:
    name = described["Config"]["Image"]
    configured = wanted.get("image") if isinstance(wanted, Mapping) else None
    if configured and configured != name:
        yield f"image {name}, now {configured}"
    elif image.id is not None and image.id != described["Image"]:
        yield f"image {name} is another one by now (pulled or built since)"


def _variable_differences(described: Mapping[str, Any], wanted: Mapping[str, Any], image: ImageNow) -> Iterator[str]:
    """By name only: the values may be secrets."""
    present = variables_of(described)
    configured = _configured_variables(wanted)
    for name, value in sorted(configured.items()):
        if name not in present:
            yield f"variable {name} is new"
        elif value is not None and present[name] != value:
            yield f"variable {name} has another value"
    for name in sorted(present.keys() - configured.keys()):
        if present[name] != image.variables.get(name):
            yield f"variable {name} is not set any more"


def variables_of(described: Mapping[str, Any]) -> dict[str, str]:
    """A container's or an image's environment."""
    pairs = [each.partition("=") for each in described["Config"].get("Env") or ()]
    return {name: value for name, _, value in pairs}


def _configured_variables(wanted: Mapping[str, Any]) -> dict[str, str | None]:
    """Compose writes its result so that it could read it again: a dollar sign is doubled."""
    given = wanted.get("environment") or {}
    pairs = given.items() if isinstance(given, Mapping) else (each.partition("=")[::2] for each in given)
    return {str(name): None if value is None else str(value).replace("$$", "$") for name, value in pairs}
