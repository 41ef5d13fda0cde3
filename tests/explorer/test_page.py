"""The explorer's page in a real browser: the slider by keyboard, bad input, no foreign requests, a server that stops."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.conftest import Trained, trained  # noqa: F401
from tests.conftest import ROOT
from tests.plots.test_html import BROWSER, DRIVER, FLAGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:  # noqa: F811
    """The command, in a process of its own, as people run it; and the page's address."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the explorer's page comes with the extra [explorer]")
    said = tmp_path_factory.mktemp("explore") / "said.txt"
    command = [sys.executable, "-m", "gradiend_hub", "explore", str(trained.folder), "--port", "0"]
    with said.open("w") as out:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)

    def address() -> str | None:
        assert server.poll() is None, said.read_text()
        found = re.search(r"http://\S+", said.read_text())
        return found and found[0]

    try:
        yield server, until(address)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with its chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until something is there."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)
    return value


def text(browser: Any, css: str) -> str:
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css))


def test_the_page_answers_to_the_keyboard_alone(browser: Any, page: tuple[Any, str]) -> None:
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    slider = browser.find_element("css selector", "#strength-0 input[type=range]")
    before = text(browser, "#answers")
    slider.send_keys("\ue011")  # Home: the least strength
    until(lambda: text(browser, "#answers") != before)
    low = slider.get_attribute("min")
    until(lambda: f"{float(low):+g}" in text(browser, "#answers"))
    dose = browser.find_element("css selector", "#curves .dose")
    assert float(dose.get_attribute("data-strength")) == float(low)
    assert text(browser, "#notice")  # outside of the band, or none was measured
    # nothing is fetched from elsewhere
    urls = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in urls if not url.startswith((page[1], "data:", "blob:"))] == []
    # bad input says what to do
    box = browser.find_element("css selector", "#input textarea, #input input")
    box.clear()
    box.send_keys("No slot here .\ue007")
    until(lambda: "write [MASK]" in text(browser, "#notice"))
    assert text(browser, "#answers") == ""
    # word by word
    browser.find_element("id", "read").send_keys("\ue007")
    until(lambda: "Underlined" in text(browser, "#values"))
    assert len(browser.find_elements("css selector", "#values .word")) == 3


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_the_width(browser: Any, page: tuple[Any, str], width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # bars are long enough to compare, and the curve's labels large enough to read
    tracks = browser.execute_script("return [...document.querySelectorAll('.track')].map(e => e.offsetWidth)")
    assert min(tracks) >= 180
    labels = browser.execute_script(
        "return [...document.querySelectorAll('#curves svg text')].map(e => e.getBoundingClientRect()).map("
        "b => [b.left, b.right, b.height])"
    )
    assert min(height for _, _, height in labels) >= 12
    assert min(left for left, _, _ in labels) >= 0
    assert max(right for _, right, _ in labels) <= width


def test_a_stopped_server_is_told_last(browser: Any, page: tuple[Any, str]) -> None:
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    page[0].send_signal(signal.SIGINT)
    assert page[0].wait(30) == 0
    until(lambda: "gradiend-hub" in text(browser, "#gh-stopped"))
