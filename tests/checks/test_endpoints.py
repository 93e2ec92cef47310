"""Web addresses and certificates: real servers that refuse, hang, lie and expire."""

import socket
from datetime import UTC, datetime, timedelta

import pytest

DAY = timedelta(days=1)


def http(url, *more):
    return "\n".join(["[http.api]", f'url = "{url}"', *more])


def only(results, name):
    (found,) = (each for each in results.values() if each.id == name)
    return found


@pytest.mark.parametrize(
    ("path", "more", "status", "code"),
    [
        ("/200", [], "ok", None),
        ("/200", ['body = "status: up"'], "ok", None),
        ("/200", ['body = "asked by me"', 'headers = { X-Who = "me" }'], "ok", None),
        ("/200", ['body = "status: down"'], "crit", "body"),
        ("/503", ['body = "status: up"'], "crit", "status"),
        ("/204", ["status = 204"], "ok", None),
        ("/moved", [], "crit", "status"),
        ("/moved", ["status = 302"], "ok", None),
        ("/slow", ["timeout_seconds = 0.3"], "crit", "timeout"),
        ("/drip", ["timeout_seconds = 0.3"], "crit", "timeout"),
        ("/200?q=1", [], "ok", None),
    ],
)
def test_the_upper_rungs(look, serve, path, more, status, code):
    """Status before body, redirects not followed; an answer that never comes, or never ends, takes its timeout."""
    found = only(look(http(f"http://127.0.0.1:{serve()}{path}", *more), "http"), "http.answer")

    assert (found.status, found.code) == (status, code), found
    assert (found.remedy is None) == (status == "ok")
    assert code != "status" or path != "/moved" or "leads to /200" in found.message


def test_the_lower_rungs(look, serve, authority):
    """Name, connection, TLS: the first one that breaks is the finding; the certificate is not a second alarm."""
    certificate = authority.certificate(-DAY, 60 * DAY)
    plain, secure = serve(), serve(certificate)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        unused = closed.getsockname()[1]
        closed.close()
        quick, bundle = "timeout_seconds = 0.3", f'ca_bundle = "{authority.bundle}"'
        urls = {
            "dns": http("http://name.invalid/"),
            "refused": http(f"http://127.0.0.1:{unused}/"),
            "tls": http(f"https://127.0.0.1:{plain}/", bundle),
            "untrusted": http(f"https://127.0.0.1:{secure}/"),
            "protocol": http(f"http://127.0.0.1:{secure}/"),
            "timeout": http(f"http://127.0.0.1:{silent.getsockname()[1]}/", quick),
        }
        results = {code: look(text, "http", "tls") for code, text in urls.items()}
        hanging = look(http(f"https://127.0.0.1:{silent.getsockname()[1]}/", quick), "http")
        good = look(http(f"https://127.0.0.1:{secure}/200", bundle), "http", "tls")

    for code, found in results.items():
        answer = only(found, "http.answer")
        assert (answer.status, answer.code) == ("crit", code), answer
        assert answer.remedy.text
        assert only(found, "tls.certificate").status == "skip"
    assert only(results["untrusted"], "tls.certificate").because == "http.answer"
    assert only(hanging, "http.answer").code == "timeout"
    assert {each.status for each in good.values()} == {"ok"}


def test_the_address_of_a_service(look, serve, canned_engine, monkeypatch):
    """[services.NAME.http] is looked at under the service's name, unless its container does not run."""
    monkeypatch.setenv("DOCKER_HOST", canned_engine.host)
    text = f'[services.bot]\n[services.bot.http]\nurl = "http://127.0.0.1:{serve()}/200"\n'
    assert look(text, "http.bot")["http.answer (bot)"].status == "ok"

    canned_engine.containers["bot"]["State"] |= {"Status": "exited", "Running": False, "ExitCode": 137}
    stopped = look(text, "http.bot")
    assert stopped["service.state (bot)"].status == "crit"
    assert (stopped["http.answer (bot)"].status, stopped["http.answer (bot)"].because) == ("skip", "service.state")


def test_a_slow_answer_warns(look, serve):
    """By the thresholds of the configuration."""
    text = http(f"http://127.0.0.1:{serve()}/200") + '\n[doctor.thresholds]\n"http.answer" = { warn = 0 }\n'

    assert only(look(text, "http.api"), "http.answer").code == "slow"


@pytest.mark.parametrize(
    ("begins", "ends", "host", "status", "code"),
    [
        (-10 * DAY, 80 * DAY, "127.0.0.1", "ok", None),
        (-70 * DAY, 20 * DAY, "127.0.0.1", "warn", "expires"),
        (-80 * DAY, 10 * DAY, "127.0.0.1", "crit", "expires"),
        (-4 * DAY, 2 * DAY, "127.0.0.1", "crit", "expires"),  # 6 days: a third is left, but that is not 48 hours
        (-3 * DAY, 3 * DAY, "127.0.0.1", "ok", None),
        (-DAY / 2, DAY / 2, "127.0.0.1", "ok", None),  # renewed every day: 12 hours are enough
        (-90 * DAY, -DAY, "127.0.0.1", "crit", "expired"),
        (DAY, 90 * DAY, "127.0.0.1", "crit", "not_yet_valid"),
        (-DAY, 90 * DAY, "example.org", "crit", "wrong_host"),
    ],
)
def test_certificates(look, serve, authority, begins, ends, host, status, code):
    """By the share of their life that is left; what is wrong with one has its own word each."""
    port = serve(authority.certificate(begins, ends, host=host))
    text = f'[tls.db]\naddress = "127.0.0.1:{port}"\nca_bundle = "{authority.bundle}"\n'
    found = only(look(text, "tls.db"), "tls.certificate")

    assert (found.status, found.code) == (status, code), found
    if code in {"expired", "not_yet_valid"}:
        assert f"{datetime.now(UTC) + ends:%Y-%m-%d}" in found.message
    if status != "ok":
        assert found.remedy.command


def test_a_certificate_for_another_name_than_the_address(look, serve, authority):
    """``server_name`` is what is asked for, and what the certificate has to be for."""
    port = serve(authority.certificate(-DAY, 60 * DAY, host="db.example.org"))
    text = f'[tls.db]\naddress = "127.0.0.1:{port}"\nca_bundle = "{authority.bundle}"\n'

    assert only(look(text + 'server_name = "db.example.org"', "tls"), "tls.certificate").status == "ok"
    assert only(look(text, "tls"), "tls.certificate").code == "wrong_host"
    assert only(look(text.replace(str(authority.bundle), "nowhere.pem"), "tls"), "tls.certificate").code == "ca_bundle"
