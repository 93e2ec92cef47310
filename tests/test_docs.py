"""The docs are true: what they list is all there is, what they show runs, and every link leads somewhere."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel  # noqa: TID253  # a test may load what it likes
from pydantic_core import PydanticUndefined

from opsctl import manifest
from opsctl.cli.app import COMMANDS, new_app
from opsctl.cli.boundary import run_command
from opsctl.config import Environment, load_config
from opsctl.errors import ExitCode
from opsctl.retention import Candidate, Policy, parse_duration, plan_prune

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
COMMAND_NAMES = [name for name, _, _ in COMMANDS]

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<fence>```+)(?P<kind>\w*)(?P<verb> [^\n]*)?\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
"""A ``verb`` makes a step of a runbook of a block; those are tested in tests/runbook."""

HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CELL = re.compile(r"^\| (.+?) \|", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """The text under each heading, up to the next heading of any level."""
    headings = list(HEADING.finditer(FENCE.sub(lambda match: " " * len(match[0]), text)))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {heading[1]: text[heading.end() : end] for heading, end in zip(headings, ends, strict=True)}


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by the code words of their first cell; several words there share a row."""
    lines = [line for line in FENCE.sub("", text).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {word: row for row in cells for word in CODE.findall(row[0])}


def blocks(text: str, kind: str) -> list[str]:
    return [match["text"] for match in FENCE.finditer(text) if match["kind"] == kind]


# What is generated, and what is listed


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


@pytest.mark.parametrize("path", list(GENERATOR.pages()), ids=name_of)
def test_generated_pages_are_what_the_generator_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == GENERATOR.pages()[path], "run: make pages"


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_command_has_help_with_an_example(name: str) -> None:
    group: Any = typer.main.get_command(new_app(run_command))
    command = GENERATOR.command_of(group, name)
    prose, example = GENERATOR.split_help(command.help)
    assert prose.endswith(".")
    assert example.startswith(f"opsctl {name}")
    assert [param.name for param in command.params if not param.help] == []


def test_the_readme_names_every_command() -> None:
    named = re.findall(r"\(docs/cli\.md#(opsctl-[\w-]+)\)", page("README.md"))
    assert set(named) == {GENERATOR.anchor(name) for name in COMMAND_NAMES}


def test_every_exit_code_has_its_row_and_no_row_is_unknown() -> None:
    table = page("docs/exit-codes.md").partition("## ")[0]
    documented = re.findall(r"^\| (\d+) \| ([\w ]+?) \|", table, re.MULTILINE)
    assert {int(number): name.upper().replace(" ", "_") for number, name in documented} == {
        int(code): code.name for code in ExitCode
    }


@pytest.mark.parametrize(("section", "model"), list(GENERATOR.models()), ids=str)
def test_every_configuration_key_has_its_row_with_its_default(section: str, model: type[BaseModel]) -> None:
    documented = rows(sections(page("docs/configuration.md"))[f"`[{section}]`"])
    assert {key: row[1] for key, row in documented.items() if row[0] == f"`{key}`"} == {
        key: spelled(field.default) for key, field in model.model_fields.items()
    }


def spelled(default: Any) -> str:
    """A default as the docs spell it: as TOML, or as the word for there being none."""
    if default is None:
        return "none"
    if default is PydanticUndefined:
        return "required"
    return f"`{'{}' if isinstance(default, BaseModel) else json.dumps(default)}`"


def test_every_section_of_the_documented_configuration_exists() -> None:
    documented = {heading for heading in sections(page("docs/configuration.md")) if heading.startswith("`[")}
    assert documented == {f"`[{section}]`" for section, _ in GENERATOR.models()}


def test_every_environment_variable_has_its_row() -> None:
    reads = re.compile(r'(?:environ|variables)(?:\.get\(|\[)"([A-Z_]+)"|"([A-Z_]+)" in (?:self\.variables|os\.environ)')
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "opsctl").rglob("*.py")]
    read = {first or second for source in sources for first, second in reads.findall(source)}
    read |= {str(field.validation_alias) for field in Environment.model_fields.values()}
    documented = rows(sections(page("docs/configuration.md"))["Environment variables"])
    assert read - documented.keys() == set()
    mentioned = "\n".join(sources)
    assert [name for name in documented if "*" not in name and name[:2] != "PG" and f'"{name}"' not in mentioned] == []


def manifest_classes() -> list[type]:
    found = [each for each in vars(manifest).values() if isinstance(each, type) and is_dataclass(each)]
    assert manifest.Manifest in found
    return found


@pytest.mark.parametrize("record", manifest_classes(), ids=lambda each: each.__name__)
def test_every_manifest_field_has_its_row(record: type) -> None:
    documented = rows(sections(page("docs/repository-format.md"))[record.__name__])
    assert documented.keys() == {field.name for field in fields(record)}


@pytest.mark.parametrize("level", manifest.EVIDENCE_LEVELS)
def test_every_evidence_level_has_its_row(level: str) -> None:
    assert level in rows(sections(page("docs/repository-format.md"))["Evidence"])


def test_every_make_target_has_its_row() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", page("Makefile"), re.MULTILINE)) - {"help"}
    documented = rows(sections(page("CONTRIBUTING.md"))["Set up"])
    assert {word.partition(" ")[2] for word in documented} - {""} == targets


def test_the_documented_layers_are_the_enforced_ones() -> None:
    contracts = tomllib.loads(page("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    enforced = [sorted(layer.replace("opsctl.", "").split(" | ")) for layer in layers]
    for name in ("CONTRIBUTING.md", "docs/architecture.md", "docs/decisions/0001-layers.md"):
        drawn = next(block for block in blocks(page(name), "text") if block.startswith("cli →"))
        assert [sorted(layer.strip().split(" | ")) for layer in drawn.split("→")] == enforced, name


def test_every_module_is_in_the_tree() -> None:
    tree = next(block for block in blocks(page("docs/architecture.md"), "text") if block.startswith("opsctl/"))
    modules = [path for path in (ROOT / "opsctl").rglob("*.py") if not path.name.startswith("__")]
    assert [path.name for path in modules if path.name not in tree] == []
    assert [name for name in re.findall(r"\w+\.py", tree) if name not in {path.name for path in modules}] == []


# What is shown


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path.read_text(), "toml")], ids=name_of)
def test_toml_examples_load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@localhost/saasdb")
    for text in blocks(path.read_text(encoding="utf-8"), "toml"):
        file = tmp_path / "opsctl.toml"
        file.write_text(text)
        config = load_config(file, working_folder=tmp_path)
        for repository in config.repositories.values():
            parse_duration(repository.retention.keep_within or "1d")


def test_the_retention_example_is_what_prune_decides() -> None:
    section = sections(page("docs/retention.md"))["An example"]
    settings = tomllib.loads(blocks(section, "toml")[0])["repositories"]["local"]["retention"]
    first, now = datetime(2026, 9, 1, 3, tzinfo=UTC), datetime(2026, 11, 23, 12, tzinfo=UTC)
    nights = [first + timedelta(days=n) for n in range((now - first).days + 1)]
    plan = plan_prune([Candidate(f"{night:%Y-%m-%d}", night) for night in nights], Policy(**settings), now=now)
    expected = [(decision.id, ", ".join(decision.reasons)) for decision in plan if decision.keep]
    assert re.findall(r"^\| (\d{4}-\d\d-\d\d) \| (.+) \|$", section, re.MULTILINE) == expected


@pytest.fixture
def saasdb(cluster: Any, saas: Any) -> Iterator[Any]:
    """The database of the docs' examples, under its name there; what the examples create goes with it."""
    admin = replace(saas, name="postgres")
    before = {name for (name,) in admin.execute("select datname from pg_database")}
    admin.execute(f"create database saasdb template {saas.name} strategy file_copy")
    yield replace(saas, name="saasdb")
    for (name,) in admin.execute("select datname from pg_database"):
        if name not in before:
            admin.execute(f'drop database "{name}" with (force)')


@dataclass(frozen=True)
class Shell:
    folder: Path
    environment: dict[str, str]

    def __call__(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def shell(tmp_path: Path, run_opsctl: Any, saasdb: Any, binaries: Any, canned_engine: Any) -> Shell:
    """A reader's shell: opsctl and PostgreSQL's programs on PATH, DATABASE_URL set, two services, its own folder."""
    cluster, programs = saasdb.cluster, tmp_path / "bin"
    programs.mkdir()
    _write_program(programs / "opsctl", f'exec {sys.executable} -m opsctl "$@"')
    if shutil.which("zstd") is None:
        _write_program(programs / "zstd", f'exec {sys.executable} -c {UNZSTD!r} "${{@: -1}}"')
    environment = run_opsctl.environment(
        url=saasdb.url,
        env={
            "PATH": os.pathsep.join([str(programs), str(binaries.folder), os.environ["PATH"]]),
            "PGHOST": str(cluster.socket_folder),
            "PGPORT": str(cluster.port),
            "PGUSER": cluster.user,
            "DOCKER_HOST": canned_engine.host,
        },
    )
    return Shell(run_opsctl.work, environment)


UNZSTD = "import sys, zstandard; zstandard.ZstdDecompressor().copy_stream(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
"""What a machine without the program zstd runs instead of ``zstd --decompress --stdout FILE``."""


def _write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def sh_blocks(path: Path) -> list[str]:
    """The blocks of a page to be run; one that cannot be says why in a comment before it."""
    found = [match for match in FENCE.finditer(path.read_text(encoding="utf-8")) if match["kind"] == "sh"]
    return [match["text"] for match in found if match["reason"] is None and match["verb"] is None]


FIRST_PAGES = {"quickstart.md", "repository-format.md"}
"""What somebody tries first, and the restore without opsctl; the other pages are tried in the acceptance run."""


OWN_TEST = {"disaster-recovery.md"}
"""What needs a second server is followed in tests/test_disaster_recovery.py."""


def pages_with_examples() -> list[Any]:
    found = [path for path in PAGES if sh_blocks(path) and path.name not in OWN_TEST]
    return [path if path.name in FIRST_PAGES else pytest.param(path, marks=pytest.mark.acceptance) for path in found]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", pages_with_examples(), ids=name_of)
def test_shell_examples_run(path: Path, shell: Shell) -> None:
    """Page by page, from top to bottom. Only README and quickstart take their first backup themselves."""
    if path.name not in {"README.md", "quickstart.md"}:
        assert shell("opsctl backup").returncode == 0
    for block in sh_blocks(path):
        done = shell(block)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_restoring_by_hand_brings_every_row_back(shell: Shell, saasdb: Any) -> None:
    shell("opsctl backup")
    for block in sh_blocks(DOCS / "repository-format.md"):
        shell(block)
    tables = ("companies", "users", "messages", "events")
    counts = " union all ".join(f"select '{table}', count(*) from public.{table}" for table in tables)
    assert sorted(replace(saasdb, name="restored").execute(counts)) == sorted(saasdb.execute(counts))


# What --json prints

OPAQUE = {
    "checks[].details",
    "result",
    "manifest",
    "plan.properties",
    "steps[].result",
    "backups[].error",
    "metrics[].samples[].labels",
    "timeline[].fields",
    "timeline[].actor",
    "event.fields",
    "event.actor",
}
"""Keys whose inside is documented elsewhere."""


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a document: ``a``, ``a.b`` inside of an object, ``a[].b`` inside a list of objects."""
    for key, each in value.items():
        path = f"{prefix}{key}"
        if isinstance(each, list) and each and isinstance(each[0], dict):
            for item in each:
                yield from paths(item, f"{path}[].")
        else:
            yield path
            if isinstance(each, dict) and path not in OPAQUE:
                yield from paths(each, f"{path}.")


@pytest.fixture
def real_documents(run_opsctl: Callable[..., Any], saasdb: Any, canned_engine: Any) -> dict[str, list[Any]]:
    """What each command prints when there is something to tell: documents by section of docs/json-output.md."""
    work = run_opsctl.work  # type: ignore[attr-defined]
    (work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl_env = "DATABASE_URL"\n[repositories.local]\nurl = "b"\nretention = { keep_last = 1 }\n'
        '[doctor.thresholds]\n"db.connect" = { warn = 0 }\n[databases.saasdb.unusual]\ncompared = 1\n'
    )
    documents: dict[str, list[Any]] = {}

    def run(section: str, *arguments: str, **variables: str) -> None:
        environment = {"DOCKER_HOST": canned_engine.host, **variables}
        document = run_opsctl(*arguments, "--json", url=saasdb.url, env=environment).json
        documents.setdefault("The envelope", []).append(document)
        if document["result"] is not None:
            documents.setdefault(section, []).append(document["result"])

    saasdb.execute("create table public.scratch as select generate_series(1, 1000) as id")
    run("backup", "backup")
    saasdb.execute("drop table public.scratch; drop extension plpgsql")
    run("backup", "backup")  # unusual: it prunes nothing
    first, second = sorted(path.name for path in work.glob("b/saasdb/saasdb-*"))
    run("diff", "diff", first, second)
    run("backup", "backup")
    orphan = work / "b/saasdb/.saasdb-20260101T000000Z-abcd.partial"
    orphan.mkdir()
    (orphan / "dump.zst").write_bytes(b"x")
    three_days_ago = time.time() - 3 * 86400
    for path in (orphan / "dump.zst", orphan):
        os.utime(path, (three_days_ago, three_days_ago))
    run("verify", "verify")
    run("verify", "drill")
    run("list", "list")
    run("show", "show", "latest")
    run("export", "export", "latest", "-o", "saasdb.dump")
    run("pin, unpin", "pin", "latest")
    run("pin, unpin", "unpin", "latest")
    run("prune", "prune", "--dry-run")
    run("prune", "prune", "--plan", "plan.json")
    run("prune", "prune")
    saasdb.execute("insert into public.companies (name) values ('one more than in the backup')")
    run("restore", "restore", "latest")  # refused: nobody confirms it
    run("restore", "restore", "latest", "--plan", "--role", "nobody")
    run("restore", "restore", "latest", "--yes", "saasdb")
    saasdb.execute("update public.users set full_name = 'somebody' where id = 1")
    run("restore --undo", "restore", "--undo", "--yes", "saasdb")
    run("doctor", "doctor")
    run("metrics", "metrics")
    run("explain", "explain")
    run("restore --globals", "restore", "latest", "--globals", "--plan")
    run("restore --forget-previous", "restore", "--forget-previous", "--yes", "saasdb")
    run("keygen", "keygen", "-o", "opsctl.key")
    run("services", "services")
    run("logs", "logs", "bot")
    run("restart", "restart", "bot", "--yes", "bot")
    run("incident open", "incident", "open", "API answers 502")
    run("incident note", "incident", "note", "switched", "--moment", "mitigated")
    run("incident show", "incident", "export")
    run("incident export", "incident", "export", "-o", "postmortem.md")
    run("incident list", "incident", "list")
    run("incident close", "incident", "close", "--no-checks")
    run("bundle", "bundle", "latest")
    run("bundle", "bundle", "-o", "elsewhere.tar.gz", DATABASE_URL="postgresql://127.0.0.1:1/saasdb")
    run("--version", "--version")
    run("completion", "completion", "bash")
    run("history", "history")
    schedule = '[schedule]\nbackup = "0 3 * * *"\n[state]\npath = "s"\n'
    (work / "scheduled.toml").write_text(schedule)
    fake = work / "bin" / "crontab"
    fake.parent.mkdir()
    _write_program(fake, 'if [ "$1" = - ]; then cat > tab; else cat tab; fi')
    (work / "tab").write_text("")
    for verb in ("show", "install", "check", "remove"):
        section = "cron install, cron remove" if verb in {"install", "remove"} else f"cron {verb}"
        run(section, "cron", verb, "--config", "scheduled.toml", PATH=f"{fake.parent}:{os.environ['PATH']}")
    # Two calls in a night, of which the second is never due: in July Berlin is two hours ahead of UTC.
    july = schedule.replace("* * *", "1 7 *").replace("[state]", 'timezone = "Europe/Berlin"\n[state]')
    (work / "scheduled.toml").write_text(july)
    loop = run_opsctl.start("run-scheduled", "--json", "--config", "scheduled.toml")  # type: ignore[attr-defined]
    next(line for line in loop.stderr if "schedule.started" in line)
    while run_opsctl("run-scheduled", "--health", "--config", "scheduled.toml").returncode:
        time.sleep(0.1)
    run("run-scheduled --health", "run-scheduled", "--health", "--config", "scheduled.toml")
    loop.terminate()
    documents.setdefault("run-scheduled", []).append(json.loads(loop.communicate(timeout=30)[0])["result"])
    run("cron run", "cron", "run", "backup", "--if-due", "--config", "scheduled.toml")
    run("notify test", "notify", "test", OPSCTL_NOTIFY_URLS="json://127.0.0.1:1")
    served = run_opsctl.start("serve", "--port", "0", "--json", url=saasdb.url)  # type: ignore[attr-defined]
    next(line for line in served.stderr if "serve.started" in line)
    served.terminate()
    documents.setdefault("serve", []).append(json.loads(served.communicate(timeout=30)[0])["result"])
    [timeline] = (run_opsctl.state / "incidents").glob("*.jsonl")  # type: ignore[attr-defined]
    last = timeline.read_bytes().count(b"\n")
    timeline.write_bytes(timeline.read_bytes().replace(b"switched", b"SWITCHED") + b'{"seq":%d,"at":"' % (last + 1))
    run("incident show", "incident", "show")
    run("incident verify", "incident", "verify")
    run("runbook list", "runbook", "list")
    run("runbook show", "runbook", "show", "bot-is-down")
    run("runbook show", "runbook", "show")
    run("runbook lint", "runbook", "lint")
    run("runbook test", "runbook", "test", "backups")
    run("runbook run", "runbook", "run", "backups", "--only", "observe")
    (work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl_env = "DATABASE_URL"\n'
        '[repositories.local]\nurl = "b"\n[repositories.second]\nurl = "c"\n'
    )
    run("sync", "sync")
    (work / "saasdb.dump").rename(work / "saasdb_20251101_030000.dump")
    (work / "saasdb_20251102_030000.dump").write_bytes(b"no dump")
    run("import", "import", "saasdb_20251101_030000.dump", "saasdb_20251102_030000.dump")
    run("repository check", "repository", "check")
    run("init", "init", "-o", "other.toml", "--new-key", "other.key")
    run("config show", "config", "show")
    run("config validate", "config", "validate", "--config", "other.toml", DATABASE_URL="")
    run("demo", "demo")
    return documents


def known(found: set[str], documented: set[str]) -> set[str]:
    """``found`` without lists that were empty where the docs tell what is in them."""
    return {path for path in found if not any(each.startswith(f"{path}[].") for each in documented)}


@pytest.mark.acceptance
def test_json_keys_are_the_documented_ones(real_documents: dict[str, list[Any]]) -> None:
    text = sections(page("docs/json-output.md"))
    documented = {heading: set(rows(body)) for heading, body in text.items() if rows(body)}
    real = {
        heading: known({path for each in found for path in paths(each)}, documented[heading])
        for heading, found in real_documents.items()
    }
    assert documented.keys() == real.keys()
    undocumented = {heading: real[heading] - documented[heading] for heading in real}
    unreal = {heading: documented[heading] - real[heading] for heading in real}
    assert (
        {heading: keys for heading, keys in undocumented.items() if keys},
        {heading: keys for heading, keys in unreal.items() if keys},
    ) == ({}, {})


def test_json_examples_have_documented_keys_only() -> None:
    for heading, body in sections(page("docs/json-output.md")).items():
        for example in blocks(body, "json"):
            assert known(set(paths(json.loads(example))), set(rows(body))) <= set(rows(body)), heading


# Links


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """The anchors GitHub gives a page's headings."""
    headings = HEADING.findall(without_code(path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[tuple[Path, str]]:
    """Where a page's relative links lead: the file and the anchor."""
    found = [link for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))) if "://" not in link]
    return [
        ((path.parent / link.partition("#")[0]).resolve() if link[0] != "#" else path, link.partition("#")[2])
        for link in found
    ]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target, anchor in links(path):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """mkdocs.yml names each page but the decisions, and none that is not there; `make docs` checks the rest."""
    named = set(re.findall(r"^ +- [^#\n]+: (\S+\.md)$", page("mkdocs.yml"), re.MULTILINE))
    beside = {"CHANGELOG.md", "CONTRIBUTING.md"}
    assert named - beside == {path.name for path in DOCS.glob("*.md")}, "add it to nav in mkdocs.yml"


def test_every_file_in_docs_is_reachable_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [target for target, _ in links(path)] if path.suffix == ".md" and path.exists() else []
    there = {path for path in DOCS.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there - reached == set()
