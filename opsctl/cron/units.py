"""systemd's units as text: a timer and a hardened service for each job. Pure, but for which folders there are."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from opsctl.cron.block import digest
from opsctl.cron.jobs import Job, command_line

if TYPE_CHECKING:
    from opsctl.config import Config

WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
MARK = re.compile(r"# opsctl: (?P<source>.+) \(digest (?P<digest>[0-9a-f]{16})\)\n")

ROOTS_CAPABILITIES = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_KILL CAP_SETGID CAP_SETUID"
"""What root needs of its powers: files of other users, and a drill's server that runs as somebody else."""

HARDENING = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
"""


def units(config: "Config", jobs: list[Job], *, user: str) -> dict[str, str]:
    """The text of each unit by its file's name."""
    found = {}
    for job in jobs:
        found[f"opsctl-{job.command}.service"] = _marked(config, _service(config, job, user))
        found[f"opsctl-{job.command}.timer"] = _marked(config, _timer(job))
    return found


def _marked(config: "Config", body: str) -> str:
    return f"# opsctl: {config.source} (digest {digest([body])})\n{body}"


def is_ours(text: str, source: str) -> bool:
    mark = MARK.match(text)
    return mark is not None and mark["source"] == source


def is_edited(text: str) -> bool:
    mark = MARK.match(text)
    return mark is not None and digest([text[mark.end() :]]) != mark["digest"]


def _service(config: "Config", job: Job, user: str) -> str:
    line = " ".join(_word(word) for word in command_line(config, job))
    capabilities = ROOTS_CAPABILITIES if user == "root" else ""
    paths = "".join(f"ReadWritePaths=-{_path(each)}\n" for each in writable(config))
    # A warning of doctor is a finding, not a unit that failed.
    warned = "SuccessExitStatus=1\n" if job.command == "doctor" else ""
    return (
        f"[Unit]\nDescription=opsctl {job.command}\nWants=network-online.target\n"
        "After=network-online.target postgresql.service docker.service\n\n"
        f"[Service]\nType=oneshot\nUser={user}\nWorkingDirectory={_path(config.folder.absolute())}\nExecStart={line}\n"
        f"{warned}"
        # It ends its children itself, in order, and cleans up.
        "KillMode=mixed\nTimeoutStartSec=infinity\nTimeoutStopSec=90\nNice=10\nIOSchedulingClass=best-effort\n"
        f"IOSchedulingPriority=7\nCapabilityBoundingSet={capabilities}\n{HARDENING}{paths}"
    )


def _timer(job: Job) -> str:
    times = "".join(f"OnCalendar={each}\n" for each in calendar(job))
    # Without FixedRandomDelay= the delay is another one every night, and the distance of two runs is, too.
    spread = f"RandomizedDelaySec={job.jitter_seconds}\nFixedRandomDelay=yes\n" if job.jitter_seconds else ""
    persistent = "no" if job.command == "doctor" else "yes"  # what was wrong while the machine was off is history
    return (
        f"[Unit]\nDescription=When opsctl {job.command} runs\n\n"
        f"[Timer]\n{times}{spread}Persistent={persistent}\nAccuracySec=1s\nUnit=opsctl-{job.command}.service\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )


def calendar(job: Job) -> list[str]:
    """OnCalendar= of a schedule. Where cron runs on a day of the month *or* of the week, these are two."""
    fields = job.schedule.fields
    time = f"{_numbers(fields.hours, 24)}:{_numbers(fields.minutes, 60)}:00 {job.schedule.timezone}"
    weekdays = ",".join(WEEKDAYS[day] for day in fields.weekdays or ())
    dates = f"*-{_dates(fields.months)}-{_dates(fields.days)}"
    if fields.is_any_day and fields.days and fields.weekdays:
        return [f"{dates} {time}", f"{weekdays} *-{_dates(fields.months)}-* {time}"]
    return [f"{weekdays} {dates} {time}".strip()]


def _numbers(values: tuple[int, ...], limit: int) -> str:
    return "*" if len(values) == limit else ",".join(f"{each:02}" for each in values)


def _dates(values: tuple[int, ...] | None) -> str:
    return ",".join(f"{each:02}" for each in values) if values else "*"


def _word(word: str) -> str:
    """A word of ExecStart=: systemd expands ``%`` and ``$``, and reads quotes as C does."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w%@+=:,./-]+", escaped) else f'"{escaped}"'


def _path(path: Path) -> str:
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text


def writable(config: "Config") -> list[Path]:
    """The folders a run writes to; systemd passes over those that are missing."""
    named = config.variables.get("OPSCTL_LOG_FILE")
    more = [config.textfile and config.textfile.parent, Path(named).expanduser().parent if named else None]
    return list(dict.fromkeys([*own_folders(config), *(each.absolute() for each in more if each)]))


def own_folders(config: "Config") -> list[Path]:
    """Those of them that opsctl makes where they are missing: its state, local repositories, drills.

    A confined run cannot: it would have to write beside them.
    """
    repositories = [folder_of(config.repository_url(name)) for name in config.repositories]
    return [each.absolute() for each in (config.state_path, config.drill_folder, *repositories) if each]


def folder_of(url: str) -> Path | None:
    if "://" not in url:
        return Path(url)
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
