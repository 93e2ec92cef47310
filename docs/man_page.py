"""The manual page, opsctl(1), from the commands and the tables of the docs."""  # noqa: INP001

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from commands import command_of, common_of, own_of, spellings, split_help, usage

from opsctl import __version__
from opsctl.cli.app import COMMANDS, new_app
from opsctl.cli.boundary import run_command

DOCS = Path(__file__).parent

FILES = {
    "./opsctl.toml, $XDG_CONFIG_HOME/opsctl/opsctl.toml, /etc/opsctl/opsctl.toml": "The configuration: the first of "
    "these that exists, unless --config or OPSCTL_CONFIG names another.",
    ".env, .env.local": "Variables, beside the configuration and in the working folder.",
    "./backups": "The repository, where none is configured.",
    "/var/lib/opsctl, ~/.local/state/opsctl": "What opsctl keeps of this host: for root, and for everybody else.",
}


def man_page() -> str:
    """share/man/opsctl.1, whole."""
    group: Any = typer.main.get_command(new_app(run_command))
    purpose, _, _ = split_help(group.help)[0].partition("\n\n")
    lines = [
        '.\\" Written by docs/generate.py (`make docs`).',
        f'.TH OPSCTL 1 "" "opsctl {__version__}" "User Commands"',
        ".SH NAME",
        f"opsctl \\- {_roff(purpose.rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B opsctl",
        r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        "opsctl takes backups of PostgreSQL databases, proves that they can be restored, restores them in a way that",
        "can be undone, and records what happens in an incident. The result goes to standard output; logs, progress",
        "and questions go to standard error.",
        ".SH OPTIONS",
        "These are for opsctl itself.",
        *_parameters(group.params),
        ".PP",
        "Every command takes these:",
        *_parameters(common_of(group)),
        ".SH COMMANDS",
    ]
    for name, _, _ in COMMANDS:
        lines += _command(name, command_of(group, name))
    lines += [".SH FILES", *_tagged(FILES.items())]
    lines += [".SH ENVIRONMENT", *_tagged(_rows("configuration.md", "## Environment variables"))]
    codes = [(f"{code} ({name})", means) for code, name, means, *_ in _cells("exit-codes.md", "# Exit codes")]
    lines += [".SH EXIT STATUS", *_tagged(codes)]
    lines += [".PP", "doctor ends with 0 (ok), 1 (warn), 2 (crit) or 3 (unknown)."]
    lines += [".SH SEE ALSO", ".BR pg_dump (1),", ".BR pg_restore (1)"]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    text, example = split_help(command.help)
    yield f".SS {_roff(usage(name, command))}"
    first, *others = text.split("\n\n")
    yield _line(first)
    for paragraph in others:
        yield from (".PP", _line(paragraph))
    yield from _parameters([*own_of(command, "argument"), *own_of(command, "option")])
    yield from (".PP", "Example:", ".PP", ".RS 4", ".nf", *map(_roff, example.splitlines()), ".fi", ".RE")


def _parameters(params: list[Any]) -> Iterator[str]:
    yield from _tagged((", ".join(spellings(param)), param.help or "") for param in params)


def _tagged(pairs: Any) -> Iterator[str]:
    for tag, text in pairs:
        yield from (".TP", f".B {_roff(tag)}", _line(text))


def _line(text: str) -> str:
    line = _roff(" ".join(text.split()))
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _roff(text: str) -> str:
    r"""Text without Markdown; ``-`` as the minus that can be copied into a shell."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace(r"\|", "|")
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    return text.replace("…", "...")


def _rows(page: str, heading: str) -> Iterator[tuple[str, str]]:
    return ((name, means) for name, means, *_ in _cells(page, heading))


def _cells(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the first table below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for row in (table[0] if table else "").splitlines()[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
