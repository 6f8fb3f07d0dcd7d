"""The extension in a real Forge or Forge Neo; see conftest.py for how to give one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lib_decouple.hosts.ldm import main_calls
from lib_decouple.settings import specs
from lib_decouple.webui import infotext
from lib_decouple.webui.api import ORDER
from tests.hosts.conftest import Forge, Picture, encoded, encoded_alike

HERE = Path(__file__).parent
CURVES = (
    *("Euler", "Euler a", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DPM++ 2M"),
    *("DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "HeunPP2", "IPNDM", "IPNDM_V"),
    *("DEIS", "DDPM", "DDIM", "DDIM CFG++", "PLMS", "UniPC"),
    *("ER SDE", "Res Multistep", "Kohaku LoNyu Yog", "DPM++ 2M CFG++", "Euler a CFG++", "Euler CFG++"),  # Neo's
)


@pytest.fixture(scope="session")
def plain(forge: Forge) -> Picture:
    return forge.draw()


def needs_sampler(forge: Forge, name: str) -> None:
    """Skips where the host lacks it, or where no change of its latents carries."""
    forge.needs("samplers", name)
    if forge.is_neo and name == "UniPC":
        pytest.skip("Neo's UniPC stands aside; see test_a_sampler_that_loses_a_change_stands_aside")


def assert_guided(picture: Picture) -> None:
    assert picture.value("Decouple stood aside") is None
    assert picture.value("Decouple moved")


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("loss", ["com", "iou"])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "PLMS", "UniPC", "DPM++ 2M"])
def test_latents_after_every_step_are_those_of_an_independent_reference(forge, sampler, loss):
    needs_sampler(forge, sampler)
    code = (HERE / "in_host_parity.py").read_text()
    found = forge.inside(code, SAMPLER=sampler, STEPS=8, SIZE=128, LOSS=loss, SHARE=0.1)
    assert len(set(found["calls"])) == 1
    assert max(found["apart"]) < 1e-3, found
    assert found["moved"] > 0.05


def slopes(forge, given=None, decouple=None, extensions=None, prepare="", lengths=(1e-3,)):
    """The loss' slopes by central differences, ``lengths`` times the latents long, over the gradients' norms."""
    code = (HERE / "in_host_gradient.py").read_text()
    found = forge.inside(
        code, GIVEN=given or {}, DECOUPLE=decouple or {}, EXTENSIONS=extensions or {}, PREPARE=prepare, H=lengths
    )
    assert "stood aside" not in found["info"], found["info"]
    assert found["slopes"]
    return found["slopes"]


STORAGE = """
import torch
from modules import sd_models
from modules_forge import main_entry
main_entry.refresh_model_loading_parameters()
if NAME:
    sd_models.model_data.forge_loading_parameters["unet_storage_dtype"] = getattr(torch, NAME)
dynamic = __import__("backend.args").args.dynamic_args
dynamic["online_lora"] = ONLINE
if sd_models.model_data.sd_model is not None:
    sd_models.model_data.forge_hash = ""  # or the model would not be loaded again
result = True
"""
WEIGHTS = """
from modules import shared
model = shared.sd_model.forge_objects.unet.model
online = (getattr(m, "forge_online_loras", None) or getattr(m, "weight_function", None) for m in model.modules())
result = [str(model.storage_dtype), any(map(bool, online))]
"""


@pytest.fixture
def storage(forge):
    """Sets how the UNet's weights are kept, and whether a LoRA is merged on the fly; as at the start afterwards."""
    yield lambda name, online: forge.inside(STORAGE, NAME=name, ONLINE=online)
    forge.inside(STORAGE, NAME="", ONLINE=False)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("name", "online"),
    [
        *(("float32", False), ("float16", False), ("bfloat16", False)),  # Forge merges on the fly with fp8 alone
        *(("float8_e4m3fn", False), ("float8_e4m3fn", True), ("float8_e5m2", False), ("float8_e5m2", True)),
    ],
)
def test_gradient_with_weights_stored_as(forge, storage, name, online, recompute):
    storage(name, online)
    found = slopes(forge, {"prompt": "a cat and a dog <lora:small-lora:1>"}, {"recompute": recompute})
    assert forge.inside(WEIGHTS) == [f"torch.{name}", online]
    assert found == pytest.approx([1] * len(found), abs=2e-3)


@pytest.mark.parametrize("kind", ["fp8-mixed", "int8-mixed", "fp8-scaled"])
def test_gradient_with_a_checkpoint_of_mixed_precision(forge, plain, kind):
    """Neo multiplies in 8 bits or refuses an input that takes a gradient; the guided pass has the weights themselves.

    The differences are taken in the guided pass too, which is not quite Neo's: that quantises the inputs besides.
    """
    if not forge.is_neo and kind.endswith("mixed"):
        pytest.skip("Forge does not know these scales, and draws with weights some thousand times too large")
    forge.post("/sdapi/v1/options", {"sd_model_checkpoint": f"small-sd1-{kind}"})
    try:
        found, unguided, guided = slopes(forge), forge.draw(), forge.draw({"size": 0.3})
        assert f"Model: small-sd1-{kind}" in guided.infotexts[0]
        assert_guided(guided)
        assert guided.pixels != unguided.pixels
        assert forge.draw().pixels == unguided.pixels
    finally:
        forge.post("/sdapi/v1/options", {"sd_model_checkpoint": "small-sd1"})
    assert found == pytest.approx([1, 1], abs=2e-3)
    assert forge.draw().pixels == plain.pixels


IP_ADAPTER = """
from types import SimpleNamespace
from lib_ipadapter.IPAdapterPlus import CrossAttentionPatch

def prepare(unet):
    unet = unet.clone()
    torch.manual_seed(4)
    places = [("input", 1), ("input", 3), ("input", 5), ("middle", 0), *(("output", n) for n in range(6))]
    widths = [320, 320, 640, 640, 640, 640, 320, 320, 320, 320]
    layers = {
        f"{2 * k + 1}_to_{part}_ip": torch.nn.Linear(768, width, bias=False)
        for k, width in enumerate(widths) for part in "kv"
    }
    adapter = SimpleNamespace(ip_layers=SimpleNamespace(to_kvs=layers))
    cond, uncond = torch.randn(1, 4, 768), torch.zeros(1, 4, 768)
    for k, place in enumerate(places):
        patch = CrossAttentionPatch(0.7, adapter, k, cond, uncond, "original", None, 999.0, 0.0)
        unet.set_model_attn2_replace(patch, *place)
    return unet
"""
EXTENSIONS = {
    "FreeU": {"FreeU Integrated (SD 1.x, SD 2.x, SDXL)": [True, 1.5, 1.6, 0.9, 0.2, 0, 1]},
    "SelfAttentionGuidance": {"SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)": [True, 0.5, 2, 1]},
    "PerturbedAttentionGuidance": {"PerturbedAttentionGuidance Integrated": [True, 3, 0, 0, 1]},
    "StyleAlign": {"StyleAlign Integrated": [True, 0.5]},
    "DynamicThresholding": {
        "DynamicThresholding (CFG-Fix) Integrated": [
            *(True, 7.0, 1.0, "Constant", 0.0, "Constant", 0.0, 4.0, "enable", "MEAN", "AD", 1.0)
        ]
    },
    "LatentModifier": {
        "LatentModifier Integrated": [
            *(True, 1, "anisotropic", 0, "reinhard", 100, 0, "subtract", 0, 0, "gaussian", "add", 0, 100, 127, 0),
            *("hard_clamp", 5, 0, "None", "None"),
        ]
    },
}


def test_gradient_with_ip_adapter_s_patches(forge):
    assert slopes(forge, prepare=IP_ADAPTER) == pytest.approx([1, 1], abs=2e-3)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_gradient_with(forge, name):
    forge.needs("txt2img", *map(str.lower, EXTENSIONS[name]))
    found = slopes(forge, decouple={"layers": "up"}, extensions=EXTENSIONS[name])
    assert found == pytest.approx([1] * len(found), abs=2e-3)


def test_gradient_beside_forge_couple(forge):
    """Each line of the prompt in its column; DECOUPLE_EXTENSIONS has the extension where it is run."""
    forge.needs("txt2img", "forge couple")
    couple = {"Forge Couple": [True, False, "Basic", "", "Horizontal", "None", 0.5]}
    found = slopes(forge, {"prompt": "a cat and a dog\na dog"}, {"entities": ["cat", "dog"]}, couple)
    assert found == pytest.approx([1, 1], abs=2e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a cat AND a dog"},
        {"batch_size": 2},
        {"cfg_scale": 1.0},
        {"sampler_name": "DDIM"},
        {"sampler_name": "PLMS"},
        {"sampler_name": "UniPC"},
        {"width": 192, "height": 128},
        {"prompt": "very nice, " * 30 + "a cat and a dog"},
        {"negative_prompt": "bad, " * 60},
        # 154 columns against 231: the host repeats both to 462.
        {"prompt": "very nice, " * 30 + "a cat AND a dog", "negative_prompt": "bad, " * 90},
    ],
    ids=str,
)
def test_gradient_of_a_job(forge, given):
    needs_sampler(forge, given.get("sampler_name", "Euler"))
    assert slopes(forge, given) == pytest.approx([1, 1], abs=2e-3)


AT_START = {
    "--use-pytorch-cross-attention": "attention_pytorch",
    "--use-pytorch-cross-attention --force-upcast-attention": "attention_pytorch",
    "--force-upcast-attention": "attention_basic",
}
"""Neo's."""
AT_START_OF_FORGE = {
    "--attention-split": "attention_split",
    "--attention-quad": "attention_sub_quad",
    "--attention-pytorch": "attention_pytorch",
    "--attention-split --force-upcast-attention": "attention_split",
    "--attention-quad --disable-attention-upcast": "attention_sub_quad",
    "--attention-pytorch --always-offload-from-vram --unet-in-fp8-e4m3fn": "attention_pytorch",
}


@pytest.mark.parametrize("flags", [*AT_START, *AT_START_OF_FORGE])
def test_gradient_with_attention_chosen_at_start(start_forge, flags):
    """xformers is the one left: it has no CPU."""
    known = (Path(os.environ["DECOUPLE_FORGE_ROOT"]) / "backend/args.py").read_text()
    if any(flag not in known for flag in flags.split()):
        pytest.skip("this host has no such flag")
    with start_forge(flags) as started:
        name = started.inside("from backend.nn import unet\nresult = unet.attention_function.__name__")
        assert name == {**AT_START, **AT_START_OF_FORGE}[flags]
        assert slopes(started) == pytest.approx([1, 1], abs=2e-3)
        plain = started.draw()
        guided = started.draw({})
        assert_guided(guided)
        assert guided.pixels != plain.pixels
        assert started.draw().pixels == plain.pixels


@pytest.mark.parametrize("name", ["attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch"])
def test_gradient_with_attention_function(forge, name):
    swap = """
from backend import attention
from backend.nn import unet
kept.setdefault("attention", unet.attention_function)
unet.attention_function = getattr(attention, NAME) if NAME else kept["attention"]
result = True
"""
    if not forge.inside(f"from backend import attention\nresult = hasattr(attention, {name!r})"):
        pytest.skip("this host has no such function")
    forge.inside(swap, NAME=name)
    try:
        assert slopes(forge) == pytest.approx([1, 1], abs=2e-3)
    finally:
        forge.inside(swap, NAME="")


BLIND = """
import sys, torch
from backend import attention
from backend.nn import unet
kept["blind"] = whole = unet.attention_function
if KIND == "cuts the gradient":  # as SageAttention
    def blind(*args, **kwargs):
        with torch.no_grad():
            return whole(*args, **kwargs)
else:  # as FlashAttention, which Neo registers as an operator without an autograd formula
    if not hasattr(torch.ops.decouple_probe, "attention"):
        @torch.library.custom_op("decouple_probe::attention", mutates_args=())
        def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
            return whole(q, k, v, heads).clone()
    def blind(q, k, v, heads, *args, **kwargs):
        return torch.ops.decouple_probe.attention(q, k, v, heads)
attention.attention_function = unet.attention_function = blind
result = True
"""
SEEING = """
from backend import attention
from backend.nn import unet
result = unet.attention_function.__name__ == "blind"
attention.attention_function = unet.attention_function = kept["blind"]
"""


@pytest.mark.parametrize("kind", ["cuts the gradient", "has no backward"])
def test_gradient_with_an_attention_that(forge, kind):
    """Stand-ins for kernels that want a GPU. The host goes on drawing with its own."""
    forge.inside(BLIND, KIND=kind)
    try:
        found = slopes(forge)
    finally:
        is_the_host_s_again = forge.inside(SEEING)
    assert found == pytest.approx([1, 1], abs=2e-3)
    assert is_the_host_s_again


def test_gradient_with_weights_swapped_to_the_processor(forge):
    """As on a small GPU: half a megabyte may stay, the rest is fetched for every use."""
    force = """
from backend import memory_management as m
kept["load"] = m.LoadedModel.model_load
def load(self, *args, **kwargs):
    if not hasattr(self.model.model, "diffusion_model"):
        return kept["load"](self, *args, **kwargs)
    return kept["load"](self, 512 * 1024)
m.LoadedModel.model_load = load
m.unload_all_models()
result = True
"""
    heal = """
from backend import memory_management as m
m.LoadedModel.model_load = kept["load"]
m.unload_all_models()
result = True
"""
    count = """
from modules import shared
unet = shared.sd_model.forge_objects.unet.model.diffusion_model
result = sum(getattr(m, "parameters_manual_cast", False) is True for m in unet.modules())
"""
    forge.inside(force)
    try:
        assert slopes(forge) == pytest.approx([1, 1], abs=2e-3)
        assert forge.inside(count) > 100
    finally:
        forge.inside(heal)


ASKED = """
from backend import memory_management as m
from backend.sampling import sampling_function as s
kept["asked"], kept["load"], denoisers = [], m.load_models_gpu, []
def load(models, memory_required=0, hard_memory_preservation=0, **given):
    for one in models:
        if "Unet" in type(one).__name__:  # not for the text encoder, nor the autoencoder
            if not any(one.model is known for known in denoisers):
                denoisers.append(one.model)
            number = next(k for k, known in enumerate(denoisers) if known is one.model)
            kept["asked"].append([number, memory_required + hard_memory_preservation])  # Neo asks for both in one
    if hard_memory_preservation:
        given["hard_memory_preservation"] = hard_memory_preservation
    return kept["load"](models, memory_required, **given)
m.load_models_gpu = load
result = True
"""
TOLD = """
from backend import memory_management as m
m.load_models_gpu = kept["load"]
result = kept["asked"]
"""


def reserves(forge: Forge, given: dict[str, object] | None, **job: object) -> list[float]:
    """The most bytes that a job asks of the memory manager for each of its models in turn."""
    forge.inside(ASKED)
    try:
        forge.draw(given, **job)
    finally:
        asked = forge.inside(TOLD)
    return [max(size for own, size in asked if own == number) for number in range(1 + max(own for own, _ in asked))]


def test_memory_is_reserved_anew_once_the_refiner_has_taken_over(forge):
    forge.post("/sdapi/v1/options", {"refiner_use_steps": True})  # Neo goes by the noise level otherwise
    job = {"refiner_checkpoint": "small-sd1-other", "refiner_switch_at": 0.4, "steps": 8}
    plain, guided = reserves(forge, None, **job), reserves(forge, {"steps": 6}, **job)
    assert (len(plain), len(guided)) == (2, 2)
    more, after = (with_us - without for with_us, without in zip(guided, plain))
    assert more > 0
    assert after == pytest.approx(more)  # models of the same shape


def test_memory_is_reserved_before_sampling(forge):
    asked = {}
    frugal = {"recompute": "on"}
    for key, given, batch in (
        ("one", {}, 1), ("two", {}, 2), ("again", frugal, 1), ("down", {"layers": "down"}, 1),
        ("plain", None, 1), ("plain two", None, 2),  # nothing of a guided job is left
    ):  # fmt: skip
        (asked[key],) = reserves(forge, given, batch_size=batch)
    more = asked["one"] - asked["plain"]
    assert more > 0
    assert asked["two"] - asked["plain two"] == pytest.approx(2 * more)
    assert asked["plain"] < asked["down"] < asked["one"]
    assert asked["plain"] < asked["again"] < asked["one"]


# ---------------------------------------------------------------- what the host can be asked for


@pytest.mark.parametrize("sampler", CURVES)
def test_sampler(forge, sampler):
    needs_sampler(forge, sampler)
    given = {"sampler_name": sampler, "steps": 6, "width": 96, "height": 96}
    guided = forge.draw({"steps": 4, "size": 0.3}, **given)
    assert_guided(guided)
    assert guided.pixels != forge.draw(**given).pixels


def assert_main_calls_carry(forge: Forge, sampler: str, least: float = 1e-3) -> None:
    """A change made at one call that is said to carry it is still there at the next one, ``least`` of it."""
    found = forge.inside((HERE / "in_host_carry.py").read_text(), SAMPLER=sampler, STEPS=6)
    main = [call for call in main_calls(found["function"], 6 if sampler in ("DPM fast", "HeunPP2") else 99)]
    main = [call for call in main if call < len(found["later"])]
    assert len(main) >= 3
    for call, following in pairwise(main):
        assert found["later"][call][following - call - 1] > least, (call, following, found)


@pytest.mark.parametrize("sampler", CURVES)
def test_a_main_call_carries_a_change_to_the_next(forge, sampler):
    needs_sampler(forge, sampler)
    assert_main_calls_carry(forge, sampler)


@pytest.mark.parametrize("sampler", ["LCM", "UniPC"])
def test_a_sampler_that_loses_a_change_stands_aside(forge, sampler):
    if sampler == "UniPC" and not forge.is_neo:
        pytest.skip("Forge's UniPC carries it")
    picture = forge.draw({}, sampler_name=sampler)
    assert sampler in picture.value("Decouple stood aside")
    assert picture.pixels == forge.draw(sampler_name=sampler).pixels


@pytest.mark.parametrize(
    "given",
    [
        {"cfg_scale": 1},
        {"distilled_cfg_scale": 5.0},
        {"width": 104, "height": 168},
        {"prompt": "a cat AND a dog :0.8"},
        {"prompt": "a cat BREAK a dog"},
        {"prompt": "a [cat:fox:0.75] and a dog"},
        {"prompt": "very nice, " * 60 + "a cat and a dog"},
        {"negative_prompt": "bad, " * 60},
        {"prompt": "a (cat:1.3) and a [dog]"},
        {"scheduler": "Karras"},
        {"batch_size": 2},
        {"n_iter": 2},
    ],
    ids=str,
)
def test_setting(forge, given):
    entities = ["cat", "fox", "dog"] if "fox" in given.get("prompt", "") else ["cat", "dog"]
    guided = forge.draw({"entities": entities}, **given)
    assert_guided(guided)
    assert guided.pixels != forge.draw(**given).pixels


LARGE = {"width": 256, "height": 256}
CHECKPOINTS = {
    "small-sd2": ({}, (1e-3,)),
    # XL's random weights bend the loss so much that it is a line over less: at 1e-3 half of the slope is left, at 1e-4
    # 0.95 to 0.9998; at 1e-5 rounding is up to 0.002.
    "small-sdxl": (LARGE, (4e-5, 8e-5)),
    "small-sdxl-v": (LARGE, (4e-5, 8e-5)),
    # By default Neo's schedule ends in two noise levels of 0 here, and its own picture in NaN. At 8e-5 0.889 are left.
    "small-sdxl-rectified": ({**LARGE, "scheduler": "Simple"}, (1e-5, 2e-5)),
}
"""What is drawn with each, and the lengths of the differences."""


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_switched_in_the_session(forge, plain, name):
    if forge.is_neo and name == "small-sd2":
        pytest.skip("Neo has no SD 2")
    if not forge.is_neo and name == "small-sdxl-rectified":
        pytest.skip("Forge has no rectified flow of XL")
    size, lengths = CHECKPOINTS[name]
    for option, value in {"sd_model_checkpoint": name, "show_progress_type": "Approx cheap"}.items():
        forge.post("/sdapi/v1/options", {option: value})
    try:
        found = slopes(forge, size, lengths=lengths)
        unguided, guided = forge.draw(**size), forge.draw({"size": 0.3}, **size)
        assert f"Model: {name}" in guided.infotexts[0]
        assert_guided(guided)
        assert guided.value("Decouple found") == "cat, dog"
        assert guided.pixels != unguided.pixels
        assert forge.draw(**size).pixels == unguided.pixels
    finally:
        forge.post("/sdapi/v1/options", {"sd_model_checkpoint": "small-sd1"})
    assert found == pytest.approx([1, 1], abs=2e-3)
    assert forge.draw().pixels == plain.pixels


@pytest.mark.parametrize(("sampler", "by"), [("Euler", "step"), ("Euler", "sigma"), ("DDIM", "sigma")])
def test_refiner_takes_over_within_the_guided_steps(forge, plain, sampler, by):
    """Neo goes by the noise level where it is not told otherwise, and makes one of DDIM's timesteps first."""
    if by == "sigma" and not forge.is_neo:
        pytest.skip("Forge goes by the share of the steps")
    forge.post("/sdapi/v1/options", {"refiner_use_steps": by == "step"})
    given = {"refiner_checkpoint": "small-sd1-other", "refiner_switch_at": {"step": 0.4, "sigma": 4.0}[by], "steps": 8}
    given["sampler_name"] = sampler
    unguided, guided = forge.draw(**given), forge.draw({"steps": 6, "size": 0.3}, **given)
    assert "Refiner: small-sd1-other" in guided.infotexts[0]
    assert_guided(guided)
    assert guided.pixels != unguided.pixels
    assert forge.draw(**given).pixels == unguided.pixels
    assert unguided.pixels != forge.draw(steps=8, sampler_name=sampler).pixels
    assert forge.draw().pixels == plain.pixels


def test_distilled_cfg_means_nothing_to_these_models(forge):
    assert forge.draw({}, distilled_cfg_scale=9.0).pixels == forge.draw({}, distilled_cfg_scale=3.5).pixels


def test_an_image_of_a_batch_comes_out_as_alone(forge):
    batch, alone = (
        forge.draw({}, batch_size=2, prompt="a cat AND a dog"),
        forge.draw({}, seed=4, prompt="a cat AND a dog"),
    )
    assert max(abs(a - b) for a, b in zip(batch.pixels[-1], alone.pixels[0])) <= 3


def test_a_batch_that_the_host_splits(forge):
    split = """
from backend import memory_management as m
kept["free"] = m.get_free_memory
m.get_free_memory = lambda dev=None, torch_free_too=False: (1, 1) if torch_free_too else 1
result = True
"""
    heal = """
from backend import memory_management as m
m.get_free_memory = kept["free"]
result = True
"""
    whole = forge.draw({}, batch_size=2)
    forge.inside(split)
    try:
        parts = forge.draw({}, batch_size=2)
    finally:
        forge.inside(heal)
    assert_guided(parts)
    assert max(abs(a - b) for a, b in zip(whole.pixels[-1], parts.pixels[-1])) <= 3


STILL = """
from lib_decouple.core.guidance import Guide
kept["step"], kept["looks"] = Guide.step, 0
def step(self, latents, *args, **kwargs):
    guided = kept["step"](self, latents, *args, **kwargs)
    kept["looks"] += 1
    return guided._replace(latents=latents)
Guide.step = step
result = True
"""
MOVING = """
from lib_decouple.core.guidance import Guide
Guide.step = kept["step"]
result = kept["looks"]
"""


@contextmanager
def still(forge: Forge) -> Iterator[None]:
    """Inside, guidance takes every gradient, and moves nothing."""
    forge.inside(STILL)
    try:
        yield
    finally:
        looks = forge.inside(MOVING)
    assert looks > 1


def other(name: str, *args: object) -> dict[str, object]:
    return {"alwayson_scripts": {name: {"args": list(args)}}}


def unit(plain: Picture, **given: object) -> dict[str, object]:
    return other("controlnet", {"enabled": True, "module": "None", "image": encoded(plain.images[0]), **given})


BESIDE = {
    "nothing": lambda plain: {},
    "ControlNet": lambda plain: unit(plain, model="small-control", weight=0.5),
    "ControlNet in the first half": lambda plain: unit(plain, model="small-control", guidance_end=0.5),
    "ControlNet-LLLite": lambda plain: unit(plain, model="small-lllite"),
    "ControlNet inpaint_only": lambda plain: unit(
        plain, model="small-control", module="inpaint_only", mask=encoded(left_half())
    ),
    "Never OOM": lambda plain: other("never oom integrated", True, True),
    "Soft Inpainting": lambda plain: {
        "init_images": [encoded(plain.images[0])], "mask": encoded(left_half()), "mask_blur": 4,
        **other("soft inpainting", True, 1, 0.5, 4, 0, 0.01, 2),
    },
    **{
        name: lambda plain, given=given: other(next(iter(given)).lower(), *next(iter(given.values())))
        for name, given in EXTENSIONS.items()
    },
    "two AND parts, two images": lambda plain: {"prompt": "a cat AND a dog", "batch_size": 2},
    "DDIM": lambda plain: {"sampler_name": "DDIM", "steps": 6},  # which draws one less
    "an ancestral sampler": lambda plain: {"sampler_name": "Euler a"},
    "a LoRA": lambda plain: {"prompt": "a cat and a dog <lora:small-lora:1>"},
}  # fmt: skip


def left_half() -> Image.Image:
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((0, 0, 64, 128), fill=255)
    return mask


@pytest.mark.parametrize("name", BESIDE)
def test_a_guided_pass_leaves_nothing_behind(forge, plain, name):
    """What the host and its extensions count and keep is as if the pass had not been."""
    given = BESIDE[name](plain)
    forge.needs("img2img" if "init_images" in given else "txt2img", *given.get("alwayson_scripts", ()))
    host_s = encoded_alike(forge, **BESIDE[name](plain))
    with still(forge):
        looked = encoded_alike(forge, {}, **BESIDE[name](plain))
    assert looked.value("Decouple stood aside") is None
    assert looked.pixels == host_s.pixels
    moved = encoded_alike(forge, {"size": 0.3}, **BESIDE[name](plain))
    assert_guided(moved)
    if name != "Soft Inpainting":  # what it composes at the end shows the original, of these random weights at least
        assert moved.pixels != host_s.pixels


@pytest.mark.parametrize("module", ["reference_only", "reference_adain"])
def test_what_changes_the_model_at_every_step_stands_aside(forge, plain, module):
    given = unit(plain, model="None", module=module)
    host_s = forge.draw(**given)
    assert host_s.pixels != plain.pixels
    picture = forge.draw({}, **unit(plain, model="None", module=module))
    assert picture.pixels == host_s.pixels
    assert "another extension" in picture.value("Decouple stood aside")


@pytest.mark.parametrize("hires", [False, True])
def test_hires(forge, hires):
    given = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": forge.upscaler, "denoising_strength": 0.6,
        "hr_additional_modules": ["Use same choices"],
    }  # fmt: skip
    count = """
from lib_decouple.core.guidance import Guide
kept["step"], kept["steps"] = Guide.step, []
def step(self, latents, step, *args, **kwargs):
    kept["steps"].append([tuple(latents.shape[2:]), step])
    return kept["step"](self, latents, step, *args, **kwargs)
Guide.step = step
result = True
"""
    heal = """
from lib_decouple.core.guidance import Guide
Guide.step = kept["step"]
result = kept["steps"]
"""
    forge.inside(count)
    try:
        guided = forge.draw({"hires": hires}, **given)
    finally:
        steps = forge.inside(heal)
    assert guided.images[0].size == (192, 192)
    assert_guided(guided)
    first, second = ([step for size, step in steps if size[0] == side] for side in (16, 24))
    assert first == sorted(set(first)) != []  # once a step, though Forge calls the hook twice
    assert second == (sorted(set(second)) if hires else [])
    assert bool(second) == hires


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "UniPC", "PLMS"])
@pytest.mark.parametrize("masked", [False, True])
def test_img2img(forge, plain, sampler, masked):
    needs_sampler(forge, sampler)
    given = {"init_images": [encoded(plain.images[0])], "denoising_strength": 0.8, "sampler_name": sampler, "steps": 6}
    if masked:
        given |= {"mask": encoded(left_half()), "mask_blur": 0}
    guided, unguided = forge.draw({}, **given), forge.draw(**given)
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != unguided.pixels
    if masked:
        whole = [Image.frombytes("RGB", (128, 128), p.pixels[0]) for p in (guided, unguided)]
        right = [one.crop((80, 0, 128, 128)).tobytes() for one in whole]
        assert right[0] == right[1]


@pytest.mark.parametrize("mode", ["Balanced", "My prompt is more important", "ControlNet is more important"])
def test_control_net(forge, plain, mode):
    def draw(decouple=None):
        return forge.draw(decouple, **unit(plain, model="small-control", weight=0.5, control_mode=mode))

    controlled, guided = draw(), draw({})
    assert controlled.pixels != plain.pixels
    assert_guided(guided)
    assert guided.pixels != controlled.pixels
    assert draw().pixels == controlled.pixels


@pytest.mark.parametrize("title", ["kohya hrfix integrated", "multidiffusion integrated"])
def test_what_draws_at_another_size_inside_stands_aside_or_is_guided(forge, plain, title):
    """Neo has MultiDiffusion in img2img alone."""
    job = {}
    if title not in forge.offers["txt2img"]:
        forge.needs("img2img", title)
        job = {"init_images": [encoded(plain.images[0])], "denoising_strength": 0.8}
    args = {
        "kohya hrfix integrated": [True, 3, 2, 0, 0.9, True, "bicubic", "bicubic"],
        "multidiffusion integrated": [True, "MultiDiffusion", 64, 64, 32, 1],
    }[title]
    host_s = encoded_alike(forge, **job, **other(title, *args))
    picture = encoded_alike(forge, {}, **job, **other(title, *args))
    if reason := picture.value("Decouple stood aside"):
        assert picture.pixels == host_s.pixels
        assert any(why in reason for why in ("pixels, not", "maps", "layers", "has not the picture's size"))
    else:
        assert picture.pixels != host_s.pixels


# ---------------------------------------------------------------- infotext


OF_A1111 = (
    "a cat and a dog\nSteps: 6, Sampler: Euler, Schedule type: Automatic, CFG scale: 3.0, Seed: 3, Size: 96x96, "
    "Model hash: 5f5ed2ad4e, Model: decouple-tiny, Decouple: 1, Decouple loss: iou + 0.5*intensity, "
    'Decouple entities: "cat, dog", Decouple size: 0.31, Decouple refine steps: "0, 2", Decouple found: "cat, dog", '
    "Decouple IoU: 0.712 to 0.544, Version: v1.10.1"
)
PASTE = """
from modules import infotext_utils, scripts
params = infotext_utils.parse_generation_parameters(TEXT)
script = next(s for s in scripts.scripts_txt2img.alwayson_scripts if s.title() == "Attention Decoupling")
result = {key.args[0]: key(params) for _, key in script.infotext_fields
    if hasattr(key, "args")}
"""


def test_an_infotext_of_a1111_restores(forge):
    found = forge.inside(PASTE, TEXT=OF_A1111)
    assert {k: found[k] for k in ("enabled", "loss", "entities", "size", "refine_steps", "steps")} == {
        "enabled": True, "loss": "iou + 0.5*intensity", "entities": "cat, dog", "size": 0.31, "refine_steps": "0, 2",
        "steps": 0,
    }  # fmt: skip


def test_an_own_infotext_restores_and_makes_the_picture_again(forge):
    given = {"loss": "iou + 0.5*intensity", "size": 0.31, "entities": ["cat", "dog"], "refine_steps": [0, 2]}
    first = forge.draw(given)
    found = forge.inside(PASTE, TEXT=first.infotexts[0])
    assert found["enabled"] is True
    order = ORDER[: ORDER.index("refine_threshold")]
    assert forge.draw([found[name] for name in order]).pixels == first.pixels


def test_layers_left_open_are_the_familys_and_the_infotext_draws_it_again(forge):
    """small-sd1 has Stable Diffusion 1.x's widths; of its level `early` leaves layers out."""
    made = forge.draw([{"enabled": True}])
    assert made.value("Decouple profile") == "Stable Diffusion 1.x (not measured)"
    assert made.value("Decouple layers") == "early"
    keys = {"Decouple", *(about.infotext for about in specs().values())}
    settings = infotext.read({key: value for key in keys if (value := made.value(key)) is not None})
    assert (settings.loss, settings.layers) == ("com", "early")
    assert forge.draw([settings.as_dict()]).pixels == made.pixels
    named = forge.draw([{"enabled": True, "loss": "com"}])
    assert named.value("Decouple layers") is None
    assert named.pixels == forge.draw([{"enabled": True, "layers": "all"}]).pixels != made.pixels


def test_an_infotext_without_our_keys_turns_us_off(forge, plain):
    assert forge.inside(PASTE, TEXT=plain.infotexts[0])["enabled"] is False


def test_bad_argument_is_answered_with_422(forge):
    body = {"prompt": "a", "alwayson_scripts": {"attention decoupling": {"args": [{"enabled": True, "loss": "iuo"}]}}}
    status, answer = forge.post("/sdapi/v1/txt2img", body)
    assert status == 422
    assert all(word in answer["detail"] for word in ("loss:", "iuo", "iou, com, kl, cc"))


# ---------------------------------------------------------------- nothing lost


def test_not_enabled_is_the_host_alone(forge):
    without = """
from modules import scripts
runner = scripts.scripts_txt2img
kept["scripts"] = list(runner.alwayson_scripts)
runner.alwayson_scripts[:] = [s for s in runner.alwayson_scripts if s.title() != "Attention Decoupling"]
getattr(runner, "callback_map", {}).clear()
result = True
"""
    back = """
from modules import scripts
scripts.scripts_txt2img.alwayson_scripts[:] = kept["scripts"]
getattr(scripts.scripts_txt2img, "callback_map", {}).clear()
result = True
"""
    forge.draw({})
    off = forge.draw({"enabled": False})
    forge.inside(without)
    try:
        alone = forge.draw()
    finally:
        forge.inside(back)
    assert off.pixels == alone.pixels
    assert off.infotexts == alone.infotexts


HOOKS = """
from modules import sd_samplers_cfg_denoiser as d, shared
objects = shared.sd_model.forge_objects_after_applying_lora
unet = objects.unet.model.diffusion_model
result = {
    "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in unet.modules()),
    "forward": d.CFGDenoiser.forward.__qualname__,
    "reserved": objects.unet.extra_preserved_memory_during_sampling,
}
"""
FAULTS = {
    "out of memory in the pass": ("lib_decouple.core.maps", "attention", "torch.cuda.OutOfMemoryError('none left')"),
    "gradient": ("torch.autograd", "grad", "RuntimeError('no gradient')"),
    "prompt": ("lib_decouple.hosts.sampling", "plan_image", "KeyError('plan')"),
    "layers": ("lib_decouple.hosts.sampling", "cross_attention_layers", "AttributeError('layers')"),
    "schedule": ("lib_decouple.hosts.sampling", "main_calls", "IndexError('calls')"),
    "memory": ("lib_decouple.hosts.forge.SamplingPass", "reserve", "TypeError('reserve')"),
    "context": ("lib_decouple.hosts.forge.SamplingPass", "differentiable", "RuntimeError('mode')"),
    "pass": ("lib_decouple.hosts.forge", "_denoise", "RuntimeError('pass')"),
    "update": ("lib_decouple.core.schedule.StepRule", "update", "ZeroDivisionError('update')"),
    "attach": ("lib_decouple.hosts.sampling.SamplingPass", "attach", "MemoryError('attach')"),
    "detect": ("lib_decouple.hosts.detect", "adapter", "ImportError('detect')"),
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
def test_fault_costs_nothing(forge, plain, fault):
    clean = forge.inside(HOOKS)
    forge.inside(INJECT, FAULT=FAULTS[fault])
    try:
        failed = forge.draw({})
    finally:
        forge.inside(HEAL)
    assert forge.inside(HOOKS) == clean
    assert failed.pixels == plain.pixels
    assert failed.value("Decouple stood aside")
    assert forge.draw().pixels == plain.pixels


TIGHT = """
import resource
from pathlib import Path
from lib_decouple.core.gradient import LossGradient
kept["gradient"] = LossGradient.__call__
def gradient(self, *args, **kwargs):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, hard))
    try:
        return kept["gradient"](self, *args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
LossGradient.__call__ = gradient
result = True
"""
WIDE = """
import gc
from lib_decouple.core.gradient import LossGradient
LossGradient.__call__ = kept["gradient"]
result = sum(type(one).__name__ == "OrdinaryTensors" for one in gc.get_objects())
"""


def test_a_run_that_does_not_fit_delivers_the_host_s_image(forge):
    """The operating system really refuses the memory; what the gradient had taken is free again."""
    size = {"width": 448, "height": 448, "steps": 2}  # smaller ones fit into what the process holds already
    host_s = forge.draw(**size)
    forge.inside(TIGHT)
    try:
        picture = forge.draw({}, **size)
    finally:
        kept = forge.inside(WIDE)
    assert picture.pixels == host_s.pixels
    assert "out of memory" in picture.value("Decouple stood aside")
    assert kept == 0


FOREIGN = """
import torch
from modules import shared
unet = shared.sd_model.forge_objects.unet
class IntegratedFluxTransformer2DModel(torch.nn.Module):
    pass
from lib_decouple.hosts import forge
kept["fault"] = (forge.SamplingPass, "unet", forge.SamplingPass.unet)
forge.SamplingPass.unet = lambda self: IntegratedFluxTransformer2DModel()
result = True
"""


def test_a_transformer_with_joint_attention_stands_aside_with_a_sentence(forge, plain):
    forge.inside(FOREIGN)
    try:
        picture = forge.draw({})
    finally:
        forge.inside(HEAL)
    assert picture.pixels == plain.pixels
    assert "this model can't be guided" in picture.value("Decouple stood aside")
    assert "(Flux, SD 3, Chroma) can't" in picture.value("Decouple stood aside")
