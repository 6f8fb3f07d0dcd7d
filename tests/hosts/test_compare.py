"""Compare in real WebUIs by their API; see conftest.py and test_forge.py."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageDraw

COMPARE = {"alwayson_scripts": {"attention decoupling": {"args": [{"compare": True}]}}}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7,
         "hr_additional_modules": ["Use same choices"]}  # fmt: skip


@pytest.fixture(params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


def start_image():
    image = Image.new("RGB", (96, 96), "#557")
    ImageDraw.Draw(image).ellipse((20, 30, 70, 80), fill="#ca4")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "given",
    [
        {"sampler_name": "DDIM", "steps": 5},
        {"sampler_name": "Euler a"},
        {"batch_size": 2, "n_iter": 2},
        HIRES,
        {"init_images": "one", "denoising_strength": 0.8, "batch_size": 2},
        {"subseed": 9, "subseed_strength": 0.3, "n_iter": 2},
    ],
    ids=["DDIM", "Euler a", "batches", "hires fix", "img2img", "variations"],
)
def test_pictures_are_those_of_a_plain_and_of_a_decoupled_job(webui, given):
    given = {"steps": 4, **given, **({"init_images": [start_image()]} if "init_images" in given else {})}
    if "enable_hr" in given:
        given["hr_upscaler"] = webui.upscaler

    def draw(*decouple):
        webui.inside("import torch\ntorch.manual_seed(5)\nresult = 0")  # img2img's encoding draws from it, unseeded
        return webui.draw(*decouple, **given)

    plain, decoupled, compared = draw(), draw({}), draw({"enabled": False, "compare": True})
    count, size = len(plain.pixels), given.get("batch_size", 1)
    got = compared.pixels[: 2 * count], compared.infotexts[: 2 * count]
    first = [k for k in range(2 * count) if k // size % 2 == 0]
    second = [k + size for k in first]
    assert [got[0][k] for k in first] == plain.pixels
    assert [got[0][k] for k in second] == decoupled.pixels
    assert [got[1][k] for k in first] == plain.infotexts
    assert [got[1][k] for k in second] == decoupled.infotexts
    assert plain.pixels != decoupled.pixels
    # After them each pair side by side, under a line of text.
    assert len(compared.images) == len(compared.infotexts) == 3 * count
    for k, both in enumerate(compared.images[2 * count :]):
        one = plain.images[k].convert("RGB")
        assert both.width == 2 * one.width
        assert both.height > one.height
        top = both.height - one.height
        assert both.crop((0, top, one.width, both.height)).tobytes() == one.tobytes()
        assert both.crop((one.width, top, both.width, both.height)).tobytes() == decoupled.pixels[k]
    assert compared.infotexts[2 * count :] == decoupled.infotexts


def test_a_random_seed_serves_both(webui):
    made = webui.draw({"compare": True}, seed=-1)
    assert made.value("Seed", 0) == made.value("Seed", 1) != "-1"
    assert made.value("Decouple", 0) is None
    assert made.value("Decouple found", 1) == "cat, dog"


def test_the_job_after_is_as_before(webui):
    before = webui.draw({"size": 0.3})
    webui.draw({"compare": True})
    after = webui.draw({"size": 0.3})
    assert (after.pixels, after.infotexts) == (before.pixels, before.infotexts)


def test_beside_a_script_of_the_list_it_is_refused(webui):
    body = {"prompt": "a cat and a dog", "script_name": "prompt matrix", "script_args": [], **COMPARE}
    status, answer = webui.post("/sdapi/v1/txt2img", body)
    assert status == 422
    assert "compare: beside the script 'prompt matrix' it can't be done" in answer["detail"]


def test_a_wrong_value_is_answered_before_anything_is_drawn(webui):
    args = {"alwayson_scripts": {"attention decoupling": {"args": [{"compare": "yes"}]}}}
    status, answer = webui.post("/sdapi/v1/txt2img", {"prompt": "a", **args})
    assert status == 422
    assert "compare: 'yes' is not allowed; true or false" in answer["detail"]


def test_an_interrupted_comparison_keeps_what_is_drawn(webui):
    body = {"prompt": "a cat and a dog", "seed": 3, "steps": 40, "width": 128, "height": 128, "n_iter": 3, **COMPARE}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(webui.post, "/sdapi/v1/txt2img", body)
        state = {}
        for _ in range(600):
            state = webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]
            if state["job_count"] and state["job_no"] >= 1:
                break
            time.sleep(0.05)
        assert state["job_count"] == 6
        webui.post("/sdapi/v1/interrupt", {})
        status, made = answer.result()
    assert status == 200
    widths = [Image.open(io.BytesIO(base64.b64decode(data))).width for data in made["images"]]
    # The picture that was interrupted is delivered by the host as far as it got; it makes no pair.
    assert 1 <= widths.count(128) < 6
    assert widths.count(256) <= (widths.count(128) - 1) // 2
    assert len(webui.draw().images) == 1
