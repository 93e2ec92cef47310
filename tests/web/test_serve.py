"""The server as a process: where it listens, what it refuses, how it ends, and what cannot hold it up."""

import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest


def started(run_opsctl, *, env=None):
    """A running server, and where it is. Its log goes to a file: a pipe that nobody reads would stop it."""
    with (run_opsctl.folder / "log").open("w") as log:
        process = run_opsctl.start("serve", "--port", "0", "--json", env=env, stderr=log)
    while not (lines := logged(run_opsctl)):
        assert process.poll() is None
        time.sleep(0.05)
    assert lines[0]["event"] == "serve.started"
    return process, lines[0]["url"]


def logged(run_opsctl):
    return [json.loads(line) for line in (run_opsctl.folder / "log").read_text().splitlines()]


def ended(process, number=signal.SIGTERM):
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=60)
    return process.returncode, json.loads(stdout)


def until(client, path, condition):
    """Ask until the answer is as wanted; the test's own time limit ends it."""
    while not condition(answer := client.get(path)):
        time.sleep(0.1)
    return answer


@contextmanager
def silent_server():
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield listening.getsockname()[1]


def test_it_serves_what_there_is_and_ends_in_order(run_opsctl, story):
    """Repositories are asked in the background, one that hangs holds nothing up, and SIGTERM is a good end."""
    story.build(run_opsctl.work)
    with silent_server() as port:
        config = run_opsctl.work / "opsctl.toml"
        hanging = f'[repositories.far]\nurl = "s3://bucket"\nendpoint_url = "http://127.0.0.1:{port}"\n'
        config.write_text(config.read_text().replace("[repositories.offsite]", f"{hanging}[repositories.offsite]"))
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket"}
        (run_opsctl.work / "state").rename(run_opsctl.state)
        process, url = started(run_opsctl, env=keys)
        with httpx.Client(base_url=url, timeout=60) as client:
            first = client.get("/")
            assert first.status_code == 200
            assert "being asked" in first.text
            listed = until(client, "/api/list", lambda answer: len(answer.json().get("result") or {}) > 0)
            assert listed.json()["result"]["answered_at"]["far"] is None
            assert client.get("/metrics").status_code == 200
            assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
        code, document = ended(process)
    log = logged(run_opsctl)
    assert (code, document["schema"], document["ok"]) == (0, "opsctl.serve/1", True)
    assert document["result"]["requests"] >= 5
    assert {line["event"] for line in log} == {"serve.started", "http.request", "run.finished"}
    assert "canary" not in json.dumps(log)
    assert "canary" not in first.text


@pytest.mark.acceptance
def test_a_run_on_this_host_is_seen_soon(run_opsctl, saas):
    """A new backup is on the page without waiting for the next round of questions."""
    run_opsctl("backup", url=saas.url)
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.saas]\nurl = "{saas.url}"\n[repositories.local]\nurl = "./backups"\n'
        "[serve]\nrefresh_seconds = 3600\n"
    )
    process, url = started(run_opsctl)
    with httpx.Client(base_url=url, timeout=60) as client:
        until(client, "/api/list", lambda answer: len((answer.json()["result"] or {}).get("backups", ())) == 1)
        new = run_opsctl("backup", "--json").json["result"]["backups"][0]
        seen = until(client, "/api/list", lambda answer: len(answer.json()["result"]["backups"]) == 2)
        assert seen.json()["result"]["backups"][0]["id"] == new["id"]
        assert new["id"] in client.get("/").text
    assert ended(process, signal.SIGINT)[0] == 0


def test_a_token_is_asked_for(run_opsctl, story):
    """Beyond this host it listens with a token only, one too long to guess; without it one learns that it lives."""
    config = run_opsctl.work / "opsctl.toml"
    config.write_text(f'{story.CONFIG}[serve]\nhost = "0.0.0.0"\n')
    refused = run_opsctl("serve", "--port", "0", "--json")
    assert (refused.returncode, refused.json["error"]["code"]) == (16, "refused")
    with config.open("a") as file:
        file.write('token_env = "PAGE_TOKEN"\n')
    for short in (None, "short"):
        assert run_opsctl("serve", "--port", "0", "--json", env={"PAGE_TOKEN": short}).returncode == 10
    token = "hunter2-canary-hunter2-canary"
    process, url = started(run_opsctl, env={"PAGE_TOKEN": token})
    port = httpx.URL(url).port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert client.get("/").status_code == 401
        assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/healthz").text == "ok\n"
    assert ended(process)[0] == 0
    assert token not in (run_opsctl.folder / "log").read_text()


def test_answers_are_not_held_back():
    """Small answers leave at once: with Nagle's algorithm each took 40 ms longer."""
    from opsctl.web.server import addresses_of, listen

    for each in listen(addresses_of("127.0.0.1", 0)):
        with each, socket.create_connection(each.getsockname()), each.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken(run_opsctl, story):
    """One line, no traceback."""
    (run_opsctl.work / "opsctl.toml").write_text(story.CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = run_opsctl("serve", "--port", str(taken.getsockname()[1]), "--json")
    assert run.returncode == 1
    assert run.json["error"]["message"].endswith("Address already in use.")


def test_without_the_extra_it_says_what_to_install(run_opsctl, story):
    """The page's libraries are not opsctl's own: one line names the command."""
    (run_opsctl.work / "fastapi.py").write_text("raise ImportError('none', name='fastapi')\n")
    run = run_opsctl.start(
        "serve", "--json", env={"PYTHONPATH": f"{run_opsctl.work}:{run_opsctl.source_variables.get('PYTHONPATH', '')}"}
    )
    stdout, _ = run.communicate(timeout=60)
    assert run.returncode == 10
    error = json.loads(stdout)["error"]
    assert (error["code"], "'.[serve]'" in error["hint"]) == ("configuration", True)


def test_sentry_hears_of_a_failed_request(sixty_days, story, page_of):
    """Once, by its integration for FastAPI, without locals and secrets."""
    import sentry_sdk

    from opsctl.telemetry.redact import Redactor
    from opsctl.telemetry.sentry_requests import watch_requests

    bodies = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    class Broken:
        def listed(self):
            hidden = "hunter2-canary"
            raise RuntimeError(f"no repositories, {hidden}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        dsn = f"http://0123456789@127.0.0.1:{server.server_address[1]}/7"
        redactor = Redactor(["hunter2-canary"])
        with watch_requests(dsn, environment="test", traces_sample_rate=0.0, redactor=redactor):
            client = page_of(sixty_days, now=story.NOW, catalog=Broken())
            headers = {"Authorization": "Bearer key-canary", "Cookie": "a=private"}
            assert client.get("/", headers=headers).status_code == 500
        assert not sentry_sdk.get_client().is_active()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    import gzip

    texts = [(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).decode() for body in bodies]
    events = [json.loads(text.splitlines()[2]) for text in texts if '"type":"event"' in text]
    assert len(events) == 1
    assert events[0]["exception"]["values"][-1]["value"] == "no repositories, ***"
    assert "hunter2" not in "".join(texts)
    assert "private" not in "".join(texts)
    assert "key-canary" not in "".join(texts)
    assert "vars" not in "".join(texts)
