"""Run inside the WebUI by the probe: a guided job that draws another within, as ADetailer does after each image.

ADetailer copies the job as img2img with the same scripts, or some of them, and runs ``process_images`` from
``postprocess_image``. Expects INNER, the arguments of ours for the job within (None: without our script);
leaves infotexts and pixels of the outer job, of the inner, and of the inner's like run alone.
"""

import copy
import hashlib

from modules import processing, scripts, shared
from modules.call_queue import queue_lock

runner = scripts.scripts_txt2img
script = next(s for s in runner.alwayson_scripts if s.title() == "Attention Decoupling")


def arguments(given):
    args = [None] * max(s.args_to for s in runner.scripts)
    args[0] = 0
    for other in runner.alwayson_scripts:
        if other.controls:
            args[other.args_from : other.args_to] = [control.value for control in other.controls]
    args[script.args_from] = given
    return args


def job(kind, given, **more):
    p = kind(
        sd_model=shared.sd_model, prompt="a cat and a dog", seed=3, sampler_name="Euler", steps=6, cfg_scale=3.0,
        width=96, height=96, do_not_save_samples=True, do_not_save_grid=True, **more,
    )  # fmt: skip
    p.is_api = True
    p.scripts, p.script_args = copy.copy(runner), arguments(given)
    if given is None:
        p.scripts.alwayson_scripts = [s for s in runner.alwayson_scripts if s is not script]
    return p


def digest(image):
    return hashlib.md5(image.convert("RGB").tobytes()).hexdigest()


def img2img(image, given):
    p = job(processing.StableDiffusionProcessingImg2Img, given, init_images=[image], denoising_strength=0.6)
    made = processing.process_images(p)
    return {"infotext": made.infotexts[0], "pixels": digest(made.images[0])}


def outer(within):
    """The outer job; ``within(image)`` runs after its image."""
    p = job(processing.StableDiffusionProcessingTxt2Img, {"enabled": True, "size": 0.3})
    found = []

    def after(self, p, pp, *args):
        found.append((pp.image.copy(), within(pp.image) if within else None))

    detailer = type("Detailer", (scripts.Script,), {"title": lambda self: "detailer", "postprocess_image": after})()
    detailer.args_from = detailer.args_to = 0
    p.scripts.alwayson_scripts = [*p.scripts.alwayson_scripts, detailer]
    for name in ("ordered_callbacks_map", "callback_map"):
        if hasattr(p.scripts, name):
            setattr(p.scripts, name, {})
    made = processing.process_images(p)
    return {"infotext": made.infotexts[0], "pixels": digest(made.images[0])}, found[0]


with queue_lock:
    alone, (image, _) = outer(None)
    around, (_, inner) = outer(lambda made: img2img(made, INNER))  # noqa: F821
    like = img2img(image, INNER)  # noqa: F821
    hooks = sum(
        len(m._forward_pre_hooks) + len(m._forward_hooks) for m in shared.sd_model.model.diffusion_model.modules()
    )
result = {"alone": alone, "around": around, "inner": inner, "like": like, "hooks": hooks}
