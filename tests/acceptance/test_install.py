"""What is built is whole: pipx and uv install the wheel where there is nothing, and it works there."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("install"), pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BESIDE = {
    "share/man/man1/opsctl.1",
    "share/bash-completion/completions/opsctl",
    "share/zsh/site-functions/_opsctl",
    "share/fish/vendor_completions.d/opsctl.fish",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with sdist and wheel; the wheel is made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run(folder, "build", "--quiet", "--outdir", folder)
    return folder


def _run(folder, *arguments):
    """A module of Python's own tools, which keep something in HOME."""
    environment = {**os.environ, "HOME": str(folder.with_name(f"{folder.name}-home"))}
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=True)


@pytest.fixture(scope="module")
def wheels(built, tmp_path_factory):
    """A folder with the wheel and all it needs: nothing is asked for over the network afterwards."""
    folder = tmp_path_factory.mktemp("wheels")
    (wheel,) = built.glob("*.whl")
    _run(folder, "pip", "wheel", "-q", "--wheel-dir", folder, "--constraint", "constraints.txt", f"{wheel}[serve]")
    return folder


def tracked(folder, *patterns):
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def test_everything_is_in_the_wheel_and_the_sdist(built):
    """Modules, SQL, pages of the server, runbooks, types, completion and manual; the sdist has tests and docs, too."""
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    wanted = {name for name in tracked(ROOT, "opsctl/**/*") if not name.endswith(".pyc")}
    inside = set(zipfile.ZipFile(wheel).namelist())

    assert wanted - inside == set()
    assert {name.partition(".data/data/")[2] for name in inside} - {""} == BESIDE
    assert not any(name.startswith(("tests/", "docs/")) for name in inside)
    with tarfile.open(sdist) as archive:
        stored = {name.partition("/")[2] for name in archive.getnames()}
    beside = ("*.md", "constraints.txt", "Makefile", ".ci/*", "docs/**/*.md", "deploy/**/*", "tests/**/*.py")
    outside = tracked(ROOT, *beside)
    assert (wanted | outside) - stored == set()


def pipx(place):
    environment = {"PIPX_HOME": place / "home", "PIPX_BIN_DIR": place / "bin", "PIPX_MAN_DIR": place / "man"}
    return [sys.executable, "-m", "pipx", "install", "--quiet", "--python", sys.executable], environment


def uv(place):
    environment = {"UV_TOOL_DIR": place / "home", "UV_TOOL_BIN_DIR": place / "bin"}
    program = Path(sys.executable).with_name("uv")
    return [program, "tool", "install", "--quiet", "--python", sys.executable], environment


@pytest.mark.parametrize("installer", [pipx, uv])
def test_installed_as_a_tool(installer, wheels, saas, binaries, tmp_path):
    """From the wheel alone: it backs up, lists and verifies, completes, and has its pages and its runbook."""
    work = tmp_path / "work"
    work.mkdir()
    command, variables = installer(tmp_path)
    (wheel,) = wheels.glob("opsctl-*.whl")
    # pipx installs with uv where it finds one.
    variables |= {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": wheels, "UV_NO_INDEX": 1, "UV_FIND_LINKS": wheels}
    variables |= {"UV_OFFLINE": 1, "UV_CACHE_DIR": tmp_path / "cache"}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP", "UV", "VIRTUAL"))}
    environment = {
        **own,
        **{name: str(value) for name, value in variables.items()},
        "HOME": str(tmp_path / "nobody"),
        "DATABASE_URL": saas.url,
        "OPSCTL_STATE_DIR": str(tmp_path / "state"),
        "PATH": f"{binaries.folder}:/usr/bin:/bin",
    }
    subprocess.run([*command, f"opsctl[serve] @ {wheel.as_uri()}"], cwd=work, env=environment, check=True)

    def opsctl(*arguments):
        program = tmp_path / "bin/opsctl"
        done = subprocess.run(
            [program, *arguments], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done
        return done.stdout

    version = json.loads(opsctl("--version", "--json"))["result"]
    assert opsctl("--version") == f"opsctl {version['version']}\n"
    opsctl("backup")
    (backup,) = json.loads(opsctl("list", "--json"))["result"]["backups"]
    opsctl("verify", "latest")
    assert backup["id"] in opsctl("__complete", "opsctl show ")
    assert "bot-is-down" in opsctl("runbook", "list")
    assert "_opsctl" in opsctl("completion", "zsh")
    (python,) = (tmp_path / "home").rglob("opsctl/bin/python")
    page = "from opsctl.web.page import TEMPLATES; print(*sorted(each.name for each in TEMPLATES.iterdir()))"
    shown = subprocess.run([python, "-c", page], cwd=work, env=environment, capture_output=True, text=True, check=True)
    assert "status.html" in shown.stdout
    assert [name for name in BESIDE if not (python.parents[1] / name).is_file()] == []
    if installer is pipx:
        assert (tmp_path / "man/man1/opsctl.1").is_file()


def test_the_manual_page_is_well_formed():
    """Neither groff nor mandoc complains."""
    page = ROOT / "opsctl/share/man/opsctl.1"
    shown = subprocess.run(
        ["man", "--local-file", "--warnings", page],
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stderr == ""
    assert "opsctl backup [OPTIONS] [DATABASE]..." in shown.stdout
    subprocess.run(["mandoc", "-T", "lint", "-W", "error", page], check=True)
