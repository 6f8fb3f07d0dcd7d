"""Headless Chromium for tests, driven by selenium; they skip where either is missing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

DRIVER = shutil.which("chromedriver")
_WRITE = """
const box = document.querySelector(arguments[0]);
box.value = arguments[1];
box.dispatchEvent(new Event("input", {bubbles: true}));
"""


@contextmanager
def chromium(width: int = 1400, height: int = 2400) -> Iterator[Any]:
    """A browser of its own, ended with the block."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if DRIVER is None:
        pytest.skip("no chromedriver on this machine")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})  # for get_log("browser")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.set_script_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()


def open_webui(page: Any, url: str) -> None:
    """Load a WebUI's page in the theme that DECOUPLE_THEME names ("dark" by default), and wait until its scripts are
    there."""
    page.get(f"{url}/?__theme={os.environ.get('DECOUPLE_THEME', 'dark')}")
    until(lambda: find(page, "#txt2img_prompt textarea"), 120)
    time.sleep(3)  # the page's own scripts attach after the controls are there


def until(found: Callable[[], Any], seconds: int = 60) -> Any:
    """What ``found()`` gives once it is true; what the page has just made anew is looked for again."""
    from selenium.common.exceptions import StaleElementReferenceException

    for _ in range(seconds * 10):
        with suppress(StaleElementReferenceException):
            if value := found():
                return value
        time.sleep(0.1)
    raise AssertionError("nothing came")


def find(page: Any, selector: str) -> list[Any]:
    """The elements of a CSS selector."""
    return page.find_elements("css selector", selector)


def write(page: Any, text: object, selector: str = "#txt2img_prompt textarea") -> None:
    """Put a text into a control, as typing does."""
    page.execute_script(_WRITE, selector, text)
