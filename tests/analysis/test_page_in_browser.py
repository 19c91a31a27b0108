"""The page about trained models in a real browser: Chromium, from a file, without a network."""

# Fixtures are imported, and their names come again as arguments.
# ruff: noqa: F811

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from crbp_d2.analysis.page import load_recurrent_runs
from crbp_d2.analysis.page.encode import OVERLAY_COLOUR
from crbp_d2.data import build_test_loader
from tests.analysis.page_runs import (
    DATA,
    LABEL,
    decoded,
    folders,  # noqa: F401  a fixture
    numbers_of,
    page,  # noqa: F401  a fixture
    run_to,
)

selenium = pytest.importorskip("selenium", reason="selenium (the extra dev) is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="there is no chromium with chromedriver (apt install chromium chromium-driver)",
    ),
]
DIMMED = 0.6


class Browser:
    """The page, open, and what is asked of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def script(self, code: str, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def wait(self, condition) -> None:
        WebDriverWait(self.driver, 60, poll_frequency=0.02).until(lambda _: condition())

    def ready(self) -> None:
        self.wait(lambda: self.one("#panels").get_attribute("aria-busy") == "false")

    def step(self) -> int:
        return int(self.one("#step-number").text)

    def press(self, key: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def emulate(self, **features: str) -> None:
        features = [{"name": name.replace("_", "-"), "value": features[name]} for name in features]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def panel(self, number: int) -> tuple[str, str, np.ndarray]:
        """Score and residual of a run as text, and the pixels of its canvas `(H, W, 3)`."""
        panel = self.all(".panel[data-run]")[number]
        canvas = panel.find_element(By.TAG_NAME, "canvas")
        pixels = np.asarray(decoded(self.script("arguments[0].toDataURL()", canvas)))
        numbers = [panel.find_element(By.CLASS_NAME, name).text for name in ("score", "residual")]
        return *numbers, pixels[..., :3].astype(int)


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, page) -> Iterator[Browser]:
    driver.get(page.as_uri())
    browser = Browser(driver)
    browser.ready()
    yield browser
    assert driver.get_log("browser") == []


def written_residual(value: float) -> str:
    if value == 0 or value >= 0.01:
        return f"{value:.3f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e\u2212{-int(exponent)}"


def overlaid(record: dict, probability: np.ndarray) -> np.ndarray:
    """The dimmed image under the colour of a contour `(H, W, 3)`."""
    colour = np.array([int(OVERLAY_COLOUR[start : start + 2], 16) for start in (1, 3, 5)])
    image = record["image"][0].numpy()[..., None] * DIMMED
    return image + probability[..., None] * (colour - image)


def test_the_slider_shows_picture_and_numbers_of_each_step(browser, folders, page):
    numbers = numbers_of(page)["images"][0]
    runs = load_recurrent_runs(list(map(str, folders)))
    (record,) = next(iter(build_test_loader(runs[0].cfg, DATA, num_workers=0)))
    before = [browser.panel(number)[2] for number in range(2)]
    browser.script("document.querySelector('#step').focus()")
    for step in (2, 3):
        browser.press(Keys.ARROW_RIGHT)
        assert browser.step() == step
        told = browser.one("#status").get_attribute("textContent")
        assert told.startswith(f"Step {step}. crbp: F1 ")
        for number, run in enumerate(runs):
            score, residual, pixels = browser.panel(number)
            assert score == f"{numbers['score'][number][step - 1]:.3f}" and score in told
            assert residual == written_residual(numbers["residual"][number][step - 1])
            probability = run_to(run, record, step)[0]["sem_seg"].softmax(dim=0)[1].numpy()
            assert np.abs(pixels - overlaid(record, probability)).max() < 4
            assert np.abs(pixels - before[number]).max() > 20
    assert browser.one("#step").get_attribute("aria-valuetext") == "step 3"
    assert browser.script("getComputedStyle(document.activeElement).outlineStyle") == "solid"


CLOCK = """
window.setTimeout = (call, delay) => { window.waiting = { call, delay }; return 1; };
window.clearTimeout = () => { window.waiting = null; };
"""
"""A clock that the test turns: `waiting.call()`."""


def test_play_advances_to_the_end(browser):
    play = browser.one("#play")
    assert (play.text, browser.step()) == ("Play", 1)
    play.click()
    browser.wait(lambda: browser.step() == 6 and play.text == "Play")


def test_the_space_bar_plays_and_pauses_outside_of_controls(browser):
    play = browser.one("#play")
    browser.driver.execute_script(CLOCK)
    browser.press(" ")
    assert (play.text, browser.step()) == ("Pause", 1)
    browser.driver.execute_script("waiting.call()")
    assert browser.step() == 2
    browser.press(" ")
    assert (play.text, browser.script("waiting")) == ("Play", None)
    browser.press(Keys.ARROW_LEFT)
    assert browser.step() == 1
    box = browser.one("#runs input")
    browser.script("arguments[0].focus()", box)
    browser.press(" ")
    assert (play.text, box.is_selected()) == ("Play", False)


@pytest.mark.parametrize(("motion", "delay"), [("no-preference", 200), ("reduce", 1000)])
def test_it_plays_slowly_where_motion_shall_be_reduced(browser, motion, delay):
    browser.emulate(prefers_reduced_motion=motion)
    browser.driver.execute_script(CLOCK)
    browser.one("#play").click()
    assert browser.script("waiting.delay") == delay
    browser.driver.execute_script("waiting.call()")
    assert browser.script("waiting.delay") == delay
    browser.emulate()


def test_a_run_without_its_tick_has_neither_panel_nor_lines(browser):
    panels = browser.all(".panel[data-run]")
    assert panels[1].get_attribute("data-run") == LABEL
    assert [panel.is_displayed() for panel in panels] == [True, True]
    assert len(browser.all(".charts path.run")) == 4 and len(browser.all(".charts .trained")) == 4
    browser.all("#runs input")[1].click()
    assert [panel.is_displayed() for panel in panels] == [True, False]
    assert len(browser.all(".charts path.run")) == 2 and len(browser.all(".charts .trained")) == 2
    assert LABEL not in browser.one("#score-chart").get_attribute("aria-label")


def test_another_image_changes_picture_and_numbers(browser, page):
    before = browser.panel(0)
    browser.script("document.querySelector('#images input').focus()")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.one("#panels canvas").get_attribute("aria-label")[-1] == "1")
    browser.ready()
    score, residual, pixels = browser.panel(0)
    numbers = numbers_of(page)["images"][1]
    assert score == f"{numbers['score'][0][0]:.3f}"
    assert residual == written_residual(numbers["residual"][0][0])
    assert np.abs(pixels - before[2]).max() > 20
    browser.one("summary").click()
    rows = [row.text.split() for row in browser.all("tbody tr")]
    assert len(rows) == 6
    assert rows[5][:2] == ["6", f"{numbers['score'][0][5]:.3f}"]


def test_a_click_on_a_chart_goes_to_that_step(browser):
    chart = browser.one("#score-chart")
    right = chart.size["width"] / 2 - 12
    webdriver.ActionChains(browser.driver).move_to_element_with_offset(
        chart, int(right), 0
    ).click().perform()
    assert browser.step() == 6


def test_it_fits_a_phone_and_follows_the_colour_scheme(browser):
    metrics = {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert browser.script("innerWidth") == 375
        assert browser.script("document.documentElement.scrollWidth") == 375
        background = "getComputedStyle(document.body).backgroundColor"
        browser.emulate(prefers_color_scheme="light")
        light = browser.script(background)
        browser.emulate(prefers_color_scheme="dark")
        assert light == "rgb(255, 255, 255)" != browser.script(background)
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.emulate()
