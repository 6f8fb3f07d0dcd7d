"""Presets in the accordion, clicked in headless Chromium in real WebUIs; see test_chips.py."""

from __future__ import annotations

import pytest

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from lib_decouple import presets
from tests.browser import find, until, write
from tests.hosts.test_chips import OWN, page, shot  # noqa: F401

PART = f"{OWN.format(tab='txt2img')}presets"
VALUE = """
const box = document.querySelector(arguments[0]);
return (box.querySelector("input:checked") ?? box.querySelector("textarea, input")).value;
"""


@pytest.fixture(autouse=True)
def opened(page):  # noqa: F811
    if not shown(page, f"{PART}_import_text"):
        page.execute_script("document.querySelector(arguments[0]).click()", f"{PART} .label-wrap")
        until(lambda: shown(page, f"{PART}_import_text"))


def shown(page, selector):  # noqa: F811
    return any(one.is_displayed() for one in find(page, selector))


def press(page, name):  # noqa: F811
    page.execute_script("document.querySelector(arguments[0]).click()", f"{PART}_{name}")


def value(page, name):  # noqa: F811
    return page.execute_script(VALUE, f"{OWN.format(tab='txt2img')}{name}")


def text(page, name):  # noqa: F811
    return "".join(one.text for one in find(page, f"{PART}_{name}"))


def type_into(page, name, content):  # noqa: F811
    write(page, content, f"{PART}_{name} textarea, {PART}_{name} input")


def test_an_import_is_shown_before_it_changes_anything_then_saved_and_deleted(page):  # noqa: F811
    made = presets.Preset("from a chat", "for tests", {"loss": "iou", "size": 0.31})
    before = value(page, "size")
    type_into(page, "import_text", presets.to_text(made))
    until(lambda: "Applying it changes" in text(page, "preview"))
    assert "0.31" in text(page, "preview")
    assert value(page, "size") == before
    shot(page, "import")
    press(page, "import_save")
    until(lambda: "Saved from a chat" in text(page, "import_message"))
    press(page, "apply")
    until(lambda: value(page, "size") == "0.31")
    assert value(page, "loss") == "iou"
    press(page, "export")
    until(lambda: shown(page, f"{PART}_text"))
    assert presets.from_text(value(page, "presets_text")) == made
    press(page, "delete")
    until(lambda: shown(page, f"{PART}_confirm"))
    press(page, "confirm")
    until(lambda: "Deleted from a chat" in text(page, "message"))


def test_what_is_saved_is_asked_for_before_it_is_replaced(page):  # noqa: F811
    type_into(page, "save_name", "mine")
    press(page, "save")
    until(lambda: "Saved mine" in text(page, "save_message"))
    write(page, "0.22", f"{OWN.format(tab='txt2img')}size input")
    press(page, "save")
    until(lambda: "There is a preset mine already" in text(page, "save_message"))
    assert "0.22" in text(page, "save_message")
    press(page, "save_confirm")
    until(lambda: "Replaced mine" in text(page, "save_message"))
    press(page, "delete")
    until(lambda: shown(page, f"{PART}_confirm"))
    press(page, "confirm")
    until(lambda: "Deleted mine" in text(page, "message"))


@pytest.mark.parametrize("wrong", ["DECOUPLE1abc", '{"name": "x", "version": 99, "settings": {}}', "<b>hello</b>"])
def test_a_wrong_import_is_told_and_offers_nothing(page, wrong):  # noqa: F811
    type_into(page, "import_text", "")
    until(lambda: not text(page, "preview"))
    type_into(page, "import_text", wrong)
    until(lambda: text(page, "preview"))
    assert not shown(page, f"{PART}_import_save")
    assert not shown(page, f"{PART}_import_apply")


def test_a_built_in_preset_can_not_be_deleted(page):  # noqa: F811
    press(page, "delete")
    until(lambda: "is built in" in text(page, "message"))
