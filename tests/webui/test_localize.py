"""The template of translations, and the translations, against what the page shows."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from lib_decouple import presets
from lib_decouple.settings import specs
from lib_decouple.webui import localize

TRANSLATIONS = localize.translations()
TEXTS = localize.texts()


def test_the_template_is_up_to_date():
    assert json.loads(localize.TEMPLATE.read_text("utf-8")) == dict.fromkeys(TEXTS, "")


def test_texts_of_every_origin_are_collected():
    found = TEXTS
    for spec in specs().values():
        if spec.label != "Enable":  # the accordion's own box, which has its name
            assert spec.label in found
            assert any(text.startswith(spec.help) for text in found)
    assert {one.reason for one in presets.BUILT_IN} <= set(found)
    assert {"Apply without saving", "DECOUPLE1…", "Live panel", "Applying it changes", "before"} <= set(found)
    assert {"chunk {number}", "Find automatically"} <= set(found)


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_a_translation_is_whole_and_keeps_what_is_filled_in(name):
    translated = TRANSLATIONS[name]
    assert set(translated) == set(TEXTS)
    for text, own in translated.items():
        assert own.strip()
        assert sorted(re.findall(r"\{\w+\}", own)) == sorted(re.findall(r"\{\w+\}", text)), text


def test_the_page_under_the_real_gradio_shows_no_text_that_the_template_lacks():
    gr = pytest.importorskip(
        "gradio", reason="gradio is not installed here; `run.py test` runs this under both versions"
    )
    from lib_decouple.webui import ui
    from tests.webui.test_ui import input_accordion

    with gr.Blocks(analytics_enabled=False) as demo:
        ui.controls(input_accordion, lambda name: name, localize.FOLDER)
    known = set(TEXTS)
    for item in demo.config["components"]:
        props = item["props"]
        shown = [props.get(key) for key in ("label", "info", "placeholder") if props.get("show_label", True)]
        if item["type"] == "button":
            shown.append(props["value"])
        for text in filter(None, shown):
            assert text in known or not re.search("[A-Za-z]{2}", text), (item["type"], text)
