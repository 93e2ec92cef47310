"""What could stand where the cursor is. The shells ask at every tab, so nothing that takes time is loaded.

The commands come from ``share/words.json``, which is written from them (docs/generate.py); names and ids come from
:mod:`opsctl.cli.known`. The answer is ``files`` or ``words`` on the first line, then a word a line, with a tab and what
it means. Whatever goes wrong, there is nothing to offer, and no message in somebody's command line.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsctl.cli.known import Known

WORDS = Path(__file__).parents[1] / "share/words.json"
SECONDS = 2.0
"""How long a shell may be kept waiting: a folder on a server that hangs is not worth more."""
MOST = 200
"""Of more values than that the newest are offered; another letter makes them fewer."""

Word = tuple[str, str]
"""A word, and what it means."""


@dataclass
class Line:
    """A command line up to the cursor: its command, and what the last word is about to be.

    ``wanted`` are kinds of values; ``prefix`` is the ``--option=`` that a value is written after.
    """

    command: str = ""
    wanted: tuple[str, ...] = ()
    incomplete: str = ""
    prefix: str = ""
    given: list[str] = field(default_factory=list)
    """The values there are already."""
    options: dict[str, str] = field(default_factory=dict)
    """The options there are already; the last value of each."""


def main(typed: str) -> None:
    """Print the answer for a command line as far as it is typed."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    with suppress(Exception):
        table = json.loads(WORDS.read_text(encoding="utf-8"))
        line = understood(split(typed), table)
        found = [(f"{line.prefix}{word}", meaning) for word, meaning in _offered(line, table)]
        kind = "files" if not found and "file" in line.wanted else "words"
        text = "\n".join([kind, *(f"{word}\t{' '.join(meaning.split())}" for word, meaning in found)])
        sys.stdout.buffer.write(f"{text}\n".encode(errors="surrogateescape"))


def split(typed: str) -> list[str]:
    """The words after the program's name as it would get them; the last one, which a quote may still hold open, too."""
    lexer = shlex.shlex(typed, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words += lexer
        is_new = typed[-1:].isspace() and typed[-2:-1] != "\\"
    except ValueError:
        words.append(lexer.token)
        is_new = False
    while words and "=" in words[0] and not words[0].startswith("-"):  # NAME=VALUE before the program
        words.pop(0)
    return [*words[1:], *([""] if is_new else [])]


def understood(words: Sequence[str], table: Mapping[str, Any]) -> Line:
    """What a command line is about; the last word is the incomplete one, empty where a new one begins."""
    line = Line(incomplete=words[-1] if words else "")
    commands: Mapping[str, Any] = table["commands"]
    before = list(words[:-1])
    while before and (name := f"{line.command} {before[0]}".strip()) in commands:
        line.command = name
        before.pop(0)
    known = commands[line.command]
    options = {name: each for each in known["options"] for name in each["names"]}
    waiting, ended = None, False
    for word in before:
        if waiting is not None:
            line.options[waiting["names"][0]], waiting = word, None
        elif ended or word == "-" or not word.startswith("-"):
            line.given.append(word)
        elif word == "--":
            ended = True
        else:
            waiting = _taken(line, word, options)
    if waiting is not None:
        line.wanted = tuple(waiting["value"])
    elif line.incomplete.startswith("-") and not ended:
        name, equals, value = line.incomplete.partition("=")
        line.wanted = ("option",)
        if equals:
            line.wanted, line.prefix, line.incomplete = tuple(options.get(name, {}).get("value", ())), f"{name}=", value
    else:
        line.wanted = _argument(known["arguments"], len(line.given))
    return line


def _taken(line: Line, word: str, options: Mapping[str, Any]) -> Any | None:
    """Note an option, or a bundle of short ones; the one whose value is still to come, if there is one."""
    name, equals, value = word.partition("=")
    names = [name] if word.startswith("--") else [f"-{letter}" for letter in word[1:]]
    for each in (options.get(name) for name in names):
        if each is not None:
            line.options[each["names"][0]] = value
            if each["value"] and not equals:
                is_last = names[-1] in each["names"]
                return each if is_last else None  # -n5: the value is the rest of the word
    return None


def _argument(arguments: Sequence[Mapping[str, Any]], position: int) -> tuple[str, ...]:
    if not arguments:
        return ("command",) if position == 0 else ()
    if position < len(arguments):
        return tuple(arguments[position]["value"])
    return tuple(arguments[-1]["value"]) if arguments[-1]["many"] else ()


def _offered(line: Line, table: Mapping[str, Any]) -> list[Word]:
    known = Known(line.options.get("--config"))
    found: dict[str, str] = {}
    for kind in line.wanted:
        for word, meaning in _words(kind, line, table, known):
            if word.startswith(line.incomplete) and word not in line.given and len(found) < MOST:
                found.setdefault(word, meaning)
    return list(found.items())


def _words(kind: str, line: Line, table: Mapping[str, Any], known: Known) -> Iterator[Word]:
    """What there is of a kind, the likeliest first."""
    match kind.partition(":")[::2]:
        case "command", _:
            yield from _commands(line.command, table["commands"])
        case "option", _:
            yield from _options(line, table["commands"][line.command]["options"])
        case "choice", choices:
            yield from ((choice, "") for choice in choices.split("|"))
        case "check", _:
            yield from ((name, "") for name in known.checks)
            yield from table["checks"].items()
        case "scenario", _:
            for each in known.scenarios or table["scenarios"]:
                yield each["id"], each["title"]
        case "step", _:
            for each in known.scenarios or table["scenarios"]:
                if not line.given or each["id"] in line.given:
                    yield from ((step, "") for step in each["steps"])
        case _:
            yield from ((name, "") for name in known.of(kind, line.incomplete))


def _commands(parent: str, commands: Mapping[str, Any]) -> Iterator[Word]:
    for name, each in commands.items():
        above, _, last = name.rpartition(" ")
        if last and above == parent:
            yield last, each["help"]


def _options(line: Line, options: Sequence[Mapping[str, Any]]) -> Iterator[Word]:
    for each in options:
        if each["many"] or each["names"][0] not in line.options:
            wanted = [name for name in each["names"] if name.startswith("--")] or each["names"]
            yield from ((name, each["help"]) for name in wanted)
