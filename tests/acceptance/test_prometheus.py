"""The whole way with the real programs: a run's metrics through node_exporter to Prometheus, its alerts to a receiver.

And a Pushgateway. All on 127.0.0.1, gone with the test.
"""

import http.server
import json
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

DEPLOY = Path(__file__).parents[2] / "deploy/prometheus"
CANARY = "canary-7f3a9c"

PROMETHEUS = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [opsctl.rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]}}
scrape_configs:
  - job_name: node
    static_configs: [{{targets: ["127.0.0.1:{exporter}"]}}]
"""
ALERTMANAGER = """\
route: {{receiver: test, group_wait: 0s, group_interval: 1s, group_by: ["..."]}}
receivers: [{{name: test, webhook_configs: [{{url: "http://127.0.0.1:{receiver}/"}}]}}]
"""


def free_ports(count):
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@contextmanager
def running(folder, port, ready, *command):
    """A server of its own in ``folder``, once it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*map(str, command)], cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: fetch(port, ready) or server.poll() is not None, command[0])
        assert server.poll() is None, (folder / "log").read_text()
        yield server
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(timeout=30)


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.alerts += document["alerts"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def receiver():
    """What Alertmanager sends, in ``.alerts``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    server.alerts = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def prometheus(need, receiver, tmp_path):
    """Prometheus with our rules, none of which waits, an Alertmanager and a node_exporter: its port, and the folder."""
    folder = tmp_path / "monitoring"
    (folder / "prometheus").mkdir(parents=True)
    (folder / "alertmanager").mkdir()
    textfiles = folder / "textfiles"
    textfiles.mkdir()
    exporter, alertmanager, port = free_ports(3)
    rules = (DEPLOY / "opsctl.rules.yml").read_text()
    (folder / "prometheus/opsctl.rules.yml").write_text(re.sub(r"for: \d+\w", "for: 0s", rules))
    (folder / "prometheus/prometheus.yml").write_text(PROMETHEUS.format(alertmanager=alertmanager, exporter=exporter))
    (folder / "alertmanager/alertmanager.yml").write_text(ALERTMANAGER.format(receiver=receiver.server_address[1]))
    with (
        running(
            folder / "exporter",
            exporter,
            "/metrics",
            need("prometheus-node-exporter"),
            f"--web.listen-address=127.0.0.1:{exporter}",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={textfiles}",
        ),
        running(
            folder / "alertmanager",
            alertmanager,
            "/-/ready",
            need("prometheus-alertmanager"),
            "--config.file=alertmanager.yml",
            "--storage.path=data",
            "--cluster.listen-address=",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
        ),
        running(
            folder / "prometheus",
            port,
            "/-/ready",
            need("prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
        ),
    ):
        yield port, textfiles


def query(port, expression):
    answer = fetch(port, f"/api/v1/query?query={quote(expression)}")
    return json.loads(answer)["data"]["result"] if answer else []


def promtool(need, *arguments, **options):
    command = [need("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, **options)


def test_the_rules_do_what_their_tests_say(need):
    checked = promtool(need, "check", "rules", DEPLOY / "opsctl.rules.yml")
    tested = promtool(need, "test", "rules", "opsctl.rules.test.yml", cwd=DEPLOY)

    assert checked.returncode == 0, checked
    assert tested.returncode == 0, tested.stdout


def test_a_stale_backup_is_alarm_until_there_is_a_new_one(run_opsctl, saas, prometheus, receiver, need):
    """A backup is three days old, the database is down and the nightly run fails: both reach the receiver.

    Then the database is back, a run stores a backup, and nothing fires any more.
    """
    port, textfiles = prometheus
    textfile = textfiles / "opsctl.prom"

    def configure(url):
        text = f'[databases.saasdb]\nurl = "{url}"\n[repositories.local]\nurl = "backups"\n'
        text += f'[schedule]\nbackup = "0 3 * * *"\n[metrics]\ntextfile = "{textfile}"\n'
        (run_opsctl.work / "opsctl.toml").write_text(text)

    def firing():
        return {each["metric"]["alertname"] for each in query(port, 'ALERTS{alertstate="firing"}')}

    configure(saas.url)
    assert run_opsctl("backup").returncode == 0
    _make_old(run_opsctl.work / "backups", timedelta(days=3))
    configure("postgresql://u@127.0.0.1:1/x")
    failed = run_opsctl("backup", "--quiet")
    checked = promtool(need, "check", "metrics", input=textfile.read_text())
    wait_for(lambda: firing() >= {"OpsctlBackupStale", "OpsctlRunFailed"}, "the alerts")
    wait_for(
        lambda: {each["labels"]["alertname"] for each in receiver.alerts} >= {"OpsctlBackupStale", "OpsctlRunFailed"},
        "the receiver",
    )
    stale = next(each for each in receiver.alerts if each["labels"]["alertname"] == "OpsctlBackupStale")
    scraped = query(port, "time() - opsctl_backup_last_success_timestamp_seconds")
    configure(saas.url)
    again = run_opsctl("backup")
    wait_for(lambda: not firing(), "quiet", seconds=90)

    assert (failed.returncode, again.returncode) == (12, 0)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), checked
    assert stale["labels"]["database"] == "saasdb"
    assert stale["annotations"]["summary"] == "The newest backup of saasdb in local is old."
    assert stale["annotations"]["explain"] == "opsctl explain backup.age"
    assert float(scraped[0]["value"][1]) > 3 * 86400 - 60
    assert query(port, "node_textfile_scrape_error")[0]["value"][1] == "0"
    assert query(port, 'opsctl_runs_total{outcome="failed"}')[0]["value"][1] == "1"


def _make_old(repository, age):
    """Every backup there as if it had been taken that much earlier."""
    for path in list(repository.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        at = datetime.now(UTC) - age
        identifier = f"{manifest['database']}-{at:%Y%m%dT%H%M%SZ}-0a1b"
        moment = at.isoformat().replace("+00:00", "Z")
        path.write_text(json.dumps({**manifest, "id": identifier, "started_at": moment, "finished_at": moment}))
        path.parent.rename(path.parent.with_name(identifier))


def test_a_pushgateway_has_them_until_the_next_push(run_opsctl, saas, need, tmp_path):
    """With a password in the URL; one that is stopped, or gone, costs the run nothing but a moment."""
    (port,) = free_ports(1)
    gateway = need("prometheus-pushgateway")

    def configure(metrics):
        text = f'[databases.saasdb]\nurl = "{saas.url}"\n[repositories.local]\nurl = "backups"\n[metrics]\n{metrics}\n'
        (run_opsctl.work / "opsctl.toml").write_text(text)

    configure(f'pushgateway_url = "http://ops:{CANARY}@127.0.0.1:{port}"')
    with running(tmp_path / "gateway", port, "/-/ready", gateway, f"--web.listen-address=127.0.0.1:{port}") as server:
        first = run_opsctl("backup", "--json")
        pushed = fetch(port, "/metrics")
        run_opsctl("backup")
        twice = fetch(port, "/metrics")
        server.send_signal(signal.SIGSTOP)
        stopped = run_opsctl("backup", "--json")
    gone = run_opsctl("backup", "--json")

    host = socket.gethostname()
    labels = f'database="saasdb",instance="{host}",job="opsctl",repository="local"'
    assert f"opsctl_backups{{{labels}}} 1\n" in pushed
    assert f"opsctl_backups{{{labels}}} 2\n" in twice
    assert f'push_failure_time_seconds{{instance="{host}",job="opsctl"}} 0' in twice
    assert [each.returncode for each in (first, stopped, gone)] == [0, 0, 0]
    assert stopped.json["ok"]
    assert CANARY not in pushed + first.stderr + stopped.stderr + stopped.stdout + gone.stderr
