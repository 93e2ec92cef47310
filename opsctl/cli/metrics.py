import socket
from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome

if TYPE_CHECKING:
    from opsctl.cli.session import Session

PUSH_SECONDS = 1.5


def metrics(session: "Session") -> Outcome:
    """Print the metrics for Prometheus, as the last runs left them; nothing is listed or checked for it.

    The same goes to a file or a Pushgateway at the end of every run, where the configuration names one under metrics.

    Example: [bold]opsctl metrics[/bold]
    """
    from rich.text import Text

    from opsctl.metrics import known
    from opsctl.telemetry.metrics import as_document, render

    found = known(session.config, now=session.clock())
    result: dict[str, Any] = {"metrics": as_document(found, redact=session.redactor.text)}
    text = render(found, redact=session.redactor.text).decode().rstrip("\n")
    return Outcome(result, [Text(text, no_wrap=True, overflow="ignore")])


def report_metrics(session: "Session", outcome: Outcome) -> None:
    """At the end of a run: keep what it saw of the repositories, write the file and push.

    What does not work is logged. A file that is not written is a fault of the set-up, and worth a warning every time; a
    Pushgateway that is down for an hour is not.
    """
    from opsctl.metrics import drills, known, looks
    from opsctl.sightings import Sightings

    config, now, redact = session.config, session.clock(), session.redactor.text
    opened = session.opened_repositories
    seen = looks(opened, now=now)
    timed = drills(outcome.result, opened, now=now)
    if seen or timed:
        try:
            Sightings(config.state_path).update(seen, timed, now=now)
        except OSError as error:
            log = session.log().debug if outcome.error else session.log().warning  # the error said it already
            log("metrics.unseen", path=str(config.state_path), message=str(error.strerror or error))
    if config.textfile is None and config.pushgateway_url is None:
        return
    from opsctl.telemetry.metrics import push, render, write_textfile

    found = known(config, now=now)
    if config.textfile is not None:
        try:
            write_textfile(config.textfile, render(found, redact=redact))
        except OSError as error:
            session.log().warning("metrics.unwritten", path=str(config.textfile), message=error.strerror)
    if config.pushgateway_url is not None:
        try:
            push(found, config.pushgateway_url, host=socket.gethostname(), redact=redact, timeout_seconds=PUSH_SECONDS)
        except OSError as error:
            session.log().info("metrics.unpushed", message=str(error) or type(error).__name__)
