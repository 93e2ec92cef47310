"""What docs/configuration.md says of each key, for the JSON Schema of opsctl.toml: share/keys.json."""  # noqa: INP001

import json
import re
from collections.abc import Iterable, Iterator
from typing import get_args, get_origin

from pydantic import BaseModel  # noqa: TID253

from opsctl.settings import FileSettings

LINK = re.compile(r"\[((?:\[[^\]]*\]|[^\[\]])*)\]\([^)]*\)")
ROW = re.compile(r"^\| `(\w+)` \| [^|]* \| (.+) \|$", re.MULTILINE)


def models() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of the configuration file, with its model."""

    def walk(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
        for key, field in model.model_fields.items():
            inner = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
            for each in inner:
                if issubclass(each, BaseModel):
                    name = f"{prefix}{key}" + (".NAME" if get_origin(field.annotation) is dict else "")
                    if get_origin(field.annotation) is tuple:  # [[prefix.key]]
                        name = f"[{prefix}{key}]"
                    yield name, each
                    yield from walk(f"{name}.", each)

    yield from walk("", FileSettings)


def keys_json(page: str, sections: Iterable[tuple[str, type[BaseModel]]]) -> str:
    """share/keys.json, whole: the meaning of each key by the name of its model."""
    found = {model.__name__: _meanings(_section(page, section)) for section, model in sections}
    return json.dumps(found, indent=0, ensure_ascii=False) + "\n"


def _section(page: str, name: str) -> str:
    return page.partition(f"\n## `[{name}]`\n")[2].partition("\n## ")[0]


def _meanings(text: str) -> dict[str, str]:
    """The last cell of each row as a sentence; links lead nowhere in an editor."""
    before = "Keeps " if "| default | keeps |" in text else ""
    plain = LINK.sub(r"\1", text).replace(r"\|", "|")
    return {key: before + cell for key, cell in ROW.findall(plain)}
