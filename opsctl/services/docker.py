"""The Docker Engine API, through Docker's own SDK. The only module that knows the SDK and maps its errors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

from opsctl.errors import ConfigurationError, Refused, ServiceFailed, ServicesUnreachable
from opsctl.services import Address, Drift, Health, HealthCheck, LogLine, Selector, Service, ServiceState, Stream
from opsctl.services.compose import Compose, ImageNow, drift, project_of, variables_of
from opsctl.services.docker_exec import DockerExecution, wrapped
from opsctl.services.log_lines import Moment, messages

TIMEOUT_SECONDS = 10
"""For an answer of the engine itself; what takes a container's time has its own."""

STOP_SECONDS = 10
"""Docker's own patience with a container that is to stop and says nothing else."""

PROJECT, COMPOSE_SERVICE = "com.docker.compose.project", "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"
NO_DOCKER = "Start Docker (systemctl start docker); DOCKER_HOST names another engine."
NOT_ALLOWED = "Run opsctl as root or as a member of the group docker; DOCKER_HOST names another engine."


class Docker:
    """A Docker engine, as the ``DOCKER_*`` variables name it. No connection is opened before it is needed."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._compose = Compose(variables)

    @cached_property
    def api(self) -> Any:
        import docker
        from docker.utils import kwargs_from_env

        with mapped_errors("be asked for its version"):
            options = kwargs_from_env(environment={"DOCKER_HOST": "", **self._variables})
            return docker.APIClient(**options, version="auto", timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close what connections there are; they are opened again when they are needed."""
        api = self.__dict__.pop("api", None)
        if api is not None:
            api.close()

    def version(self) -> str:
        with mapped_errors("be asked for its version"):
            return f"Docker {self.api.version()['Version']}"

    def list_services(self) -> list[Service]:
        """Every container of every compose project."""
        return self._listed([PROJECT])

    def find(self, selector: Selector) -> list[Service]:
        if selector.container is not None:
            found = self._inspected(selector.container)
            return [_service(found, selector.name)] if found is not None else []
        labels = [f"{COMPOSE_SERVICE}={selector.compose_service or selector.name}"]
        labels += [f"{PROJECT}={selector.project}"] if selector.project else []
        services = self._listed(labels, selector.name)
        projects = sorted({service.project or "" for service in services})
        if len(projects) > 1:
            raise ConfigurationError(
                f"Several compose projects have a service {selector.compose_service or selector.name!r}:"
                f" {', '.join(projects)}.",
                hint=f"Set compose_project in [services.{selector.name}].",
            )
        return services

    def describe(self, service: Service) -> dict[str, Any]:
        found = self._inspected(service.id)
        if found is None:
            raise _gone(service)
        return found

    def logs(
        self, service: Service, *, tail: int | None, since: str | None = None, follow: bool = False
    ) -> list[Iterator[LogLine]]:
        """One source for each of the two streams: that is how the API tells them apart."""
        is_terminal = bool(self.describe(service)["Config"]["Tty"])
        streams: tuple[Stream, ...] = ("stdout",) if is_terminal else ("stdout", "stderr")
        return [
            self._lines(service, stream, tail=tail, since=since, follow=follow, is_terminal=is_terminal)
            for stream in streams
        ]

    def _lines(
        self,
        service: Service,
        stream: Stream,
        *,
        tail: int | None,
        since: str | None,
        follow: bool,
        is_terminal: bool,
    ) -> Iterator[LogLine]:
        with mapped_errors(f"read the logs of {service.container}"):
            chunks = self.api.logs(
                service.id,
                stdout=stream == "stdout",
                stderr=stream == "stderr",
                stream=True,
                timestamps=True,
                follow=follow,
                tail="all" if tail is None else tail,
                since=int(_time(since).timestamp()) if since else None,  # whole seconds; the rest is sorted out here
            )
            for moment, text in messages(chunks, framed=not is_terminal):
                if since is None or moment.stamp >= since:
                    yield _line(service, stream, moment, text)

    def restart(self, services: Sequence[Service], *, stop_timeout_seconds: int | None) -> None:
        for service in services:
            timeout = stop_timeout_seconds
            if timeout is None:
                timeout = self.describe(service)["Config"].get("StopTimeout")
            with mapped_errors(f"restart {service.container}"):
                self.api.restart(service.id, timeout=STOP_SECONDS if timeout is None else timeout)

    def drift(self, service: Service, compose_file: Path | None = None) -> Drift:
        described = self.describe(service)
        project = project_of(described, compose_file)
        wanted: Mapping[str, Any] | str | None = None
        if project is not None:
            services = self._compose.services(project)
            gone = f"{service.compose_service} is not in the compose file any more"
            wanted = services if isinstance(services, str) else services.get(str(service.compose_service), gone)
        return drift(described, wanted, self._image_now(described["Config"]["Image"]))

    def _image_now(self, name: str) -> ImageNow:
        from docker.errors import NotFound

        with mapped_errors(f"describe the image {name}"):
            try:
                described = self.api.inspect_image(name)
            except NotFound:
                return ImageNow()
            return ImageNow(described["Id"], variables_of(described))

    def recreate(
        self, services: Sequence[Service], *, stop_timeout_seconds: int | None, compose_file: Path | None = None
    ) -> None:
        service = services[0]
        project = project_of(self.describe(service), compose_file)
        if project is None or service.compose_service is None:
            raise Refused(
                f"{service.name} does not belong to a compose project.",
                hint="Only compose knows how to make a container anew; restart it without --recreate.",
            )
        self._compose.recreate(project, service.compose_service, stop_timeout_seconds=stop_timeout_seconds)

    def address(self, service: Service, port: int | None) -> Address:
        described = self.describe(service)
        if not described["State"]["Running"]:
            state = _state(described)
            raise ServiceFailed(
                f"The container {service.container} does not run ({told(state)}).",
                hint=f"`opsctl logs {service.name}` shows why; `opsctl restart {service.name}` starts it.",
            )
        exposed = [int(each.partition("/")[0]) for each in described["Config"].get("ExposedPorts") or {}]
        chosen = exposed[0] if len(exposed) == 1 and port not in exposed else port
        if chosen is None:
            raise ServiceFailed(
                f"The image of {service.container} does not say which port it listens on.",
                hint="Write the port into the URL.",
            )
        networks = (described["NetworkSettings"].get("Networks") or {}).items()
        if "host" in dict(networks):
            return Address("127.0.0.1", chosen)
        addresses = [network["IPAddress"] for _, network in sorted(networks) if network.get("IPAddress")]
        if not addresses:
            raise ServiceFailed(
                f"The container {service.container} has no address in any network.",
                hint="Attach it to a network of Docker's bridge driver.",
            )
        return Address(addresses[0], chosen)

    def start(
        self,
        service: Service,
        command: Sequence[str],
        *,
        reads_input: bool,
        environment: Mapping[str, str] | None = None,
        secret_environment: Mapping[str, str] | None = None,
    ) -> DockerExecution:
        mark = token_hex(16)
        created = self._exec(
            service, wrapped(command, mark, reads_input=reads_input), stdin=True, environment=environment
        )
        execution = DockerExecution(
            self._engine,
            f"/v{self.api.api_version}/exec/{created}/start",
            name=command[0].rpartition("/")[2],
            mark=mark,
            reads_input=reads_input,
            run=lambda command: self._run(service, command),
        )
        execution.send_secrets(secret_environment or {})
        return execution

    def _exec(self, service: Service, command: Sequence[str], **options: Any) -> str:
        with mapped_errors(f"run a program in {service.container}"):
            created = self.api.exec_create(service.id, list(command), **options)
            return str(created["Id"])

    def _run(self, service: Service, command: Sequence[str]) -> None:
        created = self._exec(service, command)
        with mapped_errors(f"run a program in {service.container}"):
            self.api.exec_start(created)  # until its end

    @property
    def _engine(self) -> str:
        from docker.utils import parse_host

        return str(parse_host(self._variables.get("DOCKER_HOST"), tls=self.api.base_url.startswith("https")))

    def _listed(self, labels: list[str], name: str | None = None) -> list[Service]:
        with mapped_errors("list its containers"):
            found = self.api.containers(all=True, filters={"label": labels})
        described = [self._inspected(each["Id"]) for each in found if each["Labels"].get(ONE_OFF) != "True"]
        services = [_service(each, name) for each in described if each is not None]
        return sorted(services, key=lambda service: (service.project or "", service.name, service.container))

    def _inspected(self, identifier: str) -> dict[str, Any] | None:
        from docker.errors import NotFound

        with mapped_errors(f"describe {identifier[:64]}"):
            try:
                described: dict[str, Any] = self.api.inspect_container(identifier)
            except NotFound:
                return None
            return described


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Errors of the SDK and of the connection under it as ours."""
    from docker.errors import APIError, DockerException
    from requests import RequestException

    try:
        yield
    except APIError as error:
        raise ServiceFailed(
            f"Docker could not {doing}: {error.explanation or error.response.reason}.",
            hint="The message is Docker's own; its log may say more.",
        ) from error
    except (DockerException, RequestException, OSError) as error:
        reason = _reason(error)
        denied = "Permission denied" in reason
        raise ServicesUnreachable(
            f"Docker does not answer: {reason}.", hint=NOT_ALLOWED if denied else NO_DOCKER, denied=denied
        ) from error


def _reason(error: BaseException) -> str:
    """The system's own word for it, at the end of a chain of wrapped exceptions."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        inner = [each for each in seen.args if isinstance(each, BaseException)]
        seen = seen.__cause__ or (inner[0] if inner else seen.__context__)
    return str(error).partition("\n")[0].rstrip(".")


def _gone(service: Service) -> ServiceFailed:
    return ServiceFailed(
        f"The container {service.container} is gone.", hint="`opsctl services` shows which ones there are."
    )


def _service(described: Mapping[str, Any], name: str | None) -> Service:
    labels = described["Config"].get("Labels") or {}
    container = described["Name"].lstrip("/")
    return Service(
        name=name or labels.get(COMPOSE_SERVICE) or container,
        id=described["Id"],
        container=container,
        project=labels.get(PROJECT),
        compose_service=labels.get(COMPOSE_SERVICE),
        created_at=_time(described["Created"]),
        state=_state(described),
        health_check=_health_check(described["Config"].get("Healthcheck")),
        memory_limit_bytes=(described.get("HostConfig") or {}).get("Memory") or None,
    )


def _state(described: Mapping[str, Any]) -> ServiceState:
    state = described["State"]
    health = state.get("Health") or {}
    outputs = [each.get("Output", "").strip() for each in health.get("Log") or ()]
    kind: Health = health["Status"] if health.get("Status") in {"healthy", "unhealthy", "starting"} else "none"
    ended = not state["Running"] or state["Restarting"]
    return ServiceState(
        status=state["Status"],
        health=kind,
        restart_count=described["RestartCount"],
        oom_killed=state["OOMKilled"],
        exit_code=state["ExitCode"] if ended and state["Status"] != "created" else None,
        started_at=_known_time(state["StartedAt"]),
        finished_at=_known_time(state["FinishedAt"]),
        image=described["Config"]["Image"],
        health_output=outputs[-1] if outputs else None,
    )


def _health_check(declared: Mapping[str, Any] | None) -> HealthCheck | None:
    if not declared or (declared.get("Test") or ["NONE"])[0] == "NONE":
        return None
    return HealthCheck(
        interval_seconds=(declared.get("Interval") or 30e9) / 1e9,
        timeout_seconds=(declared.get("Timeout") or 30e9) / 1e9,
        retries=declared.get("Retries") or 3,
        start_period_seconds=(declared.get("StartPeriod") or 0) / 1e9,
    )


def told(state: ServiceState) -> str:
    """A state in a few words."""
    if state.is_running:
        return "running" if state.health == "none" else f"running, {state.health}"
    code = f" with exit code {state.exit_code}" if state.exit_code is not None else ""
    return f"{state.status}{code}{', out of memory' if state.oom_killed else ''}"


def _line(service: Service, stream: Stream, moment: Moment, text: str) -> LogLine:
    return LogLine(service.name, service.container, moment.stamp, moment.at, stream, text)


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)


def _known_time(stamp: str) -> datetime | None:
    """Docker says the year 1 for a time that has not come yet."""
    return None if stamp.startswith("0001-") else _time(stamp)
