"""The image and the stack of `make up`: built, started, and everything in it really done."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from waiting import wait_for

# An engine of its own: the others' tests need not wait for the image.
pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("stack"), pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


def _images():
    spec = importlib.util.spec_from_file_location("images", Path(__file__).with_name("images.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_ports(*names):
    taken = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: each.getsockname()[1] for name, each in taken.items()}
    for each in taken.values():
        each.close()
    return ports


@pytest.fixture(scope="module")
def image(engine, need, pytestconfig, tmp_path_factory):
    """The image of opsctl, built by the Dockerfile as it is."""
    need("mmdebstrap")
    _images().build_opsctl(engine, pytestconfig.cache.mkdir("image"), tmp_path_factory.mktemp("context"))
    return json.loads(engine("image", "inspect", "opsctl"))[0]


@pytest.fixture(scope="module")
def stack(engine, image, compose_plugin, need, tmp_path_factory):
    """deploy/stack, up; ``stack(...)`` is `docker compose` in it."""
    folder = tmp_path_factory.mktemp("stack") / "deploy"
    shutil.copytree(ROOT / "deploy", folder, ignore=shutil.ignore_patterns(".env", "secrets"))
    rclone = Path(sys.executable).with_name("rclone")
    _images().make_public_images(
        engine, tmp_path_factory.mktemp("postgres"), rclone=rclone, prometheus=need("prometheus")
    )

    def compose(*words, check=True):
        return engine("compose", *words, cwd=folder / "stack", check=check, DOCKER_CONFIG=str(compose_plugin))

    compose.folder = folder / "stack"
    subprocess.run([compose.folder / "prepare"], check=True)
    ports = free_ports("API_PORT", "PAGE_PORT", "PROMETHEUS_PORT")
    with (compose.folder / ".env").open("a") as file:
        file.writelines(f"{name}={port}\n" for name, port in ports.items())
    compose.ports = ports
    try:
        compose("up", "--detach", "--no-build", "--wait")
        yield compose
    finally:
        sys.stdout.write(compose("ps", "--all", check=False) + compose("logs", "--no-color", "--tail=40", check=False))
        compose("down", "--volumes", "--timeout=1", check=False)


def ran(compose, *words):
    """What a run of opsctl inside the stack prints as JSON."""
    return json.loads(compose("exec", "-T", "opsctl-page", "opsctl", *words, "--json", check=False))


def test_the_image_says_what_it_is_and_needs_little(engine, image):
    """Its own user, labels, a health check; nothing on its root file system is written, by a whole demo either."""
    config = image["Config"]
    assert (config["User"], config["Healthcheck"]["Test"][1:3]) == ("opsctl", ["opsctl", "config"])
    assert config["Labels"]["org.opencontainers.image.title"] == "opsctl"
    assert config["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    small = ("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
    assert engine(*small, "opsctl", "--version").startswith("opsctl ")
    words = "id -u; pg_dump --version; touch /x || echo read-only; nice -n 5 opsctl demo --json"
    user, tools, root, document = engine(*small, "--entrypoint=sh", "opsctl", "-c", words).split("\n", 3)
    assert (user, root) == ("10001", "read-only")
    assert int(tools.split()[2].partition(".")[0]) >= 17
    assert json.loads(document)["result"]["undone"] is True


def test_a_backup_in_the_stack_is_stored_twice_and_proven(stack):
    """On the volume and in the bucket; a drill inside the container restores it and asks the assertion."""
    (backup,) = ran(stack, "backup")["result"]["backups"]
    assert {each["name"]: each["status"] for each in backup["repositories"]} == {"local": "stored", "store": "stored"}
    assert backup["rows"] >= 1000
    (proven,) = ran(stack, "drill")["result"]["backups"]
    assert (proven["outcome"], proven["evidence"]) == ("pass", "counted"), proven


def test_the_api_the_bot_and_the_checks_see_each_other(stack):
    """Health checks are green by themselves; doctor reaches the API by its service's name."""

    def are_healthy():
        states = [json.loads(line) for line in stack("ps", "--format=json").splitlines()]
        health = {each["Service"]: each["Health"] for each in states}
        return all(health[name] == "healthy" for name in ("db", "api", "bot", "opsctl", "opsctl-page"))

    wait_for(are_healthy, "everything is healthy", every=1)

    def is_reached():
        (check,) = ran(stack, "doctor", "http.api")["result"]["checks"]
        return check["status"] == "ok"

    wait_for(is_reached, "doctor reaches the API", every=1)
    events = "psql -h /tmp -U saas -d saasdb -Atc 'select count(*) from events'"
    wait_for(lambda: int(stack("exec", "-T", "db", "sh", "-c", events)) > 0, "the bot's work")


def test_prometheus_scrapes_the_page_and_knows_the_alerts(stack):
    """With the token; without it the page answers 401, and its health to everybody."""
    page, prometheus = (f"http://127.0.0.1:{stack.ports[name]}" for name in ("PAGE_PORT", "PROMETHEUS_PORT"))
    assert fetch(f"{page}/healthz") == "ok"
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        fetch(f"{page}/metrics")
    refused.value.close()

    def is_up():
        targets = json.loads(fetch(f"{prometheus}/api/v1/targets"))["data"]["activeTargets"]
        return [each["health"] for each in targets] == ["up"]

    wait_for(is_up, "the first scrape")
    (group,) = json.loads(fetch(f"{prometheus}/api/v1/rules"))["data"]["groups"]
    assert "OpsctlBackupMissing" in {rule["name"] for rule in group["rules"]}


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return answer.read().decode().strip()


def test_init_on_the_host_finds_the_stack(stack, engine, run_opsctl, compose_plugin):
    """The compose file leads to the container: its address, its password by reference, its own pg_dump.

    And what a script has dumped before becomes a backup of its date: the way of docs/migrate.md.
    """
    env = {"DOCKER_HOST": engine.host, "DOCKER_CONFIG": str(compose_plugin)}
    options = ("-o", "host.toml", "--service", "db", "--no-runbook", "--repository", "host-backups")
    run = run_opsctl("init", *options, "--json", env=env, cwd=stack.folder)
    assert run.returncode == 0, run
    result = run.json["result"]
    assert result["services"] == ["api", "bot", "opsctl", "opsctl-page"]
    assert {each["status"] for each in result["connections"]} == {"ok"}, result
    written = (stack.folder / "host.toml").read_text()
    assert 'password_env = "POSTGRES_PASSWORD"\nservice = "db"\ntools = "service"' in written
    assert f'url = "http://127.0.0.1:{stack.ports["API_PORT"]}/health"' in written
    run = run_opsctl("backup", "--config", "host.toml", "--json", env=env, cwd=stack.folder)
    assert run.json["result"]["backups"][0]["status"] == "stored", run
    dump = stack("exec", "-T", "db", "pg_dump", "-h", "/tmp", "-U", "saas", "saasdb")  # noqa: S108 - in the container
    (stack.folder / "saasdb_20251101_030000.sql").write_text(dump)
    words = ("import", "saasdb_20251101_030000.sql", "--config", "host.toml", "--json")
    assert run_opsctl(*words, env=env, cwd=stack.folder).returncode == 0
    listed = run_opsctl("list", "--config", "host.toml", "--json", env=env, cwd=stack.folder).json["result"]["backups"]
    assert [each["created_at"][:10] for each in listed][1:] == ["2025-11-01"]
