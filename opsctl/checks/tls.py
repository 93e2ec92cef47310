"""Certificates: valid, for that name, from somebody trusted, and renewed in time."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.http import absolute
from opsctl.checks.network import NO_CHECK_TIME, Address, Deadline, RungBroken, connected, secured, tls_context
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import spoken

LAST_CALL = timedelta(hours=48)
SHORT_LIFETIME = timedelta(days=5)
"""A certificate that lives no longer is renewed every day or so: two days are no last call for it."""


@dataclass(frozen=True)
class Served:
    """Where a certificate is served, and for which name."""

    address: Address
    server_name: str
    ca_bundle: Path | None
    timeout_seconds: float


def served(scope: Scope) -> dict[str, Served]:
    """That of every https address, and those of ``[tls.NAME]``."""
    found = {}
    for name, endpoint in scope.config.http.items():
        parts = urlsplit(endpoint.url)
        if parts.scheme == "https" and parts.hostname:
            address = Address(parts.hostname, parts.port or 443)
            bundle = absolute(scope, endpoint.ca_bundle)
            found[name] = Served(address, parts.hostname, bundle, endpoint.timeout_seconds)
    for name, settings in scope.config.tls.items():
        host, _, port = settings.address.rpartition(":")
        address = Address(host.strip("[]"), int(port))
        bundle = absolute(scope, settings.ca_bundle)
        found[name] = Served(address, settings.server_name or address.host, bundle, settings.timeout_seconds)
    return found


def targets(scope: Scope) -> Iterable[Target]:
    return [Target(name) for name in served(scope)]


@dataclass(frozen=True)
class Lifetime:
    begins_at: datetime
    ends_at: datetime


def check_certificate(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    there = served(scope)[target]
    try:
        lifetime = read_lifetime(there)
    except RungBroken as error:
        return _broken(there, error)
    return judge_lifetime(there, lifetime, thresholds, now=scope.clock())


def read_lifetime(there: Served, verify_flags: int = 0) -> Lifetime:
    """Of a certificate that is good. Raises RungBroken with what is wrong."""
    context = tls_context(there.ca_bundle)
    context.verify_flags |= verify_flags
    deadline = Deadline(there.timeout_seconds)
    with (
        connected(there.address, deadline) as connection,
        secured(connection, there.address, context, there.server_name, deadline) as wrapped,
    ):
        found = wrapped.getpeercert() or {}
    begins, ends = (ssl.cert_time_to_seconds(str(found[key])) for key in ("notBefore", "notAfter"))
    return Lifetime(datetime.fromtimestamp(begins, UTC), datetime.fromtimestamp(ends, UTC))


def _broken(there: Served, error: RungBroken) -> Finding:
    message = str(error)
    if error.code in {"expired", "not_yet_valid"}:
        message = f"{message.rstrip('.')}: {_dates(there)}." if _dates(there) else message
    host = there.address
    command = f"openssl s_client -connect {host} -servername {there.server_name} </dev/null"
    return Finding("crit", message, code=error.code, details={"address": str(host)}, remedy=Remedy(error.hint, command))


def _dates(there: Served) -> str | None:
    """When an expired certificate was valid: the chain is verified once more, only not against the clock."""
    try:
        found = read_lifetime(there, NO_CHECK_TIME)
    except RungBroken:
        return None
    return f"it is valid from {found.begins_at:%Y-%m-%d %H:%M} to {found.ends_at:%Y-%m-%d %H:%M} UTC"


def judge_lifetime(there: Served, found: Lifetime, thresholds: Thresholds, *, now: datetime) -> Finding:
    """By the share of its life that is left, whether that is 90 days or 6."""
    whole, left = found.ends_at - found.begins_at, found.ends_at - now
    percent = 100 * left / whole
    status = thresholds.judge(percent)
    if left < LAST_CALL and whole > SHORT_LIFETIME:
        status = "crit"
    return Finding(
        status,
        f"The certificate of {there.address} for {there.server_name} ends in {spoken(left.total_seconds())}"
        f" ({found.ends_at:%Y-%m-%d %H:%M} UTC, {percent:.0f} % of its life).",
        value=round(percent, 1),
        code=None if status == "ok" else "expires",
        details={"address": str(there.address), "expires_at": found.ends_at.isoformat()},
        remedy=None
        if status == "ok"
        else Remedy(
            "Its renewal is overdue: renew it, reload the server, and see why nobody did.", "certbot renew --dry-run"
        ),
    )


CHECKS = (
    Check(
        id="tls.certificate",
        title="the certificate is good, and is renewed in time",
        probe=check_certificate,
        reads="the certificates of https addresses ([http.NAME], [services.NAME.http]) and of [tls.NAME], as a client"
        " verifies them",
        why="From the moment it ends nobody gets in. Renewal is due at two thirds of its life, whether that is 90 days"
        " or 6: with a quarter left it is overdue, an eighth or 48 hours are the last call (the hours not for"
        " certificates that live 5 days or less).",
        fix="Renew it, reload the server, and see why the renewal did not happen by itself.",
        thresholds=Thresholds(warn=25, crit=12.5, falling=True),
        unit="%",
        after=("http.answer",),
        targets=targets,
        not_configured="No https address is configured ([http.NAME], [tls.NAME]).",
        timeout_seconds=9,
    ),
)
