import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from opsctl.cli.connections import Connection, as_table, try_connections
from opsctl.cli.files import new_file
from opsctl.cli.output import Outcome
from opsctl.cli.questions import Questions
from opsctl.cli.session import Session
from opsctl.errors import ConfigurationError, ExitCode, OpsctlError, Refused, UsageError

if TYPE_CHECKING:
    from opsctl.new_config import Answers, NewKey, NewRepository
    from opsctl.services.compose_file import ComposeService
    from opsctl.surroundings import DatabaseSource, Surroundings

FILE = Path("opsctl.toml")
RUNBOOK = "runbook.md"
IDENTITY = "opsctl.key"
SIGNING_KEY = "opsctl-signing.key"

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="The new file, opsctl.toml by default; the others go beside it."
    ),
]
UrlEnvOption = Annotated[
    str | None,
    typer.Option("--url-env", metavar="NAME", help="The variable with the database's address, as DATABASE_URL."),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The database's address itself, without a password.")
]
ServiceOption = Annotated[
    str | None,
    typer.Option("--service", metavar="NAME", help="The service of the compose file that the database is in."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What opsctl calls the database; else its own name.")
]
PasswordEnvOption = Annotated[
    str | None, typer.Option("--password-env", metavar="NAME", help="The variable with the password.")
]
PasswordFileOption = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="The file with the password.")
]
RepositoryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--repository", metavar="URL", help="Where backups go: a folder, or s3://bucket/prefix. May be repeated."
    ),
]
EndpointOption = Annotated[
    str | None, typer.Option("--endpoint-url", metavar="URL", help="The address of the s3:// service, if not AWS.")
]
RegionOption = Annotated[str | None, typer.Option("--region", metavar="NAME", help="The s3:// bucket's region.")]
NoServicesOption = Annotated[bool, typer.Option("--no-services", help="Watch no service of the compose file.")]
TimeZoneOption = Annotated[
    str | None,
    typer.Option("--timezone", metavar="NAME", help="Whose clocks the schedule goes by; else the machine's."),
]
RecipientOption = Annotated[
    list[str] | None,
    typer.Option("--recipient", metavar="KEY", help="Encrypt backups to this public key. May be repeated."),
]
NewIdentityOption = Annotated[
    Path | None,
    typer.Option("--new-key", metavar="FILE", help="Make a key in this new file, and encrypt backups to it."),
]
NewSigningKeyOption = Annotated[
    Path | None,
    typer.Option("--new-signing-key", metavar="FILE", help="Make a key in this new file, and sign backups with it."),
]
RunbookOption = Annotated[
    str | None, typer.Option("--runbook", metavar="FILE", help="The copy of the runbook; runbook.md by default.")
]
NoRunbookOption = Annotated[bool, typer.Option("--no-runbook", help="Copy no runbook: use the one opsctl comes with.")]
NoTestOption = Annotated[
    bool, typer.Option("--no-test", help="Write the files without trying a single connection first.")
]


def init(
    session: Session,
    output: OutputOption = None,
    url_env: UrlEnvOption = None,
    url: UrlOption = None,
    service: ServiceOption = None,
    name: NameOption = None,
    password_env: PasswordEnvOption = None,
    password_file: PasswordFileOption = None,
    repositories: RepositoryOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    no_services: NoServicesOption = False,
    time_zone: TimeZoneOption = None,
    recipients: RecipientOption = None,
    new_key: NewIdentityOption = None,
    new_signing_key: NewSigningKeyOption = None,
    runbook: RunbookOption = None,
    no_runbook: NoRunbookOption = False,
    no_test: NoTestOption = False,
) -> Outcome:
    """Write an opsctl.toml for what is here: DATABASE_URL, .env and the compose file are looked at.

    At a terminal it asks what the options leave open; elsewhere it takes what is found. Every connection is tried
    before anything is written, no secret is copied, and no file is replaced.

    Example: [bold]opsctl init --url-env DATABASE_URL --repository ./backups[/bold]
    """
    from opsctl.new_config import Answers, config_text
    from opsctl.surroundings import look_around

    if url is not None and urlsplit(url).password:
        raise UsageError(
            "A password does not belong on a command line.",
            hint="Put the address into .env as DATABASE_URL and name that with --url-env, or use --password-file.",
        )
    output = (output or session.options.config or FILE).absolute()
    folder = output.parent
    copy = None if no_runbook else folder / (runbook or RUNBOOK)
    _refuse_to_replace([output, copy, new_key, new_signing_key])
    here, questions = look_around(folder), Questions(session)
    passwords = {"password_env": password_env, "password_file": str(password_file) if password_file else None}
    chosen = _database(here, questions, url_env=url_env, url=url, service=service)
    keys = _Keys(session, questions, folder)
    answers = Answers(
        database=replace(chosen, name=name or chosen.name, keys={**chosen.keys, **_given(passwords)}),
        repositories=_repositories(questions, repositories or [], endpoint_url, region),
        services=() if no_services else _services(here, questions),
        project=here.compose.project if here.compose else None,
        time_zone=time_zone or questions.text("Time zone of the schedule", here.time_zone),
        identity=keys.identity(new_key, is_asked=not recipients),
        recipients=recipients or (),
        signing=keys.signing(new_signing_key),
        runbook=os.path.relpath(copy, folder) if copy else None,
        sentry_variable="SENTRY_DSN" if here.variables.get("SENTRY_DSN") else None,
    )
    text = config_text(answers)
    with _candidate(session, output, text) as trial:
        tried = [] if no_test else list(try_connections(trial))
    _go_on(session, questions, tried)
    _write(session, {**keys.files, **({copy: _shipped_runbook()} if copy else {}), output: text})
    return _outcome(answers, output, tried)


def _given(keys: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in keys.items() if value}


def _refuse_to_replace(paths: Sequence[Path | None]) -> None:
    taken = [path for path in paths if path is not None and path.exists()]
    if taken:
        raise Refused(
            f"{', '.join(map(str, taken))} {'exists' if len(taken) == 1 else 'exist'} already; nothing was written.",
            hint="Name other files (-o, --runbook, --new-key), or say --no-runbook.",
        )


# What is asked


def _database(
    here: "Surroundings", questions: Questions, *, url_env: str | None, url: str | None, service: str | None
) -> "DatabaseSource":
    """The database that the options name, that somebody chooses, or that is the likeliest."""
    if sum(each is not None for each in (url_env, url, service)) > 1:
        raise UsageError("The database is named twice.", hint="Give one of --url-env, --url and --service.")
    if url_env is not None:
        return here.of_variable(url_env)
    if url is not None:
        return here.of_url(url)
    if service is not None:
        return here.of_service(service)
    found = here.databases
    if not found:
        raise ConfigurationError(
            f"No database was found: no PostgreSQL address in the environment or .env, no service in {here.folder}.",
            hint="Put DATABASE_URL=postgresql://user:password@host/database into .env, or give --url or --url-env.",
        )
    if not questions.are_asked and len(found) > 1 and all(each.service for each in found):
        names = ", ".join(str(each.service) for each in found)
        raise UsageError(f"There are several databases in the compose file: {names}.", hint="Name one with --service.")
    return found[questions.choice("The database", [f"{each.name}  ({each.found_in})" for each in found])]


def _repositories(
    questions: Questions, urls: Sequence[str], endpoint_url: str | None, region: str | None
) -> "list[NewRepository]":
    given = list(urls)
    if not given:
        given = [questions.text("Where the backups go: a folder, or s3://bucket/prefix", "backups")]
        given += filter(None, [questions.text("A second place, for when this machine is gone (empty: none)", "")])
    if (endpoint_url or region) and not any(map(_is_s3, given)):
        raise UsageError(
            "--endpoint-url and --region are for s3:// repositories.", hint="--repository s3://bucket/prefix"
        )
    return [
        _repository(questions, name, url, endpoint_url, region)
        for name, url in zip(_repository_names(given), given, strict=True)
    ]


def _repository(
    questions: Questions, name: str, url: str, endpoint_url: str | None, region: str | None
) -> "NewRepository":
    from opsctl.new_config import NewRepository

    if not _is_s3(url):
        return NewRepository(name, url)
    endpoint = endpoint_url or questions.text(f"The address of the service of {url} (empty: AWS)", "")
    return NewRepository(
        name, url, endpoint or None, region or questions.text("Its region (empty: as AWS says)", "") or None
    )


def _is_s3(url: str) -> bool:
    return url.startswith("s3://")


def _repository_names(urls: Sequence[str]) -> Iterator[str]:
    """The first folder is ``local``, the first bucket ``offsite``; others are numbered."""
    count: dict[str, int] = {}
    for url in urls:
        kind = "offsite" if _is_s3(url) else "local"
        count[kind] = count.get(kind, 0) + 1
        yield kind if count[kind] == 1 else f"{kind}{count[kind]}"


def _services(here: "Surroundings", questions: Questions) -> "list[ComposeService]":
    names = ", ".join(each.name for each in here.services)
    if here.services and questions.yes(f"Watch the services with health checks ({names})?", default=True):
        return here.services
    return []


class _Keys:
    """New keys, made where somebody wants them; the files are written with everything else."""

    def __init__(self, session: Session, questions: Questions, folder: Path) -> None:
        self._session = session
        self._questions = questions
        self._folder = folder
        self.files: dict[Path, str] = {}

    def identity(self, file: Path | None, *, is_asked: bool) -> "NewKey | None":
        from opsctl.encryption import new_identity

        if file is None and is_asked and self._questions.yes("Encrypt the backups with a new key?", default=False):
            file = self._asked_file("Its file", IDENTITY)
        return None if file is None else self._made(file, new_identity(self._session.clock()))

    def signing(self, file: Path | None) -> "NewKey | None":
        from opsctl.signing import new_signing_key

        if file is None and self._questions.yes("Sign the backups, so that others are not restored?", default=False):
            file = self._asked_file("The signing key's file", SIGNING_KEY)
        return None if file is None else self._made(file, new_signing_key())

    def _asked_file(self, label: str, default: str) -> Path:
        file = self._folder / self._questions.text(label, default)
        _refuse_to_replace([file])
        return file

    def _made(self, file: Path, pair: tuple[str, str]) -> "NewKey":
        from opsctl.known_secrets import key_secrets
        from opsctl.new_config import NewKey

        public, secret = pair
        self._session.redactor.add(key_secrets(secret))
        path = file.absolute()
        self.files[path] = secret
        inside = path.is_relative_to(self._folder)
        return NewKey(public, str(path.relative_to(self._folder) if inside else path))


# What is tried and written


@contextmanager
def _candidate(session: Session, output: Path, text: str) -> Iterator[Session]:
    """A session that works with the new configuration before it is there."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # of one that was killed
    except OSError as error:
        raise OpsctlError(
            f"{output} cannot be written: {error.strerror}.", hint="Name another file with -o."
        ) from error
    try:
        new_file(partial, text)
        trial = Session(session.command, replace(session.options, config=partial), within=session)
        trial.run_id, trial.output = session.run_id, session.output
        trial.config  # noqa: B018 - raises what is wrong with it
        yield trial
    except ConfigurationError as error:
        raise ConfigurationError(error.message.replace(str(partial), str(output)), hint=error.hint) from error
    finally:
        partial.unlink(missing_ok=True)


def _go_on(session: Session, questions: Questions, tried: list[Connection]) -> None:
    """Raises why not, unless every vital connection is there or somebody says so."""
    if tried:
        session.output.show(as_table(tried))
    error = next((each.error for each in tried if each.error is not None), None)
    if error is None or (questions.are_asked and questions.yes("Write the files nevertheless?", default=False)):
        return
    error.hint = f"{error.hint or ''} Nothing was written; --no-test writes without trying.".strip()
    raise error


def _write(session: Session, files: Mapping[Path, str]) -> None:
    """All of them or none; the configuration comes last."""
    written: list[Path] = []
    try:
        for path, text in files.items():
            new_file(path, text)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    session.log().info("init.written", files=[str(path) for path in files])


def _shipped_runbook() -> str:
    from opsctl.runbook.files import shipped

    return shipped("en").read_text(encoding="utf-8")


def _outcome(answers: "Answers", output: Path, tried: list[Connection]) -> Outcome:
    named = [key for key in (answers.identity, answers.signing) if key]
    files = [str(output), *filter(None, [answers.runbook]), *(key.file for key in named)]
    following = _next_commands(output)
    result: dict[str, Any] = {
        "file": str(output),
        "runbook": answers.runbook,
        "database": answers.database.name,
        "found_in": answers.database.found_in,
        "repositories": [{"name": each.name, "url": each.url} for each in answers.repositories],
        "services": [each.name for each in answers.services],
        "keys": [{"file": key.file, "public_key": key.public} for key in named],
        "connections": [
            {"subject": each.subject, "status": each.status, "message": each.message, "hint": each.hint}
            for each in tried
        ],
        "next": following,
    }
    text = [f"Written: {', '.join(files)}"]
    if answers.identity:
        text.append(
            f"{answers.identity.file} opens the backups, and nothing else does: copy it now to where the loss of this"
            " machine does not reach it."
        )
    if answers.runbook:
        text.append(f"{answers.runbook} is yours to edit; `opsctl runbook lint` says what in it is not yet yours.")
    text += ["Next:", *(f"  {each}" for each in following)]
    is_well = all(each.status in {"ok", "skip"} for each in tried)
    return Outcome(result, text, ExitCode.DONE if is_well else ExitCode.ATTENTION)


def _next_commands(output: Path) -> list[str]:
    found_by_itself = output in {Path.cwd() / FILE, Path("/etc/opsctl") / FILE}
    option = "" if found_by_itself else f" --config {output}"
    return [f"opsctl {each}{option}" for each in ("backup", "drill", "cron install")]
