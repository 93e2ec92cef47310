"""What is served where: the page, the documents behind it, the metrics; all made of what is known already."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from opsctl.checks.report import as_document
from opsctl.documents import envelope, incident_entry, run_entry
from opsctl.errors import DoctorExit, ExitCode, OpsctlError, RepositoryUnreachable, UsageError
from opsctl.telemetry.redact import jsonable
from opsctl.times import format_time
from opsctl.web.catalog import Catalog, Problem
from opsctl.web.guard import Guard
from opsctl.web.page import Page, content_policy
from opsctl.web.requests import Requests
from opsctl.web.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Collection

    from fastapi import FastAPI
    from fastapi.responses import Response

    from opsctl.telemetry.redact import Redactor
    from opsctl.telemetry.request_metrics import RequestMetrics
    from opsctl.web.guard import Application

METHODS = ["GET", "HEAD"]
NOT_ASKED = Problem("No repository has answered yet: they are being asked.", "Ask again in a moment.")
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
RunOutcome = Literal["running", "done", "attention", "failed", "refused", "interrupted", "lost"]


@dataclass(frozen=True)
class Served:
    """What answers are made of. ``metrics`` is what opsctl tells Prometheus, at a moment."""

    sources: Sources
    catalog: Catalog
    redactor: "Redactor"
    request_metrics: "RequestMetrics"
    metrics: Callable[[datetime], bytes]

    def document(
        self,
        request: Any,
        command: str,
        result: Mapping[str, Any] | None,
        *,
        exit_code: int = 0,
        error: OpsctlError | None = None,
        status: int = 200,
        redacted: bool = False,
    ) -> "Response":
        """The envelope of the command line; the request's id stands for the run's."""
        from fastapi.responses import Response

        now = self.sources.clock()
        answer = envelope(
            command,
            result if redacted else jsonable(self.redactor.deep(result)),
            run_id=request.scope["request_id"],
            started_at=now,
            finished_at=now,
            exit_code=exit_code,
            error=error,
        )
        text = json.dumps(answer, ensure_ascii=False)
        return Response(text.encode("utf-8", "replace"), status_code=status, media_type="application/json")


def create_app(served: Served, *, names: "Collection[str]", token: str | None) -> "Application":
    """The whole application. ``names`` are the hosts it answers to besides addresses."""
    from fastapi import FastAPI

    app = FastAPI(title="opsctl", openapi_url=None, docs_url=None, redoc_url=None)
    _add_pages(app, served)
    _add_documents(app, served)
    _add_errors(app, served)
    return Requests(Guard(app, names=names, token=token), served.request_metrics)


def _add_pages(app: "FastAPI", served: Served) -> None:
    from fastapi import Query
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response

    whole = Page(served.redactor.text)

    @app.api_route("/", methods=METHODS)
    def page(refresh: Annotated[int | None, Query(ge=10, le=3600)] = None) -> HTMLResponse:
        status = served.sources.status(served.catalog)
        headers = {"content-security-policy": content_policy()}
        if refresh is not None:
            headers["refresh"] = str(refresh)
        text = whole.render(status, refresh_seconds=refresh)
        return HTMLResponse(text.encode("utf-8", "replace"), headers=headers)

    @app.api_route("/healthz", methods=METHODS)
    async def health() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.api_route("/metrics", methods=METHODS)
    def scrape() -> Response:
        told = served.metrics(served.sources.clock()) + served.request_metrics.render()
        return Response(told, media_type=PROMETHEUS)


def _add_documents(app: "FastAPI", served: Served) -> None:
    """The results of commands, at ``/api/`` and the command's words."""
    from fastapi import Query, Request
    from fastapi.responses import Response

    sources = served.sources

    @app.api_route("/api/doctor", methods=METHODS)
    def doctor(request: Request) -> Response:
        found = sources.report()
        if found is None:
            error = OpsctlError("No checks have been made on this host yet.", hint="`opsctl doctor` makes them.")
            return _unavailable(served, request, error, exit_code=int(DoctorExit.UNKNOWN))
        checks, report = found
        result = {**as_document(report), "at": format_time(checks.at)}
        return served.document(request, "doctor", result, exit_code=int(DoctorExit[report.status.upper()]))

    @app.api_route("/api/list", methods=METHODS)
    def list_backups(
        request: Request, database: str | None = None, limit: Annotated[int | None, Query(ge=1)] = None
    ) -> Response:
        listed = served.catalog.listed()
        if not any(each.answered_at for each in listed):
            problem = next((each.problem for each in listed if each.problem), NOT_ASKED)
            error = RepositoryUnreachable(problem.message, hint=problem.hint)
            return _unavailable(served, request, error, exit_code=int(error.exit_code))
        merged = sources.merged(listed)
        backups = merged.entries if database is None else merged.by_database.get(database, ())
        result = {
            "backups": backups[:limit],
            "incomplete": [each for each in merged.incomplete if database in {None, each["database"]}],
            "unreachable": merged.unreachable,
            "answered_at": {each.repository: each.answered_at and format_time(each.answered_at) for each in listed},
        }
        code = ExitCode.ATTENTION if merged.unreachable else ExitCode.DONE
        # The program that listed them has redacted them.
        return served.document(request, "list", result, exit_code=int(code), redacted=True)

    @app.api_route("/api/history", methods=METHODS)
    def history(
        request: Request,
        command: str | None = None,
        database: str | None = None,
        outcome: RunOutcome | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> Response:
        runs = sources.history.runs(limit=limit, command=command, database=database, outcome=outcome)
        return served.document(request, "history", {"runs": [run_entry(run) for run in runs]})

    @app.api_route("/api/incident/list", methods=METHODS)
    def incidents(request: Request) -> Response:
        entries = [incident_entry(each) for each in sources.all_incidents()]
        return served.document(request, "incident list", {"incidents": entries})


def _add_errors(app: "FastAPI", served: Served) -> None:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import PlainTextResponse, Response
    from starlette.exceptions import HTTPException

    @app.exception_handler(OpsctlError)
    def failed(request: Request, error: OpsctlError) -> Response:
        return _unavailable(served, request, error, exit_code=int(error.exit_code))

    @app.exception_handler(RequestValidationError)
    def not_understood(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        usage = UsageError(f"{first['loc'][-1]}: {first['msg']}.", hint="docs/serve.md names what can be asked for.")
        command = _command_of(request.url.path)
        return served.document(request, command, None, exit_code=int(ExitCode.USAGE), error=usage, status=400)

    @app.exception_handler(HTTPException)
    def no_such_page(_request: Request, error: HTTPException) -> Response:
        return PlainTextResponse(f"{error.detail}.\n", status_code=error.status_code, headers=error.headers)


def _unavailable(served: Served, request: Any, error: OpsctlError, *, exit_code: int) -> "Response":
    command = _command_of(request.url.path)
    return served.document(request, command, None, exit_code=exit_code, error=error, status=503)


def _command_of(path: str) -> str:
    """The command whose document was asked for."""
    return path.removeprefix("/api/").replace("/", " ").strip() or "serve"
