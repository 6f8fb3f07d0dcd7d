"""Run inside the WebUI by the probe: one picture by the product, one by a reference that shares no code with it.

The reference takes the full conditional pass with its own explicit attention and its loss written out, and steps
the latents before ``CFGDenoiser.forward``. "apart" compares the latents of two runs left to themselves at every
call; "forced" those after each update when the product's run is set on the reference's latents at every call, so
that each update is compared from the same point; "rounding" is as "forced", but of the reference whose latents are
moved by a ten-millionth at every call: what one float32 rounding makes of an update there; "own" compares the reference
to itself, its first latents moved by a millionth: what rounding alone grows to. All are largest absolute differences.
Expects SAMPLER, STEPS, SIZE, LOSS ("com" or "iou") and SHARE in its scope; leaves ``result``.
"""

import contextlib
import copy

import torch
from modules import processing, prompt_parser, scripts, sd_samplers_cfg_denoiser, shared
from modules.call_queue import queue_lock

ANIMA = type(shared.sd_model).__name__ == "Anima"
# "a cat and a dog": start, a, cat, and, a, dog; of T5, which has no start: blank, a, cat, and, blank, a, dog
POSITIONS = {"cat": 2, "dog": 6 if ANIMA else 5}
GUIDED = 6
STEPS_OF = {"PLMS": lambda call: None if call == 1 else max(0, call - 1)}  # it asks twice at the first step


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
    loss = {"com": "com(form=negative)", "iou": "iou"}[LOSS]  # noqa: F821
    given = {"loss": loss, "entities": ["cat", "dog"], "size": SHARE, "steps": GUIDED}  # noqa: F821
    given["layers"] = "middle" if ANIMA else "all"
    args[script.args_from] = {"enabled": True, **given}
    return args


def run(script_args, guide=None, forced=()):
    """Latents that ``CFGDenoiser.forward`` meets at each call, and the last ones.

    With ``forced`` it goes on from those latents instead.
    """
    seen = []
    whole = sd_samplers_cfg_denoiser.CFGDenoiser.forward

    def forward(self, x, sigma, **kwargs):
        if guide:
            guide(self, x, sigma, len(seen), **kwargs)
        seen.append(x.detach().clone())
        if forced:
            x.copy_(forced[len(seen) - 1])
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


FORGE = hasattr(shared.sd_model, "forge_objects")
ordinary = []


def network():
    """A1111's UNet; of Forge's, whose weights are inference tensors and which adds in place, an ordinary copy."""
    if not FORGE:
        return shared.sd_model.model.diffusion_model
    if not ordinary:
        with torch.inference_mode(False):
            ordinary.append(copy.deepcopy(shared.sd_model.forge_objects.unet.model.diffusion_model).float())
    return ordinary[0]


def conditional_pass(denoiser, x, sigma, tensor, image_cond):
    if not FORGE:
        return denoiser.inner_model(x, sigma, cond={"c_crossattn": [tensor], "c_concat": [image_cond]})
    if denoiser.classic_ddim_eps_estimation:  # scaled latents at a timestep
        return network()(x, sigma.clone().round(), context=tensor.clone())  # UniPC's lie between; the host rounds
    time = shared.sd_model.forge_objects.unet.model.predictor.timestep(sigma).clone().float()
    if ANIMA:  # a rectified flow takes its latents as they are
        return network()(x, time, context=tensor.clone())
    return network()(x / (sigma.clone() ** 2 + 1).sqrt()[:, None, None, None], time, context=tensor.clone())


def reference(denoiser, x, sigma, call, cond, image_cond, **_):
    step = STEPS_OF.get(SAMPLER, lambda call: call)(call)  # noqa: F821
    if step is None or step >= GUIDED:
        return
    unet = network()
    layers = [unet.blocks[1].cross_attn] if ANIMA else [m for n, m in unet.named_modules() if n.endswith("attn2")]
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

        def attend_in_anima(hidden, context, **kwargs):
            b, n, _ = hidden.shape

            def heads(projection, x, norm=None):
                y = projection(x.reshape(b, -1, x.shape[-1])).view(b, -1, layer.n_heads, layer.head_dim).transpose(1, 2)
                return y if norm is None else y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

            q, k = heads(layer.q_proj, hidden, layer.q_norm), heads(layer.k_proj, context, layer.k_norm)
            weights = torch.softmax(q @ k.transpose(2, 3) / layer.head_dim**0.5, dim=-1)
            maps.append(weights.mean(1))
            return layer.output_proj((weights @ heads(layer.v_proj, context)).transpose(1, 2).reshape(b, n, -1))

        return attend_in_anima if ANIMA else attend

    def turned(q, k, rotation):  # what Anima's self-attention calls an operator without a backward for
        return tuple(
            (rotation[..., 0] * x[..., : x.shape[-1] // 2, None] + rotation[..., 1] * x[..., x.shape[-1] // 2 :, None])
            .transpose(-1, -2)
            .flatten(-2)
            for x in (q, k)
        )

    for layer in layers:
        before[layer] = layer.__dict__.get("forward")
        layer.forward = explicit(layer)
    for q in parameters:
        q.requires_grad_(False)
    try:
        with contextlib.ExitStack() as stack:
            if FORGE:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            stack.enter_context(torch.enable_grad())
            if ANIMA:
                from unittest import mock

                stack.enter_context(mock.patch("comfy_kitchen.apply_rope_split_half", turned))
            leaf = x.detach().clone().requires_grad_()
            _, tensor = prompt_parser.reconstruct_multicond_batch(cond, denoiser.step)
            conditional_pass(denoiser, leaf, sigma, tensor, image_cond)
            sizes = {m.shape[1] for m in maps}
            if len(sizes) > 1:  # of several levels, that at a quarter of the latents' side, or else the finest
                quarter = (x.shape[-1] // 4) ** 2
                maps[:] = [m for m in maps if m.shape[1] == (quarter if quarter in sizes else max(sizes))]
            mean = torch.stack(maps).mean(0)[0]
            side = int(mean.shape[0] ** 0.5)
            shares = []
            for token in POSITIONS.values():
                share = mean[:, token].view(side, side) + 1e-8
                shares.append(share / share.sum())
            if LOSS == "iou":  # noqa: F821
                loss = torch.minimum(*shares).sum() / (shares[0] + shares[1]).sum()
            else:
                at = (torch.arange(side, device=mean.device) + 0.5) / side
                centres = [torch.stack([(s.sum(1) * at).sum(), (s.sum(0) * at).sum()]) for s in shares]
                loss = -(centres[0] - centres[1]).square().sum().sqrt()
            (gradient,) = torch.autograd.grad(loss, leaf)
    finally:
        for q in parameters:
            q.requires_grad_(True)
        for layer in layers:
            del layer.forward
            if before[layer] is not None:
                layer.forward = before[layer]
    share = SHARE * 2 * (GUIDED - step) / (GUIDED * (GUIDED + 1))  # noqa: F821
    x -= gradient / gradient.norm() * share * x.norm()


def moved(x, share):
    x += share * x.abs().max() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


def perturbed(denoiser, x, sigma, call, **given):
    if call == 0:
        moved(x, 1e-6)
    reference(denoiser, x, sigma, call, **given)


def rounded(denoiser, x, sigma, call, **given):
    moved(x, 1e-7)
    reference(denoiser, x, sigma, call, **given)


def apart(one, other):
    return [float((a - b).abs().max()) for a, b in zip(one, other)]


with queue_lock:  # another job's calls would be recorded, too
    theirs, ours, plain = run(None, reference), run(product_args()), run(None)
    forced, again = run(product_args(), forced=theirs), run(None, perturbed)
    rounding = run(None, rounded, forced=theirs)
result = {
    "calls": [len(ours), len(theirs), len(plain), len(forced)],
    "largest": [float(x.abs().max()) for x in theirs],
    "apart": apart(ours, theirs),
    "forced": apart(forced, theirs),
    "rounding": apart(rounding, theirs),
    "own": apart(again, theirs),
    "moved": apart(ours, plain)[-1],
}
