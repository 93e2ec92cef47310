import json
import sys
from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome, PlainTable, TextOutput
from opsctl.errors import ConfigurationError

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.effective import Setting

SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def show(session: "Session") -> Outcome:
    """The configuration in force: every setting, and where it came from. Secrets are masked.

    Settings left at a default of nothing are in the JSON document only.

    Example: [bold]opsctl config show[/bold]
    """
    from opsctl.effective import settings_in_force

    found = settings_in_force(session.config)
    table = PlainTable()
    for heading in ("Setting", "Value", "From"):
        table.add_column(heading, overflow="fold")
    for each in found:
        if each.is_set:
            table.add_row(each.key, json.dumps(each.value, ensure_ascii=False), each.source)
    result = {"source": session.config.source, "settings": [_entry(each) for each in found]}
    return Outcome(result, [f"Configuration: {session.config.source}", table])


def _entry(setting: "Setting") -> dict[str, Any]:
    return {"key": setting.key, "value": setting.value, "source": setting.source}


def validate(session: "Session") -> Outcome:
    """Look for everything that is wrong with the configuration: a line for each problem, and exit code 10.

    It connects nowhere and runs no command. `opsctl doctor` and `opsctl repository check` try what it describes.

    Example: [bold]opsctl config validate[/bold]
    """
    from opsctl.config_problems import problems_of

    source = None
    try:
        config = session.config
        source = config.source
        problems = list(problems_of(config))
    except ConfigurationError as error:
        problems = [error, *error.others]
    result = {
        "source": source,
        "problems": [{"message": each.message, "hint": each.hint} for each in problems],
    }
    if not problems:
        return Outcome(result, [f"{source}: nothing is wrong."])
    count = "There is a problem" if len(problems) == 1 else f"There are {len(problems)} problems"
    hint = "Correct it; docs/configuration.md has every key."
    found = ConfigurationError(f"{count} with the configuration.", hint=hint)
    return Outcome(result, [_line(each) for each in problems], error=found)


def _line(problem: ConfigurationError) -> str:
    return " ".join(f"{problem.message} {problem.hint or ''}".split())


def schema(session: "Session") -> Outcome:
    """The JSON Schema of opsctl.toml, for editors that complete and check it. With --json it is the same.

    Example: [bold]opsctl config schema > opsctl.schema.json[/bold]
    """
    from opsctl.settings import FileSettings

    session.output = TextOutput(session.redactor, quiet=session.options.quiet)  # a document of its own kind
    described = {"$schema": SCHEMA, **FileSettings.model_json_schema(), "title": "opsctl.toml"}
    sys.stdout.write(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    return Outcome(None)
