"""Markdown → Runbook. Whatever the file holds, this ends with a runbook and what is wrong with it."""

import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from opsctl.checks.check import Status
from opsctl.runbook import TIMEOUT_SECONDS, VERIFY_SECONDS, Command, Condition, Effect, Problem, Runbook, Scenario, Step
from opsctl.runbook.command_line import split

if TYPE_CHECKING:
    from markdown_it.token import Token

VERBS: tuple[Effect, ...] = get_args(Effect)
SHELLS = frozenset({"sh", "bash", "shell", "console"})
KEYS = ("id", "if", "verify", "undo", "target", "timeout", "wait")
ABOUT = ("triggers", "aliases", "parameters", "owner")
"""What the comment under a scenario's heading may say."""

ID = re.compile(r"[\w][\w.-]*")
CONDITION = re.compile(r"([\w.-]+)(!?=)(\w+)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
DURATION = re.compile(r"(\d{1,6})([smh]?)", re.ASCII)
NEWLINE = re.compile(r"\r\n?")
COMMENT = re.compile(r"\s*<!--(.*?)-->\s*", re.DOTALL)
ABOUT_LINE = re.compile(r"([a-z]+)\s*:\s*(.*)")


def parse(text: str, *, source: str = "the runbook") -> Runbook:
    """The scenarios of a Markdown text, and the problems of its grammar."""
    from markdown_it import MarkdownIt

    text = NEWLINE.sub("\n", text.removeprefix("\ufeff"))
    tokens = MarkdownIt("commonmark").parse(_without_front_matter(text))
    return _Reader(text, source).read(tokens)


def slug(title: str) -> str:
    """The anchor GitHub gives a heading: letters, marks, digits, ``_`` and ``-`` stay, in lower case."""
    kept = (c for c in title.strip().lower() if c in " -" or unicodedata.category(c) in _KEPT)
    return "".join(kept).replace(" ", "-")


_KEPT = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"})


def _without_front_matter(text: str) -> str:
    """The same number of lines: GitHub shows it as a table, CommonMark would make a heading of it."""
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return text
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    return text if end is None else "\n".join([""] * (end + 1) + lines[end + 1 :])


class _Reader:
    """One pass over the tokens."""

    def __init__(self, text: str, source: str) -> None:
        self._text, self._source = text, source
        self._lines = text.split("\n")
        self._problems: list[Problem] = []
        self._scenarios: list[Scenario] = []
        self._anchors: dict[str, str] = {}
        self._current: dict[str, Any] | None = None
        self._steps: list[Step] = []

    def read(self, tokens: "list[Token]") -> Runbook:
        previous: Token | None = None
        for number, token in enumerate(tokens):
            if token.type == "heading_open":
                self._heading(token, tokens[number + 1])
            elif token.type == "fence":
                self._fence(token)
            elif token.type == "html_block" and token.level == 0 and self._current is not None:
                is_first = previous is not None and previous.type == "heading_close"
                self._comment(token, is_first=is_first)
            previous = token
        self._end_scenario(len(self._lines))
        problems = sorted(self._problems, key=lambda each: each.line)
        return Runbook(self._source, self._text, tuple(self._scenarios), tuple(problems), frozenset(self._anchors))

    def _problem(self, line: int, message: str) -> None:
        self._problems.append(Problem(line, message, self._current["id"] if self._current else None))

    def _heading(self, token: "Token", inline: "Token") -> None:
        line = _line(token)
        if token.level == 0 and token.tag in {"h1", "h2"}:
            self._end_scenario(line - 1)
        title = "".join(each.content for each in inline.children or () if each.type in {"text", "code_inline"})
        anchor = slug(title)
        if token.level == 0 and token.tag == "h2":
            self._current = {"id": anchor, "title": title.strip(), "line": line}
            if not anchor:
                self._problem(line, "The heading has no letter or digit, so the scenario has no id.")
        if anchor and anchor in self._anchors:
            self._problem(line, f"The heading {title!r} has the same anchor, {anchor}, as {self._anchors[anchor]!r}.")
        self._anchors.setdefault(anchor, title)

    def _end_scenario(self, last_line: int) -> None:
        if self._current is not None and (self._steps or "triggers" in self._current):
            text = "\n".join(self._lines[self._current["line"] - 1 : last_line]).rstrip() + "\n"
            self._scenarios.append(Scenario(**self._current, text=text, steps=tuple(self._steps)))
        self._current, self._steps = None, []

    def _comment(self, token: "Token", *, is_first: bool) -> None:
        """``key: value`` lines under the heading; any other comment is one."""
        match = COMMENT.fullmatch(token.content)
        lines = [ABOUT_LINE.fullmatch(each.strip()) for each in match[1].strip().splitlines()] if match else []
        pairs = [(each[1], each[2].strip()) for each in lines if each]
        if self._current is None or not pairs or not (is_first or any(key in ABOUT for key, _ in pairs)):
            return
        if not is_first:
            self._problem(_line(token), "The comment must stand right under the scenario's heading.")
            return
        for key, value in pairs:
            if key not in ABOUT:
                self._problem(_line(token), f"{key!r} says nothing about a scenario.{_meant(key, ABOUT)}")
            elif key == "owner":
                self._current[key] = value
            else:
                self._current[key] = tuple(each for each in re.split(r"[,\s]+", value) if each)
        for name in self._current.get("parameters", ()):
            if not name.isidentifier():
                self._problem(_line(token), f"The parameter {name!r} cannot be a variable's name.")

    def _fence(self, token: "Token") -> None:
        line = _line(token)
        if not _is_closed(token):
            self._problem(line, f"The fence never closes: there is no line with {token.markup} alone after it.")
            return
        language, verb, keys = [*token.info.split(maxsplit=2), "", "", ""][:3]
        if verb not in VERBS:
            self._no_verb(line, language, verb)
            return
        before = len(self._problems)
        if self._current is None:
            self._problem(line, "The step is in no scenario: it needs a ## heading above it.")
        if verb != "manual" and language not in SHELLS:
            self._problem(line, f"A step of {verb} is ```sh {verb}, not ```{language}.")
        step = self._step(verb, _pairs(keys), token)
        if len(self._problems) == before and step is not None:
            self._steps.append(step)

    def _no_verb(self, line: int, language: str, verb: str) -> None:
        """A fence that does not run; where it looks as if it was meant to, that is a problem."""
        if not verb:
            if language in VERBS:
                self._problem(line, f"The verb stands after the language: ```sh {language}.")
        elif verb.partition("=")[0] in KEYS and "=" in verb:
            self._problem(line, f"There is a key but no verb: ```{language} {', '.join(VERBS)}?")
        elif (language in SHELLS and verb.isalpha()) or get_close_matches(verb.lower(), VERBS, n=1, cutoff=0.75):
            self._problem(line, f"{verb!r} is no verb.{_meant(verb, VERBS)} There are {', '.join(VERBS)}.")

    def _step(self, verb: Effect, pairs: "list[tuple[str, str]] | str", token: "Token") -> Step | None:
        line = _line(token)
        if isinstance(pairs, str):
            self._problem(line, pairs)
            return None
        given: dict[str, str] = {}
        for key, value in pairs:
            if key not in KEYS:
                self._problem(line, f"{key!r} is not a key of a step.{_meant(key, KEYS)} There are {', '.join(KEYS)}.")
            elif key in given:
                self._problem(line, f"The key {key} is given twice.")
            elif not value:
                self._problem(line, f"The key {key} has no value.")
            given[key] = value
        values = self._values(line, verb, given)
        name = given.get("id", f"step-{len(self._steps) + 1}")
        if not ID.fullmatch(name):
            self._problem(line, f"The id {name!r} may have letters, digits, _, - and . only.")
        if any(each.id == name for each in self._steps):
            self._problem(line, f"The id {name} is another step's already.")
        commands = () if verb == "manual" else tuple(self._commands(token))
        if verb != "manual" and not commands:
            self._problem(line, "The step has no command.")
        return Step(
            id=name,
            effect=verb,
            text=token.content.rstrip("\n"),
            line=line,
            commands=commands,
            target=given.get("target"),
            is_named="id" in given,
            **values,
        )

    def _values(self, line: int, verb: Effect, given: Mapping[str, str]) -> dict[str, Any]:
        """The keys that have a form of their own."""
        values: dict[str, Any] = {"timeout_seconds": TIMEOUT_SECONDS[verb], "wait_seconds": VERIFY_SECONDS}
        for key in ("timeout", "wait"):
            if key in given:
                match = DURATION.fullmatch(given[key])
                if match is None or int(match[1]) == 0:
                    self._problem(line, f"{key}={given[key]} is no time: 30s, 10m, 2h.")
                else:
                    values[f"{key}_seconds"] = float(int(match[1]) * SECONDS[match[2]])
        if "timeout" in given and "wait" not in given:
            values["wait_seconds"] = min(VERIFY_SECONDS, values["timeout_seconds"] or VERIFY_SECONDS)
        if "verify" in given:
            values["verify"] = tuple(each for each in given["verify"].split(",") if each)
        if "if" in given:
            values["conditions"] = tuple(self._conditions(line, given["if"]))
        if "undo" in given:
            values["undo"] = self._command(line, given["undo"], where="undo")
        if verb in {"observe", "manual"}:
            for key in sorted({"undo", "target"} & given.keys()):
                self._problem(line, f"A step of {verb} has nothing for {key}.")
        return values

    def _conditions(self, line: int, text: str) -> Iterator[Condition]:
        for each in text.split(","):
            match = CONDITION.fullmatch(each)
            if match is None or match[3] not in get_args(Status):
                self._problem(line, f"if={each} is no condition: CHECK=STATUS or CHECK!=STATUS, as in service.bot!=ok.")
            else:
                yield Condition(match[1], match[3], is_negated=match[2] == "!=")

    def _commands(self, token: "Token") -> Iterator[Command]:
        """A command per line; a backslash at a line's end goes on with the next one."""
        begun: list[str] = []
        first = _line(token) + 1
        for number, text in enumerate(token.content.rstrip("\n").split("\n"), first):
            if not begun and (not text.strip() or text.lstrip().startswith("#")):
                continue
            begun.append(text.strip())
            if text.endswith("\\"):
                begun[-1] = begun[-1].removesuffix("\\").rstrip()
                continue
            command = self._command(number - len(begun) + 1, " ".join(begun))
            begun = []
            if command is not None:
                yield command
        if begun:
            self._problem(first, "The last line ends with a backslash.")

    def _command(self, line: int, text: str, where: str = "") -> Command | None:
        try:
            return Command(split(text), text, line)
        except ValueError as error:
            self._problem(line, f"{where}{': ' if where else ''}`{text}` {error}.")
            return None


def _line(token: "Token") -> int:
    """Counted from one."""
    return (token.map[0] if token.map else 0) + 1


def _is_closed(token: "Token") -> bool:
    """The lines a fence takes are its first, those of its content, and its last one if there is one."""
    if token.map is None:
        return False
    content = token.content
    lines = content.count("\n") + (1 if content and not content.endswith("\n") else 0)
    return token.map[1] - token.map[0] == lines + 2


def _pairs(keys: str) -> list[tuple[str, str]] | str:
    """``key=value`` words; else what is wrong."""
    try:
        words = shlex.split(keys)
    except ValueError:
        return "The keys cannot be read: a quotation mark is missing."
    pairs = [tuple(word.split("=", 1)) for word in words]
    stray = next((each[0] for each in pairs if len(each) == 1), None)
    if stray is not None:
        return f"{stray!r} is not of the form key=value."
    return [(each[0], each[1]) for each in pairs]


def _meant(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
