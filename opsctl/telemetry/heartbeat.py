"""Pings to a service that expects them and raises the alarm when they stay out, as healthchecks.io wants them.

``URL/start``, then ``URL`` or ``URL/<exit code>`` with the end of the log as its body; both name the run, so that its
duration is known.
"""

import time
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from opsctl.telemetry.delivery import Sender, Undelivered, post

MOST_BYTES = 10_000
"""What such services keep of a body."""

TIMEOUT_SECONDS = 5
PAUSES_SECONDS = (0.2, 1.0)
"""Between attempts: of three, the last begins within the time the end of a run waits, if the others failed at once."""


class Heartbeat:
    def __init__(self, url: str, *, run_uuid: str) -> None:
        self._url = url
        self._run_uuid = run_uuid
        self.sender = Sender()

    def started(self) -> None:
        self.sender.add(lambda: ping(self._address("start")))

    def ended(self, exit_code: int, log: str) -> None:
        """``exit_code`` as the service shall judge it: all but 0 is a failure there."""
        self.sender.add(lambda: ping(self._address(str(exit_code) if exit_code else ""), log))

    def _address(self, word: str) -> str:
        return address(self._url, word, run_uuid=self._run_uuid)


def address(url: str, word: str, *, run_uuid: str) -> str:
    """Where to ping: ``word`` is the last part of the path, what the URL asks for stays."""
    parts = urlsplit(url)
    path = "/".join([parts.path.rstrip("/"), word]) if word else parts.path
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("rid", run_uuid)])
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def ping(url: str, log: str = "") -> None:
    """Ping, again if the service has no answer or trouble of its own. Raises Undelivered."""
    body = log.encode()[-MOST_BYTES:]
    for pause in (*PAUSES_SECONDS, None):
        try:
            status = post(url, body, timeout_seconds=TIMEOUT_SECONDS)
            if 200 <= status < 300:
                return
            problem = Undelivered(f"it answered {status}")
        except Undelivered as error:
            problem, status = error, 0
        if pause is None or 300 <= status < 500:
            raise problem
        time.sleep(pause)
