"""Run inside the WebUI by the probe: one picture by the product, one by a reference that shares no code with it.

The reference takes the full conditional pass with its own explicit attention and the distance of the two
centres of mass written out, and steps the latents before ``CFGDenoiser.forward``. That loss is smooth and
its gradient does not fade; otherwise rounding grows from step to step. "apart" is relative to the largest latent.
Expects SAMPLER, STEPS and SIZE in its scope; leaves ``result``.
"""

import torch
from modules import processing, prompt_parser, scripts, sd_samplers_cfg_denoiser, shared
from modules.call_queue import queue_lock

POSITIONS = {"cat": 2, "dog": 5}  # "a cat and a dog": start, a, cat, and, a, dog
SHARE = 0.02  # more, and rounding grows from step to step: the gradient is taken of a trained, steep model


def job(script_args):
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model,
        prompt="a cat and a dog",
        negative_prompt="",
        seed=3,
        sampler_name=SAMPLER,  # noqa: F821
        steps=STEPS,  # noqa: F821
        cfg_scale=3.0,
        width=SIZE,  # noqa: F821
        height=SIZE,  # noqa: F821
        do_not_save_samples=True,
        do_not_save_grid=True,
    )
    p.is_api = True  # or the host's own controls would set sampler, steps and seed
    p.scripts = scripts.scripts_txt2img if script_args else None
    p.script_args = script_args or ()
    return p


def product_args():
    runner = scripts.scripts_txt2img
    script = next(s for s in runner.alwayson_scripts if s.title() == "Attention Decoupling")
    args = [None] * max(s.args_to for s in runner.scripts)
    args[0] = 0
    for other in runner.alwayson_scripts:
        if other.controls:
            args[other.args_from : other.args_to] = [control.value for control in other.controls]
    given = {"loss": "com(form=negative)", "entities": ["cat", "dog"], "size": SHARE, "steps": 6, "layers": "all"}
    args[script.args_from] = {"enabled": True, **given}
    return args


def run(script_args, guide=None):
    """Latents that ``CFGDenoiser.forward`` meets at each call, and the last ones."""
    seen = []
    whole = sd_samplers_cfg_denoiser.CFGDenoiser.forward

    def forward(self, x, sigma, **kwargs):
        if guide:
            guide(self, x, sigma, len(seen), **kwargs)
        seen.append(x.detach().clone())
        return whole(self, x, sigma, **kwargs)

    sd_samplers_cfg_denoiser.CFGDenoiser.forward = forward
    decoded = processing.decode_latent_batch

    def last(model, batch, *args, **kwargs):
        seen.append(batch.detach().clone())
        return decoded(model, batch, *args, **kwargs)

    processing.decode_latent_batch = last
    try:
        processing.process_images(job(script_args))
    finally:
        sd_samplers_cfg_denoiser.CFGDenoiser.forward = whole
        processing.decode_latent_batch = decoded
    return seen


def reference(denoiser, x, sigma, call, cond, image_cond, **_):
    if call >= 6:
        return
    unet = shared.sd_model.model.diffusion_model
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    maps, before = [], {}
    parameters = [q for q in unet.parameters() if q.requires_grad]

    def explicit(layer):
        def attend(hidden, context=None, mask=None, **kwargs):
            b, n, _ = hidden.shape
            q = layer.to_q(hidden).view(b, n, layer.heads, -1).transpose(1, 2)
            k = layer.to_k(context).view(b, context.shape[1], layer.heads, -1).transpose(1, 2)
            v = layer.to_v(context).view(b, context.shape[1], layer.heads, -1).transpose(1, 2)
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
            maps.append(weights.mean(1))
            return layer.to_out((weights @ v).transpose(1, 2).reshape(b, n, -1))

        return attend

    for layer in layers:
        before[layer] = layer.__dict__.get("forward")
        layer.forward = explicit(layer)
    for q in parameters:
        q.requires_grad_(False)
    try:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            _, tensor = prompt_parser.reconstruct_multicond_batch(cond, denoiser.step)
            denoiser.inner_model(leaf, sigma, cond={"c_crossattn": [tensor], "c_concat": [image_cond]})
            mean = torch.stack(maps).mean(0)[0]
            side = int(mean.shape[0] ** 0.5)
            at = (torch.arange(side) + 0.5) / side
            centres = []
            for token in POSITIONS.values():
                share = mean[:, token].view(side, side) + 1e-8
                share = share / share.sum()
                centres.append(torch.stack([(share.sum(1) * at).sum(), (share.sum(0) * at).sum()]))
            loss = -(centres[0] - centres[1]).square().sum().sqrt()
            (gradient,) = torch.autograd.grad(loss, leaf)
    finally:
        for q in parameters:
            q.requires_grad_(True)
        for layer in layers:
            del layer.forward
            if before[layer] is not None:
                layer.forward = before[layer]
    share = SHARE * 2 * (6 - call) / (6 * 7)
    x -= gradient / gradient.norm() * share * x.norm()


with queue_lock:  # another job's calls would be recorded, too
    ours, theirs, plain = run(product_args()), run(None, reference), run(None)
result = {
    "calls": [len(ours), len(theirs), len(plain)],
    "apart": [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs)],
    "moved": float((ours[-1] - plain[-1]).abs().max()),
    "scale": float(theirs[-1].abs().max()),
}
