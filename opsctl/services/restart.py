"""Restart a service and see whether it comes up: healthy, or running and stable where nothing checks its health."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from opsctl.services import Service, ServiceState

LOOK_SECONDS = 0.25
READY_SECONDS = 60
CRASHES = 4
"""A service may fail once or twice until what it needs is up; after this many ends it is in a loop."""

Outcome = Literal["ready", "waiting", "failed"]


@dataclass(frozen=True)
class Restarted:
    """``failure`` is how the service looks when it did not come up; ``None`` when it did."""

    before: tuple[Service, ...]
    after: tuple[Service, ...]
    failure: str | None
    duration_seconds: float


@dataclass
class Watch:
    """Judges a service from one look to the next."""

    stable_seconds: float
    _first_counts: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, tuple[datetime | None, float]] = field(default_factory=dict)

    def judge(self, services: Sequence[Service], at_seconds: float) -> tuple[Outcome, str]:
        """Whether all containers are up at this moment, and what is to be said of the first that is not."""
        if not services:
            return "failed", "there is no container any more"
        verdicts = [self._judge(service, at_seconds) for service in services]
        for outcome in ("failed", "waiting"):
            for found, why in verdicts:
                if found == outcome:
                    return found, why
        return "ready", ""

    def _judge(self, service: Service, at_seconds: float) -> tuple[Outcome, str]:
        state, name = service.state, service.container
        crashes = state.restart_count - self._first_counts.setdefault(service.id, state.restart_count)
        ended = _told_end(state)
        if crashes >= CRASHES:
            return "failed", f"{name} starts and ends again and again, {crashes} times by now{ended}"
        if state.status in {"exited", "dead"}:
            return "failed", f"{name} has ended{ended}"
        if not state.is_running:
            return "waiting", f"{name} is {state.status}{ended}"
        if service.health_check is not None:
            return self._judge_health(service)
        started_at, since = self._seen.get(service.id, (None, 0.0))
        if started_at != state.started_at:
            self._seen[service.id] = (state.started_at, at_seconds)
            since = at_seconds
        if at_seconds - since >= self.stable_seconds:
            return "ready", ""
        return "waiting", f"{name} runs, but has not done so for {self.stable_seconds:g} s without an end"

    @staticmethod
    def _judge_health(service: Service) -> tuple[Outcome, str]:
        said = f": {service.state.health_output}" if service.state.health_output else ""
        if service.state.health == "healthy":
            return "ready", ""
        if service.state.health == "unhealthy":
            return "failed", f"{service.container} is unhealthy{said}"
        return "waiting", f"{service.container} is still starting{said}"


def _told_end(state: ServiceState) -> str:
    code = "" if state.exit_code is None else f" with exit code {state.exit_code}"
    return f"{code}{', out of memory' if state.oom_killed else ''}"


def patience(services: Sequence[Service], configured: float | None) -> float:
    """How long a service may take to come up: as configured, else as long as its health check may need."""
    if configured is not None:
        return configured
    checks = [service.health_check.longest_seconds for service in services if service.health_check]
    return max([READY_SECONDS, *checks])


def restart(
    services: Sequence[Service],
    *,
    act: Callable[[], None],
    look: Callable[[], Sequence[Service]],
    stable_seconds: float,
    ready_timeout_seconds: float | None,
) -> Restarted:
    """``act``, then ``look`` until the service is up or will not be."""
    began = time.monotonic()
    act()
    after = tuple(look())
    watch = Watch(stable_seconds)
    deadline = time.monotonic() + patience(after or services, ready_timeout_seconds)
    while True:
        outcome, why = watch.judge(after, time.monotonic())
        if outcome == "ready":
            failure = None
            break
        if outcome == "failed" or time.monotonic() > deadline:
            failure = why
            break
        time.sleep(LOOK_SECONDS)
        after = tuple(look())
    return Restarted(tuple(services), after, failure, time.monotonic() - began)
