"""The status page: it tells what is known, how old that is, and nothing that could be mistaken for something else."""

import os
import re
import tempfile
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

CANARY = "hunter2-canary"
VOID = {"meta", "link", "br"}


class Strict(HTMLParser):
    """Every element is closed, and in order; collects ids, links and what would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.elements = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("href", "src", "action", "aria-labelledby") if name in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def parsed(text):
    parser = Strict()
    parser.feed(text)
    assert parser.open == []
    return parser


def shown(text):
    """The words of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).split())


def test_it_tells_verdict_checks_backups_runs_and_incidents(sixty_days, story, page_of):
    """What somebody at three in the morning needs: cause, remedy, what there is to restore, what happened lately."""
    client = page_of(sixty_days, now=story.NOW)
    answer = client.get("/")
    assert answer.status_code == 200
    text = shown(answer.text)
    assert "<title>CRIT · opsctl on " in answer.text
    for words in (
        "db.connect (billing): The server refuses the login",
        "opsctl runbook run database-refuses-the-login",
        "backup.fresh (billing)",
        "See why the last runs failed, then take one now.",
        "Since 2026-11-24 03:20 UTC.",
        "14 checks are ok, 0 were skipped",
        "The last run of backup failed 12 h ago : The database billing refuses the login",
        "saasdb-20261124T030000Z-e4fc",
        "the restore took 7 min 11 s",
        "in 12 h",
        "billing: password authentication failed since 03:00",
        "acknowledged",
        "local answers 119",
        "counted 2 d ago",
        "damaged in local",
    ):
        assert words in text, words
    assert answer.text.count('<svg class="sizes"') == 2


def test_it_is_one_whole_document_and_loads_nothing(sixty_days, story, page_of):
    """No script, no file, no other host; the policy allows the page's own style and nothing else."""
    answer = page_of(sixty_days, now=story.NOW).get("/")
    page = parsed(answer.text)
    assert len(set(page.ids)) == len(page.ids)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "iframe", "img", "object", "form"})
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.elements for name in attrs)
    for link in page.links:
        assert link.startswith(("#", "data:image/svg+xml,", "api/", "metrics", "./", "?")) or link in page.ids, link
        assert not link.startswith("#") or link[1:] in page.ids
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)[1]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    for tag, attrs in page.elements:
        assert tag != "th" or attrs["scope"] in {"row", "col"}


def test_hostile_names_and_secrets_stay_text(sixty_days, story, page_of):
    """A name that is markup, a terminal's colour or turns the text around is shown for what it is; no secret is."""
    client = page_of(sixty_days, now=story.NOW)
    page = client.get("/")
    parsed(page.text)
    assert "<script" not in page.text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;\\x1b[31m\\u202egpj" in page.text
    for path in ("/", "/api/doctor", "/api/list", "/api/history", "/api/incident/list", "/metrics"):
        answer = client.get(path)
        assert CANARY not in answer.text, path
        assert path == "/metrics" or "\x1b" not in answer.text, path
        assert answer.headers["x-content-type-options"] == "nosniff", path
    assert client.get("/api/list", params={"database": story.HOSTILE}).json()["result"]["backups"][0]["rows"] == 10


def test_an_old_verdict_is_no_verdict(sixty_days, story, page_of):
    """After three runs of doctor that did not come nothing is called well, or bad, any more."""
    now = story.NOW
    client = page_of(sixty_days, now=now, later=lambda: now + 13 * story.DAY / 1440)
    assert "<title>UNKNOWN" in client.get("/").text
    assert "too old to rely on" in shown(client.get("/").text)
    assert "<title>CRIT" in page_of(sixty_days, now=now, later=lambda: now + 11 * story.DAY / 1440).get("/").text


def test_a_repository_that_does_not_answer_keeps_what_it_told(sixty_days, story, page_of):
    """Its backups stay on the page, with what is wrong and how old that is."""
    client = page_of(sixty_days, now=story.NOW, silent=("offsite",), age=story.DAY / 12)
    text = shown(client.get("/").text)
    assert "offsite no answer Connection refused. Is it up? 77" in text
    assert "2 h ago" in text
    document = client.get("/api/list").json()
    assert (document["exit_code"], document["result"]["unreachable"]) == (3, ["offsite"])
    assert document["result"]["backups"][1]["repositories"] == ["local", "offsite"]


def test_nothing_is_known_yet(tmp_path, story, page_of):
    """The first minute: every section says that there is nothing, and what to do."""
    (tmp_path / "opsctl.toml").write_text(story.CONFIG)
    client = page_of(tmp_path, now=story.NOW)
    answer = client.get("/")
    parsed(answer.text)
    text = shown(answer.text)
    for words in ("No checks have been made", "There are no backups yet", "No run is recorded", "None is recorded"):
        assert words in text
    document = client.get("/api/doctor")
    assert (document.status_code, document.json()["exit_code"], document.json()["result"]) == (503, 3, None)


def test_without_the_repositories_the_runs_tell(sixty_days, story, page_of):
    """Who may read the state and no repository sees the backups that runs of this host took."""
    from opsctl.web.catalog import Listed, Problem

    silent = [Listed(name, problem=Problem("Permission denied.", None)) for name in ("local", "offsite")]
    client = page_of(sixty_days, now=story.NOW, catalog=type("Silent", (), {"listed": lambda _self: silent})())
    text = shown(client.get("/").text)
    assert "No repository has told this page of its backups yet." in text
    assert "saasdb-20261124T030000Z-e4fc" in text
    assert client.get("/api/list").json()["error"]["message"] == "Permission denied."


def test_what_cannot_be_read_is_said(tmp_path, story, page_of):
    """A damaged history takes the rest of the page with it no more than the missing incidents do."""
    state = story.build(tmp_path)
    client = page_of(tmp_path, now=story.NOW)
    (state / "history.db").write_bytes(b"no database " * 1000)
    answer = client.get("/")
    assert answer.status_code == 200
    assert re.search(r'<p class="problem">The history .*history\.db', answer.text)
    assert "saasdb-20261124T030000Z-e4fc" in answer.text
    assert client.get("/api/history").status_code == 503


@pytest.mark.parametrize(("asked", "header"), [("/", None), ("/?refresh=60", "60")])
def test_it_looks_again_by_itself_only_when_asked(sixty_days, story, page_of, asked, header):
    """A page that reloads takes away what somebody is reading, so that is a choice."""
    assert page_of(sixty_days, now=story.NOW).get(asked).headers.get("refresh") == header


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_of_the_group_is_served(story, page_of):
    """Whoever may read the state folder, by its group, sees checks and runs; what is private is said to be."""
    group = 4242
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir(mode=0o750)
        os.chown(state, -1, group)
        state.chmod(0o2750)
        story.build(folder)
        client = page_of(folder, now=story.NOW)
        client.get("/")  # loads what lies where nobody else may read
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(group)
            os.setuid(65534)
            fresh = page_of(folder, now=story.NOW, catalog=type("None", (), {"listed": lambda _self: []})())
            os.write(writing, shown(fresh.get("/").text).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read().decode()
        os.waitpid(child, 0)
    assert text.startswith("CRIT")
    assert "backup billing failed" in text
    assert "the restore took 7 min 11 s" in text
    assert "can be read by their owner only" in text
    assert "None is recorded" not in text
    assert "saasdb-20261124T030000Z-e4fc" in text


def test_what_cannot_be_read_is_not_said_to_be_nothing(story, page_of, tmp_path):
    """A damaged history is neither a host without runs nor one whose checks were never made."""
    state = story.build(tmp_path)
    (state / "history.db").write_bytes(b"no database at all" * 100)
    text = shown(page_of(tmp_path, now=story.NOW).get("/").text)
    assert text.startswith("UNKNOWN")
    assert "What the checks said last cannot be read." in text
    assert "They cannot be read; the top of the page says why." in text
    assert "No checks have been made" not in text
    assert "No run is recorded" not in text
