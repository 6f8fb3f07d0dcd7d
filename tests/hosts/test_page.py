"""The page of real WebUIs, clicked in headless Chromium, and infotexts that go from one to the other; see conftest.py.

``infotexts/a1111.txt`` and ``forge.txt`` are what those WebUIs wrote, into the folder that DECOUPLE_INFOTEXTS names; a
test holds them against what they write now.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from lib_decouple.settings import Settings, specs
from tests.browser import chromium, open_webui, until, write

OURS = "script_{tab}_attention_decoupling_{name}"
WRITTEN = Path(__file__).parent / "infotexts"
ODD = 'fox: "old", big\nand shaggy'
SETTINGS = {
    "loss": "iou + 0.5*intensity", "steps": 4, "size": 0.31, "rule": "attend-excite", "layers": "last",
    "entities": ["cat", "dog", ODD], "skip_missing": True, "refine_steps": [0, 2], "stop": True,
}  # fmt: skip
VALUES = """
const found = {};
for (const box of document.querySelectorAll(`[id^="${arguments[0]}"]`)) {
    const name = box.id.slice(arguments[0].length);
    if (!arguments[1].includes(name)) continue;
    const chosen = box.querySelector("input[type=radio]:checked");
    const tick = box.querySelector("input[type=checkbox]");
    const field = box.querySelector("textarea, input[type=number], input[type=text], input");
    found[name] = chosen ? chosen.value : tick ? tick.checked : field.value;
}
found.enabled = document.getElementById(arguments[0] + "enabled-visible-checkbox").checked;
return found;
"""


@pytest.fixture(scope="module", params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def page(webui):
    """A browser on the WebUI's page."""
    with chromium() as browser:
        open_webui(browser, webui.url)
        yield browser


def values(page, tab):
    return page.execute_script(VALUES, OURS.format(tab=tab, name=""), [name for name in WANTED if name != "enabled"])


def paste(page, tab, text):
    write(page, text, f"#{tab}_prompt textarea")
    time.sleep(1)
    page.execute_script(f"document.querySelector('#{tab}_tools #paste').click()")


@pytest.fixture(scope="module")
def made(webui):
    """A picture with settings of every kind, and an entity with a comma, quotes, a colon and a line break."""
    found = webui.draw(SETTINGS)
    assert found.value("Decouple stood aside") is None
    return found


WANTED = {
    "enabled": True, "loss": "iou + 0.5*intensity", "steps": "4", "size": "0.31", "rule": "attend-excite",
    "layers": "last", "refine_steps": "0, 2", "stop": "on", "every": "1",
    "entities": f"cat, dog, {json.dumps(ODD)}", "skip_missing": True,
}  # fmt: skip


def ours(text):
    """What an infotext says of us, less what a checkpoint of random weights decides."""
    own = re.search(r"Decouple: .*?(?=, Version)", text, re.S)[0].replace("Decouple stop: True", "Decouple stop: on")
    decided = r'Decouple (?:IoU(?: by update)?|moved|told|version): (?:"[^"]*"|[^,]*)(?:, |$)'
    return re.sub(decided, "", own).removesuffix(", ")


def test_an_infotext_is_as_it_was_written_before(webui, made):
    if folder := os.environ.get("DECOUPLE_INFOTEXTS"):
        (Path(folder) / f"{webui.name}.txt").write_text(made.infotexts[0], encoding="utf-8")
    assert ours((WRITTEN / f"{webui.name}.txt").read_text(encoding="utf-8")) == ours(made.infotexts[0])


@pytest.mark.parametrize("writer", ["a1111", "forge"])
def test_what_one_webui_wrote_the_other_s_parser_reads(webui, writer):
    code = """
from modules import infotext_utils, scripts
params = infotext_utils.parse_generation_parameters(TEXT)
script = next(s for s in scripts.scripts_txt2img.alwayson_scripts if s.title() == "Attention Decoupling")
result = {key.args[0]: key(params) for _, key in script.infotext_fields if hasattr(key, "args")}
"""
    found = webui.inside(code, TEXT=(WRITTEN / f"{writer}.txt").read_text(encoding="utf-8"))
    assert {name: found[name] for name in WANTED} == {**WANTED, "steps": 4, "size": 0.31, "every": 1}


@pytest.mark.parametrize("writer", ["a1111", "forge"])
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_paste_restores_the_settings_and_a_foreign_text_turns_us_off(page, webui, tab, writer):
    if tab == "img2img":
        page.execute_script("document.querySelectorAll('#tabs > .tab-nav > button')[1].click()")
    paste(page, tab, (WRITTEN / f"{writer}.txt").read_text(encoding="utf-8"))
    until(lambda: values(page, tab)["enabled"])
    until(lambda: values(page, tab) == WANTED or None, 10)
    paste(page, tab, webui.draw().infotexts[0])
    until(lambda: not values(page, tab)["enabled"])


def test_png_info_sends_the_settings_to_img2img(page, made, tmp_path):
    from PIL import PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", made.infotexts[0])
    made.images[0].save(tmp_path / "made.png", pnginfo=about)
    nav = "Array.from(document.querySelectorAll('#tabs > .tab-nav > button'))"
    page.execute_script(f"{nav}.find(b => b.textContent.trim() == 'PNG Info').click()")
    page.find_element("css selector", "#pnginfo_image input[type=file]").send_keys(str(tmp_path / "made.png"))
    until(lambda: "Decouple" in page.execute_script("return document.querySelector('#tab_pnginfo').textContent"))
    for tab in ("img2img", "txt2img"):
        page.execute_script(f"{nav}.find(b => b.textContent.trim() == 'PNG Info').click()")
        time.sleep(1)
        page.execute_script(f"document.querySelector('#tab_pnginfo #{tab}_tab').click()")
        until(lambda tab=tab: values(page, tab)["enabled"])
        until(lambda tab=tab: values(page, tab) == WANTED or None, 10)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_defaults_are_saved_for_every_control(webui, tab):
    saved = webui.inside(
        "import json\nfrom modules import shared\nresult = json.load(open(shared.cmd_opts.ui_config_file))"
    )
    defaults = Settings().as_dict()
    for name, spec in specs().items():
        if name == "enabled" and webui.name == "forge":
            continue  # Forge saves the state of no InputAccordion, its own included (modules/ui_loadsave.py)
        label = "Attention Decoupling" if name == "enabled" else spec.label
        kept = saved[f"customscript/decouple.py/{tab}/{label}/value"]
        assert kept == ("" if defaults[name] == [] else defaults[name]), name


def test_the_page_made_anew_is_as_before(page, webui):
    before = webui.draw({"size": 0.3})
    page.execute_script("document.querySelector('#settings_restart_gradio').click()")
    time.sleep(1)
    page.get("about:blank")  # the WebUI's server waits for connections that stay open
    time.sleep(5)

    def alive():
        try:
            return webui.get("/sdapi/v1/samplers")
        except (OSError, ValueError):
            return None

    until(alive, 120)
    page.get(webui.url)
    until(lambda: page.execute_script("return !!document.querySelector('#txt2img_prompt textarea')"), 120)
    count = "return document.querySelectorAll('[id=script_txt2img_attention_decoupling_enabled]').length"
    assert page.execute_script(count) == 1
    assert webui.draw({"size": 0.3}).pixels == before.pixels
    status, answer = webui.post(
        "/sdapi/v1/txt2img", {"alwayson_scripts": {"attention decoupling": {"args": [{"steps": 999}]}}}
    )
    assert status == 422
    assert "steps: 999" in answer["detail"]
