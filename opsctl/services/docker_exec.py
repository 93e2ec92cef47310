"""A program inside a container, its three streams over one connection to the Docker engine.

The engine alone is not enough for bytes that matter, so a small shell script runs the program:

- A program goes on when the connection breaks: the script ends it when its own input ends.
- Two seconds after a program's end the engine throws away what has not been read yet, and still reports exit code 0.
  The script writes a mark with the exit code behind the output, and waits. Without the mark something is missing.
- A database server that is the container's first process inherits every orphan, and takes one that was killed for a
  crash of its own: it ends all sessions. So nothing here is ever orphaned: only the program is sent signals, and the
  script waits for each of its children.
- What is secret comes as the first lines of its input: it is in no list of processes, and not in the log of an engine
  that logs requests.
"""

import http.client
import json
import queue
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from opsctl.errors import ConfigurationError, ServiceFailed, ServicesUnreachable

CONNECT_SECONDS = 10
END_SECONDS = 5
BUFFERED_BYTES = 4 << 20
READ_BYTES = 1 << 20
STDOUT, STDERR = 1, 2
HEADER = struct.Struct(">BxxxL")
CODE_DIGITS = 3

SCRIPT = r"""
mark=$1 input=$2; shift 2
while IFS= read -r line && [ -n "$line" ]; do export "$line"; done
exec 3<&0
if [ "$input" = data ]; then
    "$@" <&3 &
    program=$!
    echo "$mark:$$:$program" >&2
    wait "$program" 2>/dev/null
    code=$?
else
    "$@" </dev/null 3<&- &
    program=$!
    echo "$mark:$$:$program" >&2
    { while read -r line; do :; done <&3; kill "$program"; } >/dev/null 2>&1 &
    watch=$!
    wait "$program" 2>/dev/null
    code=$?
    kill "$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
fi
printf '%s%03d' "$mark" "$code"
printf '\n%s\n' "$mark" >&2
exec >/dev/null 2>&1
trap 'exit 0' TERM
cat <&3
[ "$input" = data ] || exit 0
left=120
while [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
"""
"""At the end it drains what is still sent, so that nobody waits to send it, and waits to be told that all arrived."""

Run = Callable[[Sequence[str]], None]
"""Runs a command inside the same container, without looking at it."""


def wrapped(command: Sequence[str], mark: str, *, reads_input: bool) -> list[str]:
    """What is started inside the container in place of ``command``."""
    return ["sh", "-c", SCRIPT, "opsctl", mark, "data" if reads_input else "none", *command]


class DockerExecution:
    """A running program. ``engine`` is the engine's address, ``path`` that of the exec that was made for it."""

    def __init__(self, engine: str, path: str, *, name: str, mark: str, reads_input: bool, run: Run) -> None:
        self._name = name
        self._reads_input = reads_input
        self._mark = mark.encode()
        self._run = run
        self._connection = _connection(engine)
        self._response = self._begin(path)
        self._socket: socket.socket = self._connection.sock
        self._socket.settimeout(None)
        self._output = _Buffer()
        self._stderr: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._script: str | None = None
        self._program: str | None = None
        self._started = threading.Event()
        self._code: int | None = None
        self._complaint = b""
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    def send_secrets(self, variables: Mapping[str, str]) -> None:
        """The environment variables that are secret, and the empty line that ends them. To be called first."""
        lines = [f"{name}={value}" for name, value in variables.items()]
        if any("\n" in line for line in lines):
            raise ConfigurationError("A password with a line break in it cannot be handed over.")
        self.write("".join(f"{line}\n" for line in [*lines, ""]).encode())

    def chunks(self) -> Iterator[bytes]:
        yield from self._output
        self._require_mark()

    def write(self, data: bytes) -> None:
        if self._code is not None:
            raise BrokenPipeError
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise BrokenPipeError from error

    def close_stdin(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def stderr_lines(self) -> Iterator[bytes]:
        while (line := self._stderr.get()) is not None:
            yield line

    def wait(self) -> int:
        self._output.discard()
        self._reader.join()
        code = self._require_mark()
        return 128 - code if code > 128 else code

    def stop(self) -> None:
        self._started.wait(END_SECONDS)
        if self._program is not None and self._reader.is_alive():
            self._signal("TERM", self._program)

    def end(self) -> None:
        self._output.discard()
        self._started.wait(END_SECONDS)
        for signal in ("TERM", "KILL"):
            if self._program is not None and self._reader.is_alive():
                self._signal(signal, self._program)
                self._reader.join(timeout=END_SECONDS)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=END_SECONDS)
        if self._script is not None and self._reads_input:
            self._signal("TERM", self._script)
        self._response.close()
        self._connection.close()

    def _signal(self, signal: str, pid: str) -> None:
        with suppress(ServiceFailed, ServicesUnreachable):  # gone already, with its container perhaps
            self._run(["sh", "-c", 'kill -s "$1" "$2"', "opsctl", signal, pid])

    def _begin(self, path: str) -> http.client.HTTPResponse:
        body, headers = json.dumps({"Detach": False, "Tty": False}), {"Content-Type": "application/json"}
        try:
            self._connection.request("POST", path, body, {**headers, "Connection": "Upgrade", "Upgrade": "tcp"})
            response = self._connection.getresponse()
            if response.status < http.client.BAD_REQUEST:
                return response
            said = response.read().decode("utf-8", "replace").strip()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServicesUnreachable(f"Docker does not answer: {error}.") from error
        self._connection.close()
        raise ServiceFailed(f"Docker could not run {self._name}: {said}")

    def _read(self) -> None:
        """Take the two streams apart. Each ends in the mark; the engine may send one stream's end before the other."""
        try:
            self._take_apart()
        except (OSError, ValueError):
            pass  # no mark will have come
        finally:
            self._started.set()
            self._output.close()
            self._stderr.put(None)

    def _take_apart(self) -> None:
        stream: Any = self._response.fp
        length = len(self._mark) + CODE_DIGITS
        unread = held = line = b""
        code: int | None = None
        is_said = False
        while not (is_said and code is not None):
            received = stream.read1(READ_BYTES)
            if not received:
                self._complaint = held
                return
            written, errors, unread = _split(unread + received)
            *lines, line = (line + errors).split(b"\n")
            for each in lines:
                is_said = self._hear(each) or is_said
            held += written
            self._output.put(held[:-length])
            held = held[-length:]
            if len(held) == length and held.startswith(self._mark):
                code = int(held[-CODE_DIGITS:])
        self._code = code

    def _hear(self, line: bytes) -> bool:
        """A line of stderr: the program's own, or the script's; whether it is the last one."""
        mark, separator, pids = line.partition(b":")
        if mark != self._mark:
            if line:
                self._stderr.put(line)
            return False
        if separator:
            self._script, _, self._program = pids.decode().partition(":")
            self._started.set()
        return not separator

    def _require_mark(self) -> int:
        self._reader.join()
        if self._code is None:
            said = self._complaint.decode("utf-8", "replace").strip()
            raise ServiceFailed(
                f"The connection to {self._name} inside its container broke off"
                f"{f': {said}' if said else '; what it wrote is not complete'}.",
                hint="Was the container or Docker itself stopped? `opsctl services` shows how it does.",
            )
        return self._code


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The two streams' bytes of every whole frame, and what belongs to the next frame."""
    streams: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    at = 0
    while len(data) - at >= HEADER.size:
        kind, size = HEADER.unpack_from(data, at)
        if len(data) - at - HEADER.size < size:
            break
        at += HEADER.size
        streams.setdefault(kind, []).append(data[at : at + size])
        at += size
    return b"".join(streams[STDOUT]), b"".join(streams[STDERR]), data[at:]


class _Buffer:
    """Bytes between two threads, bounded. Iterate over it in one of them."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._is_closed = self._is_discarded = False
        self._changed = threading.Condition()

    def put(self, piece: bytes) -> None:
        """Add a piece; waits while too much is waiting to be read."""
        with self._changed:
            self._changed.wait_for(lambda: self._size < BUFFERED_BYTES or self._is_discarded)
            if piece and not self._is_discarded:
                self._pieces.append(piece)
                self._size += len(piece)
                self._changed.notify_all()

    def close(self) -> None:
        """There is no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def discard(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._is_discarded = True
            self._pieces.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._is_closed or self._is_discarded)
                if not self._pieces:
                    return
                pieces, self._pieces, self._size = self._pieces, deque(), 0
                self._changed.notify_all()
            yield b"".join(pieces)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(self._path)


def _connection(engine: str) -> http.client.HTTPConnection:
    """A connection that can be closed in one direction: that is how a program's input ends."""
    scheme, _, rest = engine.partition("://")
    if scheme in {"unix", "http+unix"}:
        return _UnixConnection(f"/{rest.lstrip('/')}")
    if scheme in {"tcp", "http"}:
        return http.client.HTTPConnection(rest, timeout=CONNECT_SECONDS)
    raise ConfigurationError(
        f'tools = "service" does not work with an engine at {scheme}://: such a connection cannot be half closed.',
        hint="Run opsctl on the engine's own host, or use the client programs of this host.",
    )
