"""What guidance did, kept and shown, in real WebUIs, A1111 and Forge; see conftest.py and test_forge.py."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from PIL import Image

from lib_decouple.webui.palette import colours
from tests.hosts.conftest import CALLER, Host, Picture, encoded

API = "/decouple/v1"
BOTH = {"entities": ["cat", "dog"], "steps": 3}
SMALL = {"steps": 6, "width": 128, "height": 128}
MOMENTS = ["unguided", "first", "last"]


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


@pytest.fixture
def options(webui):
    """Sets our options; as they were afterwards."""
    code = """
from modules import shared
result = {name: shared.opts.data.get(name) for name in values}
for name, value in values.items():
    shared.opts.data.pop(name, None)
    if value is not None:
        shared.opts.data[name] = value
"""
    before: dict[str, Any] = {}

    def choose(**values):
        named = {name if name in HOSTS else f"decouple_{name}": value for name, value in values.items()}
        for name, value in webui.inside(code, values=named).items():
            before.setdefault(name, value)

    yield choose
    webui.inside(code, values=before)


HOSTS = ("return_grid", "return_mask", "live_preview_refresh_period", "outdir_txt2img_samples")


def status_of(webui: Host, path: str) -> tuple[int, Any]:
    try:
        request = urllib.request.Request(webui.url + API + path, headers=CALLER)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


def ids(webui: Host) -> list[str]:
    return [run["id"] for run in webui.get(f"{API}/runs")["runs"]]


def picture_of(webui: Host, path: str) -> Image.Image:
    status, body = status_of(webui, path)
    assert status == 200, body
    return Image.open(io.BytesIO(body))


def test_a_batch_is_told_image_by_image(webui):
    made = webui.draw(BOTH, batch_size=2, n_iter=2, **SMALL)
    (summary, *_) = webui.get(f"{API}/runs")["runs"]
    assert (summary["tab"], summary["images"], summary["entities"]) == ("txt2img", 4, ["cat", "dog"])
    told = webui.get(f"{API}/trace/last")
    assert told["id"] == summary["id"]
    assert told["settings"]["steps"] == 3
    assert [one["number"] for one in told["images"]] == [0, 1, 2, 3]
    assert [one["seed"] for one in told["images"]] == [3, 4, 5, 6]
    for k, one in enumerate(told["images"]):
        assert one["prompt"] == "a cat and a dog"
        assert one["colours"] == colours(["cat", "dog"])
        (only,) = one["passes"]
        assert (only["hires"], only["total"], only["stood_aside"]) == (False, 6, "")
        assert [(step["step"], step["guided"]) for step in only["steps"]] == [
            *((0, True), (1, True), (2, True), (3, False)),
        ]
        assert [step["update_norm"] > 0 for step in only["steps"]] == [True, True, True, False]
        first = (len(made.infotexts) > 4) + k  # a grid's infotext stands first
        share = 100 * sum(step["update_norm"] for step in only["steps"])
        assert made.value("Decouple moved", first) == f"3 of 6 steps by {share:.1f} %"
        seen = [step for step in only["steps"] if step["after"]]  # of few guided steps each update is looked at
        means = [sum(step[side]["iou"]["cat/dog"] for step in seen) / len(seen) for side in ("before", "after")]
        where = "at step 1" if len(seen) == 1 else f"over {len(seen)} steps"
        assert made.value("Decouple IoU by update", first) == f"{means[0]:.3f} to {means[1]:.3f} {where}"
    assert len({json.dumps(one["passes"]) for one in told["images"]}) == 4
    status, table = status_of(webui, f"/trace/{told['id']}/csv")
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert status == 200
    assert {(row["image"], row["step"]) for row in rows} == {(str(k), str(s)) for k in range(4) for s in range(4)}
    found = next(row for row in rows if (row["image"], row["step"], row["measure"]) == ("2", "1", "kl"))
    assert float(found["value"]) == told["images"][2]["passes"][0]["steps"][1]["before"]["kl"]["cat/dog"]


def test_maps_of_the_three_moments(webui):
    webui.draw(BOTH, batch_size=2, **SMALL)
    told = webui.get(f"{API}/maps/last")
    for image in told["images"]:
        assert [(one["moment"], one["step"], one["hires"]) for one in image["maps"]] == [
            *(("unguided", 0, False), ("first", 0, False), ("last", 3, False)),
        ]
        for one in image["maps"]:
            assert len(one["values"]) == len(image["entities"]) == 2
            assert {(len(values), len(values[0])) for values in one["values"]} == {(one["height"], one["width"])}
            assert 0 < max(max(line) for values in one["values"] for line in values) <= 1
        assert image["maps"][0]["values"] != image["maps"][1]["values"]
    assert told["images"][0]["maps"][0]["values"] != told["images"][1]["maps"][0]["values"]
    one, whole = (picture_of(webui, f"/maps/last/1/first.png{of}") for of in ("?of=dog", ""))
    assert one.width > 200
    assert whole.width > 3 * one.width
    assert picture_of(webui, "/maps/last/1/first.png?of=overlap").tobytes() != one.tobytes()
    for path, words in (
        ("/maps/last/2/first.png", "image 2"), ("/maps/last/0/first.png?hires=true", "hires"),
        ("/maps/last/0/first.png?of=bird", "'bird' is not one of cat, dog"), ("/maps/nobody", "'nobody' is not kept"),
        ("/trace/nobody", "'nobody' is not kept"), ("/trace/nobody/csv", "'nobody' is not kept"),
    ):  # fmt: skip
        status, detail = status_of(webui, path)
        assert (status, words in detail) == (404, True), detail
    assert status_of(webui, "/maps/last/0/other.png")[0] == 422


def test_the_first_pass_is_looked_at_where_guidance_begins_later(webui):
    webui.draw({**BOTH, "start": 1}, **SMALL)
    (image,) = webui.get(f"{API}/maps/last")["images"]
    assert [(one["moment"], one["step"]) for one in image["maps"]] == [("unguided", 0), ("first", 1), ("last", 3)]
    (only,) = webui.get(f"{API}/trace/last")["images"][0]["passes"]
    assert [step["step"] for step in only["steps"]] == [1, 2, 3]


def test_both_passes_of_hires_fix_and_img2img(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    drawn = webui.draw({**BOTH, "hires": True}, **SMALL, **hires)
    (image,) = webui.get(f"{API}/trace/last")["images"]
    assert [one["hires"] for one in image["passes"]] == [False, True]
    assert all(one["steps"] for one in image["passes"])
    kept = webui.get(f"{API}/maps/last")["images"][0]["maps"]
    assert [(one["moment"], one["hires"]) for one in kept] == [(m, h) for h in (False, True) for m in MOMENTS]
    assert kept[3]["width"] > kept[0]["width"]
    assert picture_of(webui, "/maps/last/0/last.png?of=cat&hires=true").width > 200
    webui.draw(BOTH, init_images=[encoded(drawn.images[0])], denoising_strength=0.9, **SMALL)
    assert webui.get(f"{API}/runs")["runs"][0]["tab"] == "img2img"
    assert webui.get(f"{API}/trace/last")["images"][0]["passes"][0]["steps"]


def test_looks_change_no_picture(webui, options):
    given = {**SMALL, "sampler_name": "Euler a", "batch_size": 2, "n_iter": 2}
    options(keep_traces=0, live_panel=False)
    alone = webui.draw({**BOTH, "start": 1}, **given)
    assert ids(webui) == []
    options(keep_traces=10, look_after=True, live_panel=True)
    status_of(webui, "/live")
    seen = webui.draw({**BOTH, "start": 1}, **given)
    assert seen.pixels == alone.pixels
    assert seen.infotexts == alone.infotexts
    (only,) = webui.get(f"{API}/trace/last")["images"][0]["passes"]
    after = [step["after"] for step in only["steps"]]
    assert [one is not None for one in after] == [True, True, False]
    for step in only["steps"][:2]:
        assert step["after"].keys() == step["before"].keys()
        assert step["after"]["distance"]["cat/dog"] != step["before"]["distance"]["cat/dog"]


def test_not_enabled_nothing_is_kept(webui, options):
    options(map_files="gallery")
    before = ids(webui)
    plain = webui.draw(**SMALL)
    off = webui.draw({"enabled": False}, **SMALL)
    assert ids(webui) == before
    assert len(off.images) == 1
    assert (off.pixels, off.infotexts) == (plain.pixels, plain.infotexts)


def test_maps_in_the_gallery_stand_behind_the_pictures(webui, options):
    given = {**SMALL, "batch_size": 2, "n_iter": 2}
    options(return_grid=True)
    plain = webui.draw(BOTH, **given)
    options(map_files="gallery")
    made = webui.draw(BOTH, **given)
    count = len(plain.images)
    assert len(made.images) == count + 4
    assert made.pixels[:count] == plain.pixels
    assert made.infotexts[:count] == plain.infotexts
    assert made.infotexts[count:] == plain.infotexts[count - 4 :]
    assert len(set(made.pixels[count:])) == 4
    assert {image.size for image in made.images[count:]} != {image.size for image in plain.images[-4:]}
    (info,) = {image.size for image in made.images[count:]}
    assert info[0] > 3 * 256
    assert info[1] > 3 * 256


def test_maps_as_files_beside_the_saved_pictures(webui, options, tmp_path):
    options(map_files="files", outdir_txt2img_samples=str(tmp_path))
    plain = webui.draw(BOTH, save_images=True, batch_size=2, **SMALL)
    files = sorted(path for path in tmp_path.rglob("*.png"))
    maps = [path for path in files if path.stem.endswith("-maps")]
    saved = [path for path in files if path not in maps]
    assert [path.stem for path in maps] == [f"{path.stem}-maps" for path in saved]
    assert len(saved) == 2
    for path in saved:
        assert Image.open(path).text["parameters"] in plain.infotexts
    first = maps[0].read_bytes()
    webui.draw(BOTH, save_images=True, **SMALL)
    assert maps[0].read_bytes() == first
    assert len(list(tmp_path.rglob("*-maps.png"))) == 3
    webui.draw(BOTH, **SMALL)
    assert len(list(tmp_path.rglob("*-maps.png"))) == 3


def test_a_failure_while_drawing_maps_costs_nothing(webui, options):
    options(map_files="gallery")
    code = """
from lib_decouple.webui import heatmaps
kept["sheet"] = heatmaps.sheet
def fail(*args):
    raise MemoryError("maps")
heatmaps.sheet = fail
"""
    webui.inside(code)
    try:
        made = webui.draw(BOTH, **SMALL)
    finally:
        webui.inside("from lib_decouple.webui import heatmaps\nheatmaps.sheet = kept.pop('sheet')")
    assert len(made.images) == 1
    assert made.value("Decouple stood aside") is None


def test_no_more_runs_are_kept_than_asked_for(webui, options):
    options(keep_traces=2)
    for seed in (1, 2, 3):
        webui.draw(BOTH, **{**SMALL, "seed": seed})
    assert [webui.get(f"{API}/trace/{run}")["images"][0]["seed"] for run in ids(webui)] == [3, 2]


def test_a_run_is_seen_while_it_is_drawn(webui, options):
    options(live_preview_refresh_period=321)
    idle = webui.get(f"{API}/live")
    assert (idle["running"], idle["enabled"], idle["interval_ms"], idle["points"]) == (False, True, 321, [])
    drawing = threading.Thread(target=webui.draw, args=({**BOTH, "steps": 30},), kwargs={**SMALL, "steps": 40})
    drawing.start()
    seen = []
    while drawing.is_alive():
        seen.append(webui.get(f"{API}/live"))
    drawing.join()
    running = [one for one in seen if one["running"] and one["maps"]]
    assert running
    last = running[-1]
    assert (last["entities"], last["total"], last["image"]) == (["cat", "dog"], 40, 0)
    assert [point["step"] for point in last["points"]] == list(range(len(last["points"])))
    assert len(last["maps"]["values"]) == 2
    assert last["id"] == ids(webui)[0]
    assert webui.get(f"{API}/live")["running"] is False
    options(live_panel=False)
    assert webui.get(f"{API}/live")["enabled"] is False


def test_the_cells_of_a_plot_are_runs(webui):
    from tests.hosts.test_sharing import plot

    status, _ = plot(webui, BOTH, x="Decouple steps=1-2")
    assert status == 200
    newest = [webui.get(f"{API}/trace/{run}") for run in ids(webui)[:2]]
    assert [one["settings"]["steps"] for one in newest] == [2, 1]


def test_a_picture_of_the_api_is_a_png_with_its_text(webui, options):
    options(map_files="gallery")
    body = {"prompt": "a cat and a dog", "seed": 3, "sampler_name": "Euler", "cfg_scale": 3, **SMALL}
    scripts = {"attention decoupling": {"args": [{"enabled": True, **BOTH}]}}
    status, answer = webui.post("/sdapi/v1/txt2img", {**body, "alwayson_scripts": scripts})
    assert status == 200
    picture, maps = (Image.open(io.BytesIO(base64.b64decode(data))) for data in answer["images"])
    assert picture.text["parameters"] == maps.text["parameters"] == json.loads(answer["info"])["infotexts"][1]


def pictures(webui: Host, **given: Any) -> Picture:
    return webui.draw(BOTH, **SMALL, **given)


def test_masks_beside_the_pictures_do_not_confuse(webui, options):
    start = pictures(webui).images[0]
    mask = Image.new("L", start.size, 0)
    mask.paste(255, (0, 0, 64, 128))
    options(map_files="gallery", return_mask=True)
    made = pictures(
        webui, init_images=[encoded(start)], mask=encoded(mask), denoising_strength=0.9, batch_size=2, inpainting_fill=1
    )
    assert [image.size == start.size for image in made.images][-2:] == [False, False]
    assert all(image.size == start.size for image in made.images[-6:-2])
