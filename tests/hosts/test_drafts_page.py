"""The page of drafts, and what is told of a picture in the gallery, in real WebUIs, in headless Chromium."""

from __future__ import annotations

import pytest

from lib_decouple.hosts.seeds import seeds_to_draft
from tests.browser import chromium, find, write
from tests.hosts.conftest import Picture
from tests.hosts.test_choose import seeds as seeds_of
from tests.hosts.test_seeing_page import drawn, idle, infotexts, is_open, opened, own, summary, text, until

CLOSE = """
[...document.querySelectorAll("#txt2img_gallery button")]
    .find((one) => /clear|close/i.test(one.ariaLabel ?? one.title)).click();
"""
CARDS = f"{own('drafts_page')} .decouple-draft"


@pytest.fixture(scope="module", params=["host", "forge"])
def page(request):
    """A browser on the page of a WebUI, the accordion ticked, three drafts of each of two pictures asked for."""
    webui = request.getfixturevalue(request.param)
    with chromium(390, 2600) as browser:
        opened(browser, webui.url)
        browser.webui = webui
        if not browser.execute_script(f'return document.querySelector("{own("enabled-checkbox")} input").checked'):
            find(browser, own("enabled-visible-checkbox"))[0].click()
        for name, value in (("steps", 4), ("batch_size", 2)):
            write(browser, value, f"#txt2img_{name} input[type=number]")
        write(browser, 3, f"{own('drafts')} input[type=number]")
        browser.execute_script("document.querySelector(arguments[0]).click()", f"{own('look')} input[value=choose]")
        yield browser


def seeds(page):
    return seeds_of(Picture([], infotexts(page)))


def drafted(page):
    """The cards; of a run that is made where there are none."""
    if not find(page, CARDS):
        if not is_open(page, "drafts_page"):
            summary(page, "drafts_page").click()
        drawn(page)
    return until(lambda: find(page, CARDS))


def shown(page):
    """Of each card its seed, and its marks."""
    return [
        (int(next(line for line in card.text.split("\n") if "seed" in line).split()[-1]), card.text.split("\n")[-1])
        for card in find(page, CARDS)
    ]


def marks(page):
    """Of each card, at one moment: the panel may be filled anew."""
    texts = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    return page.execute_script(texts, f"{CARDS} .decouple-marks")


def test_nothing_is_shown_or_asked_before_a_run(page):
    assert find(page, CARDS) == []
    summary(page, "drafts_page").send_keys("\ue007")  # Enter: by the keyboard
    until(lambda: "for which “Look” drafted seeds" in text(page, "drafts_page"))


def test_drafts_are_shown_ranked_with_their_pictures(page):
    drawn(page)
    until(lambda: len(find(page, f"{CARDS} img")) == 6)
    run = page.execute_script(
        "return document.querySelector(arguments[0]).dataset.run", f"{own('status')} .decouple-run"
    )
    images = page.webui.get(f"/decouple/v1/drafts/{run}")["images"]
    told = shown(page)
    assert [seed for seed, _ in told] == [draft["seed"] for image in images for draft in image["drafts"]]
    for first, asked in ((0, 3), (3, 4)):
        assert sorted(seed for seed, _ in told[first : first + 3]) == seeds_to_draft(asked, 3)
        assert told[first][1].startswith("drawn")
        assert {seed: "asked for" in marks for seed, marks in told[first : first + 3]} == {
            seed: seed == asked for seed in seeds_to_draft(asked, 3)
        }
    assert seeds(page)[-2:] == [told[0][0], told[3][0]]
    loaded = "return [...document.querySelectorAll(arguments[0])].map((one) => one.naturalWidth)"
    assert all(width >= 8 for width in page.execute_script(loaded, f"{CARDS} img"))
    label = find(page, CARDS)[0].get_attribute("aria-label")
    assert label.startswith(f"Draw seed {told[0][0]}: number 1 of 3, cat 0.")


def test_they_fit_a_phone_and_a_finger(page):
    drafted(page)
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert page.execute_script(fits)
    for card in find(page, CARDS):
        assert card.size["height"] >= 44
        assert 100 <= card.size["width"] <= 390


def test_the_one_that_is_pressed_is_drawn_alone_by_the_keyboard_too(page):
    drafted(page)
    for number, press in ((4, "keyboard"), (2, "click")):
        seed, _ = shown(page)[number]
        card = find(page, CARDS)[number]
        if press == "keyboard":
            card.send_keys("\ue007")
        else:
            page.execute_script("arguments[0].click()", card)
        until(lambda: not idle(page))
        until(lambda: idle(page), 300)
        until(lambda own=seed: seeds(page) == [own])
        assert "Decouple look" not in infotexts(page)[0]
        assert infotexts(page)[0].startswith("a cat and a dog")
        until(lambda own=number: find(page, CARDS)[own].get_attribute("aria-current") == "true")
        assert len(find(page, f"{CARDS}[aria-current]")) == 1
        assert len(shown(page)) == 6  # those of the run that made them
    value = "return document.querySelector(arguments[0]).value"
    assert page.execute_script(value, "#txt2img_prompt textarea") == "a cat and a dog"
    assert page.execute_script(value, f"{own('draw')} :is(input, textarea)") == ""
    assert page.execute_script(value, "#txt2img_seed input") == "3"


def test_they_are_made_without_drawing_by_the_keyboard_too(page):
    drafted(page)
    if is_open(page, "drafts_page"):
        summary(page, "drafts_page").click()
    before = own("status") + " .decouple-run"
    for press in ("keyboard", "click"):
        run = page.execute_script("return document.querySelector(arguments[0]).dataset.run", before)
        button = find(page, own("drafts_only_button"))[0]
        assert button.size["height"] >= 36  # style.css has 44 for a finger
        if press == "keyboard":
            button.send_keys("\ue007")
        else:
            page.execute_script("arguments[0].click()", button)
        until(lambda: not idle(page))
        until(lambda: idle(page), 300)
        until(
            lambda was=run: (
                page.execute_script("return document.querySelector(arguments[0])?.dataset.run", before) != was
            )
        )
        until(lambda: len(own := marks(page)) == 6 and not any("drawn" in one for one in own))
        assert is_open(page, "drafts_page")
        until(lambda: "nothing was drawn" in text(page, "status"))
        assert find(page, "#txt2img_gallery .thumbnail-item") == []
    checked = f"return document.querySelector('{own('drafts_only')} input').checked"
    until(lambda: not page.execute_script(checked))
    card, (seed, _) = find(page, CARDS)[1], shown(page)[1]
    page.execute_script("arguments[0].click()", card)
    until(lambda: not idle(page))
    until(lambda: idle(page), 300)
    until(lambda: seeds(page) == [seed])


def test_what_is_told_of_a_picture_stands_in_the_gallery(page):
    drawn(page)
    told = [Picture([], infotexts(page)).value("Decouple told", k) for k in range(3)]
    assert told[0] is None  # the grid
    assert all(told[1:])
    small = "#txt2img_gallery .thumbnail-item.thumbnail-small"
    until(lambda: len(find(page, small)) == 3)
    for k in (1, 2, 0):
        page.execute_script("arguments[0].click()", find(page, small)[k])
        until(
            lambda own=told[k] or "": (
                find(page, "#txt2img_results .decouple-chosen")[0].get_attribute("innerText") == own
            )
        )
    page.execute_script(CLOSE)
    until(lambda: len(find(page, "#txt2img_gallery .thumbnail-lg .decouple-caption")) == 2)
    words = [one.get_attribute("innerText") for one in find(page, "#txt2img_gallery .thumbnail-lg .decouple-caption")]
    assert words == told[1:]


def test_drafts_that_are_no_longer_kept_are_not_drawn(page):
    card = drafted(page)[1]
    page.webui.post("/sdapi/v1/options", {"decouple_keep_traces": 1})
    try:
        page.webui.draw({})  # pushes them out
        before = infotexts(page)
        page.execute_script("arguments[0].click()", card)
        until(lambda: "is not kept" in text(page, "drafts_page"))
        assert idle(page)
        assert infotexts(page) == before
    finally:
        page.webui.post("/sdapi/v1/options", {"decouple_keep_traces": 10})
