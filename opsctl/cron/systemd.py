"""systemd: where its units are, and how they come and go."""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from opsctl.cron.installed import PlaceState, Standing, differences, refuse_edits
from opsctl.cron.units import is_edited, is_ours
from opsctl.errors import ConfigurationError, Refused
from opsctl.schedule import SCHEDULED

UNIT_FOLDER = Path("/etc/systemd/system")
NAMES = tuple(f"opsctl-{command}.{kind}" for command in SCHEDULED for kind in ("service", "timer"))
SECONDS = 30
PRIVATE = ("/tmp", "/var/tmp")  # noqa: S108
"""What PrivateTmp= replaces."""


@dataclass(frozen=True)
class SystemdPlace:
    """A configuration's units: ``wanted`` by the name of the file. ``folders`` are made, as those of ``runs_as``."""

    source: str
    wanted: Mapping[str, str]
    runs_as: str
    folders: Sequence[Path]
    search_path: Sequence[str]
    environment: Mapping[str, str]
    name: str = "systemd"

    def user(self) -> str | None:
        found = (re.search(r"^User=(\S+)$", text, re.MULTILINE) for text in self._read().values())
        return next((match[1] for match in found if match), None)

    def look(self) -> Standing:
        there = self._read()
        ours = {name: text for name, text in there.items() if is_ours(text, self.source)}
        if not ours:
            return Standing(self.name, "missing")
        differs = [
            f"{name}: {line}"
            for name in NAMES
            for line in differences(ours.get(name, "").splitlines(), self.wanted.get(name, "").splitlines())
        ]
        differs += [f"{name}: not enabled" for name in self.wanted if name in ours and not _is_enabled(name)]
        state: PlaceState = "outdated" if differs else "installed"
        if any(is_edited(text) for text in ours.values()):
            state = "edited"
        installed = max((UNIT_FOLDER / name).stat().st_mtime for name in ours)
        return Standing(self.name, state, datetime.fromtimestamp(installed, UTC), tuple(differs))

    def install(self, *, now: datetime, discard_edits: bool) -> bool:  # noqa: ARG002  # files have a time of their own
        standing, there = self.look(), self._read()
        if standing.state == "installed":
            return False
        self._refuse_hidden()
        if not discard_edits:
            refuse_edits(standing)
        for name in self.wanted:
            if name in there and not is_ours(there[name], self.source):
                raise Refused(
                    f"{UNIT_FOLDER / name} is there already, and not of this configuration.",
                    hint="Remove it first, or use cron for this configuration.",
                )
        self._make_folders()
        self._take_away([name for name in there if is_ours(there[name], self.source) and name not in self.wanted])
        try:
            for name, text in self.wanted.items():
                partial = UNIT_FOLDER / f".{name}.partial"
                partial.write_text(text, encoding="utf-8", errors="surrogateescape")
                partial.chmod(0o644)
                partial.rename(UNIT_FOLDER / name)
        except OSError as error:
            raise ConfigurationError(
                f"{UNIT_FOLDER} cannot be written: {error.strerror}.",
                hint="Be root, or put in place yourself what `opsctl cron show --systemd` prints.",
            ) from error
        self._reload()
        self._systemctl("enable", *_now(), *_timers(self.wanted))
        return True

    def remove(self, *, discard_edits: bool) -> bool:
        standing = self.look()
        if standing.state == "missing":
            return False
        if not discard_edits:
            refuse_edits(standing)
        self._take_away([name for name, text in self._read().items() if is_ours(text, self.source)])
        self._reload()
        return True

    def _refuse_hidden(self) -> None:
        """Raises Refused for what a unit would not find, or would write to where nobody finds it."""
        for path in (Path(self.source), *self.folders):
            if any(path.is_relative_to(private) for private in PRIVATE):
                raise Refused(
                    f"{path} is not seen by the units: they have a /tmp of their own.",
                    hint="Put the configuration, the repositories and the state elsewhere.",
                )

    def _make_folders(self) -> None:
        try:
            account = pwd.getpwnam(self.runs_as)
        except KeyError:
            raise ConfigurationError(
                f"There is no user {self.runs_as} here.", hint="--user names another one."
            ) from None
        for folder in self.folders:
            try:
                if not folder.exists():
                    folder.mkdir(mode=0o700, parents=True)
                    os.chown(folder, account.pw_uid, account.pw_gid)
            except OSError as error:
                raise ConfigurationError(f"{folder} cannot be made: {error.strerror}.", hint="Be root.") from error

    def _read(self) -> dict[str, str]:
        """Every unit of our names."""
        found = {}
        for path in (UNIT_FOLDER / name for name in NAMES):
            try:
                found[path.name] = path.read_text(encoding="utf-8", errors="surrogateescape")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error.strerror}.", hint="Be root.") from error
        return found

    def _take_away(self, names: Sequence[str]) -> None:
        if _timers(names):
            self._systemctl("disable", *_now(), *_timers(names))
        try:
            for name in names:
                (UNIT_FOLDER / name).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{UNIT_FOLDER}: {error.strerror}.", hint="Be root.") from error

    def _reload(self) -> None:
        if is_running():
            self._systemctl("daemon-reload")

    def _systemctl(self, *arguments: str) -> None:
        found = shutil.which("systemctl", path=os.pathsep.join(self.search_path))
        if found is None:
            raise ConfigurationError("There is no program systemctl on PATH.", hint="Use cron, or run-scheduled.")
        try:
            answer = subprocess.run(
                [found, *arguments],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError("systemctl does not answer.", hint=str(error)) from error
        if answer.returncode:
            complaint = answer.stderr.decode("utf-8", "replace").strip()
            raise ConfigurationError(f"systemctl {arguments[0]} failed: {complaint}.", hint="Be root.")


def is_running() -> bool:
    """Whether this machine was started by systemd; a container was not."""
    return Path("/run/systemd/system").is_dir()


def _timers(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".timer")]


def _now() -> list[str]:
    return ["--now"] if is_running() else []


def _is_enabled(name: str) -> bool:
    return name.endswith(".service") or (UNIT_FOLDER / "timers.target.wants" / name).is_symlink()
