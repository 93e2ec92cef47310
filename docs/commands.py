"""The commands as the generated pages tell of them."""  # noqa: INP001

import re
from pathlib import Path
from typing import Any

from opsctl.cli.app import COMMANDS
from opsctl.cli.boundary import COMMON

VALUES = {Path: "FILE", int: "NUMBER", str: "TEXT"}
"""What stands for the value of an option without a word of its own."""


def command_of(group: Any, name: str) -> Any:
    """The command of that name, which may be two words."""
    for word in name.split():
        group = group.commands[word]
    return group


def split_help(text: str | None) -> tuple[str, str]:
    """A command's help without Rich's markup: the prose, and the command line of its example."""
    prose, _, example = re.sub(r"\[/?bold\]", "", text or "").partition("Example:")
    return prose.strip(), example.strip()


def common_of(group: Any) -> list[Any]:
    """The options that every command takes."""
    first = group.commands[COMMANDS[0][0]]
    return [param for param in first.params if param.name in COMMON]


def placeholder(argument: Any) -> str:
    name = argument.metavar if argument.required else f"[{argument.metavar}]"
    return f"{name}..." if argument.nargs == -1 else name


def spellings(param: Any) -> list[str]:
    """How a parameter is written, each with its value."""
    if param.param_type_name == "argument":
        return [placeholder(param)]
    value = "" if param.is_flag else f" {param.metavar or VALUES[param.type_descriptor.annotation]}"
    return [f"{option}{value}" for option in param.opts]


def usage(name: str, command: Any) -> str:
    """How a command is called."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    return " ".join(["opsctl", name, "[OPTIONS]", *map(placeholder, arguments)])


def own_of(command: Any, kind: str) -> list[Any]:
    """The arguments, or the options, that only this command takes."""
    return [each for each in command.params if each.name not in COMMON and each.param_type_name == kind]
