"""Compare, the live panel and the trace in the pages of real WebUIs, in headless Chromium; see conftest.py."""

from __future__ import annotations

import json
import time

import pytest
from PIL import ImageColor

from lib_decouple.webui.palette import colours
from tests.browser import chromium, find, open_webui, write
from tests.browser import until as soon
from tests.hosts.test_chips import OWN

LABELS = "return [...document.querySelectorAll(arguments[0])].map((one) => one.getAttribute('aria-label'))"
REQUESTS = """
return performance.getEntriesByType("resource").map(one => new URL(one.name).pathname)
    .filter(one => /decouple.v1.(live|trace|maps)/.test(one));
"""
CHECKED = "return document.querySelector(arguments[0]).checked"
SAVED = """
window.saved = [];
URL.createObjectURL = (blob) => { blob.text().then((text) => window.saved.push(text)); return "#"; };
HTMLAnchorElement.prototype.click = function() { window.named = this.download; };
"""
CELLS = """
return [...document.querySelectorAll(arguments[0])].map((row) => [...row.cells].map((one) => one.textContent));
"""
SIZE = 128


@pytest.fixture(scope="module", params=["host", "forge"])
def page(request):
    """A browser on the page of a WebUI, the accordion of txt2img open, a small picture asked for."""
    webui = request.getfixturevalue(request.param)
    with chromium(1400, 2600) as browser:
        opened(browser, webui.url)
        browser.webui = webui
        yield browser


def opened(page, url):
    open_webui(page, url)
    write(page, "a cat and a dog")
    for name, value in (("width", SIZE), ("height", SIZE), ("steps", 6), ("seed", 3)):
        write(page, value, f"#txt2img_{name} input[type=number], #txt2img_{name} input")
    page.execute_script("document.querySelector(arguments[0]).click()", f"{own('enabled')} .label-wrap")
    until(lambda: find(page, own("compare_button"))[0].is_displayed())


def until(found, seconds=120):
    """Patience for a machine that does much else."""
    return soon(found, seconds)


def own(name):
    return f"{OWN.format(tab='txt2img')}{name}"


def ticked(page, name="enabled-checkbox"):
    return page.execute_script(CHECKED, f"{own(name)} input")


def idle(page):
    """No job runs, and the page knows it."""
    return not page.execute_script("return decouple.busy('txt2img')")


def text(page, name):
    return page.execute_script("return document.querySelector(arguments[0]).innerText", own(name))


def summary(page, name):
    return find(page, f"{own(name)} summary")[0]


def is_open(page, name):
    return page.execute_script("return document.querySelector(arguments[0]).open", f"{own(name)} details")


def drawn(page, selector="#txt2img_generate"):
    """Press a button that draws, and wait for the end."""
    page.execute_script("document.querySelector(arguments[0]).click()", selector)
    until(lambda: not idle(page))
    until(lambda: idle(page), 300)
    time.sleep(1)


def chosen_picture(page):
    """Number of the picture at which the gallery is open."""
    small = find(page, "#txt2img_gallery .thumbnail-item.thumbnail-small")
    return next((k for k, one in enumerate(small) if "selected" in one.get_attribute("class").split()), None)


def infotexts(page):
    box = "#generation_info_txt2img textarea"
    value = page.execute_script("return document.querySelector(arguments[0]).value", box)
    return json.loads(value)["infotexts"]


def test_compare_draws_both_for_one_job_only_though_the_accordion_is_off(page):
    page.execute_script("document.querySelector(arguments[0]).click()", own("enabled-visible-checkbox"))
    until(lambda: not ticked(page))
    find(page, own("compare_button"))[0].send_keys("\ue007")  # Enter: by the keyboard
    until(lambda: not idle(page))
    until(lambda: not ticked(page, "compare"))
    until(lambda: idle(page), 300)
    until(lambda: "Compared with the plain picture: 1 of 1" in text(page, "status"))
    texts = infotexts(page)
    assert len(texts) == 4  # the host's grid, plain, decoupled, side by side
    assert ["Decouple" in one for one in texts] == [True, False, True, True]
    until(lambda: chosen_picture(page) == 3)
    drawn(page)
    assert len(infotexts(page)) == 1
    assert "Decouple" not in infotexts(page)[0]
    page.execute_script("document.querySelector(arguments[0]).click()", own("enabled-visible-checkbox"))
    until(lambda: ticked(page))


@pytest.mark.parametrize(
    ("name", "value", "usual", "other", "shown"),
    [*(("look", value, "tell", "restarts", value == "insist") for value in ("off", "tell", "choose", "insist")),
     *(("stop", value, "auto", "stop_below", value == "on") for value in ("on", "off", "presence", "auto"))],
)  # fmt: skip
def test_a_control_is_there_where_the_choice_above_it_gives_it_a_meaning(page, name, value, usual, other, shown):
    if not find(page, own(name))[0].is_displayed():
        page.execute_script("document.querySelector(arguments[0]).click()", f"{own('expert')} .label-wrap")
        until(lambda: find(page, own(name))[0].is_displayed())
    for one in (value, usual):
        page.execute_script("document.querySelector(arguments[0]).click()", f"{own(name)} input[value={one}]")
        until(lambda one=one: find(page, own(other))[0].is_displayed() == (shown and one == value))


def test_compare_is_taken_back_when_the_job_is_interrupted(page):
    write(page, 40, "#txt2img_steps input[type=number]")
    find(page, own("compare_button"))[0].click()
    until(lambda: not idle(page))
    until(lambda: not ticked(page, "compare"))
    until(lambda: find(page, own("compare_button"))[0].is_enabled())
    find(page, own("compare_button"))[0].click()
    until(lambda: "A picture is being drawn" in page.find_element("css selector", f"{own('compare_button')} + p").text)
    page.execute_script("document.querySelector('#txt2img_interrupt').click()")
    until(lambda: idle(page), 300)
    write(page, 6, "#txt2img_steps input[type=number]")
    assert not ticked(page, "compare")


def test_nothing_is_asked_while_both_panels_are_closed(page):
    opened(page, page.webui.url)
    assert not is_open(page, "live")
    assert not is_open(page, "trace")
    drawn(page)
    assert "cat, dog: moved at " in text(page, "status")
    assert page.execute_script(REQUESTS) == []


def test_the_live_panel_shows_maps_and_curve_while_it_runs_and_asks_no_more_when_closed(page):
    summary(page, "live").send_keys("\ue007")
    until(lambda: is_open(page, "live"))
    until(lambda: "shown here while" in text(page, "live"))
    write(page, 150, "#txt2img_steps input[type=number]")
    page.execute_script("document.querySelector('#txt2img_generate').click()")
    until(lambda: "Image 1 is being drawn" in text(page, "live"))
    until(lambda: len(find(page, f"{own('live')} canvas")) == 2)
    until(lambda: len(find(page, f"{own('live')} svg.decouple-plot circle")) >= 4)
    labels = page.execute_script(LABELS, f"{own('live')} canvas")  # at once, as they are made anew all the time
    assert labels[0].startswith("Map of cat, step")
    assert labels[1].startswith("Map of dog, step")
    assert page.execute_script(LABELS, f"{own('live')} svg.decouple-plot")[0].startswith("Loss and IoU over")
    assert "without guidance, too" in text(page, "live")  # a line that falls is no effect
    page.execute_script("document.querySelector('#txt2img_interrupt').click()")
    until(lambda: idle(page), 300)
    until(lambda: "The last guided picture" in text(page, "live"))
    write(page, 6, "#txt2img_steps input[type=number]")
    summary(page, "live").click()
    until(lambda: not is_open(page, "live"))
    time.sleep(1)
    before = len(page.execute_script(REQUESTS))
    time.sleep(5)
    assert len(page.execute_script(REQUESTS)) == before


def test_the_live_panel_that_is_turned_off_says_so(page):
    try:
        page.webui.post("/sdapi/v1/options", {"decouple_live_panel": False})
        summary(page, "live").click()
        until(lambda: "The live panel is off" in text(page, "live"))
    finally:
        page.webui.post("/sdapi/v1/options", {"decouple_live_panel": True})
    until(lambda: "The live panel is off" not in text(page, "live"))
    summary(page, "live").click()


def choose(page, label, value):
    page.execute_script(
        "const field = [...document.querySelectorAll(arguments[0] + ' label')]"
        ".find((one) => one.textContent.startsWith(arguments[1])).querySelector('select');"
        "field.value = arguments[2]; field.dispatchEvent(new Event('change'));",
        own("trace"), label, value,
    )  # fmt: skip


def cells(page):
    return page.execute_script(CELLS, f"{own('trace')} tr")


def test_the_trace_of_a_batch_as_plot_table_maps_and_files(page):
    try:
        page.webui.post("/sdapi/v1/options", {"decouple_look_after": True})
        write(page, 2, "#txt2img_batch_count input[type=number]")
        drawn(page)
    finally:
        page.webui.post("/sdapi/v1/options", {"decouple_look_after": False})
        write(page, 1, "#txt2img_batch_count input[type=number]")
    run = page.execute_script(
        "return document.querySelector(arguments[0]).dataset.run", f"{own('status')} .decouple-run"
    )
    trace = page.webui.get(f"/decouple/v1/trace/{run}")
    assert len(trace["images"]) == 2
    summary(page, "trace").click()
    until(lambda: find(page, f"{own('trace')} svg.decouple-plot circle"))
    for image in (0, 1):
        choose(page, "Image", image)
        steps = trace["images"][image]["passes"][0]["steps"]
        for measure, names in (("iou", ["cat/dog"]), ("intensity", ["cat", "dog"])):
            choose(page, "Measure", measure)
            head, *rows = cells(page)
            assert head == ["step", *(f"{name}, {moment}" for name in names for moment in ("before", "after"))]
            assert [row[0] for row in rows] == [str(step["step"]) for step in steps]
            for row, step in zip(rows, steps):
                for k, name in enumerate(names):
                    assert float(row[1 + 2 * k]) == pytest.approx(step["before"][measure][name], rel=1e-3)
                    if step["after"]:
                        assert float(row[2 + 2 * k]) == pytest.approx(step["after"][measure][name], rel=1e-3)
            assert len(find(page, f"{own('trace')} svg.decouple-plot polyline")) == len(names)
            assert find(page, f"{own('trace')} circle.decouple-after")
    assert "without guidance, too" in text(page, "trace")
    lines = find(page, f"{own('trace')} svg.decouple-plot polyline")
    strokes = [ImageColor.getrgb(one.value_of_css_property("stroke")) for one in lines]
    assert strokes == [ImageColor.getrgb(one) for one in colours(["cat", "dog"])]
    groups = [one.get_attribute("aria-label") for one in find(page, f"{own('trace')} [role=group]")]
    assert [one.split(" (")[0] for one in groups] == [
        "Maps, before guidance", "Maps, after the first guided step", "Maps, after the last guided step",
    ]  # fmt: skip
    assert len(find(page, f"{own('trace')} canvas")) == 6
    page.execute_script(SAVED)
    for button in find(page, f"{own('trace')} button.decouple-button"):
        button.click()
        time.sleep(1)
    saved = until(lambda: (one := page.execute_script("return window.saved")) and len(one) == 2 and one)
    assert json.loads(saved[0]) == trace
    assert saved[1].startswith("image,hires,step,guided,moment,measure,of,value\n")
    assert page.execute_script("return window.named") == f"decouple-{run}.csv"


def test_both_tabs_have_one_of_each(page):
    for tab in ("txt2img", "img2img"):
        for name in ("live", "trace"):
            assert len(find(page, f"{OWN.format(tab=tab)}{name} details.decouple-panel > summary")) >= 1
        assert len(find(page, f"{OWN.format(tab=tab)}compare_button + p[role=status]")) == 1


def test_nothing_stands_over_the_edge_of_a_phone(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 390, "height": 2000, "deviceScaleFactor": 1, "mobile": True,
    })  # fmt: skip
    try:
        time.sleep(1)
        for name in ("compare_button", "live", "trace"):
            box = find(page, own(name))[0].rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_after_reload_ui_compare_and_trace_are_as_before(page):
    page.execute_script("document.querySelector('#settings_restart_gradio').click()")
    time.sleep(1)
    page.get("about:blank")  # the WebUI's server waits for connections that stay open
    time.sleep(5)

    def alive():
        try:
            return page.webui.get("/sdapi/v1/samplers")
        except (OSError, ValueError):
            return None

    until(alive, 300)
    opened(page, page.webui.url)
    assert len(find(page, own("compare_button"))) == 1
    drawn(page, own("compare_button"))
    until(lambda: "Compared with the plain picture: 1 of 1" in text(page, "status"))
    assert ["Decouple" in one for one in infotexts(page)] == [True, False, True, True]
    summary(page, "trace").click()
    until(lambda: find(page, f"{own('trace')} svg.decouple-plot circle"))
