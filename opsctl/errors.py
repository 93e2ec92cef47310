"""Everything that can go wrong, and the exit code it ends with.

OpsctlError                      1
├── UsageError                   2   the command line cannot be understood
├── ConfigurationError          10   opsctl.toml, the environment, a missing client program
├── LockHeld                    11   another run, or a session of the database, holds what is needed
├── DatabaseUnreachable         12   no connection: host, port, password, database name
├── RepositoryUnreachable       13   a repository cannot be read or written
│   └── RemovalRefused          13   something is locked there, or the credentials may not delete
├── NoSuchBackup                14   no backup of that name, or none at all
├── NoSuchIncident              14   no incident of that name, or none that is open
├── BackupDamaged               15   stored bytes are not what the manifest says
│   └── CopyDiffers             15   a restored copy is not what the backup's facts say
├── TimelineChanged             15   an incident's timeline is not what was written
├── Refused                     16   a confirmation or a precondition is missing; nothing was changed
├── DumpFailed                   1   pg_dump ended with an error, or in the middle
├── RestoreFailed                1   pg_restore or a comparison failed; what was created is gone again
├── QueryFailed                  1   the server refused a statement
├── TimelineUnwritable           1   an incident's timeline cannot be written: a full disk, another owner
├── ServicesUnreachable          1   Docker does not answer, or not to this user
├── StepFailed                   1   a step of a runbook failed, or its checks did not become green
├── HistoryUnavailable           1   the record of runs cannot be read or written
├── ServiceFailed                1   a container is missing, cannot be restarted, or does not become healthy
└── Interrupted                130   Ctrl-C (130), SIGTERM and SIGHUP (143)

Errors are named for a state or in the past tense. Each says what happened (message) and what to do (hint).
"""

from collections.abc import Sequence
from datetime import datetime
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means; ``doctor`` has its own four, see DoctorExit."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    ATTENTION = 3
    CONFIGURATION = 10
    LOCKED = 11
    DATABASE_UNREACHABLE = 12
    REPOSITORY_UNREACHABLE = 13
    NO_SUCH_BACKUP = 14
    BACKUP_DAMAGED = 15
    REFUSED = 16
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


class DoctorExit(IntEnum):
    """What the exit code of ``doctor`` means: that of a monitoring plugin, its own errors (UNKNOWN) included."""

    OK = 0
    WARN = 1
    CRIT = 2
    UNKNOWN = 3


class OpsctlError(Exception):
    """A failure a person can act on.

    ``message`` says what happened, ``hint`` what to do about it; both are plain text of one or few lines.
    ``code`` is the stable word for programs.
    """

    exit_code: ExitCode | DoctorExit = ExitCode.FAILED
    code = "failed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OpsctlError):
    exit_code = ExitCode.USAGE
    code = "usage"


class ConfigurationError(OpsctlError):
    """``others`` are the problems found besides, where all are looked for."""

    exit_code = ExitCode.CONFIGURATION
    code = "configuration"

    def __init__(self, message: str, *, hint: str | None = None, others: "Sequence[ConfigurationError]" = ()) -> None:
        super().__init__(message, hint=hint)
        self.others = tuple(others)


class LockHeld(OpsctlError):
    exit_code = ExitCode.LOCKED
    code = "locked"


class DatabaseUnreachable(OpsctlError):
    """``reason`` is a word for what stands in the way, ``refused`` or ``dns`` for example; see CONNECT_REASONS."""

    exit_code = ExitCode.DATABASE_UNREACHABLE
    code = "database_unreachable"

    def __init__(self, message: str, *, hint: str | None = None, reason: str = "lost") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class RepositoryUnreachable(OpsctlError):
    exit_code = ExitCode.REPOSITORY_UNREACHABLE
    code = "repository_unreachable"


class RemovalRefused(RepositoryUnreachable):
    """``locked_until`` says how long a lock holds; None: we may not delete there at all."""

    code = "removal_refused"

    def __init__(self, message: str, *, hint: str | None = None, locked_until: datetime | None = None) -> None:
        super().__init__(message, hint=hint)
        self.locked_until = locked_until


class NoSuchBackup(OpsctlError):
    exit_code = ExitCode.NO_SUCH_BACKUP
    code = "no_such_backup"


class NoSuchIncident(OpsctlError):
    exit_code = ExitCode.NO_SUCH_BACKUP
    code = "no_such_incident"


class BackupDamaged(OpsctlError):
    exit_code = ExitCode.BACKUP_DAMAGED
    code = "backup_damaged"


class CopyDiffers(BackupDamaged):
    """``differences`` has a sentence for each; the message, the first few."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__(
            f"The restored copy differs from the backup: {'; '.join(differences[:5])}.",
            hint="`opsctl verify` examines the backup itself.",
        )
        self.differences = tuple(differences)


class TimelineChanged(OpsctlError):
    exit_code = ExitCode.BACKUP_DAMAGED
    code = "timeline_changed"


class Refused(OpsctlError):
    exit_code = ExitCode.REFUSED
    code = "refused"


class DumpFailed(OpsctlError):
    code = "dump_failed"


class RestoreFailed(OpsctlError):
    code = "restore_failed"


class QueryFailed(OpsctlError):
    code = "query_failed"


class NotPermitted(QueryFailed):
    """A statement refused because the login lacks a right; one kind of QueryFailed, with its word."""


class TimelineUnwritable(OpsctlError):
    code = "timeline_unwritable"


class ServicesUnreachable(OpsctlError):
    """``denied``: it is there, but not for this user."""

    code = "services_unreachable"

    def __init__(self, message: str, *, hint: str | None = None, denied: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.denied = denied


class StepFailed(OpsctlError):
    code = "step_failed"


class ServiceFailed(OpsctlError):
    code = "service_failed"


class HistoryUnavailable(OpsctlError):
    """The record of this host's runs cannot be read or written."""

    code = "history_unavailable"


class Interrupted(OpsctlError):
    code = "interrupted"

    def __init__(self, message: str, *, exit_code: ExitCode, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
