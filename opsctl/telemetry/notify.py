"""Messages to people, through Apprise: Telegram, Slack, e-mail, webhooks and about a hundred other services."""

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from opsctl.telemetry.delivery import Sender, wait_for
from opsctl.telemetry.redact import Redactor

NOTIFY_SECONDS = 8.0
"""What people are told may take this long, together: less than the ten seconds Docker gives a container to stop."""

Kind = Literal["failure", "warning", "success", "info"]


@dataclass(frozen=True)
class Message:
    kind: Kind
    title: str
    body: str


@dataclass(frozen=True)
class Sent:
    """What became of a message at one target; ``error`` is None where it has arrived."""

    target: str
    error: str | None
    seconds: float


class Notifier:
    """Sends messages to every target, each in a thread of its own."""

    def __init__(self, urls: Sequence[str], redactor: Redactor) -> None:
        self._redactor = redactor
        self._names = target_names(urls)
        self._urls = tuple(urls)
        self._senders: list[Sender] = []
        self._sent: dict[str, list[Sent]] = {name: [] for name in self._names}

    def begin(self, message: Message) -> None:
        clean = Message(message.kind, self._redactor.text(message.title), self._redactor.text(message.body))
        for name, url in zip(self._names, self._urls, strict=True):
            sender = Sender()
            sender.add(partial(self._send, name, url, clean))
            self._senders.append(sender)

    def finish(self, seconds: float = NOTIFY_SECONDS) -> list[Sent]:
        """What has become of what was begun: at each target its first failure, else its last success."""
        wait_for(self._senders, seconds)
        return [self._result(name, seconds) for name in self._names]

    def _result(self, name: str, seconds: float) -> Sent:
        sent = self._sent[name]
        if len(sent) * len(self._names) < len(self._senders):
            return Sent(name, f"no answer within {seconds:g} s", seconds)
        return next((each for each in sent if each.error), sent[-1])

    def _send(self, name: str, url: str, message: Message) -> None:
        started = time.monotonic()
        try:
            error = deliver(url, message)
        except Exception as unexpected:  # noqa: BLE001 - a target's own code: its failure is that target's result
            error = f"{type(unexpected).__name__}: {unexpected}"
        told = None if error is None else self._redactor.text(error)
        self._sent[name].append(Sent(name, told, round(time.monotonic() - started, 3)))


def target_names(urls: Sequence[str]) -> list[str]:
    """Names that hold nothing of the addresses but what kind they are: ``tgram``, ``json``, ``json 2``."""
    names: list[str] = []
    for url in urls:
        scheme = re.match(r"[A-Za-z0-9]{1,20}(?=://)", url)
        kind = scheme[0].lower() if scheme else "target"
        others = sum(re.fullmatch(rf"{kind}( \d+)?", name) is not None for name in names)
        names.append(f"{kind} {others + 1}" if others else kind)
    return names


def deliver(url: str, message: Message) -> str | None:
    """Send to one target; why it did not arrive, or None."""
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType

    # A redirect could lead anywhere, and what a service may keep between messages would be written to HOME.
    asset = AppriseAsset(
        app_id="opsctl", app_desc="opsctl", app_url="", http_redirects=False, async_mode=False, storage_mode="memory"
    )
    kinds = {
        "failure": NotifyType.FAILURE,
        "warning": NotifyType.WARNING,
        "success": NotifyType.SUCCESS,
        "info": NotifyType.INFO,
    }
    with _apprise_says() as said:
        target = Apprise.instantiate(url, asset=asset)
        if target is None:
            return "Apprise does not understand this address"
        told = target.notify(
            title=message.title, body=message.body, notify_type=kinds[message.kind], body_format=NotifyFormat.TEXT
        )
    return None if told else "; ".join(said) or "it was not accepted"


@contextmanager
def _apprise_says() -> Iterator[list[str]]:
    """What Apprise logs in this thread: its reasons stand nowhere else."""
    said: list[str] = []
    here = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here and record.getMessage() not in said:
                said.append(record.getMessage())

    logger: Any = logging.getLogger("apprise")
    listener = Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
