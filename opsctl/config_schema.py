"""The JSON Schema of opsctl.toml, for editors that complete and check it."""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema  # noqa: TID253  # as in settings.py

from opsctl.settings import FileSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KEYS = Path(__file__).with_name("share") / "keys.json"
"""What each key means, by the name of its model: written from docs/configuration.md, see docs/generate.py."""


def config_schema() -> dict[str, Any]:
    """The whole of it, with what docs/configuration.md says of each key."""
    schema = FileSettings.model_json_schema(schema_generator=_OfToml)
    for model, meanings in json.loads(KEYS.read_text(encoding="utf-8")).items():
        described = schema["$defs"][model]
        described["description"] = described["description"].replace("``", "`")
        for key, meaning in meanings.items():
            described["properties"][key]["description"] = meaning
    return {"$schema": DIALECT, **schema, "title": "opsctl.toml"}


class _OfToml(GenerateJsonSchema):
    """Without what TOML has no word for, null, and without titles that only repeat the key."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        described = super().default_schema(schema)
        return {key: value for key, value in described.items() if (key, value) != ("default", None)}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False
