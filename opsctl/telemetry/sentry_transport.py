"""How envelopes reach Sentry: in the background, the redactor last, through the spool when Sentry does not answer.

The SDK's own transport drops what could not be sent when the program ends. Imported by ``sentry`` when it is needed.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Any

from sentry_sdk.consts import EndpointType  # noqa: TID253 - see above
from sentry_sdk.envelope import Envelope  # noqa: TID253
from sentry_sdk.transport import Transport  # noqa: TID253
from sentry_sdk.utils import Dsn  # noqa: TID253

from opsctl import __version__
from opsctl.telemetry.delivery import Sender, Undelivered, post
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.spool import Fate, Spool
from opsctl.times import format_time

TIMEOUT_SECONDS = 10
REFUSED = frozenset({400, 413})
"""The envelope itself is not accepted. A wrong DSN (401, 403, 404) can be put right, and 429 goes by."""


@dataclass(frozen=True, eq=False)
class _Letter:
    """``kept``: whether it is spooled when it cannot be sent; ``until``: how long it is of use then."""

    data: bytes
    kept: bool
    until: datetime | None


class SpoolingTransport(Transport):
    """``check_ins_until``: a check-in counts as of when it arrives, so one that arrives later is not sent any more."""

    def __init__(self, dsn: str, *, redactor: Redactor, spool: Spool, clock: Callable[[], datetime]) -> None:
        super().__init__({"dsn": dsn, "org_id": None})
        self._address = Dsn(dsn)
        self.check_ins_until: datetime | None = None
        self._redactor = redactor
        self._spool = spool
        self._clock = clock
        self._sender = Sender()
        self._open: list[_Letter] = []
        self._opening = Lock()
        self.problem: str | None = None
        """Why the last one was not taken."""

    def capture_envelope(self, envelope: Envelope) -> None:
        kinds = {item.type for item in envelope.items}
        began = any((item.payload.json or {}).get("status") == "in_progress" for item in envelope.items)
        until = self.check_ins_until if kinds == {"check_in"} else None
        # What says that a run has begun says nothing once it has ended.
        letter = _Letter(self._redacted(envelope), kept=not (kinds == {"check_in"} and began), until=until)
        with self._opening:
            self._open.append(letter)
        self._sender.add(partial(self._deliver, letter))

    def send_spooled(self) -> None:
        """Send what earlier runs could not, after what is to be sent now."""
        if self._spool.waiting():
            self._sender.add(self._deliver_spooled)

    def flush(self, timeout: float, callback: Any | None = None) -> None:
        if not self._sender.wait(timeout) and callback is not None:
            callback(len(self._open), timeout)

    def give_up(self) -> int:
        """Spool what is not sent yet; how many that is."""
        with self._opening:
            left, self._open = self._open, []
        for letter in left:
            self._keep(letter)
        return len(left)

    def _redacted(self, envelope: Envelope) -> bytes:
        """The envelope as it leaves: here, after everything the SDK puts in, every string meets the redactor."""
        parts = [json.dumps({"event_id": envelope.headers.get("event_id")})]
        for item in envelope.items:
            if item.payload.json is not None:
                text = json.dumps(self._redactor.deep(item.payload.json), default=str)
            else:
                text = self._redactor.text(item.get_bytes().decode("utf-8", "replace"))
            headers = {"type": item.type, "length": len(text.encode())}
            parts += [json.dumps(self._redactor.deep({**item.headers, **headers})), text]
        return "\n".join(parts).encode()

    def _deliver(self, letter: _Letter) -> None:
        fate = self._send(letter.data)
        with self._opening:
            if letter not in self._open:
                return  # it was given up meanwhile
            self._open.remove(letter)
        if fate is Fate.UNSENT:
            self._keep(letter)

    def _keep(self, letter: _Letter) -> None:
        if letter.kept:
            with suppress(OSError):  # the disk is full, too
                self._spool.put(letter.data, now=self._clock(), until=letter.until)

    def _deliver_spooled(self) -> None:
        if self.problem is not None:
            return
        self._spool.deliver(self._send, now=self._clock(), go_on=lambda: not self._open)
        if self._open and self._spool.waiting():
            self._sender.add(self._deliver_spooled)

    def _send(self, envelope: bytes) -> Fate:
        auth = self._address.to_auth(f"opsctl/{__version__}")
        headers = {"Content-Type": "application/x-sentry-envelope", "X-Sentry-Auth": auth.to_header()}
        try:
            url = auth.get_api_url(EndpointType.ENVELOPE)
            status = post(url, self._stamped(envelope), headers=headers, timeout_seconds=TIMEOUT_SECONDS)
        except Undelivered as error:
            self.problem = str(error)
            return Fate.UNSENT
        is_taken = 200 <= status < 300
        self.problem = None if is_taken else f"it answered {status}"
        return Fate.SENT if is_taken else Fate.REFUSED if status in REFUSED else Fate.UNSENT

    def _stamped(self, envelope: bytes) -> bytes:
        """With the time it is sent at.

        Sentry takes its difference to its own clock for an error of ours, and moves the event's times by it.
        """
        first, _, rest = envelope.partition(b"\n")
        headers = {**json.loads(first), "sent_at": format_time(self._clock())}
        return json.dumps(headers).encode() + b"\n" + rest
