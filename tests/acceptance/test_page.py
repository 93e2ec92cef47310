"""The status page in a browser: legible in light and dark, on a phone, by keyboard; nothing is loaded from elsewhere.

The screenshots stay in the test's folder, to be looked at.
"""

import importlib.util
import json
import os
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

SMALLEST_CONTRAST = """
const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const background = element => {
  for (let each = element; each; each = each.parentElement) {
    const [r, g, b, alpha = 1] = numbers(getComputedStyle(each).backgroundColor);
    if (alpha === 1) return [r, g, b];
    if (alpha > 0) throw new Error("half transparent: " + each.outerHTML.slice(0, 80));
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || element.closest("style, title, svg")) continue;
  if (!element.getClientRects().length) continue;
  const [one, other] = [luminance(numbers(style.color)), luminance(background(element))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  found.push([ratio / (isLarge ? 3 : 4.5), ratio, walker.currentNode.data.trim().slice(0, 40)]);
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 3).concat([[found.length]]);
"""

TOO_WIDE = """
return [...document.querySelectorAll("body *")].filter(each => !each.closest(".unseen, .skip, svg, thead"))
  .filter(each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
    || each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline"
    && each.clientWidth > 0).map(each => each.outerHTML.slice(0, 100));
"""

FOCUS = """
const each = document.activeElement, style = getComputedStyle(each), box = each.getBoundingClientRect();
return {tag: each.tagName, text: each.textContent.trim().slice(0, 40), outline: parseFloat(style.outlineWidth),
  style: style.outlineStyle, seen: box.top >= -1 && box.bottom <= innerHeight + 1 && box.width > 1};
"""


def story_module():
    path = Path(__file__).parents[1] / "web" / "story.py"
    spec = importlib.util.spec_from_file_location("story", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(run_opsctl):
    """A server over sixty days of a small company, hostile names included, when the repositories have answered."""
    import httpx

    story_module().build(run_opsctl.work, now=datetime.now(UTC).replace(microsecond=0), hostile=True)
    (run_opsctl.work / "state").rename(run_opsctl.state)
    with (run_opsctl.folder / "log").open("w") as log:  # a pipe that nobody reads would stop it
        run_opsctl.start("serve", "--port", "0", "--json", stderr=log)
    while not (lines := (run_opsctl.folder / "log").read_text().splitlines()):
        time.sleep(0.05)
    url = json.loads(lines[0])["url"]
    while "being asked" in httpx.get(url).text:
        time.sleep(0.2)
    return url


@pytest.fixture
def browser(need, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(need("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    driver = webdriver.Chrome(options=options, service=Service(str(need("chromedriver")), env=environment))
    yield driver
    driver.quit()


def look(browser, url, *, width, scheme="light", motion="no-preference"):
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": motion},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.get(url)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (700, "light"), (1440, "dark")])
def test_everything_can_be_read(page, browser, tmp_path, width, scheme):
    """Every text has the contrast of WCAG's AA; nothing is wider than the window; the console is silent."""
    look(browser, page, width=width, scheme=scheme)
    *worst, (texts,) = browser.execute_script(SMALLEST_CONTRAST)
    assert texts > 200
    assert worst[0][0] >= 1, worst
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    assert urls
    assert {url for url in urls if not url.startswith((page, "data:image/svg+xml,"))} == set()
    height = browser.execute_script("return document.documentElement.scrollHeight")
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    assert browser.save_screenshot(str(tmp_path / f"page-{width}-{scheme}.png"))
    styles = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert styles == {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 19, 26)"}[scheme]


def test_everything_is_reached_by_keyboard(page, browser):
    """The first stop leads past the navigation; every stop is seen and marked; what is folded opens by a key."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key):
        ActionChains(browser).send_keys(key).perform()
        return browser.execute_script(FOCUS)

    look(browser, page, width=1440, motion="reduce")
    assert browser.execute_script("return getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = false)")
    first = press(Keys.TAB)
    assert first["text"] == "Skip to the content"
    stops = [first]
    while len(stops) < 60 and (stop := press(Keys.TAB))["tag"] != "BODY":
        stops.append(stop)
    for stop in stops:
        assert (stop["style"], stop["outline"] >= 2, stop["seen"]) == ("solid", True, True), stop
    texts = [stop["text"] for stop in stops]
    assert texts[1:5] == ["Checks", "Backups", "Runs", "Incidents 1 open"]
    assert {"doctor", "metrics", "Look again"} <= set(texts)
    summaries = sum(stop["tag"] == "SUMMARY" for stop in stops)
    assert summaries == len(browser.find_elements("css selector", "summary")) > 2
    browser.get(page)
    press(Keys.TAB)
    press(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"
    press(Keys.TAB)
    press(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('#checks details').open") is True


def test_it_has_landmarks_and_headings_in_order(page, browser):
    """What a screen reader goes by: one main part, named tables with headers, no level left out, images with words."""
    look(browser, page, width=360)
    count = "return document.querySelectorAll(arguments[0]).length"
    for selector, number in (("header", 1), ("nav[aria-label]", 1), ("main", 1), ("footer", 1), ("h1", 1)):
        assert browser.execute_script(count, selector) == number, selector
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    tables = [name for role, name in roles if role == "table"]
    assert len(tables) >= 6
    assert all(tables)
    assert sum(role == "rowheader" for role, _ in roles) > 20
    assert all(name for role, name in roles if role in {"image", "link"})
    assert "alert" not in browser.title
