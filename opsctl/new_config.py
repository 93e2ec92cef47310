"""The opsctl.toml that ``init`` writes: what was answered, and as comments what may be wanted next. Pure."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opsctl.services.compose_file import ComposeService
from opsctl.surroundings import DatabaseSource


@dataclass(frozen=True)
class NewRepository:
    name: str
    url: str
    endpoint_url: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class NewKey:
    """A pair of keys: the public half goes into the configuration, the secret one into ``file``."""

    public: str
    file: str


@dataclass(frozen=True)
class Answers:
    """What the new configuration says. ``project`` is the compose project of the services."""

    database: DatabaseSource
    repositories: Sequence[NewRepository]
    time_zone: str
    services: Sequence[ComposeService] = ()
    project: str | None = None
    recipients: Sequence[str] = ()
    identity: NewKey | None = None
    signing: NewKey | None = None
    runbook: str | None = None
    sentry_variable: str | None = None


def config_text(answers: Answers) -> str:
    """The whole file. Uncommenting an example leaves it valid."""
    parts = (
        _database(answers),
        *map(_repository, answers.repositories),
        _second_repository(answers),
        *_services(answers),
        _schedule(answers),
        _encryption(answers),
        _signing(answers),
        _telling(answers),
        _runbook(answers),
    )
    return "\n".join([HEAD, *(part for part in parts if part)])


HEAD = """\
#:schema opsctl.schema.json
# The line above is for editors: `opsctl config schema > opsctl.schema.json`
# lets them complete and check this file, and say what each key means.
# After a change: `opsctl config validate`. In force: `opsctl config show`.
# No secret belongs in here: url_env, password_env, password_file and
# password_command say where one is.
"""


def _database(answers: Answers) -> str:
    database = answers.database
    reached = (
        "# Docker is asked for the container's address: no port has to be published.\n"
        '# With tools = "service" its own pg_dump runs, which is of the same version.\n'
        if database.service
        else ""
    )
    return f"""\
# Found in: {_comment(database.found_in)}.
{reached}[databases.{_key(database.name)}]
{_lines(database.keys)}
# facts = "content"               # drills compare values, too; reads all twice
# exclude_tables = ["audit_log"]  # their rows stay out, the tables stay in
# lock_timeout_seconds = 60       # the longest wait for a locked table
# keep_previous = "7d"            # then what a restore put aside is dropped

# What a drill asks the restored database: it fails unless the answer is true.
# [[databases.{_key(database.name)}.assertions]]
# sql = "select count(*) > 0 from users"
"""  # noqa: S608 - an example


def _repository(repository: NewRepository) -> str:
    keys = {"url": repository.url, "endpoint_url": repository.endpoint_url, "region": repository.region}
    is_s3 = repository.url.startswith("s3://")
    credentials = (
        "# Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env, a profile,\n# or the machine's role.\n"
    )
    return f"""\
# What stays: `opsctl prune --dry-run` shows it backup by backup, with reasons.
# The newest good one always does.
{credentials if is_s3 else ""}[repositories.{_key(repository.name)}]
{_lines(keys)}
retention = {{ keep_last = 3, keep_daily = 7, keep_weekly = 4, keep_monthly = 12 }}
"""


def _second_repository(answers: Answers) -> str:
    if len(answers.repositories) > 1:
        return ""
    return """\
# A second place, for the day this machine is gone. Every backup goes to both.
# [repositories.offsite]
# url = "s3://bucket/prefix"
# endpoint_url = "https://s3.example.org"   # without it, AWS
# region = "eu-central-1"
# retention = { keep_daily = 30, keep_monthly = 24 }
"""


def _services(answers: Answers) -> Iterator[str]:
    """Those of the compose file that have a health check: doctor watches them, logs and restart know their names."""
    for service in answers.services:
        http = f"[services.{_key(service.name)}.http]\n{_lines({'url': service.health_address})}\n"
        project = _lines({"compose_project": answers.project})
        yield f"[services.{_key(service.name)}]\n{project}\n{http if service.health_address else ''}"


def _schedule(answers: Answers) -> str:
    return f"""\
# When things should run: minute, hour, day of the month, month, weekday.
[schedule]
timezone = {_value(answers.time_zone)}
backup = "0 3 * * *"      # every night
drill = "0 5 * * 0"       # every Sunday: one is restored elsewhere, and compared
doctor = "*/5 * * * *"    # every five minutes
"""


def _encryption(answers: Answers) -> str:
    recipients = [*answers.recipients, *([answers.identity.public] if answers.identity else [])]
    if recipients:
        identity = {"identity_file": answers.identity.file} if answers.identity else {}
        return f"""\
# Backups are encrypted to these public keys. Without an identity that fits,
# nobody opens them again: keep a copy of it where this machine cannot be its
# end. Drills and restores on this machine need identity_file.
[encryption]
{_lines({"recipients": recipients, **identity})}
"""
    return """\
# Encrypted backups: `opsctl keygen -o opsctl.key` prints the public key.
# [encryption]
# recipients = ["age1…"]
# identity_file = "opsctl.key"
"""


def _signing(answers: Answers) -> str:
    if answers.signing is None:
        return ""
    keys = {"key_file": answers.signing.file, "public_keys": [answers.signing.public]}
    return f"""\
# Every backup is signed. What none of these public keys has signed is not
# restored.
[signing]
{_lines(keys)}
"""


def _telling(answers: Answers) -> str:
    variable = answers.sentry_variable
    hint = "" if variable else "# Failures go to Sentry when SENTRY_DSN is set: in the environment or in .env.\n"
    section = f"[sentry]\ndsn_env = {_value(variable)}\n" if variable else "# [sentry]\n"
    return f"""\
{hint}{section}# environment = "production"

# People are told through Apprise; `opsctl notify test` tries it. The addresses
# are secrets: keep them in .env.
#     OPSCTL_NOTIFY_URLS=tgram://TOKEN/CHAT

# Metrics for Prometheus, by way of node_exporter's textfile collector.
# [metrics]
# textfile = "/var/lib/prometheus/node-exporter/opsctl.prom"
"""


def _runbook(answers: Answers) -> str:
    if answers.runbook is None:
        return ""
    return f"""\
# What to do when something is wrong: yours to edit. `opsctl runbook lint` says
# what in it is not yet yours.
[runbook]
path = {_value(answers.runbook)}
"""


def _lines(keys: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {_value(value)}" for key, value in keys.items() if value is not None)


def _value(value: Any) -> str:
    """As TOML: JSON's strings and lists of strings are TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _comment(text: str) -> str:
    """Text that stays within its comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
