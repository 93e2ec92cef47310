"""The page over a state that runs have left: in this process, with the program for what only a process has."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from opsctl.config import load_config
from opsctl.telemetry.redact import Redactor
from opsctl.telemetry.request_metrics import RequestMetrics
from opsctl.web.app import Served, create_app
from opsctl.web.catalog import Catalog, Listed, Problem
from opsctl.web.sources import Sources

CANARY = "hunter2-canary"


@pytest.fixture(scope="session")
def story() -> Any:
    """story.py beside this file."""
    spec = importlib.util.spec_from_file_location("story", Path(__file__).with_name("story.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sixty_days(story: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story's folder, to be read."""
    folder = tmp_path_factory.mktemp("story")
    story.build(folder, hostile=True)
    return folder


class Client:
    """Requests to an application in this process."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def request(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        async def send() -> Any:
            transport = httpx.ASGITransport(self._application, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> Any:
        return self.request("GET", path, **options)

    def head(self, path: str) -> Any:
        return self.request("HEAD", path)


class Told(Catalog):
    """A catalog whose repositories have told what a test wants, and are not asked."""

    def __init__(self, listed: list[Listed]) -> None:
        super().__init__([], arguments=[], clock=lambda: datetime.now(UTC), refresh_seconds=300)
        self.told = listed

    def listed(self) -> list[Listed]:
        return self.told


@pytest.fixture
def told() -> Callable[..., Told]:
    """``told(config, now=…)``: what the repositories of a configuration hold right now."""

    def read(config: Any, *, now: datetime, silent: tuple[str, ...] = (), age: timedelta = timedelta(0)) -> Told:
        from opsctl.documents import backup_entry, incomplete_entry
        from opsctl.repository import Repository
        from opsctl.storage import open_storage

        found = []
        for name in config.repositories:
            settings = config.repository(name)
            catalog = Repository(name, open_storage(settings.url, settings)).catalog()
            backups = sorted(catalog.backups, key=lambda each: (each.created_at, each.id), reverse=True)
            result = {
                "backups": [backup_entry(each) for each in backups],
                "incomplete": [incomplete_entry(each) for each in catalog.incomplete],
                "unreachable": [],
            }
            problem = Problem("Connection refused.", "Is it up?") if name in silent else None
            found.append(Listed(name, result, now - age, problem))
        return Told(found)

    return read


@pytest.fixture
def page_of(told: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``page_of(folder, now=…)``: a client of everything that is served over the state in a folder."""
    from opsctl.metrics import known
    from opsctl.telemetry.metrics import render

    def make(
        folder: Path, *, now: datetime, token: str | None = None, catalog: Any = None, later: Any = None, **options: Any
    ) -> Any:
        monkeypatch.setenv("OPSCTL_STATE_DIR", str(folder / "state"))
        monkeypatch.chdir(folder)
        config = load_config()
        redactor = Redactor()
        redactor.except_for({*config.databases, *config.repositories})
        redactor.add(config.secrets())
        sources = Sources(config, redactor, later or (lambda: now))
        catalog = catalog or told(config, now=now, **options)
        metrics = lambda at: render(known(config, now=at), redact=redactor.text)  # noqa: E731
        served = Served(sources, catalog, redactor, RequestMetrics(), metrics)
        application = create_app(served, names={"localhost", "testserver"}, token=token)
        return Client(application)

    return make
