"""Addresses that should answer: name, connection, TLS, status, body."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.network import Answer, RungBroken, ask
from opsctl.checks.scope import Scope
from opsctl.checks.services import services


def endpoints(scope: Scope) -> Iterable[Target]:
    """Those of ``[http.NAME]``, and those of the services, each within its service and what that is within."""
    within = {each.name: (f"service:{each.name}", *each.within) for each in services(scope)}
    return [Target(name, within=within.get(name, ())) for name in scope.config.http]


def check_answer(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    settings = scope.config.http[target]
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    return look_at(
        settings.url,
        thresholds,
        status=settings.status,
        body=settings.body,
        headers=headers,
        ca_bundle=absolute(scope, settings.ca_bundle),
        timeout_seconds=settings.timeout_seconds,
    )


def absolute(scope: Scope, path: Path | None) -> Path | None:
    return path and scope.config.folder / path.expanduser()


def look_at(
    url: str,
    thresholds: Thresholds,
    *,
    status: int,
    body: str | None,
    timeout_seconds: float,
    headers: Mapping[str, str] | None = None,
    ca_bundle: Path | None = None,
) -> Finding:
    try:
        answer = ask(url, headers=headers or {}, ca_bundle=ca_bundle, timeout_seconds=timeout_seconds)
    except RungBroken as error:
        return Finding("crit", str(error), code=error.code, details={"url": url}, remedy=Remedy(error.hint))
    return judge_answer(url, answer, thresholds, status=status, body=body)


def judge_answer(url: str, answer: Answer, thresholds: Thresholds, *, status: int, body: str | None) -> Finding:
    """The status before the body, the body before the time it took."""
    details = {"url": url, "status": answer.status, "location": answer.location}
    value = round(answer.seconds, 3)
    look = f"curl -sS -i {url}"
    if answer.status != status:
        leads = f", which leads to {answer.location}" if answer.location else ""
        told = f"{url} answers {answer.status} {answer.reason}{leads}; expected is {status}."
        remedy = Remedy("Look at the service's logs from that moment.", look)
        return Finding("crit", told, value, details, remedy, code="status")
    if body is not None and not re.search(body, answer.body):
        told = f"{url} answers {answer.status}, but without {body!r} in what it says."
        return Finding("crit", told, value, details, Remedy("Look at what it says instead.", look), code="body")
    how = thresholds.judge(answer.seconds)
    return Finding(
        how,
        f"{url} answered {answer.status} after {answer.seconds * 1000:.0f} ms.",
        value,
        details,
        None if how == "ok" else Remedy("Look at the service's load, and at what it waits for.", look),
        code=None if how == "ok" else "slow",
    )


CHECKS = (
    Check(
        id="http.answer",
        title="the address answers as it should",
        probe=check_answer,
        reads="the addresses of [http.NAME] and [services.NAME.http], with GET: name, connection, TLS, status, body."
        " Redirects are not followed",
        why="It is what users see. The first rung that breaks is the finding. 2 s is when they begin to leave.",
        fix="The finding says which rung broke; look at the service's logs from that moment.",
        thresholds=Thresholds(warn=2),
        unit="s",
        targets=endpoints,
        not_configured="No address is configured ([http.NAME], [services.NAME.http]).",
        after=("service.state", "service.health"),
        after_one=("db.connect",),
        timeout_seconds=9,
    ),
)
