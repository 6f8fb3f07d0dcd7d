"""Beside other real extensions in a real AUTOMATIC1111; see conftest.py (DECOUPLE_EXTENSIONS).

ADetailer's detector is a YOLO of random weights with its threshold at zero: it finds something in every picture.
ControlNet, Regional Prompter, NegPiP and Kohya Hires.fix number the blocks of SD 1.5, so they run, and Tiled Diffusion
with them, on ``narrow-sd1`` of a1111_checkpoints.py, ControlNet with the random ``narrow-control`` and
``narrow-ip-adapter`` among its models. (NegPiP loads from the second start of a data folder on, as it reads the host's
``ui-config.json``.)
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from tests.hosts.conftest import Host, encoded
from tests.hosts.test_choose import seeds

GIVEN = {"entities": ["cat", "dog"], "size": 0.3}
RANDOM_YOLO = """
import os, tempfile
from modules import scripts
from ultralytics import YOLO
path = os.path.join(tempfile.mkdtemp(), "random-yolov8n.pt")
YOLO("yolov8n.yaml").save(path)
for runner in (scripts.scripts_txt2img, scripts.scripts_img2img):
    for script in runner.alwayson_scripts:
        if script.title() == "ADetailer":
            type(script).title.__globals__["model_mapping"]["random-yolov8n.pt"] = path
result = True
"""
# Its settings come only with the second building of the page (it asks for them after the host has collected them).
DYNAMIC_SETTINGS = """
from sd_dynamic_prompts.settings import on_ui_settings
on_ui_settings()
result = True
"""
DYNAMIC = [True, True, 1, False, False, False, 1.1, 1.5, 100, 0.7, False, False, True, False, False, 0, "", ""]


@pytest.fixture(scope="module")
def installed(host):
    """The names of the host's scripts; skips where the others are not there."""
    if not os.environ.get("DECOUPLE_EXTENSIONS") and not os.environ.get("DECOUPLE_A1111_URL"):
        pytest.skip("set DECOUPLE_EXTENSIONS to a folder with adetailer and sd-dynamic-prompts")
    return host.get("/sdapi/v1/scripts")["txt2img"]


@pytest.mark.parametrize("within", [False, True], ids=["not guided within", "guided within"])
def test_adetailer(host, installed, within):
    if "adetailer" not in installed:
        pytest.skip("ADetailer is not among DECOUPLE_EXTENSIONS")
    if "sd-dynamic-prompts" in installed:
        host.inside(DYNAMIC_SETTINGS)
    host.inside(RANDOM_YOLO)
    before = host.draw()
    detail = {
        "ad_model": "random-yolov8n.pt", "ad_confidence": 0.0, "ad_mask_k": 1, "ad_denoising_strength": 0.9,
        "ad_use_inpaint_width_height": True, "ad_inpaint_width": 96, "ad_inpaint_height": 96,
    }  # fmt: skip

    def detailed(given=None, **more):
        scripts = {"adetailer": {"args": [True, False, detail]}}
        return host.draw(given, alwayson_scripts=scripts, n_iter=2, **more)

    host.post("/sdapi/v1/options", {"ad_only_selected_scripts": not within})
    try:
        plain = detailed()
        assert "ADetailer model" in plain.infotexts[0]
        assert plain.pixels[0] != before.pixels[0]
        alone = host.draw(GIVEN, n_iter=2)
        guided = detailed(GIVEN)
        for k in range(2):
            assert guided.value("Decouple moved", k) == alone.value("Decouple moved", k) is not None
            assert guided.value("Decouple stood aside", k) is None
            assert guided.pixels[k] not in (plain.pixels[k], alone.pixels[k])
        assert detailed().pixels == plain.pixels
        assert host.draw().pixels == before.pixels
    finally:
        host.post("/sdapi/v1/options", {"ad_only_selected_scripts": True})


def test_dynamic_prompts(host, installed):
    name = next((one for one in installed if one.startswith("dynamic prompts")), None)
    if name is None:
        pytest.skip("dynamic-prompts is not among DECOUPLE_EXTENSIONS")
    host.inside(DYNAMIC_SETTINGS)
    made = host.draw(
        {"size": 0.3},
        prompt="a {cat|dog} and a {ball|car}",
        batch_size=2,
        alwayson_scripts={name: {"args": DYNAMIC}},
    )
    assert [made.value("Decouple found", k) for k in range(4)] == ["cat, ball", "cat, car", "dog, ball", "dog, car"]
    assert all(made.value("Decouple moved", k) for k in range(4))


GRADIENT = Path(__file__).with_name("in_host_gradient.py").read_text()
SIDE = {"width": 128, "height": 128}
# The extension knows the widths of the real families alone.
NARROW = """
from scripts import controlnet_model_guess, global_state
controlnet_model_guess.controlnet_default_config["model_channels"] = 32
global_state.update_cn_models()
result = sorted(name for name in global_state.cn_models if name.startswith("narrow-"))
"""


@pytest.fixture
def narrow(host: Host, installed):
    """The host with ``narrow-sd1`` loaded; skips where it is not there."""
    titles = [one["model_name"] for one in host.get("/sdapi/v1/sd-models")]
    if "narrow-sd1" not in titles:
        pytest.skip("narrow-sd1 (a1111_checkpoints.py) is not among the checkpoints")
    before = host.get("/sdapi/v1/options")["sd_model_checkpoint"]
    host.post("/sdapi/v1/options", {"sd_model_checkpoint": "narrow-sd1"})
    yield host
    host.post("/sdapi/v1/options", {"sd_model_checkpoint": before})


@pytest.fixture
def unit(narrow, installed) -> dict[str, Any]:
    """What the API takes for one ControlNet."""
    if "controlnet" not in installed:
        pytest.skip("sd-webui-controlnet is not among DECOUPLE_EXTENSIONS")
    names = narrow.inside(NARROW)
    if not any(name.startswith("narrow-control") for name in names):
        pytest.skip("narrow-control (a1111_checkpoints.py) is not among ControlNet's models")
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 60, 60), fill="red")
    return {
        "enabled": True, "module": "none", "model": names[0], "weight": 1.0, "image": encoded(picture),
        "resize_mode": "Crop and Resize", "guidance_start": 0.0, "guidance_end": 1.0, "control_mode": "Balanced",
        "pixel_perfect": False, "threshold_a": 0.5, "processor_res": 128,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [{}, {"control_mode": "My prompt is more important"}, {"control_mode": "ControlNet is more important"},
     {"guidance_end": 0.3}, {"guidance_start": 0.5}],
    ids=["balanced", "prompt first", "control first", "ends before ours", "begins after ours"],
)  # fmt: skip
def test_controlnet(narrow, unit, changed):
    """It runs the way down without gradients, and catches whatever ends a pass: neither cuts ours, or moves its net."""
    scripts = {"controlnet": {"args": [{**unit, **changed}]}}
    before, alone = narrow.draw(**SIDE), narrow.draw(**SIDE, alwayson_scripts=dict(scripts))
    guided = narrow.draw(GIVEN, **SIDE, alwayson_scripts=dict(scripts))
    assert alone.pixels != before.pixels
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels not in (alone.pixels, before.pixels)
    assert narrow.draw(**SIDE, alwayson_scripts=dict(scripts)).pixels == alone.pixels
    assert narrow.draw(**SIDE).pixels == before.pixels
    found = narrow.inside(
        GRADIENT,
        GIVEN={},
        DECOUPLE={"size": 0.3},
        EXTENSIONS={"ControlNet": [{**unit, **changed}]},
        PREPARE="",
        H=[1e-3],
    )
    assert found["slopes"] == pytest.approx([1, 1], abs=2e-3), found["info"]


@pytest.fixture
def adapter(narrow, unit) -> dict[str, Any]:
    """One IP-Adapter alone, told a random vector for its picture: CLIP's vision part is not at hand."""
    names = [name for name in narrow.inside(NARROW) if name.startswith("narrow-ip-adapter")]
    if not names:
        pytest.skip("narrow-ip-adapter (a1111_checkpoints.py) is not among ControlNet's models")
    kept = io.BytesIO()
    torch.save({"image_embeds": torch.randn(1, 32, generator=torch.Generator().manual_seed(5))}, kept)
    told = base64.b64encode(kept.getvalue()).decode()
    return {**unit, "module": "ip-adapter_clip_h", "model": names[0], "ipadapter_input": [told]}


@pytest.mark.parametrize(
    "changed", [{}, {"guidance_end": 0.3}, {"guidance_start": 0.5}],
    ids=["whole", "ends before ours", "begins after ours"],
)  # fmt: skip
@pytest.mark.parametrize("job", [{}, {"batch_size": 2}, {"cfg_scale": 1}], ids=["one", "batch", "no CFG"])
def test_ip_adapter(narrow, adapter, changed, job):
    """What it computes once for all calls is of the host's rows, not of ours."""
    scripts, job = {"controlnet": {"args": [{**adapter, **changed}]}}, {**SIDE, **job}
    plain, alone = narrow.draw(**job), narrow.draw(**job, alwayson_scripts=dict(scripts))
    assert alone.pixels != plain.pixels
    guided = narrow.draw(GIVEN, **job, alwayson_scripts=dict(scripts))
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels not in (alone.pixels, plain.pixels)
    still = narrow.draw({**GIVEN, "stop": "on", "stop_below": 1000}, **job, alwayson_scripts=dict(scripts))
    assert still.pixels == alone.pixels
    assert narrow.draw(**job, alwayson_scripts=dict(scripts)).pixels == alone.pixels
    assert narrow.draw(**job).pixels == plain.pixels
    found = narrow.inside(
        GRADIENT, GIVEN={k: v for k, v in job.items() if k not in SIDE}, DECOUPLE={"size": 0.3},
        EXTENSIONS={"ControlNet": [{**adapter, **changed}]}, PREPARE="", H=[1e-3],
    )  # fmt: skip
    assert found["slopes"] == pytest.approx([1, 1], abs=2e-3), found["info"]


@pytest.mark.parametrize("of", ["unit", "adapter"])
def test_a_seed_that_is_chosen_beside_controlnet_draws_the_same_picture_without_us(narrow, request, of):
    scripts = {"controlnet": {"args": [request.getfixturevalue(of)]}}
    choose = {"gradient": "none", "look": "choose", "drafts": 6, "entities": ["cat", "dog"]}
    for asked in range(40, 50):
        picture = narrow.draw(choose, seed=asked, **SIDE, alwayson_scripts=dict(scripts))
        (drawn,) = seeds(picture)
        if drawn != asked:
            break
    assert picture.value("Decouple asked seed") == str(asked)
    assert picture.value("Decouple no drafts") is None
    assert picture.pixels == narrow.draw(seed=drawn, **SIDE, alwayson_scripts=dict(scripts)).pixels
    assert picture.pixels != narrow.draw(seed=drawn, **SIDE).pixels


def test_controlnets_reference_stands_aside(narrow, unit):
    scripts = {"controlnet": {"args": [{**unit, "module": "reference_only", "model": "None"}]}}
    alone = narrow.draw(**SIDE, alwayson_scripts=dict(scripts))
    guided = narrow.draw(GIVEN, **SIDE, alwayson_scripts=dict(scripts))
    assert "ControlNet" in guided.value("Decouple stood aside")
    assert guided.pixels == alone.pixels


def regions(calc: str) -> dict[str, Any]:
    """Two columns, of the parts that BREAK or AND divide."""
    return {
        "regional prompter": {
            "args": [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False, False, calc, "",
                     "0", "0", "0.4", "", "0", "0", False]
        }
    }  # fmt: skip


def compared(host: Host, prompt: str, scripts: dict[str, Any]) -> tuple[Any, Any]:
    """The picture with ``scripts`` alone and with ours besides; what they draw alone is the same before and after."""
    alone = host.draw(**SIDE, prompt=prompt, alwayson_scripts=dict(scripts))
    guided = host.draw(GIVEN, **SIDE, prompt=prompt, alwayson_scripts=dict(scripts))
    assert host.draw(**SIDE, prompt=prompt, alwayson_scripts=dict(scripts)).pixels == alone.pixels
    assert alone.pixels != host.draw(**SIDE, prompt=prompt).pixels
    return alone, guided


def test_regional_prompter_by_attention_stands_aside(narrow, installed):
    if "regional prompter" not in installed:
        pytest.skip("sd-webui-regional-prompter is not among DECOUPLE_EXTENSIONS")
    alone, guided = compared(narrow, "a cat BREAK a dog", regions("Attention"))
    assert "Regional Prompter" in guided.value("Decouple stood aside")
    assert guided.pixels == alone.pixels


def test_regional_prompter_by_latents(narrow, installed):
    if "regional prompter" not in installed:
        pytest.skip("sd-webui-regional-prompter is not among DECOUPLE_EXTENSIONS")
    alone, guided = compared(narrow, "a cat BREAK a dog", regions("Latent"))
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != alone.pixels


@pytest.mark.parametrize("after", ["nothing", "regions by latents"])
def test_negpip(narrow, installed, after):
    if "negpip" not in installed:
        pytest.skip(
            "sd-webui-negpip is not among DECOUPLE_EXTENSIONS, or its data folder is started for the first time"
        )
    if after != "nothing" and "regional prompter" in installed:
        narrow.draw(**SIDE, prompt="a cat BREAK a dog", alwayson_scripts=regions("Latent"))
    alone, guided = compared(narrow, "a cat and a dog (tree:-1)", {"negpip": {"args": [True]}})
    assert guided.value("Decouple stood aside") is None
    assert guided.value("Decouple found") == "cat, dog"
    assert guided.pixels != alone.pixels


def tiled(method: str) -> dict[str, Any]:
    """Tiled Diffusion in four tiles of 16 latents that overlap by 8, at 192 pixels."""
    return {"tiled diffusion": {"args": [True, method, False, True, 192, 192, 16, 16, 8, 4]}}


def shrunk(smooth: bool) -> dict[str, Any]:
    """Kohya Hires.fix in the first half of the steps, in blocks 3 and 4."""
    return {"kohya hires.fix": {"args": [True, True, 3, 4, 0.3, 0.5, "bicubic", 0.5, 2.0, smooth, False]}}


@pytest.mark.parametrize(
    ("title", "side", "scripts", "moved"),
    [
        ("Tiled Diffusion", 192, tiled("MultiDiffusion"), None),
        ("Tiled Diffusion", 192, tiled("Mixture of Diffusers"), None),
        # It shrinks the model behind our first pass.
        ("Kohya Hires.fix", 256, shrunk(False), "1 of 8 steps by 12.0 %"),
        ("Kohya Hires.fix", 256, shrunk(True), "1 of 8 steps by 12.0 %"),
    ],
    ids=["MultiDiffusion", "Mixture of Diffusers", "Kohya Hires.fix", "Kohya Hires.fix, smooth"],
)
def test_what_draws_in_pieces_or_smaller_inside_stands_aside_and_is_named(
    narrow, installed, title, side, scripts, moved
):
    """Kohya Hires.fix keeps one more callback for each job until one without it, so there is one between."""
    if title.lower() not in installed:
        pytest.skip(f"{title} is not among DECOUPLE_EXTENSIONS")

    def drawn(decouple: dict[str, Any] | None) -> Any:
        assert narrow.draw(width=side, height=side, steps=8).pixels == plain.pixels
        return narrow.draw(decouple, width=side, height=side, steps=8, alwayson_scripts=dict(scripts))

    plain = narrow.draw(width=side, height=side, steps=8)
    alone = drawn(None)
    assert alone.pixels != plain.pixels
    guided = drawn(GIVEN)
    assert f"“{title}”, which is switched on" in guided.value("Decouple stood aside")
    assert guided.value("Decouple moved") == moved
    assert (guided.pixels == alone.pixels) is (moved is None)
    assert drawn({**GIVEN, "stop": "on", "stop_below": 1000}).pixels == alone.pixels
    assert drawn(None).pixels == alone.pixels
