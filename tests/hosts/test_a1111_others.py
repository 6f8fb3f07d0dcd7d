"""Beside the real ADetailer and dynamic-prompts in a real AUTOMATIC1111; see conftest.py (DECOUPLE_EXTENSIONS).

ADetailer's detector is a YOLO of random weights with its threshold at zero: it finds something in every picture.
"""

from __future__ import annotations

import os

import pytest

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
