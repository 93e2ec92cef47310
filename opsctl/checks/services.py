"""The services: do their containers run, stay up, do well, and are they made of what is configured now.

The order gives one cause for one trouble: memory, then whether it runs, then whether it stays up, then its health.
"""

import shlex
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import WORST_FIRST, Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.databases import ENGINE, home_of
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken
from opsctl.errors import ServicesUnreachable

if TYPE_CHECKING:
    from opsctl.services import Drift, Service

NOT_CONFIGURED = "No service is configured ([services.NAME], or service in [databases.NAME])."
NOTHING_THERE = "There is no container."
WINDOW_SECONDS = 600
HISTORY_SECONDS = WINDOW_SECONDS * 1.5
"""Doctor every five minutes finds a sample between 10 and 15 minutes old."""

LOOP_SECONDS = 70
"""A container in a crash loop ended at most so long ago: Docker waits up to a minute, and counts a run under 10 s."""

REMEMBERED_SECONDS = 3600
"""How long a program killed for memory is an alarm when its container runs on, or again."""

OUTPUT_CHARACTERS = 300
NOT_RUN, NOT_FOUND, KILLED, TERMINATED, SEGMENTATION_FAULT = 126, 127, 137, 143, 139
EXITS = {
    0: "without an error",
    NOT_RUN: "its command cannot be run",
    NOT_FOUND: "its command is not there",
    KILLED: "SIGKILL: killed by hand, by a stop that took too long, or by the kernel",
    TERMINATED: "SIGTERM: asked to stop",
    SEGMENTATION_FAULT: "SIGSEGV: a segmentation fault",
}
EXIT_WORDS = {0: "stopped", KILLED: "killed", TERMINATED: "stopped", SEGMENTATION_FAULT: "segfault"}
SIGNALLED = 128


def services(scope: Scope) -> Sequence[Target]:
    """The configured services and those databases are in.

    Each is within the databases of other services: it needs one, most likely, and it is no wonder that it fails when
    none answers.
    """
    homes = {name: home_of(scope, name) for name in scope.databases}
    names = dict.fromkeys([*scope.config.services, *(home for home in homes.values() if home)])
    return [Target(name, within=(ENGINE, *(f"db:{each}" for each in homes if homes[each] != name))) for name in names]


def engines(scope: Scope) -> Iterable[Target]:
    return [Target(ENGINE)] if services(scope) else []


def check_docker(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    try:
        return Finding("ok", f"{scope.services.runtime.version()} answers.")
    except ServicesUnreachable as error:
        if error.denied:
            raise
        return Finding("crit", error.message, code="unreachable", remedy=Remedy(str(error.hint)))


def check_memory(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    now = scope.clock()
    return worst([judge_memory(each, _first_seen(scope, each, now), now) for each in scope.containers(target)])


def _first_seen(scope: Scope, service: "Service", now: datetime) -> datetime:
    """When doctor first saw that this container, in this run of it, had been out of memory."""
    key, life = f"{service.name}/{service.container}", f"{service.id} {service.state.started_at}"
    if not service.state.oom_killed:
        return now
    earlier = scope.samples.exchange("service.oom", key, {}, now=now)
    is_same = earlier is not None and earlier[1].get("life") == life
    since = float(earlier[1]["since"]) if earlier and is_same else now.timestamp()
    scope.samples.exchange("service.oom", key, {"life": life, "since": since}, now=now)
    return datetime.fromtimestamp(since, now.tzinfo)


def judge_memory(service: "Service", first_seen: datetime, now: datetime) -> Finding:
    """A container that ended so, and one that runs on without the program that was killed."""
    state, name, limit = service.state, service.container, service.memory_limit_bytes
    if not state.oom_killed:
        return Finding("ok", f"{name} had memory enough.")
    limited = f" (its limit: {spoken_bytes(limit)})" if limit else ""
    message = f"{name} ran out of memory{limited} and was killed{_ago(state.finished_at, now)}."
    if state.is_running:
        age = (now - first_seen).total_seconds()
        message = f"The kernel killed a program in {name}, out of memory{limited}; seen {spoken(age)} ago."
        if age > REMEMBERED_SECONDS:
            return Finding("ok", message)
    details = {"container": name, "memory_limit_bytes": limit, "exit_code": state.exit_code}
    return Finding("crit", message, details=details, code="out_of_memory", remedy=_more_memory(service))


def _more_memory(service: "Service") -> Remedy:
    text = f"Raise its limit, or find what takes it: `{_logs(service)}`. A plain restart does not apply a new limit."
    return Remedy(text, f"{_restart(service)} --recreate" if service.project else _logs(service))


def check_state(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    found = scope.containers(target)
    if not found:
        return _missing(scope, target)
    return worst([judge_state(each, scope.clock()) for each in found])


def _missing(scope: Scope, target: str) -> Finding:
    settings = scope.config.service(target)
    if settings.container:
        remedy = Remedy(f"Make the container {settings.container} again, or correct [services.{target}].")
    else:
        name = shlex.quote(settings.compose_service or target)
        words = f"docker compose -f {shlex.quote(str(settings.compose_file))} up -d {name}"
        told = f"`docker compose up -d {name}` in the project's folder makes it; else correct [services.{target}]."
        remedy = Remedy(told, words if settings.compose_file else None)
    return Finding("crit", f"There is no container of the service {target}.", code="missing", remedy=remedy)


def judge_state(service: "Service", now: datetime) -> Finding:
    """Whether it runs; how its last end came about if it does not."""
    state, name = service.state, service.container
    details = {"container": name, "state": state.status, "exit_code": state.exit_code}
    if state.is_running:
        return Finding("ok", f"{name} runs{_since(state.started_at, now)}.", details=details)
    if state.status == "restarting":
        return Finding("skip", f"{name} is being restarted: service.crash_loop judges that.", details=details)
    if state.status == "paused":
        remedy = Remedy("Somebody paused it: let it go on.", f"docker unpause {shlex.quote(name)}")
        return Finding("crit", f"{name} is paused.", details=details, code="paused", remedy=remedy)
    if state.status != "exited":
        never = "was made but never started" if state.status == "created" else f"is {state.status}"
        remedy = Remedy(f"`{_restart(service)}` starts it.", _restart(service))
        return Finding("crit", f"{name} {never}.", details=details, code=state.status, remedy=remedy)
    given_up = f"; Docker gave up after {counted(state.restart_count, 'restart')}" if state.restart_count else ""
    return Finding(
        "crit",
        f"{name} has ended{_ago(state.finished_at, now)}{_told_exit(state.exit_code)}{given_up}.",
        details=details,
        code=EXIT_WORDS.get(state.exit_code or 0, "exited"),
        remedy=_start(service),
    )


def _start(service: "Service") -> Remedy:
    """What cannot be run is not started by starting it again."""
    if service.state.exit_code in {NOT_RUN, NOT_FOUND} and service.project:
        return Remedy("Correct its command or its image, then make it anew.", f"{_restart(service)} --recreate")
    return Remedy(f"`{_logs(service)}` may say why; `{_restart(service)}` starts it.", _restart(service))


def check_crash_loop(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    now = scope.clock()
    return worst(
        [judge_crash_loop(each, _restarts(scope, each, now), thresholds, now) for each in scope.containers(target)]
    )


def _restarts(scope: Scope, service: "Service", now: datetime) -> float:
    key = f"{service.name}/{service.container}"
    points = scope.samples.history("service.crash_loop", key, service.state.restart_count, now=now)
    return restarts_lately(points, created_at=service.created_at, finished_at=service.state.finished_at)


def restarts_lately(
    points: Sequence[tuple[float, float]], *, created_at: datetime | None, finished_at: datetime | None
) -> float:
    """How often it was restarted in the window, from the counts of earlier runs with their times, the newest last.

    Starting a container by hand sets its count back: what was before that is over. Without an earlier count a new
    container's own is taken, or that of one that has only just ended.
    """
    at, count = points[-1]
    counts = [value for time, value in points if time > at - HISTORY_SECONDS]
    resets = [number for number in range(1, len(counts)) if counts[number] < counts[number - 1]]
    if resets:
        return count
    if len(counts) > 1:
        before = [value for time, value in points if at - HISTORY_SECONDS < time <= at - WINDOW_SECONDS]
        return count - (before[-1] if before else counts[0])
    created, finished = (each.timestamp() if each else 0 for each in (created_at, finished_at))
    if created > at - WINDOW_SECONDS or finished > at - LOOP_SECONDS:
        return count
    return min(count, 1) if finished > at - WINDOW_SECONDS else 0


def judge_crash_loop(service: "Service", restarts: float, thresholds: Thresholds, now: datetime) -> Finding:
    """By how often it was restarted lately; one that is between two lives at this moment is down in any case."""
    state, name = service.state, service.container
    is_down = state.status == "restarting"
    status = "crit" if is_down else thresholds.judge(restarts)
    if status == "ok":
        return Finding("ok", f"{name} stays up.", value=restarts)
    end = f"its last end was{_ago(state.finished_at, now) or ' just now'}{_told_exit(state.exit_code)}"
    remedy = Remedy(
        f"What it writes says why it ends: `{_logs(service)}`. Correct that; then `{_restart(service)}`.",
        _logs(service),
    )
    return Finding(
        status,
        f"{name} starts and ends again: {counted(round(restarts), 'restart')} lately; {end}.",
        value=restarts,
        details={"container": name, "restart_count": state.restart_count, "exit_code": state.exit_code},
        code="crash_loop" if status == "crit" else "restarted",
        remedy=remedy,
    )


def check_health(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    return worst([judge_health(each, scope.clock()) for each in scope.containers(target)])


def judge_health(service: "Service", now: datetime) -> Finding:
    """By its health check; that there is none is said, and no alarm."""
    state, name, declared = service.state, service.container, service.health_check
    if declared is None:
        return Finding("ok", f"Nothing checks the health of {name}: that it runs is all that is known.")
    if state.health == "healthy":
        return Finding("ok", f"{name} is healthy.")
    output = " ".join((state.health_output or "").split())[:OUTPUT_CHARACTERS]
    said = f": {output}" if output else ""
    details = {"container": name, "health": state.health, "output": output}
    remedy = Remedy(
        f"See what it writes: `{_logs(service)}`. Docker leaves an unhealthy container as it is;"
        f" `{_restart(service)}` restarts it.",
        _restart(service),
    )
    if state.health == "unhealthy":
        return Finding("crit", f"{name} is unhealthy{said}.", details=details, remedy=remedy, code="unhealthy")
    age = (now - state.started_at).total_seconds() if state.started_at else 0.0
    if age > declared.longest_seconds:
        told = f"{name} has been starting for {spoken(age)}, longer than its health check allows{said}."
        return Finding("crit", told, details=details, remedy=remedy, code="starting")
    return Finding("ok", f"{name} is starting.", details=details)


def check_drift(scope: Scope, target: str, _thresholds: Thresholds) -> Finding:
    file = scope.config.service(target).compose_file
    return worst([judge_drift(each, scope.services.runtime.drift(each, file)) for each in scope.containers(target)])


def judge_drift(service: "Service", drift: "Drift") -> Finding:
    """What a restart would not apply; without a compose program there is nothing to compare with."""
    from opsctl.services.compose import NO_PROGRAM

    name = service.container
    if drift.status == "none":
        return Finding("ok", f"{name} is made of what is configured.")
    if drift.status == "unknown":
        told = f"{name} cannot be compared with what is configured: {drift.reason}."
        if drift.reason == NO_PROGRAM:
            return Finding("skip", told)
        remedy = Remedy(
            f"Name a compose file opsctl can read (compose_file in [services.{service.name}]), or switch this check off"
            " (disabled in [doctor])."
        )
        return Finding("unknown", told, remedy=remedy)
    told = f"{name} is not made of what is configured now: {'; '.join(drift.differences)}. A restart does not apply it."
    if service.project:
        remedy = Remedy("Make it anew. What it keeps outside of volumes is lost.", f"{_restart(service)} --recreate")
    else:
        remedy = Remedy("Make it anew as it was made (docker run …). What it keeps outside of volumes is lost.")
    details = {"container": name, "differences": list(drift.differences)}
    return Finding("warn", told, details=details, remedy=remedy, code="drift")


def worst(findings: Sequence[Finding]) -> Finding:
    """What there is to say of all containers of a service; nothing is said twice when it has none."""
    if not findings:
        return Finding("skip", NOTHING_THERE)
    found = next((each for status in WORST_FIRST for each in findings if each.status == status), findings[0])
    if len(findings) == 1 or found.status == "ok":
        return found
    alike = sum(each.status == found.status for each in findings)
    return replace(found, message=f"{alike} of {len(findings)} containers: {found.message}")


def _told_exit(code: int | None) -> str:
    if code is None:
        return ""
    word = EXITS.get(code) or (_signal(code - SIGNALLED) if code > SIGNALLED else "")
    return f" with exit code {code}{f' ({word})' if word else ''}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def _ago(moment: datetime | None, now: datetime) -> str:
    return f" {spoken(max(0.0, (now - moment).total_seconds()))} ago" if moment else ""


def _since(moment: datetime | None, now: datetime) -> str:
    return f" for {spoken(max(0.0, (now - moment).total_seconds()))}" if moment else ""


def _logs(service: "Service") -> str:
    return f"opsctl logs {shlex.quote(service.name)} -n 50"


def _restart(service: "Service") -> str:
    return f"opsctl restart {shlex.quote(service.name)}"


RUNTIME_CHECKS = (
    Check(
        id="docker",
        title="Docker answers",
        probe=check_docker,
        reads="the Docker engine's version, at DOCKER_HOST or the default socket",
        why="Without it nothing is known of the services, nor of databases in containers. It may stop while the"
        " containers go on, but none of them is restarted then.",
        fix="Start it (systemctl start docker), and look at its log (journalctl -u docker).",
        grant="root, or membership of the group docker",
        targets=engines,
        not_configured=NOT_CONFIGURED,
    ),
)

CHECKS = (
    Check(
        id="service.oom",
        title="no container ran out of memory",
        probe=check_memory,
        reads="OOMKilled of each container of the service",
        why="The kernel kills what goes over the limit, without a word in the program's own log. It will do it again."
        " Where the container runs on, or again, it is an alarm for an hour.",
        fix="Raise the limit and make the container anew, or find what takes the memory.",
        after=("docker",),
        targets=services,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="service.state",
        title="the service runs",
        probe=check_state,
        reads="the state of each container of the service, and the exit code of its last end: 137 killed, 139 a"
        " segmentation fault, 143 asked to stop",
        why="A configured service is meant to run. One that was stopped by hand is not started by any restart policy.",
        fix="Look at its log (opsctl logs NAME -n 50), then start it (opsctl restart NAME).",
        after=("docker", "service.oom"),
        targets=services,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="service.crash_loop",
        title="the service stays up",
        probe=check_crash_loop,
        reads="how often Docker restarted each container within 10 minutes, compared with earlier runs; a container"
        " between two lives is critical at once",
        why="A restart policy hides a crash that comes again: at each look it may just be running. Three times is no"
        " accident. While no database answers, a service that needs one is not blamed.",
        fix="Its log says why it ends (opsctl logs NAME -n 50); correct that, then opsctl restart NAME.",
        thresholds=Thresholds(warn=1, crit=3),
        after=("docker", "service.state"),
        after_one=("db.connect",),
        targets=services,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="service.health",
        title="the service is healthy",
        probe=check_health,
        reads="the health check of each container and what it printed last; no health check is said, and is no alarm",
        why="Docker's restart policies act on ends, never on bad health: an unhealthy container stays as it is."
        " While no database answers, a service that needs one is not blamed.",
        fix="See what it writes (opsctl logs NAME -n 50), then restart it (opsctl restart NAME).",
        after=("docker", "service.state", "service.crash_loop"),
        after_one=("db.connect",),
        targets=services,
        not_configured=NOT_CONFIGURED,
    ),
    Check(
        id="service.drift",
        title="the service is made of what is configured",
        probe=check_drift,
        reads="each container's image and variables, compared with what compose would make of them now",
        why="A restart starts the same container again: a change of the compose file, of an env file or of an image"
        " waits for the day somebody makes it anew, and surprises him.",
        fix="Make the container anew: opsctl restart NAME --recreate.",
        after=("docker", "service.oom"),
        targets=services,
        not_configured=NOT_CONFIGURED,
        timeout_seconds=10,
    ),
)
