"""The site and its pictures: built with every warning an error, and drawn from what opsctl prints today."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs/pictures"


def test_the_site_is_built_without_a_warning(tmp_path):
    """Every link, anchor and page of the navigation is there; a runbook's step says above its block what it is."""
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    home = (tmp_path / "site/index.html").read_text()
    runbook = (tmp_path / "site/runbook.html").read_text()

    assert 'href="quickstart.html"' in home
    assert 'src="pictures/backup.svg"' in home
    assert "```" not in re.sub(r"<(pre|code).*?</\1>", "", runbook, flags=re.DOTALL)
    assert '<span class="filename">change id=restart-bot' in runbook
    assert (tmp_path / "site/deploy/grafana/opsctl.json").is_file()
    for path in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(
            r'(?:src|href)="(https?:[^"]+)"', re.sub(r"<a .*?</a>", "", path.read_text(), flags=re.DOTALL)
        )
        assert loaded == [], path.name


@pytest.mark.timeout(600)
def test_pictures_show_what_is_printed_today(need):
    """A picture whose text has changed is drawn anew with `make docs`; ids, times and numbers do not count."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    drawn = dict(pictures.pictures(str(need("chromium"))))
    page = drawn.pop("status-page.png")

    assert page.startswith(b"\x89PNG")
    assert len(page) > 20_000
    assert set(drawn) == {path.name for path in PICTURES.glob("*.svg")}
    for name, svg in drawn.items():
        stored = (PICTURES / name).read_text()
        assert pictures.shape_of(stored) == pictures.shape_of(svg), f"{name}: run make docs"
        assert set(re.findall(r"https?://[^\"\s]+", stored)) <= {
            "http://www.w3.org/2000/svg",
            "https://www.textualize.io",
        }
