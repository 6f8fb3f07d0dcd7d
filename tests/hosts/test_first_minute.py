"""What a person meets in the first minute, in real WebUIs, in headless Chromium; see conftest.py."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from tests.browser import chromium, find, open_webui, write
from tests.hosts.test_seeing_page import SIZE, drawn, idle, own, summary, text, ticked, until

PROMPTS = {
    "short": "a photo of an old man, a dog and (a red fire hydrant:1.2)",
    "break": "a cat BREAK a dog",
    "long": "a cat, " + "very nice, " * 40 + "and a dog",
    "no comma": "a cat " + "far " * 90 + "dog",
    "signs": "it's a traffic-light: 24 cafés!",
}
UNLOAD = """
from modules import sd_models
sd_models.decouple_kept = sd_models.model_data.sd_model
sd_models.model_data.sd_model = sd_models.FakeInitialModel() if hasattr(sd_models, "FakeInitialModel") else None
result = None
"""
RELOAD = """
from modules import sd_models
sd_models.model_data.sd_model = sd_models.decouple_kept
result = None
"""


@pytest.fixture(scope="module", params=["host", "forge"])
def page(request):
    """A browser on a WebUI's page as it opens, a small picture asked for."""
    webui = request.getfixturevalue(request.param)
    with chromium(1400, 2600) as browser:
        open_webui(browser, webui.url)
        write(browser, "a cat and a dog")
        for name, value in (("width", SIZE), ("height", SIZE), ("steps", 4)):
            write(browser, value, f"#txt2img_{name} input[type=number]")
        browser.webui = webui
        yield browser


def is_open(page):
    return page.execute_script(
        "return document.querySelector(arguments[0]).classList.contains('open')", f"{own('enabled')} .label-wrap"
    )


def tick(page):
    page.execute_script("document.querySelector(arguments[0]).click()", own("enabled-visible-checkbox"))


def told(page):
    found = find(page, f"{own('status')} .decouple-run")
    return found[0].get_attribute("data-told") if found else None


@pytest.mark.parametrize("name", ["host", "forge"])
def test_tokens_before_a_model_is_loaded_are_those_after(name, request):
    webui = request.getfixturevalue(name)
    webui.draw()  # Forge loads its model with the first picture

    def tokens():
        answers = [webui.post("/decouple/v1/tokens", {"prompt": prompt}) for prompt in PROMPTS.values()]
        assert {status for status, _ in answers} == {200}
        return [answer for _, answer in answers]

    webui.inside(UNLOAD)
    try:
        before = tokens()
    finally:
        webui.inside(RELOAD)
    for prompt, found, after in zip(PROMPTS.values(), before, tokens()):
        assert (found["model"], found["profile"]) == ("", None)
        assert after["model"]
        assert after["profile"]["family"]
        for key in ("words", "suggested", "entities", "tokens"):
            assert found[key] == after[key], (prompt, key)


def test_a_tick_opens_the_accordion_and_closing_it_leaves_the_tick(page):
    assert not is_open(page)
    tick(page)
    until(lambda: is_open(page) and ticked(page))
    until(lambda: find(page, f"{own('tokens')} .decouple-chip"))
    page.execute_script("document.querySelector(arguments[0]).click()", f"{own('enabled')} .label-wrap")
    until(lambda: not is_open(page))
    time.sleep(1)
    assert ticked(page)
    tick(page)
    until(lambda: not ticked(page))
    assert not is_open(page)
    tick(page)
    until(lambda: is_open(page) and ticked(page))


def test_a_new_run_shows_no_status_of_the_run_before(page):
    drawn(page)
    before = until(lambda: told(page))
    assert find(page, own("status"))[0].is_displayed()
    write(page, 40, "#txt2img_steps input[type=number]")
    page.execute_script("document.querySelector('#txt2img_generate').click()")
    until(lambda: not idle(page))
    assert not find(page, own("status"))[0].is_displayed()
    page.execute_script("document.querySelector('#txt2img_interrupt').click()")
    until(lambda: idle(page), 300)
    write(page, 4, "#txt2img_steps input[type=number]")
    until(lambda: told(page) not in (None, before))
    until(lambda: find(page, own("status"))[0].is_displayed())


def test_the_status_of_a_job_that_is_over_before_it_is_seen_to_run_stays(page):
    before = told(page)
    page.execute_script("decouple.kept = decouple.busy; decouple.busy = () => false")
    try:
        page.execute_script("document.querySelector('#txt2img_generate').click()")
        until(lambda: told(page) not in (None, before))
        page.execute_script("decouple.busy = () => true")
        time.sleep(1)
    finally:
        page.execute_script("decouple.busy = decouple.kept")
    until(lambda: idle(page))
    time.sleep(1)
    assert find(page, own("status"))[0].is_displayed()


def test_the_trace_of_a_run_that_stood_aside_is_a_sentence(page):
    write(page, "zebra", f"{own('entities')} textarea")
    until(lambda: "zebra" in text(page, "tokens"))
    drawn(page)
    summary(page, "trace").click()
    until(lambda: "This picture was not guided" in text(page, "trace"))
    assert "zebra" in text(page, "trace")
    shown = [one for one in find(page, f"{own('trace')} :is(svg, canvas, table, button, select)") if one.is_displayed()]
    assert shown == []
    write(page, "", f"{own('entities')} textarea")
    drawn(page)
    until(lambda: [one for one in find(page, f"{own('trace')} svg.decouple-plot") if one.is_displayed()])


def test_what_is_left_to_the_model_is_told_with_its_value(page):
    family = page.webui.post("/decouple/v1/tokens", {"prompt": "a cat"})[1]["profile"]["family"]
    lines = [one.text for one in find(page, ".decouple-means") if one.is_displayed()]
    assert any(family in line for line in lines)
    write(page, 0, f"{own('steps')} input[type=number]")
    until(lambda: "0: the first half of the run" in [one.text for one in find(page, ".decouple-means")])
    write(page, -1, f"{own('steps')} input[type=number]")
