"""The explorer's page in a real browser: the slider by keyboard, bad input, no foreign requests, a server that stops."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradiend_hub import GradiendModel
from tests.cli.conftest import Trained, trained  # noqa: F401
from tests.conftest import ROOT
from tests.plots.test_html import BROWSER, DRIVER, FLAGS
from tests.training.test_classifiers import digit_rows, digits  # noqa: F401

pytestmark = pytest.mark.slow


def listening_to_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so do those that this starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def served(folder: Path, *directions: Path) -> Iterator[tuple[Any, str]]:
    """The command, in a process of its own, as people run it; and the page's address."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the explorer's page comes with the extra [explorer]")
    said = folder / "said.txt"
    command = [sys.executable, "-m", "gradiend_hub", "explore", *map(str, directions), "--port", "0"]
    with said.open("w") as out:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        server = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, preexec_fn=listening_to_ctrl_c
        )

    def address() -> str | None:
        assert server.poll() is None, said.read_text()
        found = re.search(r"http://\S+", said.read_text())
        return found and found[0]

    try:
        yield server, until(address, 120)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def page(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:  # noqa: F811
    with served(tmp_path_factory.mktemp("explore"), trained.folder) as found:
        yield found


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


def emulate(browser: Any, width: int, scheme: str) -> None:
    """A device: its width, and whether its owner likes it dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def settle(browser: Any, scheme: str) -> None:
    """Wait until the page has the colours of its owner's liking, and nothing fades any more."""
    ask = "return document.body.classList.contains('dark') + ' ' + document.getAnimations().length"
    until(lambda: browser.execute_script(ask) == f"{str(scheme == 'dark').lower()} 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_can_be_read_by_everybody(browser: Any, page: tuple[Any, str], width: int, scheme: str) -> None:
    """Contrast, names of fields, alternative texts: axe finds nothing on the whole page, results and colours included."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    emulate(browser, width, scheme)
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    browser.find_element("css selector", "#strength-0 input[type=range]").send_keys("\ue011")
    until(lambda: text(browser, "#notice"))
    browser.find_element("id", "read").send_keys("\ue007")
    until(lambda: "Underlined" in text(browser, "#values"))
    settle(browser, scheme)
    found = axe.Axe().run(browser)
    assert len(found["passes"]) > 10
    assert [(v["id"], node["html"][:200]) for v in found["violations"] for node in v["nodes"]] == []


def test_every_part_is_reached_with_the_tab_key(browser: Any, page: tuple[Any, str]) -> None:
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    reached = []
    for _ in range(12):
        browser.switch_to.active_element.send_keys("\ue004")
        reached.append(
            browser.execute_script(
                "const e = document.activeElement, part = e.closest('#input,#strength-0,#zero,#read');"
                "const s = getComputedStyle(e);"
                "return [part && part.id, s.outlineStyle != 'none' || s.boxShadow != 'none' || s.borderStyle != 'none']"
            )
        )
    order = [part for part, _ in reached if part]
    assert list(dict.fromkeys(order)) == ["input", "strength-0", "zero", "read"]
    assert all(shown for part, shown in reached if part)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "write a sentence"),
        ("[MASK] and [MASK] .", "leave one"),
        ("word " * 700 + "[MASK]", "Shorten it"),
        ("Вчера пришли новые гости и [MASK] остались", "language"),
        ("<img src=x onerror=alert(1)> [MASK] \u202e .", "KL"),
    ],
)
def test_bad_input_says_what_to_do(browser: Any, page: tuple[Any, str], said: str, told: str) -> None:
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    box = browser.find_element("css selector", "#input textarea, #input input")
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", box, said
    )
    box.send_keys("\ue007")
    until(lambda: told in text(browser, "#notice") + (text(browser, "#answers") if told == "KL" else ""))
    assert (
        browser.execute_script("return document.querySelectorAll('#answers img, #notice img, #values img').length") == 0
    )


def test_two_windows_do_not_move_each_other(browser: Any, page: tuple[Any, str]) -> None:
    windows = [browser.current_window_handle]
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    browser.switch_to.new_window("window")
    windows.append(browser.current_window_handle)
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    before = text(browser, "#answers")
    browser.switch_to.window(windows[0])
    slider = browser.find_element("css selector", "#strength-0 input[type=range]")
    slider.send_keys("\ue011")
    low = f"{float(slider.get_attribute('min')):+g}"
    until(lambda: low in text(browser, "#answers"))
    browser.switch_to.window(windows[1])
    assert text(browser, "#answers") == before and low not in before
    browser.close()
    browser.switch_to.window(windows[0])


def test_several_directions_have_a_slider_each(
    browser: Any,
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    GradiendModel.from_pretrained(trained.folder, strength=0.0).save_pretrained(other)
    with served(tmp_path, trained.folder, other) as (_, url):
        browser.get(url)
        until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
        name = trained.folder.name
        assert f"At {name} 0, other 0" in text(browser, "#answers")
        at = ["0", "0"]
        for number, key, bound in ((0, "\ue010", "max"), (1, "\ue011", "min")):
            slider = browser.find_element("css selector", f"#strength-{number} input[type=range]")
            slider.send_keys(key)
            at[number] = f"{float(slider.get_attribute(bound)):+g}"
            until(lambda wanted=f"At {name} {at[0]}, other {at[1]}": wanted in text(browser, "#answers"))
        doses = browser.find_elements("css selector", "#curves .dose")
        assert doses and [f"{float(d.get_attribute('data-strength')):+g}" for d in doses] == at[: len(doses)]
        browser.find_element("id", "zero").send_keys("\ue007")
        until(lambda: f"At {name} 0, other 0" in text(browser, "#answers"))


def bad_pictures() -> list[tuple[str, bytes, str]]:
    """Files that are called images, and a part of what is said of each: no image, half of one, one of 200 million pixels."""
    from PIL import Image

    whole, wide = io.BytesIO(), io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    Image.new("1", (20_000, 10_000)).save(wide, "PNG")
    return [
        ("text.png", b"this is no image", "its format is unknown"),
        ("half.png", whole.getvalue()[:1000], "no image that can be read"),
        ("wide.png", wide.getvalue(), "pixels"),
    ]


def test_images_are_dropped_and_decided(browser: Any, digits: Path, tmp_path: Path) -> None:  # noqa: F811
    from PIL import Image

    row = digit_rows("3", "8", slice(100, 101))[0]
    picture = tmp_path / "digit.png"
    Image.fromarray(np.kron(np.asarray(row["image"]), np.ones((8, 8), np.uint8))).save(picture)
    with served(tmp_path, digits) as (_, url):
        browser.get(url)
        until(lambda: "choose or drop one" in text(browser, "#notice"))
        for name, content, told in bad_pictures():
            (tmp_path / name).write_bytes(content)
            browser.find_element("css selector", "#input input[type=file]").send_keys(str(tmp_path / name))
            until(lambda expected=told: expected in text(browser, "#notice"))
            assert text(browser, "#answers") == ""
            browser.get(url)
            until(lambda: "choose or drop one" in text(browser, "#notice"))
        browser.find_element("css selector", "#input input[type=file]").send_keys(str(picture))
        until(lambda: "KL(base‖edited)" in text(browser, "#answers"))

        def chance() -> float:
            found = re.findall(r"P\(3\)\s+([\d.]+) %", text(browser, "#answers"))
            return float(found[-1])

        slider = browser.find_element("css selector", "#strength-0 input[type=range]")
        shown = []
        for key, bound in (("\ue011", "min"), ("\ue010", "max")):
            slider.send_keys(key)
            end = f"{float(slider.get_attribute(bound)):+g}"
            until(lambda wanted=end: wanted in text(browser, "#answers"))
            shown.append(chance())
        model = GradiendModel.from_pretrained(digits, strength=0.0)
        assert shown[0] < shown[1] and 0 <= shown[0] <= shown[1] <= 100
        assert set(re.findall(r"P\((\w)\)", text(browser, "#answers"))) == {*model.active_peft_config.feature_classes}


def test_visitors_at_once_get_the_answer_to_their_own_question(page: tuple[Any, str]) -> None:
    client = pytest.importorskip("gradio_client")
    texts = ["Tom said that [MASK] would come .", "The girls said that [MASK] would come ."]
    asked = [(value, strength) for value in texts for strength in (-2.0, -0.5, 0.0, 1.0, 2.0)]
    visitors = [client.Client(page[1], verbose=False, analytics_enabled=False) for _ in range(4)]

    def ask(number: int) -> Any:
        value, strength = asked[number]
        return visitors[number % len(visitors)].predict(value, strength, api_name="/ask")

    alone = [ask(number) for number in range(len(asked))]
    with ThreadPoolExecutor(len(visitors)) as pool:
        together = list(pool.map(ask, [*range(len(asked))] * 3))
    assert together == alone * 3
    assert len({str(answer) for answer in alone}) == len(asked)
    for visitor in visitors:
        visitor.close()


def test_a_stopped_server_is_told_last(browser: Any, page: tuple[Any, str]) -> None:
    browser.get(page[1])
    until(lambda: "KL(base‖edited)" in text(browser, "#answers"))
    page[0].send_signal(signal.SIGINT)
    assert page[0].wait(30) == 0
    until(lambda: "gradiend-hub" in text(browser, "#gh-stopped"))
