from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome

if TYPE_CHECKING:
    from opsctl.cli.session import Session


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
