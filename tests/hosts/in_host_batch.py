"""Run inside the WebUI by the probe: a job with a prompt of its own for each image, as dynamic-prompts makes them.

Expects PROMPTS and BATCH in its scope; leaves the infotexts in ``result``.
"""

from modules import processing, scripts, shared
from modules.call_queue import queue_lock

runner = scripts.scripts_txt2img
args = [None] * max(s.args_to for s in runner.scripts)
args[0] = 0
for other in runner.alwayson_scripts:
    if other.controls:
        args[other.args_from : other.args_to] = [control.value for control in other.controls]
    if other.title() == "Attention Decoupling":
        args[other.args_from] = {"enabled": True, "steps": 2}
p = processing.StableDiffusionProcessingTxt2Img(
    sd_model=shared.sd_model,
    prompt=PROMPTS,  # noqa: F821
    seed=3,
    sampler_name="Euler",
    steps=6,
    cfg_scale=3.0,
    width=96,
    height=96,
    batch_size=BATCH,  # noqa: F821
    n_iter=len(PROMPTS) // BATCH,  # noqa: F821
    do_not_save_samples=True,
    do_not_save_grid=True,
)
p.is_api = True  # or the host's own controls would set sampler, steps and seed
p.scripts, p.script_args = runner, args
with queue_lock:
    processed = processing.process_images(p)
result = processed.infotexts[processed.index_of_first_image :]
