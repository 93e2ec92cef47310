"""`opsctl init`: what it finds, what it asks, what it tries, what it writes."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from opsctl.config import load_config
from opsctl.config_problems import problems_of
from opsctl.errors import ConfigurationError
from opsctl.new_config import Answers, NewKey, NewRepository, config_text
from opsctl.services.compose_file import find_compose_file
from opsctl.settings import FileSettings
from opsctl.surroundings import DatabaseSource, look_around

PASSWORD = "p4ss-w0rd-canary"

COMPOSE = """\
x-base: &base
  image: registry.example.org/team/postgres:15
services:
  db:
    <<: *base
    environment:
      - POSTGRES_USER=saasuser
      - POSTGRES_PASSWORD=${DB_PASSWORD:?set it}
      - POSTGRES_DB=saas db
    healthcheck:
      test: ["CMD-SHELL", "pg_isready"]
  backup:
    <<: *base
    command: sleep 86400
    environment: { POSTGRES_PASSWORD: "${DB_PASSWORD}" }
  api:
    build: .
    ports: ["127.0.0.1:${API_PORT:-18000}:8000"]
    healthcheck:
      test: curl -fsS http://localhost:8000/health || exit 1
  bot:
    build: .
    healthcheck: { test: ["CMD", "test", "-e", "/tmp/alive"] }
  quiet:
    image: x
    healthcheck: { disable: true }
"""


def _terminal():
    spec = importlib.util.spec_from_file_location("terminal", Path(__file__).with_name("test_terminal.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.at_terminal


at_terminal = _terminal()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "My-SaaS.1"
    folder.mkdir()
    (folder / "compose.yaml").write_text(COMPOSE)
    (folder / ".env").write_text(f"DB_PASSWORD={PASSWORD}\n")
    return folder


# What is found


def test_the_compose_files_postgres_is_found_by_reference(folder):
    """User and database are read, the password is not: the section names the variable that compose takes it from."""
    (found,) = look_around(folder).databases
    assert (found.name, found.service) == ("saas db", "db")
    assert found.keys == {
        "url": "postgresql://saasuser@db:5432/saas%20db",
        "password_env": "DB_PASSWORD",
        "service": "db",
        "tools": "service",
    }


def test_services_with_health_checks_are_watched(folder):
    """Those that say when they are well; an address that the check asks for and this host reaches goes along."""
    here = look_around(folder)
    assert [(each.name, each.health_address) for each in here.services] == [
        ("api", "http://127.0.0.1:18000/health"),
        ("bot", None),
    ]
    assert here.compose.project == "my-saas1"


def test_an_address_in_the_environment_comes_first(folder):
    """Where its host is a service, Docker is asked for it; the same database is not offered twice, a test's never."""
    with (folder / ".env").open("a") as file:
        file.write(f"DATABASE_URL=postgresql+asyncpg://saasuser:{PASSWORD}@db:5432/saasdb\n")
        file.write(
            "TEST_DATABASE_URL=postgresql://x@localhost/test\nREPORTS_URL=postgres://x@reports.internal/reports\n"
        )
    found = look_around(folder).databases
    assert [(each.name, each.keys) for each in found] == [
        ("saasdb", {"url_env": "DATABASE_URL", "service": "db", "tools": "service"}),
        ("reports", {"url_env": "REPORTS_URL"}),
    ]
    assert found[0].found_in == "DATABASE_URL, in .env"


@pytest.mark.parametrize(
    ("written", "more", "keys"),
    [
        (f"POSTGRES_PASSWORD: {PASSWORD}", "", {"password_command"}),
        ("POSTGRES_PASSWORD_FILE: /run/secrets/pw", "secrets: { pw: { file: ./pw.txt } }", {"password_file"}),
        ("POSTGRES_HOST_AUTH_METHOD: trust", "", set()),
        ("POSTGRES_PASSWORD: '${UNSET:-x}'", "", {"password_command"}),
    ],
)
def test_every_way_to_give_a_password_stays_a_reference(tmp_path, written, more, keys):
    """A password that stands in the compose file itself is asked of the container, not copied."""
    (tmp_path / "docker-compose.yml").write_text(
        f"services: {{ db: {{ image: 'postgres:16', environment: {{ {written} }} }} }}\n{more}\n"
    )
    (found,) = look_around(tmp_path).databases
    assert {key for key in found.keys if key.startswith("password")} == keys
    assert PASSWORD not in json.dumps(found.keys)
    assert found.keys["url"] == "postgresql://postgres@db:5432/postgres"


def test_an_override_counts_and_a_broken_file_is_named(folder):
    """compose.override.yaml is merged as compose does it; what cannot be read is no reason to guess."""
    (folder / "compose.override.yaml").write_text("services: { bot: { healthcheck: { disable: true } } }\n")
    assert [each.name for each in look_around(folder).services] == ["api"]
    (folder / "compose.yaml").write_text("services: [")
    with pytest.raises(ConfigurationError, match=r"compose\.yaml cannot be read"):
        find_compose_file(folder, {})


def test_includes_and_extended_services_are_followed(folder):
    """As compose does it, over several files: joined lists, paths relative to the file they are in."""
    (folder / "compose.yaml").write_text(
        """\
include: [data/compose.yaml, "oci://elsewhere/project:1"]
services:
  api: { extends: { file: base/common.yml, service: web }, ports: ["18001:8001"] }
  worker: { extends: api, healthcheck: !reset null }
"""
    )
    for name in ("data", "base"):
        (folder / name).mkdir()
    (folder / "data/compose.yaml").write_text(
        "services: { db: { image: 'postgres:16', env_file: db.env, environment: [POSTGRES_PASSWORD_FILE=/x/pw] } }\n"
        "secrets: { pw: { file: ./pw.txt } }\n"
    )
    (folder / "data/db.env").write_text("POSTGRES_DB=orders\n")
    (folder / "base/common.yml").write_text(
        'services: { web: { ports: ["18000:8000"], healthcheck: { test: "curl http://localhost:8000/up" } } }\n'
    )
    here = look_around(folder)
    (found,) = here.databases
    assert (found.name, found.keys["password_file"]) == ("orders", "data/pw.txt")
    assert [(each.name, each.health_address) for each in here.services] == [("api", "http://127.0.0.1:18000/up")]

    (folder / "data/compose.yaml").write_text("include: [../compose.yaml]\n")
    with pytest.raises(ConfigurationError, match="includes or extends itself"):
        look_around(folder)


# What is written


def test_every_example_in_the_new_file_is_valid(tmp_path):
    """Uncommenting what stands there as a comment leaves the file valid, whatever was answered."""
    recipient = "age1tw534jnef3wyjr8trgr5hqeggr3tkk06ssgp72p78ywnywxytcys8vprkj"
    source = DatabaseSource('a "b"', "x\ny", {"url": "postgresql://me@db/a", "service": "db"})
    bare = Answers(source, [NewRepository("local", "backups")], "UTC")
    full = Answers(
        source,
        [NewRepository("local", "b"), NewRepository("offsite", "s3://b/p", "https://s3.example.org", "eu-1")],
        "Europe/Berlin",
        recipients=[recipient],
        identity=NewKey(recipient, "opsctl.key"),
        signing=NewKey("ssh-ed25519 AAAA", "signing.key"),
        runbook="runbook.md",
        sentry_variable="SENTRY_DSN",
    )
    for answers in (bare, full):
        text = config_text(answers)
        assert text.startswith("#:schema ")
        assert [line for line in text.splitlines() if line.startswith("#") and len(line) > 80] == []  # a terminal's
        FileSettings.model_validate(tomllib.loads(text))
        uncommented = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
        assert uncommented.count("\n#") < text.count("\n#")
        FileSettings.model_validate(tomllib.loads(uncommented))
    file = tmp_path / "opsctl.toml"
    file.write_text(config_text(bare))
    assert list(problems_of(load_config(file))) == []


def test_without_a_terminal_it_takes_what_is_found(run_opsctl, saas):
    """DATABASE_URL in .env is enough: tried, written by reference, valid, and a backup works at once."""
    (run_opsctl.work / ".env").write_text(
        f"DATABASE_URL={saas.url}\nSENTRY_DSN=https://{PASSWORD}@sentry.example.org/1\n"
    )
    run = run_opsctl("init", "--json", "--new-key", run_opsctl.work / "opsctl.key", "--timezone", "Europe/Berlin")
    assert run.returncode == 0, run
    result = run.json["result"]
    assert {each["subject"]: each["status"] for each in result["connections"]} == {
        f"database {saas.name}": "ok",
        "repository local": "ok",
        "Sentry": "ok",
    }
    assert result["next"] == ["opsctl backup", "opsctl drill", "opsctl cron install"]
    assert sorted(path.name for path in run_opsctl.work.iterdir()) == [
        ".env",
        "opsctl.key",
        "opsctl.toml",
        "runbook.md",
    ]
    written = (run_opsctl.work / "opsctl.toml").read_text()
    assert f'[databases.{saas.name}]\nurl_env = "DATABASE_URL"' in written
    assert PASSWORD not in written + run.stdout + run.stderr
    assert "AGE-SECRET-KEY" not in written + run.stdout + run.stderr
    assert run_opsctl("config", "validate").returncode == 0
    assert run_opsctl("backup", "--json").json["result"]["backups"][0]["status"] == "stored"
    assert run_opsctl("verify", "--json").returncode == 0  # the new key opens it
    again = run_opsctl("init", "--json")
    assert again.returncode == 16
    assert "opsctl.toml" in again.json["error"]["message"]
    assert (run_opsctl.work / "opsctl.toml").read_text() == written


def test_what_does_not_answer_is_named_and_nothing_is_written(run_opsctl, tmp_path):
    """A connection that fails ends the run with its own exit code; --no-test is how to write all the same."""
    secret = f"postgresql://me:{PASSWORD}@127.0.0.1:1/gone"
    run = run_opsctl("init", "--json", url=secret)
    assert run.returncode == 12
    assert "--no-test" in run.json["error"]["hint"]
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    options = ["--no-runbook", "--repository", blocked]
    assert run_opsctl("init", "--json", *options, url=secret).returncode == 12
    assert list(run_opsctl.work.iterdir()) == []
    run = run_opsctl("init", "-o", tmp_path / "etc/opsctl.toml", "--no-test", url=secret)
    assert run.returncode == 0, run
    assert f"opsctl backup --config {tmp_path / 'etc/opsctl.toml'}" in run.stdout
    assert PASSWORD not in run.stdout + run.stderr + (tmp_path / "etc/opsctl.toml").read_text()


def test_nothing_found_says_what_to_give(run_opsctl):
    """No database, or a password on the command line: what to do instead."""
    run = run_opsctl("init", "--json")
    assert (run.returncode, "DATABASE_URL" in run.json["error"]["hint"]) == (10, True)
    run = run_opsctl("init", "--json", "--url", f"postgresql://me:{PASSWORD}@db/x")
    assert run.returncode == 2
    assert PASSWORD not in run.stdout + run.stderr


@pytest.mark.end_to_end
def test_a_person_is_asked(run_opsctl, saas):
    """At a terminal each thing is asked with what was found as the answer; a failed connection is the person's call."""
    (run_opsctl.work / ".env").write_text(f"DATABASE_URL={saas.url}\nOTHER_URL=postgresql://me@127.0.0.1:1/other\n")
    with at_terminal(run_opsctl, "init") as terminal:
        terminal.wait_for("The database [1]:")
        assert "OTHER_URL, in .env" in terminal.shown
        terminal.type("2")
        for question, answer in (
            ("Where the backups go", "store"),
            ("A second place", ""),
            ("Time zone of the schedule", "Europe/Berlin"),
            ("Encrypt the backups", "y"),
            ("Its file [opsctl.key]", "my.key"),
            ("Sign the backups", "n"),
            ("Write the files nevertheless?", "y"),
        ):
            terminal.wait_for(question)
            terminal.type(answer)
        assert terminal.finish() == 3, terminal.shown
    assert "Connection refused" in terminal.shown
    assert "my.key opens the backups, and nothing else does" in terminal.stdout
    config = load_config(run_opsctl.work / "opsctl.toml")
    assert (list(config.databases), config.schedule.timezone) == (["other"], "Europe/Berlin")
    assert config.repository_url("local") == str(run_opsctl.work / "store")
    assert config.identity().startswith("# created")
