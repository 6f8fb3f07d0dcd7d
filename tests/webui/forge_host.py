"""A stand-in of Forge's calling order around the real UNet of ``ldm``: weights and images in inference mode,
residuals added in place, uncond rows first, ``AND`` parts reversed, sampling on a patched clone."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

import lib_decouple.hosts

from . import host

KEPT = torch.linspace(0.999, 0.005, 1000)
"""The cumulative product of alphas, by timestep."""


def add_in_place(block: Any) -> None:
    """A transformer block's residuals as Forge writes them: of its class, no function put into a module by others."""

    def forward(block, x, context=None):
        x += block.attn1(block.norm1(x))
        x += block.attn2(block.norm2(x), context=context)
        x += block.ff(block.norm3(x))
        return x

    block.__class__ = type(type(block).__name__, (type(block),), {"forward": forward})


def make_unet(kind: Any, **given: Any) -> Any:
    """``kind`` (``ldm``'s UNetModel) called as Forge calls its own, in inference mode."""

    class UNet(kind):
        def forward(self, x, timesteps, context=None, control=None, transformer_options=None, y=None):
            for net in control or ():
                x = x + net
            return super().forward(x, timesteps, context=context, y=y)

    torch.manual_seed(0)
    with torch.inference_mode():
        made = UNet(**given).eval()
        for parameter in made.parameters():  # ldm starts its output layers at zero
            torch.nn.init.normal_(parameter, std=0.2)
        for module in made.modules():
            if type(module).__name__ == "BasicTransformerBlock":
                add_in_place(module)
    return made


def cast_at_each_call(unet: Any, kept: torch.dtype) -> None:
    """Weights are kept in ``kept``, and each call makes a copy in its input's dtype (``weights_manual_cast``).

    A dtype stands for a device, too: where the weights are elsewhere the host's copy fetches them.
    """
    with torch.inference_mode():
        for module in unet.modules():
            for kind, operation in OPERATIONS.items():
                if isinstance(module, kind):
                    module.to(kept)
                    module.__class__ = type(type(module).__name__, (type(module),), {"forward": operation})


def _own(module: Any, x: torch.Tensor) -> tuple[Any, Any]:
    return module.weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype)


OPERATIONS: dict[type, Any] = {
    torch.nn.Linear: lambda module, x: functional.linear(x, *_own(module, x)),
    torch.nn.Conv2d: lambda module, x: module._conv_forward(x, *_own(module, x)),
    torch.nn.LayerNorm: lambda module, x: functional.layer_norm(x, module.normalized_shape, *_own(module, x)),
    torch.nn.GroupNorm: lambda module, x: functional.group_norm(x, module.num_groups, *_own(module, x), module.eps),
}
"""``ForgeOperations``."""


class Model:
    """KModel: denoised latents from noisy ones."""

    storage_dtype = computation_dtype = torch.float32

    def __init__(self, unet: Any) -> None:
        self.diffusion_model = unet
        self.predictor = SimpleNamespace(
            noise_scaling=lambda sigma, noise, latent, max_denoise=False: latent + noise * sigma
        )

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        scale = (t**2 + 1).sqrt()[:, None, None, None]
        dtype = getattr(self, "computation_dtype", torch.float32)  # the Forges built on ldm_patched have none
        eps = self.diffusion_model(
            (x / scale).to(dtype),
            t.log() * 250 + 500,
            context=c_crossattn.to(dtype),
            control=control,
            transformer_options=transformer_options,
        ).float()
        return x - eps * t[:, None, None, None]

    def memory_required(self, shape):
        return 2.0 * shape[0] * shape[2] * shape[3]


class Patcher:
    """UnetPatcher."""

    load_device = torch.device("cpu")

    def __init__(self, model: Model) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.extra_preserved_memory_during_sampling = 0
        self.controlnet_linked_list = self.extra_concat_condition = None
        self.online_lora = False

    def clone(self):
        made = copy.copy(self)
        made.model_options = copy.deepcopy(self.model_options)
        return made

    def add_extra_preserved_memory_during_sampling(self, memory_in_bytes):
        self.extra_preserved_memory_during_sampling += memory_in_bytes

    def has_online_lora(self):
        return self.online_lora

    def list_controlnets(self):
        found, net = [], self.controlnet_linked_list
        while net is not None:
            found.append(net)
            net = net.previous_controlnet
        return found


class ControlNet:
    """Adds its hint to what the UNet sees; keeps what it prepared for the last rows it saw, as Forge's does."""

    previous_controlnet = None

    def __init__(self, hint: torch.Tensor) -> None:
        self.cond_hint_original, self.cond_hint = hint, None

    def get_control(self, x, t, cond, batched_number):
        if self.cond_hint is None:
            self.cond_hint = self.cond_hint_original
        per_batch = len(x) // batched_number
        self.cond_hint = self.cond_hint[:per_batch]
        return [self.cond_hint.repeat(batched_number, 1, 1, 1)]


def install(monkeypatch: Any, unet: Any) -> SimpleNamespace:
    """Put the stand-in's ``modules`` in place; gives ``shared``."""
    shared = host.install(monkeypatch, unet)
    monkeypatch.delitem(sys.modules, "lib_decouple.hosts.forge", raising=False)
    monkeypatch.delattr(lib_decouple.hosts, "forge", raising=False)
    clip = host.Clip()
    shared.sd_model = SimpleNamespace(
        text_processing_engine=clip, cond_stage_model=clip, forge_objects=SimpleNamespace(unet=Patcher(Model(unet)))
    )
    return shared


def equally_long(uncond: Any, text: Any, calls: Any) -> torch.Tensor:
    """Contexts of one call, repeated to the same length."""
    contexts = [uncond if part is None else text[part] for part in calls]
    longest = math.lcm(*(one.shape[1] for one in contexts))
    return torch.cat([one.repeat(1, longest // one.shape[1], 1) for one in contexts])


class Denoiser(torch.nn.Module):
    """CFGDenoiser."""

    enough_memory = True
    """For all rows in one call."""

    mask = nmask = init_latent = None
    mask_before_denoising = False

    def __init__(self, shared: Any, timesteps: bool) -> None:
        super().__init__()
        self.shared, self.parser = shared, sys.modules["modules.prompt_parser"]
        self.step, self.steps = 0, 0
        self.seen: list[torch.Tensor] = []
        self.classic_ddim_eps_estimation = timesteps

    @property
    def inner_model(self):
        return SimpleNamespace(inner_model=SimpleNamespace(alphas_cumprod=KEPT))

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        self.seen.append(x.clone())
        if self.classic_ddim_eps_estimation:
            sigma = ((1 - KEPT) / KEPT).sqrt()[sigma.round().long()]
            x = x * (sigma**2 + 1).sqrt()[:, None, None, None]
        composition, text = self.parser.reconstruct_multicond_batch(cond, self.step)
        uncond = None if uncond is None else self.parser.reconstruct_cond_batch(uncond, self.step)
        patcher = self.shared.sd_model.forge_objects.unet
        if self.mask is not None:
            noise = torch.randn_like(self.init_latent)
            x = x * self.nmask + (self.init_latent + noise * sigma[:, None, None, None]) * self.mask
        rows = [[index for index, _ in part] for part in zip(*composition)][::-1]  # reversed AND parts
        if uncond is not None:
            rows = [None, *rows]  # uncond first
        control = patcher.controlnet_linked_list
        out = []
        for calls in [rows] if self.enough_memory else [[one] for one in rows]:
            count = len(calls)
            out += patcher.model.apply_model(
                torch.cat([x] * count), torch.cat([sigma] * count), c_crossattn=equally_long(uncond, text, calls),
                control=control and control.get_control(torch.cat([x] * count), sigma, {}, count),
                transformer_options={"cond_or_uncond": [int(part is None) for part in calls]},
            ).chunk(count)  # fmt: skip
        conds = [one for one, part in zip(out, rows) if part is not None]
        denoised = torch.stack(conds).mean(0)
        if uncond is not None:
            denoised = out[0] + (denoised - out[0]) * cond_scale
        if self.mask is not None:
            denoised = denoised * self.nmask + self.init_latent * self.mask
        self.step += 1
        if self.classic_ddim_eps_estimation:
            return (x - denoised) / sigma[:, None, None, None]
        return denoised


def ddim(model, x, timesteps, extra_args=None, callback=None, disable=None, eta=0.0):
    """Deterministic DDIM on scaled latents."""
    for i in range(len(timesteps) - 1, 0, -1):
        now, following = KEPT[timesteps[i]], KEPT[timesteps[i - 1]]
        eps = model(x, timesteps[i] * x.new_ones([len(x)]), **extra_args)
        x = following.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - following).sqrt() * eps
    return x


class Job(host.Job):
    """``p``, as Forge has it when it samples."""

    def __init__(self, shared: Any, prompts: list[str], steps: int = 4, func: Any = host.euler, cfg: float = 1) -> None:
        with torch.inference_mode():
            super().__init__(shared, prompts, steps, func)
        self.sd_model, self.cfg, self.shared = shared.sd_model, cfg, shared

    def make_denoiser(self, shared: Any) -> torch.nn.Module:
        return Denoiser(shared, self.sampler.func is ddim)

    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """``Sampler.sample`` within ``process_images``."""
        with torch.inference_mode():
            x = x.clone()
            uncond = self.negative
            if self.cfg != 1 and uncond is None:
                uncond = self.shared.sd_model.cond_stage_model.encode("nothing").expand(len(x), -1, -1)
            given = {
                "cond": self.cond, "uncond": uncond, "cond_scale": self.cfg, "s_min_uncond": 0,
                "image_cond": x.new_zeros(len(x), 5, 1, 1),
            }  # fmt: skip
            if inspect.unwrap(self.sampler.func) is ddim:
                where = {"timesteps": torch.linspace(1, 999, self.steps + 1).long()}
                x = x / 14
            else:
                where = {"sigmas": torch.linspace(14.0, 0.0, self.steps + 1)}
            return self.sampler.func(self.denoiser, x, extra_args=given, callback=None, disable=True, **where)
