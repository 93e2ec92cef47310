"""Pictures of what opsctl prints: real runs on a server of its own, drawn from the terminal they were shown on.

A picture is drawn anew when what it shows is another text, other numbers, ids and times left aside: see ``shape``.
"""  # noqa: INP001

import fcntl
import hashlib
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from opsctl.demo import Demo, running_demo

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 100, 60
CONFIG = """\
[databases.saasdb]
url_env = "DATABASE_URL"
facts = "content"

[repositories.local]
url = "backups"
retention = { keep_daily = 7 }

[repositories.nas]
url = "nas"
retention = { keep_daily = 30 }

[doctor.thresholds]
"db.blocked" = { warn = 1, crit = 2 }
"""
THEME = TerminalTheme(
    (24, 26, 31),
    (220, 223, 228),
    [
        (40, 44, 52),
        (224, 108, 117),
        (152, 195, 121),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (220, 223, 228),
    ],
)
SHAPE = re.compile(r"<!-- shape: (\w+) -->")

Frame = list[Text]


def main() -> None:
    """Draw every picture whose text is another one than it shows; with ``--page`` the status page, too."""
    PICTURES.mkdir(exist_ok=True)
    browser = shutil.which("chromium") if "--page" in sys.argv else None
    for name, drawn in pictures(browser):
        path = PICTURES / name
        if isinstance(drawn, bytes):
            path.write_bytes(drawn)
        elif not path.exists() or shape_of(path.read_text(encoding="utf-8")) != shape_of(drawn):
            path.write_text(drawn, encoding="utf-8")
        else:
            continue
        sys.stderr.write(f"written: {path}\n")


def pictures(browser: str | None = None) -> Iterator[tuple[str, str | bytes]]:
    """Every picture by its file's name: SVG, and the status page as a ``browser`` shows it, where there is one."""
    with running_demo(search_path=os.environ["PATH"].split(os.pathsep), variables=os.environ) as demo:
        for name, title, frames in scenes(demo):
            yield f"{name}.svg", draw(frames, title=title, name=name)
        if browser is not None:
            yield "status-page.png", screenshot(demo, browser)


def scenes(demo: Demo) -> Iterator[tuple[str, str, list[Frame]]]:
    """Each picture's name, what it shows, and its lines."""
    (demo.folder / "opsctl.toml").write_text(CONFIG)
    show = Terminal(demo)
    grow(demo, times=12)
    show("backup")
    show("drill")
    yield "backup", "A backup, while it runs and when it is done", show("backup", between="Backing up")
    show("verify")
    show("pin", "latest")
    yield "list", "The backups, and what is proven about each", show("list")
    demo.damage()
    grow(demo, times=1)
    yield "restore-plan", "What a restore would do", show("restore", "latest", "--plan")
    with blocked(demo):
        yield (
            "doctor",
            "One cause, and what to do about it",
            show("doctor", "db.connect", "db.connections", "db.blocked", "backup"),
        )
        show("incident", "open", "The API answers 502")
    show("incident", "note", "ended the session that held the lock", "--moment", "mitigated")
    show("incident", "close", "--note", "a migration was left open in a terminal")
    yield "incident", "What happened, and when", show("incident", "show")


def grow(demo: Demo, times: int) -> None:
    """Many more messages: enough for a backup to take a second."""
    with demo.server.connect() as connection:
        connection.execute(
            "insert into public.messages (user_id, direction, body, sent_at)"
            " select user_id, direction, body || n, sent_at"
            " from public.messages cross join generate_series(1, %s) as n",
            [times],
        )


@contextmanager
def blocked(demo: Demo) -> Iterator[None]:
    """A session that forgot to commit, and another one that waits for it."""
    update = "update public.companies set name = name where id = 1"
    with demo.server.connect() as holder, demo.server.connect() as waiter:
        holder.execute("begin")
        holder.execute(update)
        waiting = threading.Thread(target=waiter.execute, args=[update], daemon=True)
        waiting.start()
        time.sleep(3)
        try:
            yield
        finally:
            holder.execute("rollback")
            waiting.join()


class Terminal:
    """Where the commands run: a terminal of a fixed size, whose screen can be taken down."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._environment = {**demo.environment, "TERM": "xterm-256color", "LANG": "C.UTF-8", "TZ": "UTC"}

    def __call__(self, *arguments: str, between: str | None = None) -> list[Frame]:
        """The screen at the end of a command; before it the one half way, of those that show ``between``."""
        screen = pyte.Screen(WIDTH, HEIGHT)
        stream = pyte.ByteStream(screen)
        under_way: list[Frame] = []
        for data in self._run(arguments):
            stream.feed(data)
            if between is not None and between in "\n".join(screen.display):
                under_way.append(taken(screen))
        prompt = Text.assemble(("$ ", "bold green"), (f"opsctl {' '.join(map(quoted, arguments))}", "bold"))
        frames = [*under_way[len(under_way) // 2 :][:1], taken(screen)]
        return [[prompt, *frame] for frame in frames]

    def _run(self, arguments: Sequence[str]) -> Iterator[bytes]:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "opsctl", *arguments],
            cwd=self._demo.folder,
            env=self._environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        try:
            while data := _read(master):
                yield data
        finally:
            os.close(master)
            process.wait()


def screenshot(demo: Demo, browser: str) -> bytes:
    """The status page as a PNG."""
    demo.run("list", capture=True)
    demo.run("doctor", capture=True)
    command = [sys.executable, "-m", "opsctl", "serve", "--port", "0"]
    environment = {**demo.environment, "OPSCTL_LOG_FORMAT": "json"}
    with subprocess.Popen(command, cwd=demo.folder, env=environment, stderr=subprocess.PIPE, text=True) as served:
        lines = served.stderr or ()
        try:
            url = next(found[1] for line in lines if (found := re.search(r"(http://[\d.]+:\d+)", line)))
            path = demo.folder / "page.png"
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,860"]
            options += [f"--user-data-dir={demo.folder}/browser", "--virtual-time-budget=3000", f"--screenshot={path}"]
            own = {**os.environ, "HOME": str(demo.folder)}
            subprocess.run([browser, *options, url], env=own, check=True, capture_output=True, timeout=60)
            return path.read_bytes()
        finally:
            served.terminate()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the program has ended
        return b""


def quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def taken(screen: pyte.Screen) -> Frame:
    """The lines of a screen with their colours, without the empty ones at its end."""
    lines = [_line(screen.buffer[row], screen.columns) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def _line(row: "dict[int, pyte.screens.Char]", columns: int) -> Text:
    text = Text()
    for column in range(columns):
        each = row[column]
        colour = None if each.fg == "default" else each.fg.replace("brown", "yellow")
        colour = f"#{colour}" if colour and re.fullmatch(r"[0-9a-f]{6}", colour) else colour
        text.append(each.data, Style(color=colour, bold=each.bold, italic=each.italics, underline=each.underscore))
    text.rstrip()
    return text


def draw(frames: list[Frame], *, title: str, name: str) -> str:
    """The SVG: no font and nothing else is fetched from anywhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for number, frame in enumerate(frames):
        if number:
            console.print(Text("  … and when it is done:\n", style="dim italic"))
        for line in frame if number == 0 else frame[1:]:
            console.print(line, soft_wrap=True)
        if number < len(frames) - 1:
            console.print()
    text = console.export_text(clear=False)
    svg = console.export_svg(title=title, theme=THEME, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas"
    )
    return svg.replace("</svg>", f"<!-- shape: {shape(text)} -->\n</svg>")


def shape(text: str) -> str:
    """What a text says, whatever its ids, times, numbers, folders and bars are at the moment, and where lines break."""
    text = "".join(re.sub(r"\b([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{4}\b", r"\1", text).split())
    text = re.sub(r"━.*?…", "━", text)
    text = re.sub(r"/tmp/opsctl-[\w-]+?(?=/|:)", "/tmp/0", text)  # noqa: S108  # the folders of the demo
    text = re.sub(r"\d[\d.,:TZ+-]*(ms|s|min|h|B|KiB|MiB|GiB)?", "0", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shape_of(svg: str) -> str | None:
    found = SHAPE.search(svg)
    return found and found[1]


if __name__ == "__main__":
    main()
