"""Run inside the WebUI by the probe: where does a sampler carry a change of its latents?

The denoiser is replaced by a constant; one run is left alone, in each other one the latents are moved by a
length of 1, in place, at one call. Expects SAMPLER and STEPS; leaves the sampler function's name and, for each
moved call, how far apart the latents are at every later call.
"""

import torch
from modules import processing, sd_samplers_cfg_denoiser, shared
from modules.call_queue import queue_lock


def latents_at_calls(moved_call):
    seen, names = [], []
    whole = sd_samplers_cfg_denoiser.CFGDenoiser.forward

    def forward(self, x, sigma, **kwargs):
        seen.append(x.clone())
        names.append(self.sampler.func.__name__)
        if len(seen) - 1 == moved_call:
            x += torch.ones_like(x) / x.numel() ** 0.5
        self.last_noise_uncond = torch.zeros_like(x)  # DDIM CFG++ takes it besides what forward returns
        denoised = torch.full_like(x, 0.1)
        for look in kwargs.get("model_options", {}).get("sampler_post_cfg_function", ()):  # Neo's CFG++ do so
            look({"denoised": denoised, "uncond_denoised": denoised})
        return denoised

    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt="a", seed=3, sampler_name=SAMPLER, steps=STEPS, width=96, height=96,  # noqa: F821
        do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    sd_samplers_cfg_denoiser.CFGDenoiser.forward = forward
    try:
        processing.process_images(p)
    finally:
        sd_samplers_cfg_denoiser.CFGDenoiser.forward = whole
    return seen, names[0]


with queue_lock:  # another job's calls would be recorded, too
    plain, function = latents_at_calls(None)
    moves = [latents_at_calls(call)[0] for call in range(len(plain))]
later = [
    [round(float((a - b).norm()), 5) for a, b in zip(moved[call + 1 :], plain[call + 1 :])]
    for call, moved in enumerate(moves)
]
result = {"function": function, "later": later}
