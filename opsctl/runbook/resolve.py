"""A step's commands as they will run: parameters in their places, a restore with the one backup it is about."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace

from opsctl.runbook import Command, parameter_in
from opsctl.runbook.effects import opsctl_effect


def is_restore(command: Command) -> bool:
    is_one = command.words[:2] == ("opsctl", "restore")
    return is_one and opsctl_effect("restore", command.words[2:]) == "danger" and not _is_way_back(command)


def _is_way_back(command: Command) -> bool:
    return bool({"--undo", "--forget-previous"} & set(command.words))


def is_danger(command: Command) -> bool:
    return command.is_opsctl and opsctl_effect(command.words[1], command.words[2:]) == "danger"


def with_backup(command: Command, backup_id: str) -> Command:
    """The same restore, of the one backup that its plan is about."""
    kept: list[str] = []
    words = iter(command.words[2:])
    for word in words:
        if word == "--before":
            next(words, None)
        elif not word.startswith("--before=") and not word.startswith("latest"):
            kept.append(word)
    if not backup_id or backup_id in kept:
        return command
    named = ("opsctl", "restore", backup_id, *kept)
    return replace(command, words=named, text=" ".join(named))


def resolved(commands: Iterable[Command], parameters: Mapping[str, str]) -> tuple[Command, ...]:
    """The commands with the parameters' values: each one word, whatever is in it."""
    found = []
    for each in commands:
        words = tuple(parameters[name] if (name := parameter_in(word)) else word for word in each.words)
        found.append(replace(each, words=words, text=shlex.join(words) if each.parameters else each.text))
    return tuple(found)
