"""The user's own checks, ``[[checks]]``: a query, an address, a command, a file."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.checks.amounts import spoken_bytes
from opsctl.checks.check import Check, Finding, Probe, Status, Target, Thresholds
from opsctl.checks.databases import LANE
from opsctl.checks.http import look_at
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken
from opsctl.errors import ConfigurationError, OpsctlError

if TYPE_CHECKING:
    from opsctl.config import Config
    from opsctl.settings import OwnCheckSettings

PREFIX = "own."
MESSAGE_CHARACTERS = 300
OUTPUT_CHARACTERS = 2000
STATUSES: Mapping[int, Status] = {0: "ok", 1: "warn", 2: "crit", 3: "unknown"}
"""Exit codes as monitoring plugins have them, so that theirs can be used."""

NUMBER = re.compile(r"-?\d+(\.\d+)?")


def own_checks(config: "Config") -> list[Check]:
    """Those of the configuration, as entries of the registry. Raises ConfigurationError."""
    found = [_as_check(settings, config) for settings in config.checks]
    names = [each.id for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"{config.source}: checks: there are two with the id {name.removeprefix(PREFIX)!r}.",
                hint="Give each an id of its own.",
            )
    return found


def _as_check(settings: "OwnCheckSettings", config: "Config") -> Check:
    is_sql = settings.kind == "sql"
    database = _database(settings, config) if is_sql else None
    return Check(
        id=f"{PREFIX}{settings.id}",
        title=settings.title or settings.id.replace("_", " ").replace("-", " "),
        probe=_probe(settings),
        reads=f"{_subject(settings)} ([[checks]] in {config.source})",
        why="A check of your own.",
        fix=settings.fix or "As you have it in your runbook.",
        thresholds=_thresholds(settings),
        unit=settings.unit or _unit(settings),
        after=("db.connect",) if is_sql else (),
        targets=(lambda _scope: [Target(database)]) if database else (lambda _scope: [Target()]),
        lane=LANE if is_sql else None,
        timeout_seconds=settings.timeout_seconds + 1,
    )


def _database(settings: "OwnCheckSettings", config: "Config") -> str:
    name = settings.database or (next(iter(config.databases)) if len(config.databases) == 1 else None)
    where = f"{config.source}: checks: {settings.id}"
    if name is None:
        raise ConfigurationError(f"{where}: needs database.", hint=f"Configured: {', '.join(config.databases)}.")
    try:
        config.database(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: there is no database {name!r}.", hint=error.hint) from error
    return name


def _thresholds(settings: "OwnCheckSettings") -> Thresholds:
    """Falling when the critical value is the smaller one."""
    warn, crit = settings.warn, settings.crit
    return Thresholds(warn, crit, falling=warn is not None and crit is not None and crit < warn)


def _unit(settings: "OwnCheckSettings") -> str | None:
    if settings.kind == "file":
        return "s" if settings.measure == "age" else "B"
    return "s" if settings.kind == "http" else None


def _subject(settings: "OwnCheckSettings") -> str:
    if settings.kind == "command":
        return f"what `{shlex.split(settings.command or '')[0]}` says"
    subject = settings.sql or settings.url or (str(settings.path) if settings.path else "")
    return " ".join(subject.split()).rstrip(".")[:MESSAGE_CHARACTERS]


def _probe(settings: "OwnCheckSettings") -> Probe:
    probes: Mapping[str, Callable[..., Finding]] = {
        "sql": check_sql,
        "http": check_http,
        "command": check_command,
        "file": check_file,
    }
    return partial(probes[settings.kind], settings)


def check_sql(settings: "OwnCheckSettings", scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.session import read_value

    value = read_value(scope.session(target), settings.sql or "", seconds=settings.timeout_seconds)
    return judge_value(value, thresholds, expect=settings.expect)


def judge_value(value: object, thresholds: Thresholds, *, expect: str | None) -> Finding:
    """A number against thresholds, a text against what is expected; else true is well, false and nothing are not."""
    text = "nothing" if value is None else _cut(str(value))
    number = _as_number(value)
    if thresholds != Thresholds():
        if number is None:
            raise OpsctlError(f"The query says {text}, which is no number.", hint="Its thresholds need a number.")
        return Finding(thresholds.judge(number), f"The query says {text}.", value=number)
    if expect is not None:
        is_well = value is not None and re.search(expect, str(value)) is not None
        return Finding("ok" if is_well else "crit", f"The query says {text}.", details={"expected": expect})
    is_well = value is not None and value is not False
    return Finding("ok" if is_well else "crit", f"The query says {text}.", value=number)


def _as_number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if isfinite(number) else None  # no threshold is reached by NaN: it would always be fine


def check_http(settings: "OwnCheckSettings", _scope: Scope, _target: str, thresholds: Thresholds) -> Finding:
    return look_at(
        settings.url or "",
        thresholds,
        status=settings.status,
        body=settings.expect,
        timeout_seconds=settings.timeout_seconds,
    )


def check_command(settings: "OwnCheckSettings", scope: Scope, _target: str, thresholds: Thresholds) -> Finding:
    config = scope.config
    try:
        process = subprocess.Popen(
            shlex.split(settings.command or ""),
            cwd=config.folder,
            env=config.child_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OpsctlError(
            f"The command cannot be run: {reason}.", hint="It runs without a shell; PATH counts."
        ) from error
    try:
        output, _ = process.communicate(timeout=settings.timeout_seconds)
    except subprocess.TimeoutExpired:
        raise OpsctlError(
            f"The command did not end within {settings.timeout_seconds:g} s and was killed.", hint="Run it by hand."
        ) from None
    finally:
        _end(process)
    text = output.decode("utf-8", "replace").strip()
    return judge_command(process.returncode, text, thresholds, expect=settings.expect)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The command with everything that it started, however it ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def judge_command(code: int, output: str, thresholds: Thresholds, *, expect: str | None) -> Finding:
    """A plugin's exit code; with thresholds the first number it says, with ``expect`` what it says."""
    told = _cut(output.partition("\n")[0]) or f"It said nothing and ended with {code}."
    details = {"exit_code": code, "output": output[-OUTPUT_CHARACTERS:]}
    number = NUMBER.search(output)
    if code != 0:
        return Finding(STATUSES.get(code, "crit"), told, details=details, code=f"exit_{code}")
    if thresholds != Thresholds():
        if number is None:
            raise OpsctlError(f"The command says no number: {told}", hint="Its thresholds need one.")
        value = float(number[0])
        return Finding(thresholds.judge(value), told, value=value, details=details)
    if expect is not None and not re.search(expect, output):
        return Finding("crit", f"The command does not say {expect!r}, but: {told}", details=details, code="unexpected")
    return Finding("ok", told, details=details)


def check_file(settings: "OwnCheckSettings", scope: Scope, _target: str, thresholds: Thresholds) -> Finding:
    path = scope.config.folder / (settings.path or Path()).expanduser()
    try:
        status = path.stat()
    except FileNotFoundError:
        return Finding("crit", f"{path} is not there.", code="missing")
    except OSError as error:
        raise OpsctlError(
            f"{path} cannot be looked at: {error.strerror}.", hint="opsctl's user needs the right."
        ) from error
    if settings.measure == "size":
        return Finding(thresholds.judge(status.st_size), f"{path} has {spoken_bytes(status.st_size)}.", status.st_size)
    age = max(0.0, scope.clock().timestamp() - status.st_mtime)
    return Finding(thresholds.judge(age), f"{path} was written {spoken(age)} ago.", value=round(age))


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}…"
