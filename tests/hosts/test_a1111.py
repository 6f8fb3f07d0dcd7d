"""The extension in a real AUTOMATIC1111 v1.10; see conftest.py for how to give one."""

from __future__ import annotations

import base64
import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lib_decouple.hosts.ldm import main_calls
from lib_decouple.settings import specs
from lib_decouple.webui import infotext
from tests.hosts.conftest import encoded

HERE = Path(__file__).parent
SAMPLERS = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler"),
    *("LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC"),
)
OURS = "Decouple"


@pytest.fixture(scope="session")
def plain(host):
    """The host's own picture."""
    return host.draw()


@pytest.fixture(scope="session")
def scene(plain):
    return encoded(plain.images[0])


def assert_guided(picture, index=0):
    assert picture.value("Decouple stood aside", index) is None
    steps, share = re.match(r"(\d+) of \d+ steps by ([\d.]+) %", picture.value("Decouple moved", index)).groups()
    assert int(steps) > 0
    assert float(share) > 0


# ---------------------------------------------------------------- guidance


def test_guided_picture_differs_and_says_what_was_done(host, plain):
    guided = host.draw({})
    assert guided.pixels != plain.pixels
    assert guided.value("Decouple") == "1"
    assert guided.value("Decouple found") == "cat, dog"
    assert_guided(guided)
    lowered = host.draw({"loss": "iou", "steps": 3, "size": 0.1}).value("Decouple IoU by update")
    before, behind = re.fullmatch(r"([\d.]+) to ([\d.]+) over 3 steps", lowered).groups()
    assert float(behind) < float(before)


def test_what_is_left_open_is_the_loaded_model_s_and_the_infotext_draws_it_again(host):
    made = host.draw([{"enabled": True}])
    assert made.value("Decouple preset") == "Auto"
    assert made.value("Decouple profile") == "decouple-drawn (measured)"
    keys = {"Decouple", *(about.infotext for about in specs().values())}
    written = {key: value for key in keys if (value := made.value(key)) is not None}
    settings = infotext.read(written)
    assert settings.left_open() == ()
    again = host.draw([settings.as_dict()])
    assert again.pixels == made.pixels
    assert again.value("Decouple profile") is None


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "DPM++ 2M"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.2])
@pytest.mark.parametrize("loss", ["com", "iou"])
def test_latents_after_every_step_are_those_of_an_independent_reference(host, sampler, loss, share):
    code = (HERE / "in_host_parity.py").read_text()
    found = host.inside(code, SAMPLER=sampler, STEPS=12, SIZE=96, LOSS=loss, SHARE=share)
    assert len(set(found["calls"])) == 1
    assert found["moved"] > 0.05
    for update, rounding in zip(found["forced"], found["rounding"]):
        assert update < max(1e-3, 3 * rounding), found
    # Left to themselves two runs drift as far as the reference drifts from itself moved by a millionth.
    if max(found["own"]) < 1e-3:
        assert max(found["apart"]) < 1e-3, found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler(host, sampler):
    given = {"sampler_name": sampler}
    guided = host.draw({"steps": 4, "size": 0.3}, **given)
    assert guided.pixels != host.draw(**given).pixels
    assert_guided(guided)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_main_call_carries_a_change_to_the_next(host, sampler):
    found = host.inside((HERE / "in_host_carry.py").read_text(), SAMPLER=sampler, STEPS=6)
    calls = main_calls(found["function"], 6 if sampler == "DPM fast" else 99)
    main = [call for call in calls if call < len(found["later"])]
    assert len(main) >= 3
    for call, following in pairwise(main):
        # The last steps shrink a change as they shrink the noise; one that does not carry leaves exactly nothing.
        assert found["later"][call][following - call - 1] > 1e-3, (call, following, found)


def test_lcm_stands_aside_and_says_so(host):
    picture = host.draw({}, sampler_name="LCM")
    assert "LCM" in picture.value("Decouple stood aside")
    assert picture.pixels == host.draw(sampler_name="LCM").pixels


@pytest.mark.parametrize("scheduler", ["Karras", "Exponential", "Uniform", "SGM Uniform", "KL Optimal", "DDIM", "Beta"])
def test_scheduler(host, scheduler):
    assert_guided(host.draw({}, scheduler=scheduler))


@pytest.mark.parametrize(
    "loss", ["iou", "com", "kl", "cc", "intensity", "spread", "iou + 0.5*intensity", "kl(form=js)"]
)
def test_loss(host, plain, loss):
    guided = host.draw({"loss": loss})
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != plain.pixels


# ---------------------------------------------------------------- what the host can be asked for


def test_batch_of_different_prompts(host):
    prompts = ["a cat and a dog", "a red circle and a blue square"]
    code = (HERE / "in_host_batch.py").read_text()
    infotexts = host.inside(code, PROMPTS=prompts * 2, BATCH=2)
    assert ["cat, dog" in text for text in infotexts] == [True, False, True, False]
    assert ["circle, " in text for text in infotexts] == [False, True, False, True]
    assert len({text.partition("Decouple IoU by update: ")[2][:14] for text in infotexts}) == 4


def test_an_image_in_a_batch_comes_out_as_alone(host):
    batch, alone = host.draw({}, batch_size=2), host.draw({}, seed=4)
    one = Image.frombytes("RGB", (96, 96), batch.pixels[-1])
    two = Image.frombytes("RGB", (96, 96), alone.pixels[0])
    worst = max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes()))
    assert worst <= 3


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("cfg 1", {"cfg_scale": 1}),
        ("NGMS", {"s_min_uncond": 3}),
        ("odd size", {"width": 104, "height": 168}),
        ("subseed", {"subseed": 9, "subseed_strength": 0.4}),
        ("clip skip", {"override_settings": {"CLIP_stop_at_last_layers": 2}}),
        ("skip early cfg", {"override_settings": {"skip_early_cond": 0.3}}),
        ("token merging", {"override_settings": {"token_merging_ratio": 0.5}}),
        ("batch_cond_uncond off", {"override_settings": {"batch_cond_uncond": False}}),
        ("pad_cond_uncond", {"override_settings": {"pad_cond_uncond": True}, "negative_prompt": "bad, " * 60}),
        ("longer negative", {"negative_prompt": "bad, " * 60}),
        ("over 75 tokens", {"prompt": "very nice, " * 30 + "a cat and a dog"}),
        ("over 150 tokens", {"prompt": "very nice, " * 60 + "a cat and a dog"}),
        ("weights", {"prompt": "a (cat:1.3) and a [dog]"}),
        ("BREAK", {"prompt": "a cat BREAK a dog"}),
        ("AND", {"prompt": "a cat AND a dog :0.8"}),
        ("editing", {"prompt": "a [cat:fox:0.75] and a dog"}),
        ("alternation", {"prompt": "a [cat|cat face] and a dog"}),
        ("comment", {"prompt": "a cat and a dog # a bird"}),
        ("no negative, styles", {"styles": []}),
    ],
)
def test_setting(host, name, given):
    guided = host.draw(
        {"entities": ["cat", "dog"]} if name != "editing" else {"entities": ["cat", "fox", "dog"]}, **given
    )
    assert_guided(guided)
    assert guided.pixels != host.draw(**given).pixels


@pytest.mark.parametrize("hires", [False, True])
def test_hires(host, hires):
    given = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    guided = host.draw({"hires": hires}, **given)
    assert guided.images[0].size == (144, 144)
    assert_guided(guided)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "UniPC"])
@pytest.mark.parametrize("masked", [False, True])
def test_img2img(host, scene, sampler, masked):
    mask = Image.new("L", (96, 96))
    ImageDraw.Draw(mask).rectangle((0, 0, 48, 96), fill=255)
    given = {"init_images": [scene], "denoising_strength": 0.8, "sampler_name": sampler, "mask_blur": 0}
    if masked:
        given["mask"] = encoded(mask)
    guided, unguided = host.draw({}, **given), host.draw(**given)
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != unguided.pixels
    if masked:
        right = [
            Image.frombytes("RGB", (96, 96), p.pixels[0]).crop((56, 0, 96, 96)).tobytes() for p in (guided, unguided)
        ]
        assert right[0] == right[1]


@pytest.mark.parametrize("optimisation", ["None", "sdp-no-mem", "sdp", "Doggettx", "V1", "InvokeAI", "sub-quadratic"])
def test_attention_optimisation(host, optimisation):
    code = """
from modules import sd_hijack, shared
from modules.call_queue import queue_lock
with queue_lock:
    shared.opts.data["cross_attention_optimization"] = NAME
    sd_hijack.model_hijack.apply_optimizations(NAME)
result = True
"""
    try:
        host.inside(code, NAME=optimisation)
        assert_guided(host.draw({}))
    finally:
        host.inside(code, NAME="Automatic")


# ---------------------------------------------------------------- API and infotext


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"enabled": True, "step": 3}], ("step:", "did you mean steps")),
        ([{"enabled": True, "loss": "iuo"}], ("loss:", "iuo", "iou, com, kl, cc")),
        ([{"enabled": True, "steps": 1000}], ("steps:", "1000", "-1 to 150")),
        ([{"enabled": "yes"}], ("enabled:", "yes", "true or false")),
        ([True, "iou", "many"], ("steps:", "many")),
        ([{}, 1], ("named arguments stand alone",)),
        ([True] * 99, ("99 values",)),
    ],
)
@pytest.mark.parametrize("path", ["txt2img", "img2img"])
def test_bad_argument_is_answered_with_422(host, scene, path, args, words):
    body = {
        "prompt": "a cat",
        "steps": 1,
        "init_images": [scene],
        "alwayson_scripts": {"attention decoupling": {"args": args}},
    }
    status, answer = host.post(f"/sdapi/v1/{path}", body)
    assert status == 422
    assert all(word in answer["detail"] for word in words), answer


def test_positional_arguments_are_the_named_ones(host):
    """What neither names is left to the model's profile."""
    named = host.draw([{"enabled": True, "loss": "iou", "steps": 3, "entities": ["cat", "dog"]}])
    positional = host.draw([True, "iou", 3, "cat, dog"])
    assert positional.pixels == named.pixels
    assert positional.value("Decouple size") == named.value("Decouple size") == "0.4"  # decouple-drawn's
    assert named.value("Decouple loss") == "iou"
    assert named.value("Decouple steps") == "3"
    assert named.pixels != host.draw([{"enabled": True, "loss": "com", "steps": 3}]).pixels


def test_infotext_makes_the_picture_again(host):
    first = host.draw({"loss": "iou + 0.5*intensity", "size": 0.31, "entities": ["cat", "dog"], "refine_steps": [0, 2]})
    status, answer = host.post("/sdapi/v1/txt2img", {"infotext": first.infotexts[0], "width": 96, "height": 96})
    assert status == 200
    again = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert again.convert("RGB").tobytes() == first.pixels[0]


def test_infotext_without_our_keys_turns_us_off(host, plain):
    status, answer = host.post("/sdapi/v1/txt2img", {"infotext": plain.infotexts[0]})
    assert status == 200
    assert OURS not in answer["info"]


def test_an_entity_that_the_prompt_lacks_is_named(host, plain):
    picture = host.draw({"entities": ["cat", "bird"]})
    assert picture.pixels == plain.pixels
    assert '"bird" is not in the prompt' in picture.value("Decouple stood aside")


# ---------------------------------------------------------------- nothing lost


def test_not_enabled_is_the_host_alone(host):
    without = """
from modules import scripts
runner = scripts.scripts_txt2img
kept["scripts"] = list(runner.alwayson_scripts)
runner.alwayson_scripts[:] = [s for s in runner.alwayson_scripts if s.title() != "Attention Decoupling"]
runner.callback_map.clear()
result = True
"""
    back = """
from modules import scripts
scripts.scripts_txt2img.alwayson_scripts[:] = kept["scripts"]
scripts.scripts_txt2img.callback_map.clear()
result = True
"""
    host.draw({})
    off = host.draw({"enabled": False})
    host.inside(without)
    try:
        alone = host.draw()
    finally:
        host.inside(back)
    assert off.pixels == alone.pixels
    assert off.infotexts == alone.infotexts


HOOKS = """
from modules import sd_samplers_cfg_denoiser as d, shared
unet = shared.sd_model.model.diffusion_model
result = {
    "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in unet.modules()),
    "frozen": sum(not q.requires_grad for q in unet.parameters()),
    "forward": d.CFGDenoiser.forward.__qualname__,
}
"""
FAULTS = {
    "out of memory in the pass": ("lib_decouple.core.maps", "attention", "torch.cuda.OutOfMemoryError('none left')"),
    "gradient": ("torch.autograd", "grad", "RuntimeError('no gradient')"),
    "prompt": ("lib_decouple.hosts.sampling", "plan_image", "KeyError('plan')"),
    "layers": ("lib_decouple.hosts.sampling", "cross_attention_layers", "AttributeError('layers')"),
    "schedule": ("lib_decouple.hosts.sampling", "main_calls", "IndexError('calls')"),
    "update": ("lib_decouple.core.schedule.StepRule", "update", "ZeroDivisionError('update')"),
    "attach": ("lib_decouple.hosts.sampling.SamplingPass", "attach", "MemoryError('attach')"),
    "report": ("lib_decouple.webui.report.Run", "lines", "ValueError('report')"),
}
INJECT = """
import importlib, torch
path, name, error = FAULT
try:
    owner = importlib.import_module(path)
except ModuleNotFoundError:
    module, _, cls = path.rpartition(".")
    owner = getattr(importlib.import_module(module), cls)
kept["fault"] = (owner, name, getattr(owner, name))
def fail(*args, **kwargs):
    raise eval(error)
setattr(owner, name, fail)
result = True
"""
HEAL = """
owner, name, whole = kept["fault"]
setattr(owner, name, whole)
result = True
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_costs_nothing(host, plain, fault):
    clean = host.inside(HOOKS)
    host.inside(INJECT, FAULT=FAULTS[fault])
    try:
        failed = host.draw({})
    finally:
        host.inside(HEAL)
    assert host.inside(HOOKS) == clean
    if fault != "report":
        assert failed.pixels == plain.pixels
        assert failed.value("Decouple stood aside")
    assert host.draw().pixels == plain.pixels


def test_not_finite_loss_from_the_third_step_on(host, plain):
    inject = """
import torch
from lib_decouple.core.maps import MapReader
whole = MapReader.maps
kept["fault"] = (MapReader, "maps", whole)
calls = []
def maps(self, *args):
    calls.append(1)
    found = whole(self, *args)
    return [m * float("nan") for m in found] if len(calls) > 3 else found  # two updates, and the look behind the first
MapReader.maps = maps
result = True
"""
    host.inside(inject)
    try:
        failed = host.draw({})
    finally:
        host.inside(HEAL)
    assert failed.value("Decouple stood aside").startswith("at step 3 of 6")
    assert failed.pixels != plain.pixels
    assert host.draw().pixels == plain.pixels
