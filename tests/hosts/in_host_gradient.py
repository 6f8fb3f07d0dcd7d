"""Run inside the WebUI by the probe: the product's gradients in a real job, against central differences of its loss.

Expects in its scope GIVEN (attributes of the job), DECOUPLE (named arguments), EXTENSIONS (title -> first arguments),
PREPARE (code, or "") and H (the differences' lengths over the latents'). For each guided step: the slope along the
gradient by differences, over the gradient's norm (1 is exact), of two lengths extrapolated to none (Richardson), as an
error of such a difference grows with its square. The loss is to be smooth, or kinks spoil it.
"""

import torch  # noqa: F401 - for what PREPARE runs
from modules import processing, scripts, shared
from modules.call_queue import queue_lock

from lib_decouple.core.gradient import LossGradient

whole = LossGradient.__call__
slopes = []


def gradient(self, latents, images, run, *more):
    found = whole(self, latents, images, run, *more)
    slope = found.gradient
    length = slope.norm()

    def loss(x):
        return float(self.look(x, images, run)[0].double().sum())

    def by_difference(h):
        move = slope / length * latents.norm() * h
        return (loss(latents + move) - loss(latents - move)) / (2 * float(move.norm())) / float(length)

    measured = [by_difference(h) for h in H]  # noqa: F821
    if len(measured) == 2:
        (short, far), (near, off) = [h**2 for h in H], measured  # noqa: F821
        measured = [(far * near - short * off) / (far - short)]
    slopes.extend(measured)
    return found


if PREPARE:  # noqa: F821
    exec(PREPARE)  # noqa: F821 - leaves ``prepare``: the host's patched UNet -> the one to sample with
runner = scripts.scripts_txt2img
args = [None] * max(s.args_to for s in runner.scripts)
args[0] = 0
for other in runner.alwayson_scripts:
    if other.controls:
        args[other.args_from : other.args_to] = [control.value for control in other.controls]
    if other.title() in EXTENSIONS:  # noqa: F821
        theirs = EXTENSIONS[other.title()]  # noqa: F821
        args[other.args_from : other.args_from + len(theirs)] = theirs
    if other.title() == "Attention Decoupling":
        args[other.args_from] = {"enabled": True, "loss": "com(form=negative)", "steps": 2, **DECOUPLE}  # noqa: F821
given = {"prompt": "a cat and a dog", "seed": 3, "sampler_name": "Euler", "steps": 4, "cfg_scale": 3.0, "width": 128}
given |= {"height": 128, "do_not_save_samples": True, "do_not_save_grid": True, **GIVEN}  # noqa: F821
p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model, **given)
p.is_api = True  # or the host's own controls would set sampler, steps and seed
p.scripts, p.script_args = runner, args
hook = runner.process_before_every_sampling


def before_every_sampling(p, *args, **kwargs):
    if PREPARE:  # noqa: F821
        p.sd_model.forge_objects.unet = prepare(p.sd_model.forge_objects.unet)  # noqa: F821
    return hook(p, *args, **kwargs)


LossGradient.__call__, runner.process_before_every_sampling = gradient, before_every_sampling
try:
    with queue_lock:
        processed = processing.process_images(p)
finally:
    LossGradient.__call__ = whole
    del runner.process_before_every_sampling
result = {"slopes": slopes, "info": processed.infotexts[0]}
