"""Drafts in a real WebUI: which seed is drawn, and that it is a seed that the host draws by itself."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import threading
import time
import urllib.request
from typing import Any

import pytest
from PIL import Image, ImageChops

from lib_decouple.hosts.seeds import seeds_to_draft
from lib_decouple.webui import infotext
from tests.hosts.conftest import Host, Picture, encoded, encoded_alike
from tests.hosts.test_a1111_jobs import LORA
from tests.hosts.test_forge import needs_sampler

CHOOSE = {"gradient": "none", "look": "choose"}
INSTEAD = """
import sys
from modules import shared
drafting = sys.modules["lib_decouple.hosts.drafting"]
shared.decouple_draft = drafting.draft
def instead(denoise, x, *given):
    if len(x) > most:
        raise MemoryError("out of memory")
    if stop:
        setattr(shared.state, stop, True)
    return shared.decouple_draft(denoise, x, *given)
drafting.draft = instead
result = None
"""
AS_BEFORE = """
import sys
from modules import shared
sys.modules["lib_decouple.hosts.drafting"].draft = shared.decouple_draft
result = None
"""
NO_MEMORY_TO_MOVE = """
import sys
from modules import shared
kind = sys.modules["lib_decouple.hosts.sampling"].SamplingPass
shared.decouple_moved = kind.moved_draft
def instead(self, *given):
    raise MemoryError("out of memory")
kind.moved_draft = instead
result = None
"""
MOVED_AGAIN = """
import sys
from modules import shared
sys.modules["lib_decouple.hosts.sampling"].SamplingPass.moved_draft = shared.decouple_moved
result = None
"""
LAST = """
from pathlib import Path
from modules import paths
result = (Path(paths.data_path) / "params.txt").read_text("utf-8")
"""
NO_SECOND_BATCH = """
import sys
from modules import shared
kind = sys.modules["lib_decouple.hosts.sampling"].SamplingPass
shared.decouple_attach = kind.attach
def attach(sampling, *given):
    if sampling.iteration == 1:
        raise RuntimeError("nothing can be attached")
    return shared.decouple_attach(sampling, *given)
kind.attach = attach
result = None
"""
ATTACHED_AGAIN = """
import sys
from modules import shared
sys.modules["lib_decouple.hosts.sampling"].SamplingPass.attach = shared.decouple_attach
result = None
"""
SMALL = {"width": 64, "height": 64, "steps": 4}
MANY = 99


@pytest.fixture(params=["host", "forge"])
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def seeds(picture: Picture) -> list[int]:
    return [int(found[1]) for text in picture.infotexts if (found := re.search(r"[,\n ]Seed: (\d+)", text))]


def settled(webui: Host, seed: int, count: int = 24, **more: Any) -> int:
    """A seed of whose first drafts another is best: found by drawing, as weights are random in some hosts."""
    for own in range(seed, seed + count):
        if seeds(webui.draw({**CHOOSE, "drafts": 6}, seed=own, **more)) != [own]:
            return own
    raise AssertionError("every seed is the best of its own drafts")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Euler a"},
        {"sampler_name": "DPM++ SDE"},
        {"prompt": "a cat AND a dog"},
        {"cfg_scale": 1},
    ],
    ids=["Euler", "DDIM", "Euler a", "DPM++ SDE", "AND", "no CFG"],
)
def test_the_seed_that_is_told_draws_the_same_picture_without_us(webui, more):
    asked = settled(webui, 40, **more)
    picture = webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **more)
    (drawn,) = seeds(picture)
    assert drawn in seeds_to_draft(asked, 6)[1:]
    assert picture.value("Decouple asked seed") == str(asked)
    assert picture.value("Decouple no drafts") is None
    assert picture.value("Decouple stood aside") is None
    assert picture.pixels == webui.draw(seed=drawn, **more).pixels
    assert picture.pixels != webui.draw(seed=asked, **more).pixels
    (one,) = webui.get("/decouple/v1/trace/last")["images"]
    choice = one["passes"][0]["choice"]
    assert (choice["asked"], choice["drawn"], one["seed"]) == (asked, drawn, drawn)
    weakest = {draft["seed"]: min(draft["scores"].values()) for draft in choice["drafts"]}
    assert list(weakest) == seeds_to_draft(asked, 6)
    assert weakest[drawn] == max(weakest.values()) > weakest[asked]


GUIDED = {"loss": "com", "size": 0.4, "start": 0, "steps": 6, "layers": "all"}


@pytest.mark.parametrize(
    "kind",
    [
        "Euler",
        "DDIM",
        "Euler a",
        "DPM++ 2M",
        "Heun",
        "PLMS",
        "UniPC",
        "AND",
        "prompt editing",
        "no CFG",
        "late",
        "presence",
        "img2img",
        "inpainting",
        "hires",
    ],
)
def test_drafts_of_a_guided_run_are_guided_and_the_chosen_seed_is_drawn_as_by_guidance_alone(webui, kind):
    """Of its own seed, and of no other request, the guided draft and picture are the same."""
    decouple, more = dict(GUIDED), dict[str, Any](SMALL)
    more |= {"steps": 8}
    if kind in ("Euler", "DDIM", "Euler a", "DPM++ 2M", "Heun", "PLMS", "UniPC"):
        if webui.name == "forge":
            needs_sampler(webui, kind)
        more |= {"sampler_name": kind}
    elif kind == "AND":
        more |= {"prompt": "a cat AND a dog"}
    elif kind == "prompt editing":
        more |= {"prompt": "a [bird:cat:0.3] and a dog"}
    elif kind == "no CFG":
        more |= {"cfg_scale": 1}
    elif kind == "late":
        decouple |= {"gradient": "late"}
    elif kind == "presence":
        if webui.name != "a1111" and not webui.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith("decouple"):
            pytest.skip("nobody has learned what this checkpoint's attention tells")
        decouple |= {"stop": "presence"}
    elif kind in ("img2img", "inpainting"):
        more |= begun_with(webui, kind == "inpainting")
    elif kind == "hires":
        more |= {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
        if webui.name == "forge":
            more |= {"hr_additional_modules": ["Use same choices"]}

    def drafts(**own: Any) -> tuple[Picture, dict[int, dict[str, float]]]:
        picture = encoded_alike(webui, {**decouple, "look": "choose", "drafts": 4, **own}, seed=40, **more)
        assert [picture.value(f"Decouple {key}") for key in ("no drafts", "stood aside")] == [None, None]
        choice = webui.get("/decouple/v1/trace/last")["images"][0]["passes"][0]["choice"]
        return picture, {draft["seed"]: draft["scores"] for draft in choice["drafts"]}

    picture, guided = drafts()
    _, unguided = drafts(gradient="none")
    assert list(guided) == list(unguided) == seeds_to_draft(40, 4)
    assert all(guided[seed] != unguided[seed] for seed in guided)
    (drawn,) = seeds(picture)[:1]
    assert min(guided[drawn].values()) == max(min(own.values()) for own in guided.values())
    alone = encoded_alike(webui, {**decouple, "look": "tell"}, seed=drawn, **more)
    assert picture.pixels == alone.pixels
    assert drafts()[1] == guided


@pytest.mark.parametrize("images", [1, 2])
def test_where_memory_ends_in_guidance_of_a_draft_all_are_made_without_it(webui, images):
    more = {**SMALL, "steps": 8, "batch_size": images}

    def choices(picture: Picture) -> list[dict[str, Any]]:
        assert picture.value("Decouple no drafts") is None
        found = webui.get("/decouple/v1/trace/last")["images"]
        return [one["passes"][0]["choice"]["drafts"] for one in found]

    unguided = choices(encoded_alike(webui, {**GUIDED, **CHOOSE}, seed=40, **more))
    webui.inside(NO_MEMORY_TO_MOVE)
    try:
        picture = encoded_alike(webui, {**GUIDED, "look": "choose"}, seed=40, **more)
    finally:
        webui.inside(MOVED_AGAIN)
    assert choices(picture) == unguided
    assert picture.value("Decouple stood aside") is None


def chosen(webui: Host, **more: Any) -> tuple[int, Picture]:
    """A seed that is not the best of its drafts, with the picture."""
    asked = settled(webui, 40, **more)
    return asked, webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **more)


def test_hires_fix_goes_on_with_the_same_seed(webui):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    asked, picture = chosen(webui, **SMALL, **hires)
    assert picture.value("Decouple asked seed") == str(asked)
    assert picture.pixels == webui.draw(seed=seeds(picture)[0], **SMALL, **hires).pixels


def test_of_a_variation_its_own_seed_is_chosen(webui):
    more = {"subseed": 70, "subseed_strength": 0.6, **SMALL}
    picture = webui.draw({**CHOOSE, "drafts": 8}, seed=40, **more)
    assert seeds(picture) == [40]
    assert (picture.value("Decouple asked seed"), picture.value("Decouple asked variation seed")) == (None, "70")
    drawn = int(str(picture.value("Variation seed")))
    assert drawn in seeds_to_draft(70, 8)
    assert picture.pixels == webui.draw(seed=40, **{**more, "subseed": drawn}).pixels


@pytest.mark.parametrize("what", ["a LoRA", "emphasis"])
def test_drafts_count_what_the_prompt_does_to_the_model_and_its_words(webui, what):
    prompt = "a (cat:1.4) and a dog"
    if what == "a LoRA":
        if webui.name == "a1111":
            assert webui.inside(LORA) > 0
            webui.post("/sdapi/v1/refresh-loras", {})
        prompt = f"a cat and a dog <lora:{'decouple-test' if webui.name == 'a1111' else 'small-lora'}:1>"

    def drafts(**more: Any) -> tuple[Picture, list[dict[str, Any]]]:
        picture = webui.draw({**CHOOSE, "drafts": 6}, seed=40, **SMALL, **more)
        (one,) = webui.get("/decouple/v1/trace/last")["images"]
        return picture, one["passes"][0]["choice"]["drafts"]

    (_, plain), (picture, own) = drafts(), drafts(prompt=prompt)
    assert [draft["seed"] for draft in own] == [draft["seed"] for draft in plain] == seeds_to_draft(40, 6)
    assert all(one["scores"] != other["scores"] for one, other in zip(own, plain))
    assert picture.pixels == webui.draw(seed=seeds(picture)[0], prompt=prompt, **SMALL).pixels
    assert drafts()[1] == plain


def farthest(one: Picture, other: Picture) -> int:
    """The largest difference of two pictures' values, of 255."""
    return max(abs(a - b) for a, b in zip(one.pixels[0], other.pixels[0]))


def assert_alike_refined(webui: Host, one: Picture, other: Picture) -> None:
    """Neo loads its first model anew behind a refiner's, and of seven pictures of one request, without us, one was 2
    apart from the others; of another seed it is far more."""
    assert farthest(one, other) <= (4 if webui.is_neo else 0)


def refined(webui: Host, switch_at: float) -> dict[str, Any]:
    """Of a request whose refiner takes over at that share of eight steps."""
    name = "tiny-other" if webui.name == "a1111" else "small-sd1-other"
    if name not in [entry["model_name"] for entry in webui.get("/sdapi/v1/sd-models")]:
        pytest.skip(f"the WebUI has no checkpoint {name}")
    if webui.name == "forge":
        webui.post("/sdapi/v1/options", {"refiner_use_steps": True})  # Neo goes by the noise level otherwise
    return {"refiner_checkpoint": name, "refiner_switch_at": switch_at, **SMALL, "steps": 8}


@pytest.mark.parametrize("switch_at", [0.2, 0.6])
def test_before_a_refiner_drafts_are_of_the_first_model_and_the_seed_draws_the_same_without_us(webui, switch_at):
    more = refined(webui, switch_at)
    asked, picture = chosen(webui, **more)
    alone = webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **{**SMALL, "steps": 8})
    assert seeds(picture) == seeds(alone)
    assert picture.value("Decouple no drafts") is None
    assert_alike_refined(webui, picture, webui.draw(seed=seeds(picture)[0], **more))
    assert farthest(picture, alone) > 1


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE"])
def test_hires_fix_of_variations_in_batches_goes_on_with_their_own_seeds(webui, sampler):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
    if webui.name == "forge":
        hires["hr_additional_modules"] = ["Use same choices"]
    more = {**SMALL, **hires, "sampler_name": sampler, "subseed_strength": 0.6}
    picture = webui.draw({**CHOOSE, "drafts": 4}, seed=40, subseed=70, n_iter=2, **more)
    first = len(picture.images) - 2  # behind a grid
    assert seeds(picture)[-2:] == [40, 40]
    drawn = [int(str(picture.value("Variation seed", first + k))) for k in range(2)]
    assert [seed in seeds_to_draft(70 + k, 4) for k, seed in enumerate(drawn)] == [True, True]
    assert drawn != [70, 71]
    for k, seed in enumerate(drawn):
        assert picture.pixels[first + k] == webui.draw(seed=40, subseed=seed, **more).pixels[0]


@pytest.mark.parametrize("masked", [False, True], ids=["img2img", "inpainting"])
def test_of_a_variation_in_img2img_its_own_seed_is_chosen(webui, masked):
    more = begun_with(webui, masked, subseed_strength=0.6)
    for asked in range(70, 80):
        picture = encoded_alike(webui, {**CHOOSE, "drafts": 4}, seed=40, subseed=asked, **more)
        drawn = int(str(picture.value("Variation seed")))
        if drawn != asked:
            break
    assert drawn in seeds_to_draft(asked, 4)[1:]
    assert seeds(picture) == [40]
    assert picture.pixels == encoded_alike(webui, seed=40, subseed=drawn, **more).pixels


def test_each_image_of_several_batches_has_a_seed_of_its_own(webui):
    picture = webui.draw({**CHOOSE, "drafts": 3}, seed=40, n_iter=2, batch_size=2, **SMALL)
    first = len(picture.images) - 4  # behind a grid
    drawn = seeds(picture)[-4:]
    assert len(set(drawn)) == 4
    for k, seed in enumerate(drawn):
        assert picture.value("Decouple asked seed", first + k) == str(40 + k)
        assert seed in seeds_to_draft(40 + k, 3)
        own, alone = picture.images[first + k].convert("RGB"), webui.draw(seed=seed, **SMALL).images[0].convert("RGB")
        assert max(high for _, high in ImageChops.difference(own, alone).getextrema()) <= 1  # a batch rounds otherwise


def test_a_draft_that_is_asked_for_is_drawn_alone_and_as_its_seed_is_without_us(webui):
    webui.draw({**CHOOSE, "drafts": 3}, prompt="a cat and a dog", seed=40, batch_size=2, **SMALL)
    told = webui.get("/decouple/v1/drafts/last")
    assert [image["asked"] for image in told["images"]] == [40, 41]
    image = told["images"][1]
    scores = [min(draft["scores"].values()) for draft in image["drafts"]]
    assert scores == sorted(scores, reverse=True)
    assert [draft["drawn"] for draft in image["drafts"]] == [True, False, False]
    seed = image["drafts"][-1]["seed"]
    assert seed in seeds_to_draft(41, 3)
    with urllib.request.urlopen(f"{webui.url}/decouple/v1/drafts/{told['id']}/1/{seed}.jpg") as answer:
        size = Image.open(answer).size
    assert size[0] == size[1] >= 8
    again = {"gradient": "none", "look": "choose", "draw": f"{told['id']}/1/{seed}"}
    picture = webui.draw(again, prompt="another prompt", seed=77, n_iter=2, batch_size=2, **SMALL)
    assert seeds(picture) == [seed]
    assert picture.infotexts[0].startswith("a cat and a dog")
    assert picture.value("Decouple look") is None
    assert picture.pixels == webui.draw(prompt="a cat and a dog", seed=seed, **SMALL).pixels
    status, refused = webui.post(
        "/sdapi/v1/txt2img",
        {"alwayson_scripts": {"attention decoupling": {"args": [{"draw": f"{told['id']}/1/{seed + 1}"}]}}},
    )
    assert (status, "no draft of seed" in str(refused)) == (422, True)


def test_a_job_s_pictures_are_ordered_by_their_weakest_entity_where_that_is_wanted(webui):
    found = {}
    for wanted in (False, True):
        webui.post("/sdapi/v1/options", {"decouple_best_first": wanted})
        try:
            found[wanted] = webui.draw({"gradient": "none"}, seed=40, n_iter=2, batch_size=2, **SMALL)
        finally:
            webui.post("/sdapi/v1/options", {"decouple_best_first": False})
    images = webui.get("/decouple/v1/trace/last")["images"]
    ranked = sorted(images, key=lambda image: image["rank"])
    expected = [image["seed"] for image in ranked]
    told = [image["passes"][0]["presence"] for image in ranked]
    weakest = [min((one["chances"] or one["scores"]).values()) for one in told]
    assert weakest == sorted(weakest, reverse=True)
    assert seeds(found[False])[-4:] == [40, 41, 42, 43]
    assert seeds(found[True])[-4:] == expected
    grid = len(found[True].images) - 4
    assert found[True].pixels[:grid] == found[False].pixels[:grid]
    assert found[True].pixels[grid:] == [found[False].pixels[grid + seed - 40] for seed in expected]


def test_out_of_memory_in_a_draft_draws_the_seed_that_was_asked_for_and_says_so(webui):
    asked = settled(webui, 40, **SMALL)
    webui.inside(INSTEAD, most=0, stop="")
    try:
        failed = webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **SMALL)
    finally:
        webui.inside(AS_BEFORE)
    assert seeds(failed) == [asked]
    assert "out of memory" in str(failed.value("Decouple no drafts"))
    assert failed.value("Decouple asked seed") is None
    assert failed.pixels == webui.draw(seed=asked, **SMALL).pixels
    webui.inside(INSTEAD, most=2, stop="")
    try:
        fewer = webui.draw({**CHOOSE, "drafts": 6}, seed=asked, **SMALL)
    finally:
        webui.inside(AS_BEFORE)
    assert (fewer.value("Decouple no drafts"), fewer.value("Decouple asked seed")) == (None, str(asked))
    assert seeds(fewer)[0] in seeds_to_draft(asked, 6)


def test_out_of_memory_in_the_drafts_of_a_job_of_several_batches_draws_all_that_was_asked_for(webui):
    more = {**SMALL, "n_iter": 2, "batch_size": 2}
    expected = webui.draw(seed=40, **more)
    webui.inside(INSTEAD, most=0, stop="")
    try:
        failed = webui.draw({**CHOOSE, "drafts": 3}, seed=40, **more)
    finally:
        webui.inside(AS_BEFORE)
    assert seeds(failed)[-4:] == [40, 41, 42, 43]
    for k in range(4):
        assert "out of memory" in str(failed.value("Decouple no drafts", len(failed.images) - 4 + k))
    assert failed.pixels == expected.pixels


@pytest.mark.parametrize(("how", "pictures"), [("interrupted", 1), ("skipped", 2)])
def test_stopped_within_its_first_drafts_a_job_of_two_batches_ends_or_goes_on_as_the_host_has_it(webui, how, pictures):
    once = "if stop and not kept.setdefault('stopped', []):\n        kept['stopped'].append(True)"
    webui.inside(INSTEAD.replace("if stop:", once), most=MANY, stop=how)
    try:
        stopped = webui.draw({**CHOOSE, "drafts": 3}, seed=40, n_iter=2, **SMALL)
    finally:
        webui.inside(AS_BEFORE)
        webui.inside("kept.pop('stopped')")
    assert len(set(seeds(stopped))) == pictures
    assert seeds(stopped)[-pictures] == 40
    if how == "skipped":
        assert stopped.value("Decouple asked seed", len(stopped.images) - 1) in (None, "41")
        assert seeds(stopped)[-1] in seeds_to_draft(41, 3)
        assert stopped.pixels[-1] == webui.draw(seed=seeds(stopped)[-1], **SMALL).pixels[0]


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_a_job_that_is_stopped_within_its_drafts_ends_and_leaves_nothing_behind(webui, how):
    expected = webui.draw({**CHOOSE, "drafts": 3}, seed=40, **SMALL)
    webui.inside(INSTEAD, most=MANY, stop=how)
    try:
        stopped = webui.draw({**CHOOSE, "drafts": 3}, seed=40, **SMALL)
    finally:
        webui.inside(AS_BEFORE)
    assert seeds(stopped) == [40]
    assert stopped.value("Decouple asked seed") is None
    again = webui.draw({**CHOOSE, "drafts": 3}, seed=40, **SMALL)
    assert (again.pixels, seeds(again)) == (expected.pixels, seeds(expected))


def begun_with(webui: Host, masked: bool = False, **more: Any) -> dict[str, Any]:
    """Of a request to img2img; the left half is drawn anew where it is ``masked``."""
    first = webui.draw(**SMALL).images[0].convert("RGB")
    mask = Image.new("L", first.size)
    mask.paste(255, (0, 0, first.width // 2, first.height))
    inpainting = {"mask": encoded(mask), "mask_blur": 4, "inpainting_fill": 1} if masked else {}
    return {"init_images": [encoded(first)], "denoising_strength": 0.8, **SMALL, **inpainting, **more}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"sampler_name": "DDIM"},
        {"sampler_name": "Euler a"},
        {"sampler_name": "DPM++ SDE"},
        {"masked": True},
        {"masked": True, "sampler_name": "DDIM"},
        {"masked": True, "inpainting_fill": 3, "inpaint_full_res": True},
        {"initial_noise_multiplier": 1.2},
        {"override_settings": {"img2img_extra_noise": 0.1}},
        {"denoising_strength": 0.3},
    ],
    ids=[
        *("Euler", "DDIM", "Euler a", "DPM++ SDE", "inpainting", "inpainting, DDIM", "latent nothing, only masked"),
        *("noise multiplier", "extra noise", "little noise"),
    ],
)
def test_in_img2img_the_seed_that_is_told_draws_the_same_picture_without_us(webui, more):
    more = begun_with(webui, **more)
    for asked in range(40, 64):
        picture = encoded_alike(webui, {**CHOOSE, "drafts": 6}, seed=asked, **more)
        assert picture.value("Decouple no drafts") is None
        if seeds(picture) != [asked]:
            break
    (drawn,) = seeds(picture)
    assert drawn in seeds_to_draft(asked, 6)[1:]
    assert picture.value("Decouple asked seed") == str(asked)
    assert picture.pixels == encoded_alike(webui, seed=drawn, **more).pixels
    assert picture.pixels != encoded_alike(webui, seed=asked, **more).pixels


def test_of_a_batch_of_img2img_each_image_has_its_own_seed(webui):
    more = begun_with(webui)
    picture = webui.draw({**CHOOSE, "drafts": 4}, seed=40, n_iter=2, batch_size=2, **more)
    told = webui.get("/decouple/v1/drafts/last")["images"]
    assert [image["asked"] for image in told] == [40, 41, 42, 43]
    assert seeds(picture)[-4:] == [image["drawn"] for image in told]
    assert [image["drafts"][0]["seed"] for image in told] == seeds(picture)[-4:]


def test_latent_noise_under_a_mask_and_a_script_of_tiles_are_refused_with_a_sentence(webui):
    more = begun_with(webui, masked=True, inpainting_fill=2)
    picture = encoded_alike(webui, CHOOSE, seed=40, **more)
    assert seeds(picture) == [40]
    assert "latent noise" in str(picture.value("Decouple no drafts"))
    assert picture.pixels == encoded_alike(webui, seed=40, **more).pixels
    args = [32, "None", 2, False] if webui.is_neo else ["", 32, "None", 2]
    tiles = {"script_name": "SD upscale", "script_args": args}
    picture = webui.draw(CHOOSE, seed=40, **begun_with(webui), **tiles)
    assert "sd upscale" in str(picture.value("Decouple no drafts")).lower()


def test_out_of_memory_in_a_draft_of_img2img_draws_the_seed_that_was_asked_for(webui):
    more = begun_with(webui, masked=True)
    webui.inside(INSTEAD, most=0, stop="")
    try:
        failed = encoded_alike(webui, CHOOSE, seed=40, **more)
    finally:
        webui.inside(AS_BEFORE)
    assert seeds(failed) == [40]
    assert "out of memory" in str(failed.value("Decouple no drafts"))
    assert failed.pixels == encoded_alike(webui, seed=40, **more).pixels


KINDS = ("txt2img", "two batches", "img2img", "inpainting", "hires fix")


def of_kind(webui: Host, kind: str) -> dict[str, Any]:
    """What makes a request one of this kind, small."""
    if kind in ("img2img", "inpainting"):
        return begun_with(webui, masked=kind == "inpainting")
    if kind == "two batches":
        return {**SMALL, "n_iter": 2}
    if kind == "txt2img":
        return dict(SMALL)
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7, **SMALL}
    return {**hires, "hr_additional_modules": ["Use same choices"]} if webui.name == "forge" else hires


FAULTS = {
    "out of memory": ('MemoryError("out of memory")', "out of memory"),
    "no kernel": ("NotImplementedError(\"Could not run 'aten::x' with arguments from the 'Y' backend\")", "unexpected"),
    "any other": ('RuntimeError("broken")', "unexpected error"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_fails_in_a_draft_the_seed_that_was_asked_for_is_drawn_and_it_is_said(webui, kind, fault):
    error, said = FAULTS[fault]
    more = of_kind(webui, kind)
    expected = encoded_alike(webui, seed=40, **more)
    webui.inside(INSTEAD.replace('raise MemoryError("out of memory")', f"raise {error}"), most=0, stop="")
    try:
        failed = encoded_alike(webui, {**CHOOSE, "drafts": 3}, seed=40, **more)
    finally:
        webui.inside(AS_BEFORE)
    assert failed.pixels == expected.pixels
    assert seeds(failed) == seeds(expected)
    assert said in str(failed.value("Decouple no drafts", -1))
    assert failed.value("Decouple asked seed", -1) is None


@pytest.mark.parametrize("how", ["interrupted", "skipped"])
@pytest.mark.parametrize("kind", ["img2img", "inpainting", "hires fix"])
def test_stopped_within_the_drafts_of_any_kind_the_job_ends_and_leaves_nothing_behind(webui, kind, how):
    more = of_kind(webui, kind)
    expected = encoded_alike(webui, {**CHOOSE, "drafts": 3}, seed=40, **more)
    webui.inside(INSTEAD, most=MANY, stop=how)
    try:
        stopped = encoded_alike(webui, {**CHOOSE, "drafts": 3}, seed=40, **more)
    finally:
        webui.inside(AS_BEFORE)
    assert seeds(stopped) == [40]
    assert stopped.value("Decouple asked seed") is None
    again = encoded_alike(webui, {**CHOOSE, "drafts": 3}, seed=40, **more)
    assert (again.pixels, seeds(again)) == (expected.pixels, seeds(expected))


@pytest.mark.parametrize("look", ["choose", "insist"])
def test_progress_and_live_preview_go_on_within_the_drafts(webui, look):
    """Shown by a job that waits in each draft until it was looked at: the host says that these are drafts, its progress
    is never past the end, and its preview is a picture."""
    options = {"show_progress_every_n_steps": 1, "show_progress_type": "Approx cheap", "live_previews_enable": True}
    for name, value in options.items():
        webui.post("/sdapi/v1/options", {name: value})
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(webui.get("/sdapi/v1/progress"))
            time.sleep(0.02)

    webui.inside(INSTEAD.replace("if stop:", "import time\n    time.sleep(1.5)\n    if stop:"), most=MANY, stop="")
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        webui.draw({"gradient": "none", "look": look, "drafts": 3}, seed=40, n_iter=2, **SMALL)
    finally:
        done.set()
        watcher.join()
        webui.inside(AS_BEFORE)
    within = [one for one in seen if "drafts" in str(one["textinfo"])]
    assert within
    assert all(0 < one["progress"] < 0.8 for one in within)  # a quarter of the job is still to be drawn
    running = [one["progress"] for one in seen if one["state"]["job_count"] > 0]
    assert max(running) > 0.5
    # The host counts a job before it sets its step to 0, so one reading may be a job's share too high.
    assert all(later >= earlier - 0.26 for earlier, later in itertools.pairwise(running))
    pictures = [one["current_image"] for one in seen if one["current_image"]]
    assert all(Image.open(io.BytesIO(base64.b64decode(one))).size for one in pictures[-1:])
    assert seen[-1]["textinfo"] != "Attention Decoupling: drafts"


def request_for(webui: Host, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer to a request of which :meth:`Host.draw` would want pictures."""
    body = {"prompt": "a cat and a dog", "seed": 40, **SMALL, **more}
    path = f"/sdapi/v1/{'img2img' if 'init_images' in body else 'txt2img'}"
    webui.inside("import torch\ntorch.manual_seed(5)\nresult = 0")  # see encoded_alike
    status, answer = webui.post(path, {**body, "alwayson_scripts": {"attention decoupling": {"args": [args]}}})
    assert status == 200
    return answer


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "inpainting", "hires fix"])
def test_drafts_alone_draw_nothing_and_one_of_them_can_be_drawn_then(webui, kind):
    more = begun_with(webui, masked=kind == "inpainting") if kind in ("img2img", "inpainting") else {}
    if kind == "hires fix":
        more = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler, "denoising_strength": 0.7}
        if webui.name == "forge":
            more["hr_additional_modules"] = ["Use same choices"]
    answer = request_for(webui, {"drafts_only": True, "drafts": 5}, n_iter=2, batch_size=1, **more)
    assert answer["images"] == []
    info = json.loads(answer["info"])
    assert info["infotexts"] == []
    told = webui.get("/decouple/v1/drafts/last")
    assert told["id"] == info["extra_generation_params"]["Decouple run"]
    assert [(image["asked"], image["drawn"]) for image in told["images"]] == [(40, None), (41, None)]
    for image in told["images"]:
        assert sorted(draft["seed"] for draft in image["drafts"]) == seeds_to_draft(image["asked"], 5)
        assert all(draft["picture"] and not draft["drawn"] for draft in image["drafts"])
    best = told["images"][0]["drafts"][0]["seed"]
    chosen = encoded_alike(webui, {**CHOOSE, "drafts": 5}, seed=40, **{**SMALL, **more})
    assert seeds(chosen) == [best]
    drawn = encoded_alike(webui, {"gradient": "none", "draw": f"{told['id']}/0/{best}"}, **{**SMALL, **more})
    assert (seeds(drawn), drawn.pixels) == ([best], chosen.pixels)


def without_results(text: str) -> str:
    """Of an infotext; Neo writes the last parameters when the picture is drawn, the others before."""
    keys = "|".join(map(re.escape, infotext.RESULTS))
    return re.sub(rf', (?:{keys}): (?:"(?:\\.|[^\\"])*"|[^,]*)', "", text)


def test_the_last_parameters_after_drafts_alone_are_the_ones_that_were_asked_for(webui):
    for asked in ({"enabled": True, "look": "tell", "gradient": "late"}, {"enabled": True}, {"look": "insist"}):
        request_for(webui, asked)
        of_picture = without_results(webui.inside(LAST))
        answer = request_for(webui, {**asked, "drafts_only": True})
        assert answer["images"] == []
        assert "Decouple stood aside" not in json.loads(answer["info"])["extra_generation_params"]
        assert without_results(webui.inside(LAST)) == of_picture
        assert ("Decouple: 1" in of_picture) is ("enabled" in asked)


def test_a_batch_behind_drafts_alone_where_guidance_can_t_be_attached_is_whole(webui):
    """With hires fix and two batches: the second is drawn by the host, as it is without us."""
    more: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": webui.upscaler}
    more["denoising_strength"] = 0.7
    if webui.name == "forge":
        more["hr_additional_modules"] = ["Use same choices"]
    more |= {"n_iter": 2, "batch_size": 1, "sampler_name": "Euler", "cfg_scale": 3}
    plain = encoded_alike(webui, seed=40, **{**SMALL, **more})
    webui.inside(NO_SECOND_BATCH)
    try:
        answer = request_for(webui, {"drafts_only": True}, **more)
    finally:
        webui.inside(ATTACHED_AGAIN)
    assert len(answer["images"]) == 1
    info = json.loads(answer["info"])
    assert (info["all_seeds"], len(info["infotexts"])) == ([41], 1)
    assert "Decouple stood aside" in info["infotexts"][0]
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
    assert drawn.size == plain.images[-1].size != (64, 64)
    assert drawn.tobytes() == plain.pixels[-1]


def test_where_nothing_can_be_drafted_nothing_is_drawn_and_it_is_said(webui):
    answer = request_for(webui, {"drafts_only": True}, prompt="fog")
    assert answer["images"] == []
    assert "no entity was found" in json.loads(answer["info"])["extra_generation_params"]["Decouple no drafts"]
    webui.inside(INSTEAD, most=MANY, stop="interrupted")
    try:
        assert request_for(webui, {"drafts_only": True})["images"] == []
    finally:
        webui.inside(AS_BEFORE)
    assert len(webui.draw(**SMALL).images) == 1
