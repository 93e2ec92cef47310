"""What runs the services: what opsctl asks of it, and the records it answers with.

Docker is the first of its kind (docker.py). Nothing here knows it: a Kubernetes workload is found by its name, its pods
are the containers, and restarting it is a rollout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

Health = Literal["healthy", "unhealthy", "starting", "none"]
Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Selector:
    """Which containers a service's name means: one by its name, or those of a compose service."""

    name: str
    project: str | None = None
    compose_service: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class HealthCheck:
    """How the runtime finds out that a container is healthy."""

    interval_seconds: float
    timeout_seconds: float
    retries: int
    start_period_seconds: float

    @property
    def longest_seconds(self) -> float:
        """How long it may take until the verdict is in."""
        return self.start_period_seconds + (self.retries + 1) * (self.interval_seconds + self.timeout_seconds)


@dataclass(frozen=True)
class ServiceState:
    """How a container does. ``exit_code`` and ``finished_at`` are those of its last end."""

    status: str
    """created, running, paused, restarting, removing, exited or dead."""

    health: Health
    restart_count: int
    oom_killed: bool
    exit_code: int | None
    started_at: datetime | None
    finished_at: datetime | None
    image: str
    health_output: str | None = None
    """What the newest health check printed."""

    @property
    def is_running(self) -> bool:
        return self.status == "running"


@dataclass(frozen=True)
class Service:
    """One container of a service; a service that is scaled has several."""

    name: str
    id: str
    container: str
    project: str | None
    compose_service: str | None
    created_at: datetime | None
    state: ServiceState
    health_check: HealthCheck | None = None
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class LogLine:
    """One line a container wrote. ``stamp`` is its time as the runtime gives it: it sorts, to the nanosecond."""

    service: str
    container: str
    stamp: str
    at: datetime
    stream: Stream
    text: str


@dataclass(frozen=True)
class Drift:
    """What a container was not made of: ``found``, with the differences; ``none``; or ``unknown``, with the reason."""

    status: Literal["found", "none", "unknown"]
    differences: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Address:
    """Where a container can be reached from this host."""

    host: str
    port: int


class Execution(Protocol):
    """A program that runs inside a container."""

    def chunks(self) -> Iterator[bytes]:
        """What it writes to its output. Raises ServiceFailed when not all of it arrived."""
        ...

    def write(self, data: bytes) -> None:
        """All of ``data`` into its input. Raises BrokenPipeError when it has ended."""
        ...

    def close_stdin(self) -> None:
        """Tell it that its input is at an end."""
        ...

    def stderr_lines(self) -> Iterator[bytes]:
        """What it writes to its stderr, until it ends."""
        ...

    def wait(self) -> int:
        """Its exit code, negative for a signal's number; the rest of its output is thrown away."""
        ...

    def stop(self) -> None:
        """Tell it to end, from whatever thread."""
        ...

    def end(self) -> None:
        """Make sure it and all it has started are gone."""
        ...


class ServiceRuntime(Protocol):
    """Every method raises ServicesUnreachable when there is no answer, ServiceFailed when the answer is no."""

    def version(self) -> str:
        """What answers, and its version."""
        ...

    def list_services(self) -> Sequence[Service]:
        """Every container that belongs to a project, by project and name."""
        ...

    def find(self, selector: Selector) -> Sequence[Service]:
        """The containers that are meant; none if there are none. Raises ConfigurationError when it is ambiguous."""
        ...

    def describe(self, service: Service) -> Mapping[str, Any]:
        """All the runtime knows about a container: it holds secrets, see :func:`capture.masked`."""
        ...

    def logs(
        self, service: Service, *, tail: int | None, since: str | None = None, follow: bool = False
    ) -> Sequence[Iterator[LogLine]]:
        """The newest ``tail`` lines, of ``since`` or later (a stamp), as sources that are each in their own order."""
        ...

    def restart(self, services: Sequence[Service], *, stop_timeout_seconds: int | None) -> None:
        """Stop them, by force after the timeout, and start them again; returns when they have been started."""
        ...

    def drift(self, service: Service, compose_file: Path | None = None) -> Drift:
        """What restarting this container would not bring up to date; ``compose_file`` instead of the one it knows."""
        ...

    def recreate(
        self, services: Sequence[Service], *, stop_timeout_seconds: int | None, compose_file: Path | None = None
    ) -> None:
        """Make the containers of a service anew, as they are configured now."""
        ...

    def address(self, service: Service, port: int | None) -> Address:
        """Where ``port`` of a container (its only one, if it is not given) is reached, published or not."""
        ...

    def start(
        self,
        service: Service,
        command: Sequence[str],
        *,
        reads_input: bool,
        environment: Mapping[str, str] | None = None,
        secret_environment: Mapping[str, str] | None = None,
    ) -> Execution:
        """Start a program inside a container. One that does not read its input ends with this process."""
        ...
