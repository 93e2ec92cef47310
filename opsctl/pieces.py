"""Looking at several things at once, none of which may hold up or fail the others: a capture, a bundle."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from opsctl.errors import OpsctlError

SECONDS = 20.0


@dataclass(frozen=True)
class Piece:
    """Something to look at. ``read`` may take its time, hang, or fail."""

    name: str
    read: Callable[[], Any]


@dataclass(frozen=True)
class Taken:
    """What came of a piece: its data, or the reason why there is none."""

    name: str
    data: Any
    reason: str | None
    seconds: float


def take(pieces: Iterable[Piece], *, seconds: float = SECONDS) -> list[Taken]:
    """Look at all of them side by side, for ``seconds`` at most; a result for each, in their order. Raises nothing."""
    wanted = list(pieces)
    answers: SimpleQueue[Taken] = SimpleQueue()
    started = time.monotonic()
    for piece in wanted:
        # A daemon: one that hangs must not keep the program alive.
        Thread(target=lambda piece=piece: answers.put(_taken(piece)), name=piece.name, daemon=True).start()
    found: dict[str, Taken] = {}
    while len(found) < len(wanted):
        try:
            answer = answers.get(timeout=max(0.0, started + seconds - time.monotonic()))
        except Empty:
            break
        found[answer.name] = answer
    late = f"No answer within {seconds:g} s."
    return [found.get(each.name) or Taken(each.name, None, late, round(seconds, 3)) for each in wanted]


def _taken(piece: Piece) -> Taken:
    started = time.monotonic()
    data, reason = None, None
    try:
        data = piece.read()
    except OpsctlError as error:
        reason = error.message
    except Exception as error:  # noqa: BLE001 - a piece that fails says why, and fails nothing else
        reason = f"A bug in opsctl: {type(error).__name__}: {error}"
    return Taken(piece.name, data, reason, round(time.monotonic() - started, 3))
