"""The commands as a table, for completion at a shell: share/words.json."""  # noqa: INP001

import json
import re
from typing import Any, get_args, get_origin

import typer.main
from commands import command_of, split_help

from opsctl.checks import ALL_CHECKS
from opsctl.cli.app import COMMANDS, new_app
from opsctl.cli.boundary import run_command
from opsctl.runbook.files import read, shipped

KINDS = {
    "DATABASE": "database",
    "ID": "backup",
    "A": "backup",
    "B": "backup",
    "CHECK": "check",
    "SERVICE": "service",
    "SCENARIO": "scenario",
    "STEP": "step",
    "INCIDENT": "incident",
    "FILE": "file",
}
"""What stands for a name that is known; other words are free."""

ALSO = {
    ("list", "repository"): ["repository"],
    ("repository check", "names"): ["repository"],
    ("history", "command"): ["choice:" + "|".join(name for name, _, _ in COMMANDS if " " not in name)],
}
"""Parameters whose word does not say it."""

NEVER = {"yes"}
"""Options that confirm something by its name: that is to be written by whoever means it."""


def words_json() -> str:
    """share/words.json, whole."""
    group: Any = typer.main.get_command(new_app(run_command))
    names = dict.fromkeys(part for name, _, _ in COMMANDS for part in (name.partition(" ")[0], name))
    scenarios = read(shipped("en")).scenarios
    steps = [{"id": s.id, "title": s.title, "steps": [step.id for step in s.steps]} for s in scenarios]
    table = {
        "commands": _lines({name: _entry(name, group) for name in ("", *names)}),
        "checks": json.dumps({each.id: each.title for each in ALL_CHECKS}),
        "scenarios": json.dumps(steps),
    }
    return "{\n" + ",\n".join(f'"{key}": {text}' for key, text in table.items()) + "\n}\n"


def _lines(entries: dict[str, Any]) -> str:
    """An object with a line for each of its keys."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(each)}" for key, each in entries.items()) + "\n}"


def _entry(name: str, group: Any) -> dict[str, Any]:
    command = command_of(group, name)
    params = [param for param in command.params if not param.hidden]
    return {
        "help": split_help(command.help)[0].partition("\n\n")[0].replace("\n", " "),
        "options": [*(_option(name, each) for each in params if each.param_type_name == "option"), *_help_of(params)],
        "arguments": [
            {"value": _kinds(name, each), "many": each.nargs == -1}
            for each in params
            if each.param_type_name == "argument"
        ],
    }


def _help_of(params: list[Any]) -> list[dict[str, Any]]:
    """Typer adds it to each command of its own accord."""
    if any("--help" in each.opts for each in params):
        return []
    return [{"names": ["--help", "-h"], "help": "Show this message and exit.", "value": [], "many": False}]


def _option(command: str, option: Any) -> dict[str, Any]:
    is_many = get_origin(option.type_descriptor.annotation) is list
    value = [] if option.is_flag else _kinds(command, option) or ["text"]
    return {"names": option.opts, "help": option.help, "value": value, "many": is_many}


def _kinds(command: str, param: Any) -> list[str]:
    descriptor = param.type_descriptor
    if (command, param.name) in ALSO:
        return ALSO[command, param.name]
    if param.name in NEVER:
        return []
    if descriptor.is_choice:
        return ["choice:" + "|".join(map(str, get_args(descriptor.annotation)))]
    words = re.findall(r"[A-Z]+", param.metavar or "")
    kinds = [KINDS[word] for word in words if word in KINDS]
    return [*kinds, *(["file"] if descriptor.is_path and "file" not in kinds else [])]
