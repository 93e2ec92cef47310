import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from opsctl.cli.output import Outcome
from opsctl.errors import Refused

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.web.guard import Application

HostOption = Annotated[
    str | None, typer.Option("--host", metavar="HOST", help="Where to listen; 127.0.0.1 unless configured.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, metavar="PORT", help="9778 unless configured; 0 is any.")
]


def serve(session: "Session", host: HostOption = None, port: PortOption = None) -> Outcome:
    """Serve the status page, JSON and /metrics, until Ctrl-C or SIGTERM. Read only: nothing is checked for a request.

    Listens on this host alone unless a token is configured. Needs the extra `serve`: docs/install.md.

    Example: [bold]opsctl serve --port 9778[/bold]
    """
    from opsctl.web.server import addresses_of, is_loopback, listen, require_libraries, run, url_of

    require_libraries()
    settings = session.config.serve
    token = session.config.serve_token()
    session.redactor.add(session.config.secrets())
    wanted = host or settings.host
    addresses = addresses_of(wanted, settings.port if port is None else port)
    if token is None and not is_loopback(addresses):
        raise Refused(
            f"{wanted} can be reached from other machines, and no token is configured.",
            hint="Set token_env or token_file under [serve], or listen on 127.0.0.1 behind a proxy with a login.",
        )
    sockets = listen(addresses)
    names = {"localhost", socket.gethostname(), wanted, *settings.allowed_hosts}
    url = url_of(sockets[0])
    try:
        with _application(session, names=names, token=token) as application:
            requests = run(
                application,
                sockets,
                started=lambda: session.log().info("serve.started", url=url, token=token is not None),
            )
    finally:
        for each in sockets:
            each.close()
    return Outcome({"url": url, "requests": requests}, fields={"url": url, "requests": requests})


@contextmanager
def _application(session: "Session", *, names: set[str], token: str | None) -> "Iterator[Application]":
    """Everything the server needs, put together; the repositories are asked in the background meanwhile."""
    from opsctl.metrics import known
    from opsctl.telemetry.metrics import render
    from opsctl.telemetry.request_metrics import RequestMetrics
    from opsctl.telemetry.sentry_requests import watch_requests
    from opsctl.web.app import Served, create_app
    from opsctl.web.catalog import Catalog
    from opsctl.web.sources import Sources

    config, redact = session.config, session.redactor.text
    sources = Sources(config, session.redactor, session.clock)
    catalog = Catalog(
        list(config.repositories),
        arguments=["--config", str(session.options.config)] if session.options.config else [],
        clock=session.clock,
        refresh_seconds=config.serve.refresh_seconds,
        changed=sources.marker,
    )
    with watch_requests(
        config.sentry_dsn,
        environment=config.sentry_environment,
        traces_sample_rate=config.sentry.traces_sample_rate,
        redactor=session.redactor,
    ):
        served = Served(
            sources,
            catalog,
            session.redactor,
            RequestMetrics(),
            lambda now: render(known(config, now=now), redact=redact),
        )
        application = create_app(served, names=names, token=token)
        catalog.start()
        try:
            yield application
        finally:
            catalog.stop()
