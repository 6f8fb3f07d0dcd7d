"""Presets and X/Y/Z plots in real WebUIs, A1111 and Forge; see conftest.py."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

import pytest

from lib_decouple import presets
from lib_decouple.settings import Settings, specs
from lib_decouple.webui.infotext import from_text
from tests.hosts.conftest import Host, Picture

API = "/decouple/v1/presets"
MINE = {"loss": "iou", "steps": 3, "size": 0.25}
AXES = ("x", "y", "z")


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def call(webui: Host, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        webui.url + urllib.parse.quote(path), body and json.dumps(body).encode(), {"Content-Type": "application/json"},
        method=method,
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


@pytest.fixture
def mine(webui):
    """A user's preset of a name that is nobody else's, saved."""
    name = f"Für Katzen {uuid.uuid4().hex[:8]}"
    assert call(webui, "PUT", f"{API}/{name}", {"settings": MINE, "reason": "test"})[0] == 200
    yield name
    call(webui, "DELETE", f"{API}/{name}")


def read_back(picture: Picture, index: int = 0) -> Settings:
    """The settings that an infotext tells."""
    told = {name: picture.value(about.infotext, index) for name, about in specs().items()}
    values = {name: from_text(name, text) for name, text in told.items() if text is not None}
    return Settings.from_dict({**values, "enabled": told["enabled"] == "1"})


def test_presets_over_the_host_s_own_application(webui, mine):
    folder = webui.inside("from modules import paths_internal\nresult = paths_internal.data_path")
    listed = call(webui, "GET", API)[1]["presets"]
    assert [one["name"] for one in listed] == [*(one.name for one in presets.BUILT_IN), mine]
    files = webui.inside(
        "import os\nresult = {n: open(os.path.join(d, n), encoding='utf-8').read() for n in os.listdir(d)}",
        d=f"{folder}/attention-decoupling/presets",
    )
    assert presets.from_json(files[f"{mine}.json"].encode()).settings == MINE
    assert call(webui, "PUT", f"{API}/{mine.upper()}", {"settings": {}})[0] == 409
    assert call(webui, "PUT", f"{API}/x", {"settings": {"steps": 151}})[1]["detail"].startswith("steps: 151")
    shown = call(webui, "POST", f"{API}/import", {"text": listed[-1]["text"], "settings": {"size": 0.25}})[1]
    assert shown["changes"]["steps"] == {"before": Settings().steps, "after": 3}
    assert (shown["taken"], "size" in shown["changes"]) == ("yours", False)
    paths = webui.get("/openapi.json")["paths"]
    assert set(paths[f"{API}/{{name}}"]) == {"get", "put", "delete"}


def test_a_preset_by_api_is_its_settings(webui, mine):
    named = webui.draw({"preset": mine.lower()})
    assert named.pixels == webui.draw(MINE).pixels
    assert named.value("Decouple preset") == mine
    assert read_back(named) == Settings.from_dict({**MINE, "enabled": True})
    over = webui.draw({"preset": mine, "steps": 2})
    assert over.value("Decouple preset") is None
    assert over.pixels == webui.draw({**MINE, "steps": 2}).pixels != named.pixels
    assert webui.draw({"preset": "fast"}).value("Decouple preset") == "Fast"
    assert webui.draw({"preset": "fast", "enabled": False}).pixels == webui.draw().pixels


@pytest.mark.parametrize(
    ("given", "words"),
    [({"preset": "balnced"}, "did you mean Balanced"), ({"preset": "fast", "steps": 151}, "steps: 151")],
)
def test_an_unknown_preset_is_refused_before_anything_is_drawn(webui, given, words):
    scripts = {"attention decoupling": {"args": [given]}}
    status, answer = webui.post("/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1, "alwayson_scripts": scripts})
    assert status == 422
    assert words in answer["detail"]


def test_a_written_infotext_applies_a_preset(webui, mine):
    """Through the host's own reading of infotext."""
    code = """
from lib_decouple.webui import infotext
from modules import infotext_utils
params = infotext_utils.parse_generation_parameters("a cat\\nSteps: 4, Sampler: Euler, Size: 8x8, " + text)
result = {name: paste(params) for name, paste in infotext.PASTE.items()}
result["problem"] = infotext.pasted_problem(params)
"""
    pasted = webui.inside(code, text=f"Decouple preset: {mine}, Decouple steps: 2")
    assert (pasted["enabled"], pasted["loss"], pasted["steps"], pasted["size"]) == (True, "iou", 2, 0.25)
    pasted = webui.inside(code, text="Decouple preset: nobody")
    assert pasted["enabled"] is False
    assert "there is no 'nobody'" in pasted["problem"]


def plot(webui: Host, decouple: dict[str, Any] | None = None, **axes: str | list[str]) -> Any:
    """The answer of an X/Y/Z plot; ``x="Decouple loss=com,iou"``, a list where the axis has choices."""
    about = next(
        one for one in webui.get("/sdapi/v1/script-info") if one["name"] == "x/y/z plot" and not one["is_img2img"]
    )
    args = [argument["value"] for argument in about["args"]]
    labels = [argument["label"] for argument in about["args"]]
    choices = about["args"][labels.index("X type")]["choices"]
    for axis in AXES:
        label, _, typed = axes.get(axis, "Nothing=").partition("=")
        args[labels.index(f"{axis.upper()} type")] = choices.index(label)
        args[labels.index(f"{axis.upper()} values")] = typed
    args[labels.index("Include Sub Images")] = True
    args[labels.index("Use text inputs instead of dropdowns")] = True
    body: dict[str, Any] = {
        "prompt": "a cat and a dog", "seed": 3, "steps": 4, "cfg_scale": 3, "width": 128, "height": 128,
        "sampler_name": "Euler", "script_name": "x/y/z plot", "script_args": args,
    }  # fmt: skip
    if decouple:
        body["alwayson_scripts"] = {"attention decoupling": {"args": [decouple]}}
    return webui.post("/sdapi/v1/txt2img", body)


def pictures(answer: tuple[int, Any]) -> Picture:
    """The single pictures of a plot, without its grids."""
    import base64
    import io

    from PIL import Image

    status, body = answer
    assert status == 200, body
    info = json.loads(body["info"])
    found = Picture([Image.open(io.BytesIO(base64.b64decode(data))) for data in body["images"]], info["infotexts"])
    singles = [k for k, image in enumerate(found.images) if image.size == (128, 128)]
    return Picture([found.images[k] for k in singles], [found.infotexts[k] for k in singles])


SMALL = {"steps": 4, "width": 128, "height": 128}


def test_a_plot_s_cells_are_what_the_same_settings_draw_alone(webui):
    made = pictures(plot(webui, {"enabled": True, "size": 0.3}, x="Decouple loss=com,iou", y="Decouple steps=1-2"))
    alone = [
        webui.draw({"size": 0.3, "loss": loss, "steps": steps}, **SMALL) for steps in (1, 2) for loss in ("com", "iou")
    ]
    assert made.pixels == [one.pixels[0] for one in alone]
    for k, one in enumerate(alone):
        assert read_back(made, k) == read_back(one)
    assert len(set(made.pixels)) == 4


def test_presets_entities_and_on_off_are_axes(webui, mine):
    made = pictures(plot(webui, x=f"Decouple preset={mine},Fast", y="Decouple on/off=False,True"))
    plain = webui.draw(**SMALL).pixels
    assert made.pixels[:2] == plain * 2
    assert made.pixels[2:] == [webui.draw({"preset": one}, **SMALL).pixels[0] for one in (mine, "fast")]
    assert [made.value("Decouple preset", k) for k in range(4)] == [None, None, mine, "Fast"]
    made = pictures(plot(webui, x='Decouple entities=cat,"cat, dog"', y="Decouple size=0.1,0.4"))
    assert [read_back(made, k).entities for k in range(4)] == [("cat",), ("cat", "dog")] * 2
    assert [read_back(made, k).size for k in range(4)] == [0.1, 0.1, 0.4, 0.4]


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("Decouple steps=2,151", "steps: 151 is not allowed; -1 to 150 steps"),
        ("Decouple steps=many", "steps: 'many' is not allowed"),
        ("Decouple loss=com,iuo", "iuo"),
        ("Decouple preset=balnced", "did you mean Balanced"),
        ("Decouple on/off=perhaps", "true or false"),
    ],
)
def test_a_plot_with_a_bad_value_is_refused(webui, axis, words):
    status, answer = plot(webui, x=axis)
    assert status == 500  # whatever a script of the host raises
    assert words in (answer.get("errors") or answer["message"])
    assert webui.draw({"steps": 2}).value("Decouple stood aside") is None


def axes(webui):
    about = next(one for one in webui.get("/sdapi/v1/script-info") if one["name"] == "x/y/z plot")
    return [one for one in about["args"][0]["choices"] if one.startswith("Decouple")]


def test_the_axes_stand_once_after_the_page_is_made_anew(webui):
    before = axes(webui)
    assert len(before) == len(set(before)) == len(specs()) + 1
    webui.inside("kept['old'] = True\nfrom modules import shared\nshared.state.request_restart()")

    def made_anew():
        try:
            return webui.inside("result = 'old' not in kept")
        except (OSError, ValueError, AssertionError):
            return False

    for _ in range(240):
        if made_anew():
            break
        time.sleep(0.5)
    assert made_anew()
    assert axes(webui) == before


def test_the_options_are_on_the_settings_page(webui):
    code = """
from modules import shared
ours = {k: v for k, v in shared.opts.data_labels.items() if k.startswith("decouple_")}
result = [{k: shared.opts.data.get(k) for k in ours}, [list(v.section) for v in ours.values()]]
"""
    values, sections = webui.inside(code)
    defaults = {
        "preset_folder": "", "keep_traces": 10, "look_after": False, "map_files": "off", "live_panel": True,
        "best_first": False, "defaults": None,
    }  # fmt: skip
    assert values == {f"decouple_{name}": value for name, value in defaults.items()}
    assert sections == [["attention_decoupling", "Attention Decoupling"]] * len(defaults)


def test_no_client_of_a1111_s_api_changes_the_folder_of_presets(host, tmp_path):
    """Forge keeps no option from its clients (sysinfo.py, ``set_config``)."""
    host.post("/sdapi/v1/options", {"decouple_preset_folder": str(tmp_path)})
    assert host.get("/sdapi/v1/options")["decouple_preset_folder"] == ""


def test_the_folder_of_presets_is_an_option(webui, tmp_path):
    code = "from modules import shared\nshared.opts.data['decouple_preset_folder'] = folder"
    webui.inside(code, folder=str(tmp_path))
    try:
        assert call(webui, "PUT", f"{API}/Elsewhere", {"settings": {}})[0] == 200
        assert [path.name for path in tmp_path.iterdir()] == ["Elsewhere.json"]
    finally:
        webui.inside(code, folder="")
    assert call(webui, "GET", f"{API}/Elsewhere")[0] == 404
