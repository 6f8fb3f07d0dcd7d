"""The prompt's words, clicked in headless Chromium in real WebUIs; see conftest.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.browser import chromium, find, open_webui, until, write

OWN = "#script_{tab}_attention_decoupling_"
PROMPT = "a photo of an old man, a dog and (a red teddy bear:1.2) <lora:fur:0.5> and the dog"
TEXTS = (
    r"return [...document.querySelectorAll(arguments[0])].map(one => one.firstChild.textContent.replace(/\u2060/, ''));"
)
REQUESTS = """
return performance.getEntriesByType("resource").filter(one => one.name.endsWith("/decouple/v1/tokens")).length;
"""


@pytest.fixture(scope="module", params=["host", "forge"])
def page(request):
    """A browser on the page of a WebUI, the accordion of txt2img open."""
    webui = request.getfixturevalue(request.param)
    with chromium(1400, 2000) as browser:
        open_webui(browser, webui.url)
        write(browser, PROMPT)
        time.sleep(1)
        assert browser.execute_script(REQUESTS) == 0  # while it is closed
        browser.execute_script(
            "document.querySelector(arguments[0]).click()", f"{OWN.format(tab='txt2img')}enabled .label-wrap"
        )
        until(lambda: words(browser))
        browser.name_of_host = request.param
        yield browser


@pytest.fixture(autouse=True)
def fresh(page):
    write(page, "", f"{OWN.format(tab='txt2img')}entities textarea")
    write(page, "")
    until(lambda: not words(page))
    write(page, PROMPT)
    until(lambda: "Found automatically" in says(page) and len(words(page)) == 16)


def words(page):
    return find(page, f"{OWN.format(tab='txt2img')}tokens .decouple-chip")


def word_of(chip):
    return chip.text.rstrip("0123456789\n").rstrip("\u2060")


def chip(page, text, number=1):
    found = [one for one in words(page) if word_of(one) == text]
    return found[number - 1]


def says(page):
    return "".join(one.text for one in find(page, f"{OWN.format(tab='txt2img')}tokens .decouple-says"))


def field(page):
    return page.execute_script(
        "return document.querySelector(arguments[0]).value", f"{OWN.format(tab='txt2img')}entities textarea"
    )


def texts(page, which=".decouple-chip"):
    """At one moment, whatever is drawn anew meanwhile."""
    return page.execute_script(TEXTS, f"{OWN.format(tab='txt2img')}tokens {which}")


def pressed(page):
    return texts(page, "[aria-pressed=true]")


def colour(page, text, number=1):
    """Of the chip's entity; the chip fills with it when it is pressed."""
    script = "return getComputedStyle(arguments[0]).getPropertyValue('--decouple-colour').trim()"
    return page.execute_script(script, chip(page, text, number))


def shot(page, name):
    """A screenshot of the accordion for a person to look at, where DECOUPLE_SHOTS names a folder."""
    if folder := os.environ.get("DECOUPLE_SHOTS"):
        part = find(page, f"{OWN.format(tab='txt2img')}enabled")[0]
        Path(folder).mkdir(exist_ok=True)
        part.screenshot(f"{folder}/{page.name_of_host}-{name}.png")


def test_suggested_words_are_marked_and_signs_are_no_chips(page):
    assert pressed(page) == ["man", "dog", "teddy", "bear"]
    signs = [one.text for one in find(page, f"{OWN.format(tab='txt2img')}tokens .decouple-sign")]
    assert signs == [",", "(", ":1.2)", "<lora:fur:0.5>"]
    assert "weight 1.2" in chip(page, "teddy").get_attribute("title")
    assert chip(page, "man").get_attribute("title").startswith("token #6")
    shot(page, "suggested")


def test_a_click_takes_the_suggestions_over_and_another_takes_a_word_out(page):
    chip(page, "red").click()
    until(lambda: field(page) == "man, dog, teddy bear, red")
    until(lambda: "4 chosen" in says(page))
    chip(page, "teddy").click()
    until(lambda: field(page) == "man, dog, red")
    until(lambda: pressed(page) == ["man", "dog", "red"])
    find(page, ".decouple-back")[0].click()
    until(lambda: field(page) == "" and "Found automatically" in says(page))


def test_the_second_of_two_equal_words(page):
    chip(page, "dog", 2).click()
    until(lambda: field(page) == "man, dog, teddy bear, dog@2")


def test_shift_click_and_drag_join_words(page):
    chip(page, "red").click()
    until(lambda: "4 chosen" in says(page))
    ActionChains(page).key_down(Keys.SHIFT).click(chip(page, "bear")).key_up(Keys.SHIFT).perform()
    until(lambda: field(page) == "man, dog, red teddy bear")
    until(lambda: "3 chosen" in says(page))
    ActionChains(page).click_and_hold(chip(page, "old")).move_to_element(chip(page, "man")).release().perform()
    until(lambda: field(page) == "dog, red teddy bear, old man")
    until(lambda: pressed(page) == ["old", "man", "dog", "red", "teddy", "bear"])
    shot(page, "joined")


def test_words_around_a_comma_are_joined_under_a_name_in_quotes(page):
    ActionChains(page).click_and_hold(chip(page, "man")).move_to_element(chip(page, "dog")).release().perform()
    until(lambda: field(page) == 'teddy bear, "man, a dog"')
    until(lambda: pressed(page) == ["man", "a", "dog", "teddy", "bear"])


def test_words_that_do_not_stand_together_are_refused_in_words(page):
    write(page, "a cat, [dog|fox]")
    until(lambda: texts(page) == ["a", "cat", "dog", "fox"])
    before = field(page)
    ActionChains(page).click_and_hold(chip(page, "cat")).move_to_element(chip(page, "dog")).release().perform()
    until(lambda: "stand together" in says(page))
    assert field(page) == before


def test_by_keyboard(page):
    page.execute_script("arguments[0].focus()", chip(page, "old"))
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).send_keys(Keys.ENTER).perform()
    until(lambda: field(page) == "dog, teddy bear")
    until(lambda: "2 chosen" in says(page))
    assert word_of(page.switch_to.active_element) == "man"


def test_words_are_joined_by_keyboard_and_tab_stops_once(page):
    page.execute_script("arguments[0].focus()", chip(page, "red"))
    ActionChains(page).send_keys(Keys.ENTER).perform()
    until(lambda: field(page) == "man, dog, teddy bear, red")
    until(lambda: "4 chosen" in says(page))
    step = ActionChains(page).send_keys(Keys.ARROW_RIGHT).send_keys(Keys.ARROW_DOWN)
    step.key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    until(lambda: field(page) == "man, dog, red teddy bear")
    until(lambda: word_of(page.switch_to.active_element) == "bear")
    stops = [one for one in words(page) if one.get_attribute("tabindex") == "0"]
    assert [word_of(one) for one in stops] == ["bear"]
    assert chip(page, "teddy").get_attribute("aria-label") == "teddy, entity 3"
    ActionChains(page).send_keys(Keys.HOME).send_keys(Keys.SPACE).perform()
    until(lambda: field(page) == "man, dog, red teddy bear, a")


def test_a_finger_chooses_and_joins(page):
    def touch(kind, *points):
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    def middle(of):
        box = page.execute_script("return arguments[0].getBoundingClientRect().toJSON()", of)
        return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chip(page, "red"))
    ends = middle(chip(page, "red")), middle(chip(page, "teddy"))
    touch("touchStart", ends[0])
    for k in range(1, 6):
        touch("touchMove", {axis: ends[0][axis] + (ends[1][axis] - ends[0][axis]) * k / 5 for axis in "xy"})
    touch("touchEnd")
    until(lambda: field(page) == "man, dog, red teddy")
    until(lambda: "3 chosen" in says(page))
    touch("touchStart", middle(chip(page, "man")))
    touch("touchEnd")
    until(lambda: field(page) == "dog, red teddy")


def test_an_entity_keeps_its_colour_whatever_else_is_chosen(page):
    before = colour(page, "man"), colour(page, "bear")
    chip(page, "dog").click()
    until(lambda: field(page) == "man, teddy bear")
    until(lambda: "2 chosen" in says(page))
    assert (colour(page, "man"), colour(page, "bear")) == before
    assert before[0] != before[1]


def test_positions_and_occurrences_are_typed(page):
    write(page, "dog@2, #5-6", f"{OWN.format(tab='txt2img')}entities textarea")
    until(lambda: "2 chosen" in says(page))
    assert pressed(page) == ["old", "man", "dog"]
    assert chip(page, "dog", 2).get_attribute("aria-pressed") == "true"


def test_chunks_breaks_and_parts_are_told(page):
    write(page, "a cat " + "very " * 80 + "far BREAK a fox AND a hen")
    until(lambda: "hen" in pressed(page))
    assert [chip(page, one).get_attribute("title") for one in ("cat", "far", "fox")] == [
        "token #2; chunk 1", "token #85; chunk 2", "token #156; chunk 3",
    ]  # fmt: skip
    assert "AND part 2" in chip(page, "hen").get_attribute("title")
    signs = {one.text: one.get_attribute("title") for one in find(page, ".decouple-chips .decouple-sign")}
    assert signs == {"BREAK": "BREAK: the next chunk begins", "AND": "AND: the next part begins"}


def test_what_is_typed_is_shown_and_a_wrong_word_is_named(page):
    write(page, "teddy bear, dgo", f"{OWN.format(tab='txt2img')}entities textarea")
    until(lambda: 'did you mean "dog"?' in says(page))
    assert pressed(page) == ["teddy", "bear"]


def test_typing_asks_seldom_and_shows_the_last(page):
    before = page.execute_script(REQUESTS)
    box = find(page, "#txt2img_prompt textarea")[0]
    box.clear()
    box.send_keys("a lion and a zebra in the wide open field")
    until(lambda: pressed(page) == ["lion", "zebra", "field"] or pressed(page) == ["lion", "zebra"])
    assert page.execute_script(REQUESTS) - before <= 42 / 2


def test_markup_in_a_prompt_stays_text(page):
    write(page, "a <img src=x onerror=window.hit=1> cat")
    until(lambda: "cat" in pressed(page))
    assert page.execute_script("return window.hit") is None
