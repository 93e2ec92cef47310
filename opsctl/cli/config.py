import json
import sys
from typing import TYPE_CHECKING, Any

from opsctl.cli.output import Outcome, PlainTable, TextOutput
from opsctl.errors import ConfigurationError

if TYPE_CHECKING:
    from opsctl.cli.session import Session
    from opsctl.effective import Setting


def show(session: "Session") -> Outcome:
    """The configuration in force: every setting, and where it came from. Secrets are masked.

    Settings left at a default of nothing are in the JSON document only.

    Example: [bold]opsctl config show[/bold]
    """
    from opsctl.effective import settings_in_force

    found = settings_in_force(session.config)
    table = PlainTable()
    for heading in ("Setting", "Value", "From"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "Setting")
    for each in found:
        if each.is_set:
            place = each.source.replace(f"{session.config.folder}/", "")  # of which the first line tells
            table.add_row(each.key, json.dumps(each.value, ensure_ascii=False), place)
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
        config = session.config_as_written
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
    from opsctl.config_schema import config_schema

    session.output = TextOutput(session.redactor, quiet=session.options.quiet)  # a document of its own kind
    sys.stdout.write(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n")
    return Outcome(None)
