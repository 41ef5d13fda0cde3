"""The HTML page in a real browser: the slider, the points, the keyboard, and texts that try to become code."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Completion, Encoding, Report
from gradiend_hub.plots import render_html, save_html
from gradiend_hub.printable import spelled_out
from tests.reports import full_report

CLASSES = ["3SG", "3PL"]
FILLERS = {"3SG": ["he", "she", "it"], "3PL": ["they"]}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1000,1400",
)  # fmt: skip
ATTACKS = [
    "<script>document.title = 'hacked'</script>",
    "</script><script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "\"'><svg onload=\"document.title='hacked'\">",
    "<!--<script>",
    "\u2028document.title = 'hacked'\u2029",
    "</title></style><h1>hacked</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "[MASK]<b onclick=1>",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, without a network and with a profile of its own."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with its chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        yield driver
    finally:
        driver.quit()


def open_page(browser: Any, report: Report, folder: Path, **options: Any) -> None:
    """Show the page of a report; whatever the browser's console says is an error."""
    path = save_html(report, folder, **options)
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []


def text_of(browser: Any, css: str) -> str:
    return str(browser.find_element("css selector", css).text)


def move_to(browser: Any, position: int) -> None:
    """Move the slider as a hand on the keyboard does."""
    slider = browser.find_element("id", "strength")
    slider.send_keys("\ue011")  # Home
    for _ in range(position):
        slider.send_keys("\ue014")  # arrow right


def test_the_slider_shows_each_measured_strength(browser: Any, tmp_path: Path) -> None:
    report = full_report(CLASSES, FILLERS)
    open_page(browser, report, tmp_path, base="masked", safe_band=[-1.0, 1.0])
    curve = report.splits["test"].curve
    assert text_of(browser, "#at") == "0"
    for position, point in ((2, curve[2]), (6, curve[6]), (8, curve[8])):
        move_to(browser, position)
        assert text_of(browser, "#at") == f"{point.strength:+g}"
        shown = text_of(browser, "#chances")
        assert f"P(3SG) on 3PL rows {point.probability['3PL']['3SG']:.3f}" in shown
        assert f"P(3PL) on 3SG rows {point.probability['3SG']['3PL']:.3f}" in shown
        assert point.quality is not None
        assert f"quality {100 * point.quality:.2f} %" in text_of(browser, "#damage")
        written = text_of(browser, "#written")
        if abs(point.strength) == 1:
            assert {-1.0: "they 0.91, he 0.05", 1.0: "she 0.93, he 0.05"}[point.strength] in written
        else:
            assert "not written at this strength" in written
        assert text_of(browser, "tr.now").startswith(f"{point.strength:+g}")
        line = browser.find_element("id", "here")
        assert float(line.get_attribute("x1")) == float(line.get_attribute("x2")) > 40
    # a click on the curve goes to the nearest strength
    from selenium.webdriver import ActionChains

    drawing = browser.find_element("id", "curve")
    width = drawing.size["width"]
    ActionChains(browser).move_to_element_with_offset(drawing, int(-0.42 * width), 0).click().perform()
    assert text_of(browser, "#at") == "-4"


def test_a_point_shows_its_sentence_and_word(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    report = full_report(CLASSES, FILLERS)
    open_page(browser, report, tmp_path)
    samples = report.splits["test"].encoder.encodings
    points = browser.find_elements("css selector", "[data-sample]")
    assert len(points) == len(samples)
    for number in (0, 70, 130, 200):
        point = browser.find_element("css selector", f'[data-sample="{number}"]')
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
        ActionChains(browser).move_to_element(point).perform()
        hit = browser.find_element("css selector", ".point.on").get_attribute("data-sample")
        sample = samples[int(hit)]  # the topmost of points that overlap
        assert abs(sample.h - samples[number].h) < 0.06
        tip = browser.find_element("id", "tip")
        assert tip.is_displayed()
        assert sample.text.replace("[MASK]", sample.output) in tip.text
        assert f"{sample.kind}, h = {sample.h:.3f}" in tip.text
        assert tip.find_element("tag name", "b").text == sample.output
    ActionChains(browser).move_to_element(browser.find_element("tag name", "h1")).perform()
    assert not browser.find_element("id", "tip").is_displayed()
    # by keyboard, the first point is the lowest value
    browser.find_element("id", "encodings").send_keys("\ue014")
    lowest = min(samples, key=lambda s: s.h)
    assert f"h = {lowest.h:.3f}" in text_of(browser, "#tip")


@pytest.mark.parametrize("attack", ATTACKS)
def test_texts_never_become_code(browser: Any, tmp_path: Path, attack: str) -> None:
    report = full_report([attack, "second"], {attack: [attack], "second": [f"{attack}2"]})
    split = report.splits["test"]
    samples = [Encoding(f"{attack} [MASK] {attack}", attack, kind, 0.1) for kind in (attack, "neutral", "other")]
    completions = [Completion(attack, {"-1.0": attack, "0.0": [[attack, 0.5]], "1.0": attack})]
    report.splits["test"] = replace(split, encoder=replace(split.encoder, encodings=samples), completions=completions)
    open_page(browser, report, tmp_path, base=attack)
    title = browser.execute_script("return document.title")
    assert " ".join(title.split()).startswith(" ".join(spelled_out(attack).split()))
    assert browser.execute_script("return [...document.querySelectorAll('script')].length") == 2
    assert not browser.find_elements("css selector", "img, iframe, object, b[onclick], svg[onload]")
    assert [e.text for e in browser.find_elements("tag name", "h1")][1:] == []
    browser.find_element("id", "encodings").send_keys("\ue014")
    tip = text_of(browser, "#tip")
    move_to(browser, 2)
    for shown in (tip, text_of(browser, "#written"), text_of(browser, "#chances")):
        assert " ".join(attack.split()).replace("[MASK]", "") in " ".join(shown.split()).replace("[MASK]", "")
    assert browser.execute_script("return document.title") == title
    assert browser.get_log("browser") == []


LONG = ["third person singular pronouns", "third_person_plural_pronouns_without_a_space"]


@pytest.fixture
def narrow(browser: Any) -> Iterator[Any]:
    """The browser as wide as a telephone."""
    screen = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        yield browser
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("classes", [CLASSES, LONG])
def test_the_page_can_be_read_on_a_telephone(narrow: Any, tmp_path: Path, classes: list[str]) -> None:
    first, second = classes
    report = full_report(classes, {first: ["he", "she", "it"], second: ["they"]})
    open_page(narrow, report, tmp_path, safe_band=[-1.0, 1.0])
    assert narrow.execute_script("return innerWidth") == 400
    assert narrow.execute_script("return document.documentElement.scrollWidth") == 400
    lines = """return [...document.querySelectorAll('.figures td, .number')].map((cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell.firstChild);
        return [cell.textContent, range.getClientRects().length];
    })"""
    cells = narrow.execute_script(lines)
    assert len(cells) > 60
    assert [text for text, count in cells if text and count != 1] == []
    scrolled = """return [...document.querySelectorAll('.scroll')].filter((box) => {
        box.scrollLeft = 60;
        return box.scrollLeft === 60;
    }).map((box) => box.firstElementChild.id || box.firstElementChild.className)"""
    assert {"curve", "encodings", "figures", "texts"} <= set(narrow.execute_script(scrolled))
    sizes = """return [...document.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height)"""
    assert min(narrow.execute_script(sizes)) > 9
    # a finger next to a point means it
    point = narrow.find_element("css selector", '[data-sample="130"]')
    narrow.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", point)
    box = narrow.execute_script("return arguments[0].getBoundingClientRect().toJSON()", point)
    touch = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2 + 9}]
    narrow.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": touch})
    narrow.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert narrow.find_elements("css selector", ".point.on")
    assert narrow.find_element("id", "tip").is_displayed()


def test_the_page_says_first_what_was_measured() -> None:
    report = full_report(CLASSES, FILLERS)
    assert "<b>3SG becomes more likely</b>: P(3SG) on 3PL rows 0.074 → 0.509" in render_html(report)
    assert "Not learned" not in render_html(report)
    curve = [replace(p, strength=-p.strength) for p in reversed(report.splits["test"].curve)]
    report.splits["test"] = replace(report.splits["test"], curve=curve)
    report.converged, report.verdict = False, "The correlation is 0.04 <here>."
    page = render_html(report)
    assert "becomes more likely" not in page and page.count("becomes less likely") == 2
    assert "<b>Not learned.</b>" in page and "The correlation is 0.04 &lt;here&gt;." in page


def test_the_page_has_intervals_the_control_and_what_is_missing() -> None:
    report = full_report(CLASSES, FILLERS)
    split = report.splits["test"]
    control = [[p for p in drawn if p.strength != 3.0] for drawn in split.control]
    report.splits["test"] = replace(split, control=control)
    page = render_html(report, safe_band=[-0.5, 1.5])
    for point in split.curve:
        low, high = point.intervals["3SG on 3PL"]
        assert f"{point.probability['3PL']['3SG']:.3f}<small>[{low:.3f}, {high:.3f}]</small>" in page
        low, high = point.intervals["quality"]
        assert f"[{100 * low:.2f}, {100 * high:.2f}]" in page
    drawn = [p.probability["3PL"]["3SG"] for of in control for p in of if p.strength == 1.0]
    assert f"<td>{min(drawn):.3f} to {max(drawn):.3f}</td>" in page
    assert page.count("<td>not measured</td>") == 2
    assert "Safe band: strengths -0.5 to +1.5." in page
    assert "The model breaks at strength +3." in page
    assert "lowest to highest of 3, each read on some of the rows" in page
    assert f"<li>{split.missing[0]}</li>" in page


def test_fillers_that_are_no_words_are_quoted() -> None:
    report = full_report(CLASSES, FILLERS)
    written = [["they", 0.27], [",", 0.16], ["don't", 0.1], ["##s", 0.05], ["名詞", 0.01], ["a, b", 0.01]]
    completion = Completion("A [MASK]", {"0.0": written})
    report.splits["test"] = replace(report.splits["test"], completions=[completion])
    page = render_html(report).replace("\u00a0", " ")
    assert "they 0.27, “,” 0.16, don&#39;t 0.10, “##s” 0.05, 名詞 0.01, “a, b” 0.01" in page


def test_a_page_of_a_report_with_gaps(browser: Any, tmp_path: Path) -> None:
    report = full_report(CLASSES, FILLERS)
    split = report.splits["test"]
    curve = [
        replace(p, nll=None, accuracy=None, quality=None, quality_low=None, kl=None, intervals={}) for p in split.curve
    ]
    report.splits["test"] = replace(
        split, encoder=replace(split.encoder, encodings=[], correlation=None), curve=curve, control=[], completions=[],
        break_point=None,
    )  # fmt: skip
    open_page(browser, report, tmp_path)
    assert "quality not measured" in text_of(browser, "#damage")
    body = text_of(browser, "body")
    assert "Correlation with the class not measured" in body
    assert "The report keeps no single slots." in body
    assert not browser.find_elements("id", "encodings")
    report.splits["test"] = replace(report.splits["test"], curve=[])
    open_page(browser, report, tmp_path)
    assert not browser.find_elements("id", "strength")


class Links(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            (tag, value or "")
            for name, value in attrs
            if name in ("src", "href", "data", "action", "style") and not (tag == "use" and value and value[0] == "#")
        ]


def test_the_page_needs_nothing_else() -> None:
    page = render_html(full_report(CLASSES, FILLERS))
    assert Links(page).found == []
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_can_be_read_without_scripts() -> None:
    """All measured strengths, completions and points are in the markup."""
    report = full_report(CLASSES, FILLERS)
    markup = re.sub(r"(?s)<script.*?</script>", "", render_html(report))
    for point in report.splits["test"].curve:
        assert f"<td>{point.probability['3PL']['3SG']:.3f}<small>" in markup
    assert "they 0.91, he 0.05, she 0.02" in markup.replace("\u00a0", " ")
    assert markup.count("data-sample=") == len(report.splits["test"].encoder.encodings)


def test_the_embedded_data_is_the_reports() -> None:
    report = full_report(CLASSES, FILLERS)
    page = render_html(report)
    found = re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    assert not set("<>&\u2028\u2029") & set(found[1])
    data = json.loads(found[1])
    split = report.splits["test"]
    assert [(s["text"], s["output"], s["kind"], s["h"]) for s in data["samples"]] == [
        (s.text, s.output, s.kind, s.h) for s in split.encoder.encodings
    ]
    assert [(p["up"], p["down"], p["quality"], p["kl"]) for p in data["curve"]] == [
        (p.probability["3PL"]["3SG"], p.probability["3SG"]["3PL"], p.quality, p.kl) for p in split.curve
    ]


def test_nothing_measured_nothing_shown() -> None:
    with pytest.raises(ConfigError, match="no split"):
        render_html(Report(CLASSES, "base"))
