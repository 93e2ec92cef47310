"""Where the runbook is: the configured file, else the one that comes with opsctl."""

from pathlib import Path

from opsctl.errors import ConfigurationError
from opsctl.runbook import Runbook
from opsctl.runbook.parse import parse

SHIPPED = {"en": "runbook.md", "ru": "runbook.ru.md"}
MAX_BYTES = 4 * 1024 * 1024


def shipped(language: str) -> Path:
    return Path(__file__).with_name(SHIPPED[language])


def read(path: Path) -> Runbook:
    """Raises ConfigurationError when it cannot be read; what is wrong in it is in the result."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(f"{path} is larger than a runbook can be.", hint="It may have 4 MiB.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"The runbook {path} cannot be read: {error.strerror}.", hint="[runbook] path names another one."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The runbook {path} is not UTF-8.", hint="Save it as UTF-8.") from error
    return parse(text, source=str(path))
