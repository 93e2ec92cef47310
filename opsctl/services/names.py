"""Which containers a name means: as it is configured, or as it is used where nothing is configured."""

from collections.abc import Callable, Iterable, Mapping

from opsctl.errors import ConfigurationError, OpsctlError, ServiceFailed
from opsctl.services import Selector, Service, ServiceRuntime
from opsctl.services.capture import secrets_of
from opsctl.settings import ServiceSettings, nearest


class Services:
    """The services of a runtime by name. ``learn_secrets`` is told what is secret in a container that is used."""

    def __init__(
        self,
        runtime: ServiceRuntime,
        configured: Mapping[str, ServiceSettings],
        *,
        learn_secrets: Callable[[Iterable[str]], None],
    ) -> None:
        self.runtime = runtime
        self._configured = configured
        self._learn_secrets = learn_secrets

    def all(self) -> list[tuple[str, Service | None]]:
        """The configured services, with ``None`` for one without a container; else whatever belongs to a project."""
        if not self._configured:
            return [(service.name, service) for service in self.runtime.list_services()]
        found: list[tuple[str, Service | None]] = []
        for name in self._configured:
            found += [(name, service) for service in self.now(name)] or [(name, None)]
        return found

    def now(self, name: str) -> list[Service]:
        """The containers of a service at this moment; none if there are none."""
        found = self.runtime.find(self._selector(name))
        is_configured = name in self._configured
        return list(found or ([] if is_configured else self.runtime.find(Selector(name, container=name))))

    def named(self, name: str) -> list[Service]:
        """The containers of a service. Raises ServiceFailed, or ConfigurationError for a wrong name."""
        found = self.seen(name)
        if not found:
            raise self._none(name)
        return found

    def seen(self, name: str) -> list[Service]:
        """The containers of a service that are there, whose words may be shown then: their secrets are known."""
        found = self.now(name)
        for each in found:
            self._learn_secrets(secrets_of(self.runtime.describe(each)))
        return found

    def _selector(self, name: str) -> Selector:
        """As configured, else ``project/service``, else a compose service."""
        settings = self._configured.get(name)
        if settings is not None:
            return Selector(name, settings.compose_project, settings.compose_service, settings.container)
        project, separator, service = name.rpartition("/")
        return Selector(name, project, service) if separator else Selector(name)

    def _none(self, name: str) -> OpsctlError:
        if name in self._configured:
            return ServiceFailed(
                f"There is no container of the service {name}.",
                hint="`docker compose up -d` makes it; else correct its section in opsctl.toml.",
            )
        known = [*self._configured, *(service.name for service in self.runtime.list_services())]
        hint = nearest(name, known) or f"There are: {', '.join(dict.fromkeys(known)) or 'none'}."
        return ConfigurationError(f"There is no service {name!r}.", hint=hint)
