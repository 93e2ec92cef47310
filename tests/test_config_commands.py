"""`opsctl config`: what is in force and why, everything that is wrong, what may be written."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from opsctl.config import load_config
from opsctl.config_problems import check_dsn, problems_of
from opsctl.effective import settings_in_force, without_secrets
from opsctl.errors import ConfigurationError
from opsctl.settings import FileSettings

PASSWORD = "p4ss-w0rd-canary"

WRONG = """\
[databases.app]
url_env = "APP_URL"
password_file = "gone"
repositories = ["clod"]
[repositories.cloud]
url = "s4://bucket"
[repositories.locked]
url = "s3://bucket"
object_lock = "compliance"
[encryption]
recipients = ["age1nope"]
[doctor]
disabled = ["db.connects"]
[runbook]
path = "gone.md"
"""


def test_every_problem_is_a_line_and_nothing_is_connected_to(run_opsctl):
    """One line each with what to do; exit code 10, and 0 once all is well. Servers that are gone are no problem."""
    file = run_opsctl.work / "opsctl.toml"
    file.write_text(WRONG)
    run = run_opsctl("config", "validate")
    assert run.returncode == 10, run
    lines = run.stdout.splitlines()
    for line, words in zip(
        lines,
        ["'cloud'", "APP_URL", "gone", "s4://", "object_lock", "age1nope", "'db.connect'", "gone.md"],
        strict=True,
    ):
        assert words in line
        assert "opsctl.toml" in line or "password_file" in line
    file.write_text("[databases.app]\nurl_enf = 'X'\n[schedule]\nbackup = '* *'\n[what]\n")
    problems = run_opsctl("config", "validate", "--json").json["result"]["problems"]
    assert [each["message"].split(": ")[1] for each in problems] == ["databases.app.url_enf", "schedule.backup", "what"]
    file.write_text(
        '[databases.app]\nurl = "postgresql://me@127.0.0.1:1/x"\npassword_command = "touch connected"\n'
        '[repositories.cloud]\nurl = "s3://bucket"\nendpoint_url = "http://127.0.0.1:1"\n'
    )
    run = run_opsctl("config", "validate", "--json", env={"SENTRY_DSN": "https://key@127.0.0.1:1/1"})
    assert (run.returncode, run.json["result"]["problems"]) == (0, [])
    assert not (run_opsctl.work / "connected").exists()


def test_no_configuration_at_all_is_a_problem(tmp_path, monkeypatch):
    """Neither a file nor DATABASE_URL."""
    (problem,) = problems_of(load_config(working_folder=tmp_path))
    assert "DATABASE_URL" in problem.hint


def test_show_says_where_each_setting_came_from(run_opsctl, tmp_path):
    """The file, a default, a variable of the environment or of .env; nothing secret, JSON and text alike."""
    (run_opsctl.work / ".env").write_text(
        f"APP_URL=postgresql://me:{PASSWORD}@db.internal/app?sslmode=require\nAPP_PASSWORD={PASSWORD}\n"
        f"PGSSLROOTCERT=/etc/ca.pem\nAWS_SECRET_ACCESS_KEY={PASSWORD}\n"
    )
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.app]\nurl_env = "APP_URL"\nfacts = "content"\n'
        f'[databases.two]\nurl = "postgresql://me@h/two"\npassword_env = "APP_PASSWORD"\n'
        f'[http.api]\nurl = "https://x.org/"\nheaders = {{ Authorization = "Bearer {PASSWORD}" }}\n'
        f'[heartbeats]\nbackup = "https://hc-ping.com/{PASSWORD}"\n'
    )
    variables = {"SENTRY_DSN": f"https://{PASSWORD}@sentry.example.org/1"}
    run = run_opsctl("config", "show", "--json", env=variables)
    found = {each["key"]: (each["value"], each["source"]) for each in run.json["result"]["settings"]}
    file, env = str(run_opsctl.work / "opsctl.toml"), str(run_opsctl.work / ".env")
    assert found["databases.app.url"] == ("postgresql://me:***@db.internal/app?sslmode=require", f"APP_URL in {env}")
    assert found["databases.app.facts"] == ("content", file)
    assert found["databases.app.compression_level"] == (3, "default")
    assert found["databases.app.replica_urls"] == ([], "default")
    assert found["databases.two.password_env"] == ("APP_PASSWORD", file)
    assert found["http.api.headers.Authorization"] == ("***", file)
    assert found["heartbeats.backup"] == ("https://hc-ping.com/***", file)
    assert found["sentry.dsn"] == ("https://***@sentry.example.org/***", "SENTRY_DSN in the environment")
    assert found["state.path"] == (str(run_opsctl.state), "OPSCTL_STATE_DIR in the environment")
    assert found["environment.PGSSLROOTCERT"] == ("/etc/ca.pem", env)
    assert found["environment.AWS_SECRET_ACCESS_KEY"] == ("***", env)
    text = run_opsctl("config", "show", env=variables)
    assert "heartbeats.drill" not in text.stdout  # a default of nothing
    for each in (run, text):
        assert PASSWORD not in each.stdout + each.stderr


def test_the_environment_alone_is_a_configuration(tmp_path, monkeypatch):
    """DATABASE_URL and ./backups, as every command takes them."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{PASSWORD}@h/saas")
    found = {each.key: each for each in settings_in_force(load_config(working_folder=tmp_path))}
    assert found["databases.saas.url"].value == "postgresql://me:***@h/saas"
    assert found["databases.saas.url"].source == "DATABASE_URL in the environment"
    assert found["repositories.local.url"].value == str(tmp_path / "backups")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"postgresql:///x?password={PASSWORD}&host=/run", "postgresql:///x?password=***&host=/run"),
        (f"postgresql://me:{PASSWORD}@a:1,b:2/x", "postgresql://me:***@a:1,b:2/x"),
        (f"tgram://{PASSWORD}/1", "***"),
        (f"http://push:{PASSWORD}@h:9091", "http://***@h:9091/"),
        (f"http://[{PASSWORD}", "***"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(address, shown):
    """User, host and database help; everything else is left out, and of what is no address all of it."""
    assert without_secrets(address) == shown


@pytest.mark.parametrize("dsn", ["", "https://sentry.io/1", "https://key@sentry.io/", "key@sentry.io/1", "https://[/1"])
def test_a_wrong_dsn_is_found_and_not_shown(dsn):
    """A key, a host, a project's number."""
    with pytest.raises(ConfigurationError) as caught:
        check_dsn(dsn, where="Sentry")
    assert not dsn or dsn not in caught.value.message + caught.value.hint
    check_dsn("https://key@o1.ingest.sentry.io/42", where="Sentry")


def test_the_schema_is_bare_and_agrees_with_the_settings(run_opsctl):
    """What opsctl reads an editor accepts, and what it refuses is marked: unknown keys, wrong kinds of values."""
    run = run_opsctl("config", "schema", "--json")
    schema = run.json
    assert (run.returncode, run.stdout) == (0, run_opsctl("config", "schema").stdout)
    assert schema["properties"].keys() == FileSettings.model_fields.keys()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    page = (Path(__file__).parents[1] / "docs/configuration.md").read_text()
    example = tomllib.loads(page.split("```toml\n")[1].split("```")[0])
    assert list(validator.iter_errors(example)) == []
    for wrong in ("[databases.a]\nurll = 'x'", "[serve]\nport = 'http'", "[schedule]\nbackup = 3", "[nope]"):
        assert list(validator.iter_errors(tomllib.loads(wrong))), wrong
    assert schema["title"] == "opsctl.toml"
    keys = [
        (section, key, each) for section, model in schema["$defs"].items() for key, each in model["properties"].items()
    ]
    assert [(section, key) for section, key, each in keys if len(each.get("description", "")) < 10] == []
    assert schema["$defs"]["ScheduleSettings"]["properties"]["backup"] == {
        "description": "When `opsctl backup` should run. "
        "Without it, how often backups are expected is learnt from the last ones.",
        "type": "string",
    }
