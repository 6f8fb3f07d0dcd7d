"""What users put into jobs of a real AUTOMATIC1111, and what goes on around them; see conftest.py."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest

HERE = Path(__file__).parent
LORA = """
import os, torch
from safetensors.torch import save_file
from modules import shared
target = shared.sd_model.model.diffusion_model
parts, generator = {}, torch.Generator().manual_seed(5)
for name, module in target.named_modules():
    if name.endswith(("attn2.to_k", "attn2.to_q")):
        key = "lora_unet_" + name.replace(".", "_")
        parts[key + ".lora_down.weight"] = torch.randn(4, module.weight.shape[1], generator=generator)
        parts[key + ".lora_up.weight"] = torch.randn(module.weight.shape[0], 4, generator=generator) * 0.05
        parts[key + ".alpha"] = torch.tensor(4.0)
os.makedirs(shared.cmd_opts.lora_dir, exist_ok=True)
save_file(parts, os.path.join(shared.cmd_opts.lora_dir, "decouple-test.safetensors"))
result = len(parts)
"""
EMBEDDING = """
import os, torch
from safetensors.torch import save_file
from modules import sd_hijack, shared
os.makedirs(shared.cmd_opts.embeddings_dir, exist_ok=True)
words = shared.sd_model.cond_stage_model.wrapped.transformer.text_model.embeddings.token_embedding.wrapped
dog = words.weight[shared.sd_model.cond_stage_model.tokenizer("dog")["input_ids"][1]].detach()
path = os.path.join(shared.cmd_opts.embeddings_dir, "decoupledog.safetensors")
save_file({"emb_params": torch.stack([dog, dog * 0.9]).clone()}, path)
sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
result = "decoupledog" in sd_hijack.model_hijack.embedding_db.word_embeddings
"""
STYLE = """
from modules import shared
from modules.styles import PromptStyle
shared.prompt_styles.styles["decouple-test"] = PromptStyle("decouple-test", "{prompt} and a bird", "", None)
result = True
"""
STATUS = """
from modules import scripts
script = next(s for s in scripts.scripts_txt2img.alwayson_scripts if s.title() == "Attention Decoupling")
result = list(type(script).process.__globals__["jobs"].told.values())[-1].lines
"""
CHECKPOINTS = ("tiny-inpainting", "small-sd2-base", "small-sd2-v", "small-sdxl")


@pytest.fixture(scope="module")
def plain(host):
    """The host's own picture."""
    return host.draw()


def test_lora_applied_changed_and_removed(host, plain):
    assert host.inside(LORA) > 0
    host.post("/sdapi/v1/refresh-loras", {})
    full, half = (f"a cat and a dog <lora:decouple-test:{weight}>" for weight in (1, 0.5))
    given = {"entities": ["cat", "dog"], "size": 0.3}
    unguided = host.draw(prompt=full)
    assert unguided.pixels != plain.pixels
    guided = host.draw(given, prompt=full)
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != unguided.pixels
    assert host.draw(prompt=full).pixels == unguided.pixels
    changed = host.draw(given, prompt=half)
    assert changed.value("Decouple stood aside") is None
    assert changed.pixels != guided.pixels
    # Guided first under another weight, then plainly: nothing of the gradient's pass stays in the weights.
    assert host.draw(given).pixels == host.draw(given).pixels
    assert host.draw().pixels == plain.pixels
    assert host.draw(prompt=full).pixels == unguided.pixels
    assert host.draw().pixels == plain.pixels


def test_textual_inversion_is_an_entity(host):
    assert host.inside(EMBEDDING)
    given = {"prompt": "a cat and a decoupledog"}
    guided = host.draw({"entities": ["cat", "decoupledog"], "size": 0.3}, **given)
    assert guided.value("Decouple stood aside") is None
    assert guided.value("Decouple found") == "cat, decoupledog"
    assert guided.pixels != host.draw(**given).pixels


def test_a_style_adds_its_entities(host):
    assert host.inside(STYLE)
    guided = host.draw({}, styles=["decouple-test"])
    assert guided.value("Decouple found") == "cat, dog, bird"
    assert guided.value("Decouple stood aside") is None


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_switched_in_the_session(host, plain, name):
    known = [entry["model_name"] for entry in host.get("/sdapi/v1/sd-models")]
    if name not in known:
        pytest.skip(f"the WebUI has no checkpoint {name}; tests/hosts/a1111_checkpoints.py makes it")
    size = {"width": 128, "height": 128, "steps": 4} if name.startswith("small") else {}
    host.post("/sdapi/v1/options", {"sd_model_checkpoint": name, "show_progress_type": "Approx cheap"})
    try:
        unguided, guided = host.draw(**size), host.draw({"size": 0.3}, **size)
        assert f"Model: {name}" in guided.infotexts[0]
        assert guided.value("Decouple stood aside") is None
        assert guided.value("Decouple found") == "cat, dog"
        assert guided.pixels != unguided.pixels
        assert host.draw(**size).pixels == unguided.pixels
    finally:
        host.post("/sdapi/v1/options", {"sd_model_checkpoint": "decouple-drawn"})
    assert host.draw().pixels == plain.pixels


def test_refiner_takes_over_within_the_guided_steps(host, plain):
    known = [entry["model_name"] for entry in host.get("/sdapi/v1/sd-models")]
    if "tiny-other" not in known:
        pytest.skip("the WebUI has no checkpoint tiny-other; tests/hosts/a1111_checkpoints.py makes it")
    given = {"refiner_checkpoint": "tiny-other", "refiner_switch_at": 0.4, "steps": 10}
    unguided, guided = host.draw(**given), host.draw({"steps": 8, "size": 0.3}, **given)
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != unguided.pixels
    assert host.draw(**given).pixels == unguided.pixels
    assert unguided.pixels != host.draw(steps=10).pixels
    assert host.draw().pixels == plain.pixels


def passes_told(host):
    """Passes of the model beside the sampler's own in the last job, as its status says."""
    return int(re.search(r"(\d+) to guide", host.inside(STATUS)[-1])[1])


def test_interrupt_within_a_guided_step(host, plain):
    endless = {"refine_steps": [0], "refine_rounds": 100, "refine_threshold": -1000.0, "size": 0.1}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(host.draw, endless, steps=20)
        for _ in range(600):
            if host.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job_count"] > 0:
                break
            time.sleep(0.02)
        time.sleep(0.3)
        host.post("/sdapi/v1/interrupt", {})
        job.result()
    passes = passes_told(host)
    assert 0 < passes < 100
    assert host.draw().pixels == plain.pixels


def test_skip_leaves_the_next_image_of_the_job_guided(host, plain):
    endless = {"refine_steps": [0], "refine_rounds": 100, "refine_threshold": -1000.0, "size": 0.1}
    host.draw(endless)
    whole = passes_told(host)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(host.draw, endless, n_iter=2)
        for _ in range(600):
            if host.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job_count"] > 0:
                break
            time.sleep(0.02)
        time.sleep(0.3)
        host.post("/sdapi/v1/skip", {})
        picture = job.result()
    assert picture.value("Decouple found", -1) == "cat, dog"
    passes = passes_told(host)
    assert 100 < passes < 2 * whole
    assert host.draw().pixels == plain.pixels


def test_progress_and_live_preview_go_on(host):
    host.post("/sdapi/v1/options", {"show_progress_every_n_steps": 1, "show_progress_type": "Approx cheap"})
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(host.get("/sdapi/v1/progress"))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        host.draw({"steps": 40, "size": 0.3}, steps=60)
    finally:
        done.set()
        watcher.join()
    assert max(entry["progress"] for entry in seen) > 0.3
    assert any(entry["current_image"] for entry in seen)


def test_two_jobs_queued_come_out_as_alone(host):
    asked = [({"size": 0.3}, {"seed": 11}), (None, {"seed": 12}), ({"loss": "iou", "size": 0.2}, {"seed": 13})]
    alone = [host.draw(ours, **given).pixels for ours, given in asked]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: host.draw(one[0], **one[1]).pixels, asked))
    assert together == alone


def test_the_client_that_users_have(host):
    webuiapi = pytest.importorskip("webuiapi", reason="the client webuiapi is not installed")
    from PIL import Image

    address = urlparse(host.url)
    client = webuiapi.WebUIApi(host=address.hostname, port=address.port, sampler="Euler", steps=6)
    args = [{"enabled": True, "loss": "iou", "steps": 3, "entities": ["cat", "dog"]}]
    given = {"prompt": "a cat and a dog", "seed": 3, "cfg_scale": 3, "width": 96, "height": 96}
    ours = {"attention decoupling": {"args": args}}
    made = client.txt2img(**given, alwayson_scripts=ours)
    assert made.image.convert("RGB").tobytes() == host.draw(args[0]).pixels[0]
    changed = client.img2img(images=[made.image], denoising_strength=0.7, **given, alwayson_scripts=ours)
    assert "Decouple found: " in changed.info["infotexts"][0]
    assert isinstance(changed.image, Image.Image)
    with pytest.raises(RuntimeError, match=r"422.*loss: .*iuo.* is not one of"):
        client.txt2img(**given, alwayson_scripts={"attention decoupling": {"args": [{"enabled": True, "loss": "iuo"}]}})


@pytest.mark.parametrize("inner", [{"enabled": True, "size": 0.2, "loss": "iou"}, {"enabled": False}, None])
def test_a_job_within_a_job(host, plain, inner):
    found = host.inside((HERE / "in_host_nested.py").read_text(), INNER=inner)
    assert found["around"] == found["alone"]
    assert found["inner"] == found["like"]
    assert "Decouple moved" in found["around"]["infotext"]
    assert ("Decouple moved" in found["inner"]["infotext"]) == bool(inner and inner["enabled"])
    assert "stood aside" not in found["inner"]["infotext"]
    assert found["hooks"] == 0
    assert host.draw().pixels == plain.pixels


def test_another_extension_has_replaced_the_forward_of_the_unet(host, plain):
    patch = """
from modules import shared
unet = shared.sd_model.model.diffusion_model
kept["forward"] = unet.forward
kept["calls"] = []
def forward(x, timesteps=None, context=None, **kwargs):
    kept["calls"].append(len(x))
    return kept["forward"](x, timesteps, context, **kwargs) * 1.01
unet.forward = forward
result = True
"""
    back = """
from modules import shared
unet = shared.sd_model.model.diffusion_model
theirs = unet.forward.__name__ == "forward" and unet.__dict__["forward"].__module__ != unet.__class__.__module__
unet.forward = kept["forward"]
result = [kept["calls"], theirs]
"""
    host.inside(patch)
    try:
        patched, guided = host.draw(), host.draw({"size": 0.3})
        passes = passes_told(host)
        assert host.draw().pixels == patched.pixels
    finally:
        calls, theirs = host.inside(back)
    assert theirs
    assert patched.pixels != plain.pixels
    assert guided.value("Decouple stood aside") is None
    assert guided.pixels != patched.pixels
    # Three plain calls of two rows for each of six steps; three guided passes and the looks taken, of one row.
    assert passes > 3
    assert sorted(calls) == [1] * passes + [2] * 18
    assert host.draw().pixels == plain.pixels
