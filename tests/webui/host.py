"""A stand-in of the WebUI's calling order around the real UNet of ``ldm``: as much as the adapter touches."""

from __future__ import annotations

import re
import sys
import types
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import lib_decouple.hosts

VOCABULARY: dict[str, int] = {"<start>": 0, "<end>": 1}


def number(word: str) -> int:
    return VOCABULARY.setdefault(f"{word}</w>", len(VOCABULARY))


class Clip:
    """Words by white space and comma, 75 to a chunk; ``BREAK`` starts one; ``<ti>`` is an embedding of 3 vectors."""

    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda token: {v: k for k, v in VOCABULARY.items()}[token])

    def process_texts(self, texts):
        return [self.chunks(text) for text in texts], 0

    def chunks(self, text):
        found = []
        for part in text.split("BREAK"):
            tokens, fixes = [], []
            for word in re.findall(r"<ti>|\w+|,", part):
                if word == "<ti>":
                    fixes.append((len(tokens), SimpleNamespace(vectors=3, name="my embedding")))
                    tokens += [0] * 3
                else:
                    tokens.append(number(word))
            for start in range(0, max(len(tokens), 1), 75):
                own = tokens[start : start + 75]
                found.append(SimpleNamespace(tokens=[0, *own, *[1] * (76 - len(own))], fixes=fixes))
        return found

    def encode(self, text):
        ids = [token for chunk in self.chunks(text) for token in chunk.tokens]
        return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(token)) for token in ids])


class CFGDenoiserParams:
    """What ``cfg_denoiser`` callbacks get."""

    def __init__(
        self, x, image_cond, sigma, sampling_step, total_sampling_steps, text_cond, text_uncond, denoiser=None
    ):
        self.x, self.image_cond, self.sigma = x, image_cond, sigma
        self.sampling_step, self.total_sampling_steps = sampling_step, total_sampling_steps
        self.text_cond, self.text_uncond, self.denoiser = text_cond, text_uncond, denoiser


def install(monkeypatch: Any, unet: nn.Module) -> SimpleNamespace:
    """Put the stand-in's ``modules`` in place; gives ``shared``."""
    clip = Clip()
    model = SimpleNamespace(
        cond_stage_model=clip, model=SimpleNamespace(diffusion_model=unet, conditioning_key="crossattn")
    )
    shared = types.ModuleType("modules.shared")
    shared.state = SimpleNamespace(interrupted=False, skipped=False, sampling_step=0, sampling_steps=0)
    shared.opts = SimpleNamespace(use_old_scheduling=False)
    shared.sd_model = model

    parser = types.ModuleType("modules.prompt_parser")

    def prompt_list(prompts):
        flat = [part.strip() for prompt in prompts for part in prompt.split("AND")]
        counter = iter(range(len(flat)))
        return [[(next(counter), 1.0) for _ in prompt.split("AND")] for prompt in prompts], flat, {}

    def schedules(prompts, steps, hires_steps=None, old=False):
        found = []
        for prompt in prompts:
            edited = re.search(r"\[(\w+):(\w+):(\d+)\]", prompt)
            if not edited:
                found.append([[steps, prompt]])
                continue
            before, after = (prompt.replace(edited[0], edited[k]) for k in (1, 2))
            found.append([[int(edited[3]), before], [steps, after]])
        return found

    def reconstruct(cond, step):
        conds, rows = [], []
        for image in cond.batch:
            own = []
            for composed in image:
                entries = composed.schedules
                chosen = next((entry for entry in entries if step <= entry.end_at_step), entries[0])
                own.append((len(rows), 1.0))
                rows.append(chosen.cond)
            conds.append(own)
        longest = max(len(row) for row in rows)
        return conds, torch.stack([torch.cat([row, row[-1:].repeat(longest - len(row), 1)]) for row in rows])

    parser.get_multicond_prompt_list = prompt_list
    parser.get_learned_conditioning_prompt_schedules = schedules
    parser.reconstruct_multicond_batch = reconstruct
    parser.reconstruct_cond_batch = lambda cond, step: torch.stack(cond) if isinstance(cond, list) else cond
    samplers, common = types.ModuleType("modules.sd_samplers"), types.ModuleType("modules.sd_samplers_common")
    common.apply_refiner = lambda denoiser, x=None, sigma=None: False
    callbacks = types.ModuleType("modules.script_callbacks")
    callbacks.CFGDenoiserParams = CFGDenoiserParams
    callbacks.on_cfg_denoiser = []
    callbacks.ordered_callbacks = lambda category: [
        SimpleNamespace(callback=one) for one in callbacks.on_cfg_denoiser if category == "cfg_denoiser"
    ]
    paths = types.ModuleType("modules.paths_internal")
    paths.data_path = "/nowhere"
    rng = types.ModuleType("modules.rng")
    rng.ImageRNG = ImageRNG
    package = types.ModuleType("modules")
    for module in (paths, shared, parser, samplers, common, callbacks, rng):
        setattr(package, module.__name__.partition(".")[2], module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "modules", package)
    for name in ("previews", "drafting", "insisting", "sampling", "a1111"):
        monkeypatch.delitem(sys.modules, f"lib_decouple.hosts.{name}", raising=False)
        monkeypatch.delattr(lib_decouple.hosts, name, raising=False)
    return shared


class ImageRNG:
    """Of each image's seed its noise; as in the host, the global generator is left at the last one's."""

    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape, self.seeds, self.subseeds, self.subseed_strength = shape, seeds, subseeds, subseed_strength
        self.seed_resize_from_h, self.seed_resize_from_w = seed_resize_from_h, seed_resize_from_w
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.is_first = True

    def next(self):
        found = torch.stack([torch.randn(self.shape, generator=own) for own in self.generators])
        if self.is_first:
            torch.manual_seed(self.seeds[-1])
            if self.subseed_strength:
                other = torch.stack(
                    [torch.randn(self.shape, generator=torch.Generator().manual_seed(own)) for own in self.subseeds]
                )
                found = found * (1 - self.subseed_strength) + other * self.subseed_strength
        self.is_first = False
        return found


class Denoiser(nn.Module):
    """CFGDenoiser: one call of the UNet for cond and uncond rows."""

    mask = nmask = init_latent = None
    mask_before_denoising = False
    batch_cond_uncond = True
    skip_uncond: tuple[int, ...] = ()
    """Steps without unconditional rows, as "Skip early CFG" and NGMS leave them out."""

    def __init__(self, unet: nn.Module, prompt_parser: Any) -> None:
        super().__init__()
        self.unet, self.parser = unet, prompt_parser
        self.step, self.steps = 0, 0
        self.seen: list[torch.Tensor] = []

    def inner_model(self, x, sigma, cond):
        scale = (sigma**2 + 1).sqrt()[:, None, None, None]
        eps = self.unet(x / scale, sigma.log() * 250 + 500, context=cond["c_crossattn"][0])
        return x - eps * sigma[:, None, None, None]

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        self.seen.append(x.clone())
        conds, tensor = self.parser.reconstruct_multicond_batch(cond, self.step)
        uncond = None if uncond is None else self.parser.reconstruct_cond_batch(uncond, self.step)
        rows = [row for image in conds for row, _ in image]
        own = [k for k, image in enumerate(conds) for _ in image]
        skipped = uncond is None or self.step in self.skip_uncond
        images, context = own + ([] if skipped else list(range(len(x)))), [tensor[rows]]
        if not skipped and uncond.shape[1] == tensor.shape[1]:
            context = [torch.cat([tensor[rows], uncond])]
        elif not skipped:  # the host calls the model once for each length
            context.append(uncond)
        if not self.batch_cond_uncond:
            context = [part for whole in context for part in whole.split(len(x))]
        out, start = [], 0
        for part in context:
            k = images[start : start + len(part)]
            given = {"c_crossattn": [part], "c_concat": [image_cond[k]]}
            out.append(self.inner_model(x[k], sigma[k], cond=given))
            start += len(part)
        out = torch.cat(out)
        self.step += 1
        found = torch.stack([out[[i for i, k in enumerate(own) if k == j]].mean(0) for j in range(len(conds))])
        found = found if skipped else out[len(own) :] + (found - out[len(own) :]) * cond_scale
        return found if self.mask is None else found * self.nmask + self.init_latent * self.mask


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """k-diffusion's sample_euler without churn."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


euler.__name__ = "sample_euler"


class Job:
    """``p``, as the host has it when it samples."""

    iteration, n_iter, is_hr_pass = 0, 1, False
    negative: torch.Tensor | None = None
    """Context ``[batch, tokens, channels]`` of the unconditional rows; None for a CFG scale of 1."""

    def __init__(self, shared: Any, prompts: list[str], steps: int = 4, func: Any = euler) -> None:
        parser = sys.modules["modules.prompt_parser"]
        self.prompts, self.steps, self.firstpass_steps = prompts, steps, steps
        self.comments: list[str] = []
        self.comment = self.comments.append
        self.sampler = SimpleNamespace(func=func)
        self.denoiser = self.make_denoiser(shared)
        self.denoiser.steps = steps
        indexes, flat, _ = parser.get_multicond_prompt_list(prompts)
        encode = shared.sd_model.cond_stage_model.encode
        scheduled = [
            [SimpleNamespace(end_at_step=end, cond=encode(text)) for end, text in schedule]
            for schedule in parser.get_learned_conditioning_prompt_schedules(flat, steps)
        ]
        batch = [[SimpleNamespace(schedules=scheduled[k]) for k, _ in image] for image in indexes]
        self.cond = SimpleNamespace(batch=batch)

    def make_denoiser(self, shared: Any) -> nn.Module:
        return Denoiser(shared.sd_model.model.diffusion_model, sys.modules["modules.prompt_parser"])

    @torch.no_grad()
    def sample(self, x: torch.Tensor) -> torch.Tensor:
        """The host's ``Sampler.sample``."""
        sigmas = torch.linspace(14.0, 0.0, self.steps + 1)
        given = {
            "cond": self.cond,
            "uncond": self.negative,
            "cond_scale": 1 if self.negative is None else 3,
            "s_min_uncond": 0,
            "image_cond": x.new_zeros(len(x), 5, 1, 1),
        }
        return self.sampler.func(self.denoiser, x, sigmas=sigmas, extra_args=given, callback=None, disable=True)
