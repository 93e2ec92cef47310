"""What values in opsctl.toml look like: the model all sections are, and the kinds of values several of them hold."""

import re
import shlex
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr  # noqa: TID253  # as in settings.py

from opsctl.schedule import Schedule, time_zone


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _postgres_url(url: SecretStr) -> SecretStr:
    """``url`` as libpq reads it: SQLAlchemy's ``+driver`` goes; an unescaped password is found here."""
    scheme, separator, rest = url.get_secret_value().partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        raise ValueError("must begin with postgresql://")
    authority = rest.partition("/")[0].partition("?")[0]
    userinfo = rest.partition("?")[0].rpartition("@")[0]
    text = f"postgresql://{rest}"
    try:
        unescaped = authority.count("@") > 1 or "#" in userinfo or "/" in userinfo
        unescaped |= bool(authority) and "@" not in authority and "@" in rest.partition("/")[0]  # a "?" in it
        _ = urlsplit(text).port if "," not in authority else None
    except ValueError:
        unescaped = True
    if unescaped:
        raise ValueError("cannot be read; the characters @ : / ? # % in a password must be percent-encoded (@ is %40)")
    return SecretStr(text)


def _each_unit_once(duration: str) -> str:
    units = [character for character in duration if character.isalpha()]
    if len(set(units)) < len(units):
        raise ValueError("names a unit twice")
    return duration


def _cron(expression: str) -> str:
    return Schedule(expression).expression


def _time_zone(name: str) -> str:
    time_zone(name)
    return name


def _seconds(value: Any) -> Any:
    """``90``, ``"90s"``, ``"15m"``, ``"1h"``."""
    match = re.fullmatch(r"([0-9]{1,5})([smh])", value) if isinstance(value, str) else None
    if match is None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError('must be a number of seconds, or like "15m": s, m or h')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


def _command_line(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words:
        raise ValueError("is no command line")
    return text


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Cron = Annotated[str, AfterValidator(_cron)]
Jitter = Annotated[int, BeforeValidator(_seconds, json_schema_input_type=int | str), Field(ge=0, le=12 * 3600)]
"""Seconds that a run may begin later than its minute, so that many hosts do not begin at once."""

TimeZone = Annotated[str, AfterValidator(_time_zone)]
CommandLine = Annotated[str, AfterValidator(_command_line)]
Pattern = Annotated[str, AfterValidator(_pattern)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^/@?#\s]+([/?][^\s#]*)?$")]
Seconds = Annotated[float, Field(gt=0, le=8)]
"""How long a check may take: less than a whole run of doctor has."""

Duration = Annotated[str, Field(pattern=r"^([0-9]{1,5}[ymwdh])+$"), AfterValidator(_each_unit_once)]
