"""The report as a browser shows it: nothing to scroll sideways, nothing fetched, nothing that a label can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, find_chromium
from report_lakes import config, curated_lake

from facescale import pipeline

pytest.importorskip("faiss")
BINARY = find_chromium()
pytestmark = pytest.mark.skipif(BINARY is None, reason="Chromium is not installed (Debian: chromium)")

# Images further down are only decoded when they come into view.
DECODED = """
Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode().catch(() => 0); }))
  .then(() => [...document.images].map(image => image.naturalWidth))
"""
# Elements that reach beyond the page, but for those inside a box that scrolls by itself.
BEYOND = """
[...document.querySelectorAll('body *')]
  .filter(e => !e.parentElement.closest('.scroll') && !e.closest('svg > *'))
  .filter(e => e.getClientRects().length && (e.getBoundingClientRect().right > innerWidth + 1
               || e.getBoundingClientRect().left < -1))
  .map(e => e.outerHTML.slice(0, 120))
"""
# Contrast of text against what is behind it, as WCAG 2 has it, smallest first.
CONTRAST = """
(() => {
  const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return 'rgb(255,255,255)';
  };
  return [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') &&
      [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 100)]; }).sort((x, y) => x[0] - y[0])[0];
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = curated_lake(tmp_path_factory.mktemp("browser") / "lake")
    pipeline.run_job("report", config(lake))
    return Path(lake.uri) / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert BINARY is not None
    with Chromium(BINARY) as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.body.scrollWidth") <= width
    assert browser.evaluate(BEYOND) == []
    widths = browser.evaluate(DECODED)
    assert len(widths) > 50 and min(widths) > 0
    requests = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.dataset.hacked") is None
    assert browser.evaluate("document.querySelectorAll('script, b, img[onerror]').length") == 0
    assert browser.evaluate("document.body.textContent").count("<script>document") > 0
    assert [
        p for method, p in browser.events if method in ("Runtime.exceptionThrown", "Log.entryAdded")
    ] == []
    contrast, where = browser.evaluate(CONTRAST)
    assert contrast >= 4.5, where


def test_the_checks_can_fail(browser: Chromium, tmp_path: Path) -> None:
    """A page that is too wide, runs a script and shows a picture that is none is found out."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body><p style='width:2000px;color:#999;background:#fff'>wide</p><img src='data:image/png,x'>"
        "<script>document.documentElement.dataset.hacked = 'yes'</script><img src='http://127.0.0.1:9/x.png'>"
    )
    browser.open(bad, width=390)
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
    assert browser.evaluate(BEYOND) != []
    assert min(browser.evaluate(DECODED)) == 0
    assert browser.evaluate("document.documentElement.dataset.hacked") == "yes"
    assert browser.evaluate(CONTRAST)[0] < 4.5
    requests = [p["request"]["url"] for method, p in browser.events if method == "Network.requestWillBeSent"]
    assert "http://127.0.0.1:9/x.png" in requests
