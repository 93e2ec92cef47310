"""What a command may do: a property of the command itself. A step's verb can only claim more, never less."""

import re
from collections.abc import Callable, Mapping, Sequence

from opsctl.runbook import Effect

Judge = Callable[[Sequence[str]], Effect | None]
"""The effect of a command with these arguments; ``None`` where it has no place in a runbook."""


def _fixed(effect: Effect | None) -> Judge:
    return lambda _arguments: effect


def _ends(*endless: str) -> Judge:
    """Looks, and ends: what goes on until somebody stops it is for a terminal of its own."""
    return lambda arguments: None if _has(arguments, *endless) else "observe"


def _restore(arguments: Sequence[str]) -> Effect:
    if _has(arguments, "--plan"):
        return "observe"
    return "change" if _has(arguments, "--into", "--globals") else "danger"


def _prune(arguments: Sequence[str]) -> Effect:
    return "observe" if _has(arguments, "--dry-run") and not _has(arguments, "--plan") else "change"


OPSCTL: Mapping[str, Judge] = {
    "backup": _fixed("change"),
    "list": _fixed("observe"),
    "show": _fixed("observe"),
    "verify": _fixed("observe"),
    "drill": _fixed("observe"),
    "diff": _fixed("observe"),
    "restore": _restore,
    "export": _fixed("change"),
    "import": lambda arguments: "observe" if _has(arguments, "--plan") else "change",
    "sync": _fixed("change"),
    "prune": _prune,
    "pin": _fixed("change"),
    "unpin": _fixed("change"),
    "keygen": _fixed("change"),
    "repository check": _fixed("observe"),
    "doctor": _ends("-w", "--watch", "--run"),
    "explain": _fixed("observe"),
    "services": _fixed("observe"),
    "logs": _ends("-f", "--follow"),
    "restart": _fixed("change"),
    "runbook list": _fixed("observe"),
    "runbook show": _fixed("observe"),
    "runbook lint": _fixed("observe"),
    "runbook test": _fixed("observe"),
    "incident list": _fixed("observe"),
    "incident show": _fixed("observe"),
    "incident verify": _fixed("observe"),
    "incident note": _fixed("change"),
    "completion": _fixed("observe"),
    "history": _fixed("observe"),
    "metrics": _fixed("observe"),
    "config show": _fixed("observe"),
    "config validate": _fixed("observe"),
    "config schema": _fixed("observe"),
    "notify test": _fixed("change"),
    "cron show": _fixed("observe"),
    "cron check": _fixed("observe"),
    "cron install": _fixed("change"),
    "cron remove": _fixed("change"),
}
"""Those a step may hold. Others ask, go on for ever, or begin runs of their own: ``runbook run``, ``serve``."""


def opsctl_effect(name: str, arguments: Sequence[str]) -> Effect | None:
    """What an opsctl command does. ``None`` where it has no place in a step."""
    judge = OPSCTL.get(name)
    return judge(arguments) if judge else None


def why_not_observed(words: Sequence[str]) -> str | None:
    """Why another program's command is not one that only looks; ``None`` when it is."""
    program, arguments = words[0], words[1:]
    if program not in OBSERVED:
        return f"{program} is not on the list of commands that only look"
    return OBSERVED[program](arguments)


Refusal = Callable[[Sequence[str]], str | None]


def _anything(_arguments: Sequence[str]) -> str | None:
    return None


def _without(*options: str) -> Refusal:
    """Any argument but these options; single letters are found in a bundle of them, too."""

    def refuse(arguments: Sequence[str]) -> str | None:
        found = next((each for each in options if _has(arguments, each, abbreviated=True)), None)
        return f"{found} does more than look" if found else None

    return refuse


def _date(arguments: Sequence[str]) -> str | None:
    if _has(arguments, "-s", "--set", abbreviated=True) or any(each[:1] not in {"+", "-"} for each in arguments):
        return "it may set the clock: only `date`, `date -u` and a +FORMAT are looked at"
    return None


def _docker(arguments: Sequence[str]) -> str | None:
    return None if arguments and arguments[0] in {"ps", "logs", "inspect"} else "of docker only ps, logs and inspect"


def _systemctl(arguments: Sequence[str]) -> str | None:
    if not arguments or arguments[0] != "status":
        return "of systemctl only `systemctl status`"
    return _without("-H", "--host", "-M", "--machine")(arguments[1:])


_journalctl = _without(
    "--vacuum-size",
    "--vacuum-time",
    "--vacuum-files",
    "--rotate",
    "--flush",
    "--sync",
    "--relinquish-var",
    "--smart-relinquish-var",
    "--setup-keys",
    "--update-catalog",
    "--cursor-file",
    "-f",
    "--follow",
)

PSQL_FLAGS = frozenset({"-X", "-A", "-t", "-x", "-q", "-w", "--no-psqlrc", "--expanded", "--tuples-only", "--no-align"})
PSQL_VALUES = frozenset({"-d", "--dbname", "-h", "--host", "-p", "--port", "-U", "--username"})
LOOKING = re.compile(r"\s*(select|with|show|explain|table|values)\b", re.IGNORECASE)
ACTING = re.compile(
    r"\b(pg_terminate_backend|pg_cancel_backend|pg_reload_conf|pg_rotate_logfile|pg_switch_wal|pg_promote|pg_create_\w+"
    r"|pg_drop_\w+|pg_copy_\w+|pg_replication_\w+|pg_logical_\w+|pg_backup_\w+|pg_wal_replay_\w+|pg_stat_reset\w*"
    r"|pg_notify|pg_advisory\w*|pg_try_advisory\w*|pg_file_\w+|pg_logdir_ls|lo_\w+|dblink\w*|set_config|query_to_xml\w*"
    r"|setval|nextval|pg_import_\w+|pg_log_\w+|pg_write_\w+)\s*\(",
    re.IGNORECASE,
)


def _psql(arguments: Sequence[str]) -> str | None:
    """``psql -c SQL`` with one statement that reads; it runs in a transaction that may not write, see psql_words."""
    statements, position = 0, 0
    while position < len(arguments):
        word = arguments[position]
        value = arguments[position + 1] if position + 1 < len(arguments) else None
        if word in {"-c", "--command"} and value is not None:
            statements += 1
            reason = _why_not_read(value)
            if reason:
                return reason
            position += 2
        elif word in PSQL_VALUES and value is not None and "=" not in value and "://" not in value:
            position += 2
        elif word in PSQL_FLAGS:
            position += 1
        else:
            return f"of psql only -c SQL, and where to connect: {word} is something else"
    return None if statements == 1 else "psql needs one -c SQL"


def _why_not_read(sql: str) -> str | None:
    if "\\" in sql or ";" in sql.strip().rstrip(";"):
        return "psql -c takes one statement, without a backslash"
    if not LOOKING.match(sql):
        return "the statement does not begin with select, with, show, explain, table or values"
    acting = ACTING.search(sql)
    return f"{acting[1]} does something, in a read-only transaction too" if acting else None


OBSERVED: Mapping[str, Refusal] = {
    "cat": _anything,
    "head": _anything,
    "tail": _without("-f", "-F", "--follow", "--retry"),
    "grep": _anything,
    "ls": _anything,
    "df": _anything,
    "free": _without("-s", "--seconds"),
    "ps": _anything,
    "ss": _without("-K", "--kill", "-D", "--diag"),
    "date": _date,
    "uptime": _anything,
    "echo": _anything,
    "docker": _docker,
    "systemctl": _systemctl,
    "journalctl": _journalctl,
    "psql": _psql,
}
"""Programs that only look, each with what it may not be given. docs/runbook-format.md lists them."""


def as_run(words: Sequence[str], effect: Effect) -> list[str]:
    """The command as it is started. psql that only looks does so in a transaction that may not write."""
    if effect != "observe" or words[0] != "psql":
        return list(words)
    position = next(number for number, word in enumerate(words) if word in {"-c", "--command"})
    begin = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *words[1:position], "-c", "begin transaction read only"]
    return [*begin, *words[position:]]


def _has(arguments: Sequence[str], *options: str, abbreviated: bool = False) -> bool:
    return any(_is_option(word, option, abbreviated=abbreviated) for word in arguments for option in options)


def _is_option(word: str, option: str, *, abbreviated: bool) -> bool:
    """Whether a word is this option: ``--follow=name``, ``-nf``; ``--foll`` where programs take that."""
    if option.startswith("--"):
        name = word.partition("=")[0]
        return name == option or (abbreviated and len(name) > 3 and name.startswith("--") and option.startswith(name))
    return word.startswith("-") and not word.startswith("--") and option[1:] in word[1:]
