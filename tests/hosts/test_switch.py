"""Another checkpoint is chosen while a prompt stands: what the page says, in headless Chromium; see conftest.py."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.keys import Keys

from tests.browser import chromium, find, write
from tests.hosts.test_seeing_page import drawn, opened, own, until

HOME = {"host": "decouple-drawn", "forge": "small-sd1"}
OTHER = "small-sdxl"
NOT_YET = "auto: what the model has; told once it is loaded"
SHOWN = """
const shown = (query) =>
    [...document.querySelectorAll(query)].filter(one => one.offsetParent).map(one => one.innerText);
const now = JSON.stringify([
    shown(arguments[0] + "loss .decouple-means").join(), shown(arguments[0] + "tokens .decouple-says").join(),
    shown(arguments[0] + "tokens .decouple-chip").join(" ").replace(/\\u2060/g, ""),
]);
"""
RECORD = f"""
const look = (own) => {{
    {SHOWN.replace("arguments[0]", "own")}
    if (now !== window.recorded.at(-1)) window.recorded.push(now);
}};
window.recorded = [];
setInterval(look, 200, arguments[0]);
"""
CHECKPOINT = "#setting_sd_model_checkpoint input, .model_selection input"  # Forge's own list has no id
CHOSEN = f"return document.querySelector('{CHECKPOINT}').value"
OPTIONS = "#setting_sd_model_checkpoint ul li, ul.options li"


@pytest.fixture(scope="module", params=["host", "forge"])
def page(request):
    """A browser on a WebUI's page, the accordion open, the usual model loaded, all that is told recorded."""
    webui = request.getfixturevalue(request.param)
    home = HOME[request.param]
    webui.post("/sdapi/v1/options", {"sd_model_checkpoint": home})
    webui.draw(steps=1)
    with chromium(1400, 2600) as browser:
        opened(browser, webui.url)
        for name, value in (("steps", 1), ("width", 64), ("height", 64)):  # it is drawn that the model be read
            write(browser, value, f"#txt2img_{name} input[type=number], #txt2img_{name} input")
        browser.webui, browser.home = webui, home
        browser.family = family(webui)
        until(lambda: told(browser)[0] == line(browser.family))
        browser.execute_script(RECORD, own(""))
        yield browser
    webui.post("/sdapi/v1/options", {"sd_model_checkpoint": home})
    webui.draw(steps=1)


def family(webui):
    """That of the loaded model, by the route."""
    return webui.post("/decouple/v1/tokens", {"prompt": "a cat"})[1]["profile"]


def line(profile):
    return f"auto, for {profile['family']}: {profile['loss']}"


def told(page):
    """What stands below the loss, beside the chips, and on them."""
    return page.execute_script(f"{SHOWN}return JSON.parse(now)", own(""))


def choose(page, name):
    """In the page's own list of checkpoints."""
    box = find(page, CHECKPOINT)[0]
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(name)
    option = until(lambda: [one for one in find(page, OPTIONS) if name_of(one.text) == name])[0]
    page.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('mousedown', {bubbles: true})); arguments[0].click()", option
    )
    until(lambda: name_of(page.execute_script(CHOSEN)) == name)


def name_of(title):
    """Of a checkpoint, without its ending and its hash."""
    return title.replace("✓", "").strip().partition(" [")[0].removesuffix(".safetensors")


def recorded(page, since):
    return page.execute_script("return window.recorded.slice(arguments[0]).map(JSON.parse)", since)


def so_far(page):
    return page.execute_script("return window.recorded.length")


def switched(page, switch):
    """Profiles before and after ``switch(name)``, and all that was told from then on until the new model's is."""
    before, since = family(page.webui), so_far(page)
    switch()
    if page.webui.name == "forge":  # it reads a checkpoint with the next picture
        until(lambda: told(page)[0] == NOT_YET)
        assert page.webui.post("/decouple/v1/tokens", {"prompt": "a cat"})[1]["model"] == ""
        drawn(page)
    until(lambda: family(page.webui) not in (None, before), 600)  # it is read meanwhile
    after = family(page.webui)
    until(lambda: recorded(page, 0)[-1][0] == line(after))  # which looks five times a second
    return before, after, recorded(page, since)


def assert_true_all_along(page, before, after, found):
    """The old model's line, then none, then the new one's; never a problem, never other words."""
    lines = [name for name, _ in itertools.groupby(one[0] for one in found)]
    assert lines in ([NOT_YET, line(after)], [line(before), NOT_YET, line(after)], [line(before), line(after)],
                     [line(after)])  # fmt: skip
    assert {says.split(".")[0] for _, says, _ in found} == {"Found automatically"}
    assert {chips for _, _, chips in found} == {told(page)[2]}


def test_another_checkpoint_on_the_page_is_told_without_an_edit_and_nothing_false_before(page):
    before, after, found = switched(page, lambda: choose(page, OTHER))
    assert (before["family"], after["family"]) == (page.family["family"], "Stable Diffusion XL")
    assert_true_all_along(page, before, after, found)
    before, after, found = switched(page, lambda: choose(page, page.home))
    assert after == page.family
    assert_true_all_along(page, before, after, found)


@pytest.mark.parametrize("returns", [True, False])
def test_another_checkpoint_by_the_api_is_told_when_one_returns_to_the_page_or_within_a_minute(page, returns):
    def switch(name):
        page.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": name})
        if returns:
            page.execute_script("window.dispatchEvent(new Event('focus'))")

    try:
        before, after, found = switched(page, lambda: switch(OTHER))
        assert after["family"] == "Stable Diffusion XL"
        assert_true_all_along(page, before, after, found)
    finally:
        switched(page, lambda: switch(page.home))


def test_a_server_that_did_not_answer_is_asked_again(page):
    page.execute_script("window.kept = window.fetch; window.fetch = () => Promise.reject(new Error('gone'))")
    page.execute_script("window.dispatchEvent(new Event('focus'))")
    until(lambda: "The WebUI doesn't answer: gone" in told(page)[1])
    page.execute_script("window.fetch = window.kept")
    until(lambda: "Found automatically" in told(page)[1], 30)
