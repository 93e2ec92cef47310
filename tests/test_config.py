"""Where the configuration comes from, which value wins, and what is said when it is wrong."""

import json
import shutil
from pathlib import Path

import pytest

from opsctl.config import load_config

MINIMAL = '[databases.app]\nurl_env = "DATABASE_URL"\n'


def assert_wrong(run, *words, hint=""):
    assert run.returncode == 10, run
    error = run.json["error"]
    assert error["code"] == "configuration"
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"], error
    assert hint in (error["hint"] or ""), error
    assert error["hint"]
    assert "Traceback" not in run.stderr
    return error


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def named(name):
    """A configuration that can be told apart by its repository's name."""
    return f'{MINIMAL}[repositories.{name}]\nurl = "kept-{name}"\n'


def repository_used(run):
    assert run.returncode == 0, run
    return run.json["result"]["backups"][0]["repositories"][0]["name"]


# The order of the search


def test_search_order(run_opsctl, saas, tmp_path):
    """--config wins over OPSCTL_CONFIG, that over ./opsctl.toml, that over XDG_CONFIG_HOME."""
    option = write(tmp_path / "elsewhere/option.toml", named("option"))
    variable = write(tmp_path / "elsewhere/variable.toml", named("variable"))
    here = write(run_opsctl.work / "opsctl.toml", named("here"))
    write(tmp_path / "xdg/opsctl/opsctl.toml", named("xdg"))
    variables = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "OPSCTL_CONFIG": str(variable)}

    def backup(*arguments):
        return repository_used(run_opsctl("backup", "--json", *arguments, url=saas.url, env=variables))

    assert backup("--config", option) == "option"
    assert backup() == "variable"
    del variables["OPSCTL_CONFIG"]
    assert backup() == "here"
    here.unlink()
    assert backup() == "xdg"


def test_home_stands_in_for_xdg(run_opsctl, saas):
    """Without XDG_CONFIG_HOME it is ~/.config."""
    write(run_opsctl.home / ".config/opsctl/opsctl.toml", named("home"))
    assert repository_used(run_opsctl("backup", "--json", url=saas.url)) == "home"
    shutil.rmtree(run_opsctl.home / ".config")


def test_no_file_at_all(run_opsctl, saas):
    """DATABASE_URL alone is enough: the backup goes to ./backups."""
    run = run_opsctl("backup", "--json", url=saas.url)
    assert repository_used(run) == "local"
    assert list((run_opsctl.work / "backups" / saas.name).iterdir())


@pytest.mark.parametrize("how", ["option", "variable"])
def test_named_file_that_is_missing(run_opsctl, saas, how):
    """A file that was named is used or is an error, never silently another one."""
    write(run_opsctl.work / "opsctl.toml", named("here"))
    arguments = ["--config", "gone.toml"] if how == "option" else []
    variables = {} if how == "option" else {"OPSCTL_CONFIG": "gone.toml"}
    run = run_opsctl("backup", "--json", *arguments, url=saas.url, env=variables)
    assert_wrong(run, "gone.toml", hint="--config")


def test_folder_as_configuration(run_opsctl, saas):
    """A folder is no configuration file."""
    assert_wrong(run_opsctl("backup", "--json", "--config", run_opsctl.work, url=saas.url), str(run_opsctl.work))


def test_relative_paths_are_relative_to_the_file(run_opsctl, saas, tmp_path):
    """The same file means the same places, wherever opsctl is started."""
    folder = tmp_path / "etc"
    text = (
        '[databases.app]\nurl_env = "DATABASE_URL"\npassword_file = "secret/password"\n'
        '[repositories.near]\nurl = "store"\n[state]\npath = "state"\n'
    )
    file = write(folder / "opsctl.toml", text)
    write(folder / "secret/password", "not needed over the socket\n")
    run = run_opsctl("backup", "--config", file, url=saas.url, env={"OPSCTL_STATE_DIR": None})
    assert run.returncode == 0, run
    assert list((folder / "store/app").iterdir())
    assert (folder / "state/locks").is_dir()
    assert list(run_opsctl.work.iterdir()) == []


# .env


def test_env_files(run_opsctl, saas, rich):
    """.env.local wins over .env, and a real variable over both."""
    write(run_opsctl.work / ".env", f"DATABASE_URL={rich.url}\n")
    assert run_opsctl("list", rich.name, "--json").returncode == 0
    write(run_opsctl.work / ".env.local", f'export DATABASE_URL="{saas.url}"\n')
    (backup,) = run_opsctl("backup", "--json").json["result"]["backups"]
    assert backup["database"] == saas.name
    error = run_opsctl("backup", "--json", url="postgresql://me@127.0.0.1:1/real").json["error"]
    assert "127.0.0.1:1" in error["message"]


def test_env_file_beside_the_configuration(run_opsctl, saas, tmp_path):
    """The .env beside opsctl.toml is read from anywhere; the working folder's wins over it."""
    file = write(tmp_path / "etc/opsctl.toml", MINIMAL)
    write(tmp_path / "etc/.env", f"DATABASE_URL={saas.url}\n")
    assert run_opsctl("backup", "--config", file).returncode == 0
    write(run_opsctl.work / ".env", "DATABASE_URL=postgresql://me@127.0.0.1:1/near\n")
    assert run_opsctl("backup", "--config", file).returncode == 12


def test_libpq_variables_in_env_file(run_opsctl, saas):
    """PG* of .env mean what they mean to psql, to the children as well."""
    host = str(saas.cluster.socket_folder)
    write(
        run_opsctl.work / ".env",
        f"PGHOST={host}\nPGPORT={saas.cluster.port}\nPGUSER=postgres\nPGDATABASE={saas.name}\n",
    )
    (backup,) = run_opsctl("backup", "--json").json["result"]["backups"]
    assert backup["database"] == saas.name


def test_env_file_that_is_a_folder(run_opsctl, saas):
    """A folder called .env is not read, and no reason to fail."""
    (run_opsctl.work / ".env").mkdir()
    assert run_opsctl("backup", url=saas.url).returncode == 0


def test_libpq_variables_alone(run_opsctl, saas):
    """PGDATABASE with PGHOST, PGPORT and PGUSER are a database without any file or URL."""
    variables = {
        "PGDATABASE": saas.name,
        "PGHOST": str(saas.cluster.socket_folder),
        "PGPORT": str(saas.cluster.port),
        "PGUSER": "postgres",
    }
    run = run_opsctl("backup", "--json", env=variables)
    assert run.returncode == 0, run
    assert run.json["result"]["backups"][0]["database"] == saas.name
    assert run_opsctl("restore", "latest", "--into", f"{saas.name}_copy", env=variables).returncode == 0


def test_url_without_a_name_takes_pgdatabase(run_opsctl, saas):
    """What the URL leaves out comes from libpq's variables."""
    run = run_opsctl("backup", "--json", url=saas.url.replace(f"/{saas.name}?", "/?"), env={"PGDATABASE": saas.name})
    assert run.returncode == 0, run
    assert run.json["result"]["backups"][0]["database"] == saas.name


# The state folder


def test_state_folder_precedence(run_opsctl, saas, tmp_path):
    """OPSCTL_STATE_DIR wins over [state] path."""
    write(run_opsctl.work / "opsctl.toml", f'{MINIMAL}[state]\npath = "from-file"\n')
    assert run_opsctl("backup", url=saas.url).returncode == 0
    assert (run_opsctl.state / "locks").is_dir()
    assert not (run_opsctl.work / "from-file").exists()
    assert run_opsctl("backup", url=saas.url, env={"OPSCTL_STATE_DIR": None}).returncode == 0
    assert (run_opsctl.work / "from-file/locks").is_dir()


def test_default_state_folder(tmp_path, monkeypatch):
    """Without a setting root's state is in /var/lib, a user's where XDG says; nothing is created by asking."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = load_config(working_folder=tmp_path).state_path
    assert path in {Path("/var/lib/opsctl"), tmp_path / "state/opsctl"}
    assert not (tmp_path / "state").exists()


# What is wrong with it


LOCKED = f"{MINIMAL}[repositories.x]\nurl = 's3://b/p'\nobject_lock = "


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("[databases.app\n", ["opsctl.toml", "line 1"], ""),
        ("[database.app]\nurl = 'postgresql://h/d'\n", ["database", "not a key"], "databases"),
        (f"{MINIMAL}compresion_level = 3\n", ["databases.app.compresion_level"], "compression_level"),
        (f"{MINIMAL}[repositories.x]\nurl = 'y'\nretention = {{ keep_dayly = 3 }}\n", ["keep_dayly"], "keep_daily"),
        (f"{MINIMAL}[repositories.x]\nretention = {{}}\n", ["repositories.x.url"], ""),
        (f"{MINIMAL}[sentri]\n", ["sentri"], "sentry"),
        (f"{MINIMAL}zzzzzz = 1\n", ["zzzzzz"], "Known there"),
        (f"{MINIMAL}facts = 'all'\n", ["databases.app.facts", "counts"], ""),
        (f"{MINIMAL}compression_level = 99\n", ["compression_level", "22"], ""),
        (f"{MINIMAL}lock_timeout_seconds = 0\n", ["lock_timeout_seconds"], ""),
        (f"{MINIMAL}repositories = ['lokal']\n[repositories.local]\nurl = 'x'\n", ["lokal"], "local"),
        ("[databases.app]\n", ["databases.app", "url"], ""),
        ("[databases.app]\nurl = 'mysql://h/d'\n", ["databases.app.url", "postgresql://"], ""),
        ("[databases.app]\nurl_env = 'NOT_SET'\n", ["url_env", "NOT_SET", "not set"], ".env"),
        (f"{MINIMAL}password_command = 'false'\n", ["password_command"], "by hand"),
        (f"{MINIMAL}password_command = '/nonexistent/program'\n", ["password_command"], "by hand"),
        (f'{MINIMAL}password_command = "sh -c \'unbalanced"\n', ["password_command"], "by hand"),
        (f"{MINIMAL}password_file = 'gone'\n", ["password_file", "gone", "No such file"], "readable"),
        ("databases = 3\n", ["databases"], ""),
        (f"{LOCKED}'none'\n", ["repositories.x.object_lock"], ""),
        (f"{LOCKED}'off'\nobject_lock_days = 3\n", ["repositories.x", "object_lock_days"], ""),
        (f"{LOCKED}'compliance'\nretention = {{ keep_weekly = 9 }}\n", ["x.object_lock", "how long"], "keep_daily"),
        ("\x00", ["opsctl.toml"], ""),
    ],
)
def test_mistake_is_named(run_opsctl, saas, text, words, hint):
    """One line names the file or the key and what is wrong, and the hint the nearest key there is."""
    write(run_opsctl.work / "opsctl.toml", text)
    assert_wrong(run_opsctl("backup", "--json", url=saas.url), *words, hint=hint)
    assert [path.name for path in run_opsctl.work.iterdir()] == ["opsctl.toml"]


def test_not_utf_8(run_opsctl, saas):
    """A file in another encoding is said to be unreadable as TOML."""
    (run_opsctl.work / "opsctl.toml").write_bytes(b"# caf\xe9\n" + MINIMAL.encode())
    assert_wrong(run_opsctl("backup", "--json", url=saas.url), "opsctl.toml")


def test_no_database_configured(run_opsctl):
    """With nothing to go by, the shortest way to start is said."""
    assert_wrong(run_opsctl("backup", "--json"), "No database", hint="DATABASE_URL=")


def test_unknown_database(run_opsctl, saas):
    """A name that is not configured is answered with the nearest that is, and nothing is begun."""
    write(run_opsctl.work / "opsctl.toml", f'{MINIMAL}[databases.billing]\nurl = "{saas.url}"\n')
    assert_wrong(run_opsctl("backup", "ap", "--json", url=saas.url), "'ap'", hint="'app'")
    assert_wrong(run_opsctl("backup", "app", "nonsense", "--json", url=saas.url), "'nonsense'", hint="app, billing")
    assert not list(run_opsctl.work.rglob("manifest.json"))


def test_password_command_that_works(run_opsctl, saas):
    """What the command prints is the password, without its line break."""
    write(run_opsctl.work / "opsctl.toml", f"{MINIMAL}password_command = \"printf '%s\\\\n' secret\"\n")
    assert run_opsctl("backup", url=saas.url).returncode == 0


def test_mistake_stops_reading_commands_too(run_opsctl):
    """`list` with a broken configuration does not pretend that there are no backups."""
    write(run_opsctl.work / "opsctl.toml", "[nonsense]\n")
    assert_wrong(run_opsctl("list", "--json"), "nonsense")


def test_secrets_of_a_wrong_file_are_not_shown(run_opsctl):
    """A value that does not fit is never quoted: it may be a secret."""
    for text in (
        '[databases.app]\nurl = ["canary"]\n',
        '[databases.app]\nurl = "canary"\n',
        '[databases.app]\nurl = "postgresql://me:can@ary@h/d"\n',
        '[sentry]\ndsn = ["canary"]\n',
        '[databases]\napp = "postgresql://me:canary@h/d"\n',
    ):
        write(run_opsctl.work / "opsctl.toml", text)
        run = run_opsctl("backup", "--json", "--debug")
        assert run.returncode == 10
        assert "canary" not in run.stdout + run.stderr
        assert "can@ary" not in run.stdout + run.stderr
        json.loads(run.stdout)
