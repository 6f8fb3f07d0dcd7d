"""Guidance inside Forge, Forge Neo, Forge Classic and reForge.

Forge loads weights and draws in inference mode, where no gradient can be taken, and adds in place what
autograd still needs; both are cured for the guided pass alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from modules import prompt_parser, sd_samplers_common, shared
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..core import memory
from ..core.gradient import Pass, rows, weights_on_the_way
from ..core.host_pass import ConditionalRows
from ..core.schedule import flow_scale
from ..prompt.align import Piece
from . import anima, features, sampling
from .base import choose_layers
from .denoisers import cross_attention_layers, default_level
from .ldm import Unsupported
from .ordinary import OrdinaryTensors


def tokenize(text: str) -> list[Piece]:
    """The loaded model's tokens of ``text``, weights and BREAK understood, with their positions in the context."""
    model = shared.sd_model
    if (engine := getattr(model, "text_processing_engine_anima", None)) is not None:
        (chunk,) = engine.tokenize_line(text)
        return anima.pieces(engine.t5_tokenizer.convert_ids_to_tokens(chunk.t5_tokens[:-1]))
    # XL has two text encoders with the same chunks; the Forges built on ldm_patched have A1111's.
    names = ("text_processing_engine", "text_processing_engine_l", "cond_stage_model")
    engine = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if engine is None:
        raise Unsupported("this model has no text encoder that is known here; those of SD 1.x, 2.x, XL and Anima are")
    return sampling.tokens_of(engine, text)


class SamplingPass(sampling.SamplingPass):
    """Guidance of one sampling pass of a batch; made in ``process_before_every_sampling``."""

    tokenize = staticmethod(tokenize)

    def unet(self) -> nn.Module:
        """The UNet, or the transformer of a newer family."""
        return shared.sd_model.forge_objects.unet.model.diffusion_model

    def switch_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor) -> bool:
        """Make the host's refiner switch if it is due; was it made?"""
        level, _ = _noise_level(denoiser, sigma)
        return bool(features.call(sd_samplers_common.apply_refiner, denoiser, x=x, sigma=level[0]))

    def unit(self, sigma: Tensor) -> Tensor | None:
        """For a rectified flow, Anima or XL's in Forge Neo, :func:`flow_scale` of the time that ``sigma`` is there."""
        predictor = getattr(shared.sd_model.forge_objects.unet.model, "predictor", None)
        is_flow = getattr(predictor, "prediction_type", "") == "const"
        return flow_scale(sigma.reshape(-1)[0]) if is_flow else None

    def input_scale(self, denoiser: Any, sigma: Tensor) -> Tensor | float:
        """As everywhere, but for models with a ``sigma_data`` of their own, and that a mask is on the input of most."""
        model, scale = shared.sd_model.forge_objects.unet.model, self.unit(sigma)
        predictor = getattr(model, "predictor", None)
        if scale is None:
            level = _noise_level(denoiser, sigma)[0].reshape(-1)[0]
            scale = ((level**2 + 1) / (level**2 + getattr(predictor, "sigma_data", 1.0) ** 2)).sqrt()
        masked = denoiser.mask is not None and (predictor or denoiser.mask_before_denoising)
        return scale * denoiser.nmask if masked else scale

    def noise_level(self, denoiser: Any, sigma: Tensor) -> float:
        """That of the timestep where the sampler has timesteps; of a flow, what its time is in these terms."""
        if self.unit(sigma) is not None:
            time = float(sigma.reshape(-1)[0])
            return time / max(1 - time, 1e-6)
        return float(_noise_level(denoiser, sigma)[0].reshape(-1)[0])

    def reserve(self, x: Tensor) -> None:
        """Tell Forge's memory manager what a gradient needs, on a patcher of this pass alone."""
        objects, self._like = self.p.sd_model.forge_objects, torch.empty(x.shape, device="meta")
        objects.unet = self._with_reserve(objects.unet)

    def reserve_anew(self) -> None:
        """A refiner's model was loaded without: what stands in the way now is moved off the device again."""
        objects = shared.sd_model.forge_objects
        objects.unet = self._with_reserve(objects.unet)
        sd_samplers_common.sampling_prepare(objects.unet, self._like)

    def _with_reserve(self, patcher: Any) -> Any:
        """A clone of ``patcher`` that asks for what the gradient of this very job needs.

        Not by the host's own estimate of a pass, which Forge and Forge Neo make differently. Where all that the device
        has would not do, the gradient is had more frugally from the beginning, and reserved for accordingly.
        """
        model, thrift, settings = patcher.model.diffusion_model, self._learned.thrift, self.settings
        layers = cross_attention_layers(model)
        read = choose_layers(layers, settings.factor, settings.layers, default_level(model))
        prompts, _, _ = prompt_parser.get_multicond_prompt_list(self._prompts())
        parts = [len(own) for own in prompts]
        computed = getattr(patcher.model, "computation_dtype", None)  # the Forges built on ldm_patched have none
        width = torch.empty(0, dtype=computed or torch.float16).element_size()
        is_cast = bool(computed) and (patcher.model.storage_dtype != computed or patcher.has_online_lora())

        def needed() -> int:
            weights = weights_on_the_way(model, read[-1], thrift.recompute) if is_cast else 0
            return width * weights + memory.kept_bytes(
                layers, read, (x.shape[-2], x.shape[-1]), max(parts) if thrift.one_at_a_time else sum(parts), width,
                thrift.recompute, features.attention_keeps_its_map(),
            )  # fmt: skip

        x, there = self._like, memory.total(patcher.load_device)
        if there is not None:
            taken = sum(one.numel() * one.element_size() for one in model.parameters())
            thrift.foresee(len(parts), needed(), max(0, there - taken))
        made = patcher.clone()
        made.add_extra_preserved_memory_during_sampling(needed())
        return made

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Inside, gradients can be taken through the host's denoiser."""
        patcher = shared.sd_model.forge_objects.unet
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(features.with_backward(patcher.model.diffusion_model, patcher.load_device))
            stack.enter_context(self.differentiable_as_it_is())
            yield

    @contextmanager
    def differentiable_as_it_is(self) -> Iterator[None]:
        """:meth:`differentiable` where nothing of the host's is replaced: for its own pass."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            # The backward pass computes blocks again where memory is saved; its own threads know no modes.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            ordinary = stack.enter_context(OrdinaryTensors())
            stack.enter_context(saved_tensors_hooks(ordinary.as_it_is_now, lambda saved: saved))
            yield

    def recomputing(self) -> AbstractContextManager[Any]:
        """Inside :meth:`differentiable`, what a block runs in that is computed twice."""
        return OrdinaryTensors(out_of_place=True)

    def rows_are_counted(self) -> bool:
        """So are the rows of what an inpainting model sees beside its latents."""
        return super().rows_are_counted() or shared.sd_model.forge_objects.unet.extra_concat_condition is not None

    def conditional_rows(self, denoiser: Any, given: dict[str, Any], batch: int) -> ConditionalRows:
        """By what Forge tells of each call."""
        conds, text = prompt_parser.reconstruct_multicond_batch(given["cond"], denoiser.step)
        context = text["crossattn"] if isinstance(text, dict) else text
        return ChunksOfParts([len(own) for own in conds], context.shape[1])

    def callback_rows(self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> sampling.CallbackRows:
        """The plain batch."""
        _, text = prompt_parser.reconstruct_multicond_batch(given["cond"], denoiser.step)
        negative = given["uncond"]
        if negative is not None:
            negative = prompt_parser.reconstruct_cond_batch(negative, denoiser.step)
        return sampling.CallbackRows(x.clone(), given["image_cond"], sigma.clone(), text, negative)

    def conditional_pass(self, denoiser: Any, sigma: Tensor, given: dict[str, Any]) -> Pass:
        """The host's denoiser on the conditional rows alone, with the conds of this step."""
        patcher = shared.sd_model.forge_objects.unet
        if patcher.model_options.get("conditioning_modifiers"):
            raise Unsupported(
                "another extension changes the model or its conditions anew at every step (ControlNet's reference and "
                "revision, Fooocus inpainting do), which a guided pass cannot know before; switch that off"
            )
        conds, text = prompt_parser.reconstruct_multicond_batch(given["cond"], denoiser.step)
        beside = given["image_cond"] if patcher.extra_concat_condition is None else patcher.extra_concat_condition
        level, scale = _noise_level(denoiser, sigma)
        outside = _outside_the_mask(denoiser, patcher.model, level)

        def run(latents: Tensor, images: Sequence[int]) -> object:
            x = latents * _each(rows(scale, images), latents)
            if outside is not None:
                x = x * denoiser.nmask + rows(outside, images) * denoiser.mask
            texts = [row for image in images for row, _ in conds[image]]
            own = [k for k, image in enumerate(images) for _ in conds[image]]
            image = [images[k] for k in own]
            if isinstance(text, dict):
                c: dict[str, Any] = {"c_crossattn": rows(text["crossattn"], texts), "y": rows(text["vector"], texts)}
            else:
                c = {"c_crossattn": rows(text, texts)}
            if isinstance(beside, Tensor) and len(beside) == len(conds) and beside.shape[2:] == x.shape[2:]:
                c["c_concat"] = rows(beside, image)
            return _denoise(patcher, rows(x, own), rows(level, image), c, image)

        return run


class ChunksOfParts:
    """Forge's conditional rows: a chunk of one row an image for each of the prompts joined by AND, the last first, in
    as many calls as its memory asks for. Of prompts with more parts than another of the batch it leaves out the rest.
    """

    def __init__(self, parts: Sequence[int], tokens: int) -> None:
        self._first = [sum(parts[:image]) for image in range(len(parts))]
        self._left, self._tokens = min(parts), tokens
        self.totals: Collection[int] = {self._left * len(parts), (self._left + 1) * len(parts)}

    def of_call(self, rows: int, given: Mapping[str, Any]) -> Mapping[int, int]:
        """See :class:`ConditionalRows`."""
        kinds, found = given["transformer_options"]["cond_or_uncond"], dict[int, int]()
        for chunk, kind in enumerate(kinds):
            if kind == 0:
                self._left -= 1
                start = chunk * rows // len(kinds)
                found.update({start + image: first + self._left for image, first in enumerate(self._first)})
        return found

    def repeats(self, tokens: int) -> int:
        """Forge makes contexts equally long by repeating them."""
        return max(1, tokens // self._tokens)


def _noise_level(denoiser: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's real noise level ``[batch]``, and what its latents are to be multiplied with for the model.

    DDIM and PLMS hand over timesteps instead, and latents of the alpha-bar form.
    """
    if not denoiser.classic_ddim_eps_estimation:
        return sigma, torch.ones_like(sigma)
    kept = denoiser.inner_model.inner_model.alphas_cumprod
    level = ((1 - kept) / kept).sqrt()[sigma.round().long().clip(0, len(kept) - 1)]
    return level, (level**2 + 1).sqrt()


def _outside_the_mask(denoiser: Any, model: Any, level: Tensor) -> Tensor | None:
    """What the host is about to put outside an inpainting mask; the same noise, which it still is to draw."""
    initial, predictor = denoiser.init_latent, getattr(model, "predictor", None)
    if denoiser.mask is None or not (predictor or denoiser.mask_before_denoising):
        return None
    with torch.random.fork_rng(devices=[initial.device] if initial.device.type == "cuda" else []):
        noise = torch.randn_like(initial)
    sigma = _each(level, initial)
    return predictor.noise_scaling(sigma, noise, initial, max_denoise=False) if predictor else initial + sigma * noise


def _each(values: Tensor, like: Tensor) -> Tensor:
    """One value a row ``[k]``, to be multiplied with ``like`` ``[k, ...]``: pictures, or Anima's films of one frame."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _denoise(patcher: Any, x: Tensor, level: Tensor, c: dict[str, Any], image: Sequence[int]) -> object:
    """One call of the model on conditional rows, with what other extensions have put on it."""
    count = len(x)
    c["transformer_options"] = {
        **patcher.model_options.get("transformer_options", {}),
        "cond_or_uncond": [0],
        "sigmas": level,
        "cond_mark": level.new_zeros(count),
        "cond_indices": list(range(count)),
        "uncond_indices": [],
    }
    nets = patcher.list_controlnets()
    counting = [*nets, *_lllite(c["transformer_options"])]
    before = [dict(vars(one)) for one in counting]
    try:
        for net in nets:
            net.transformer_options = c["transformer_options"]
            hint = getattr(net, "cond_hint_original", None)
            if isinstance(hint, Tensor) and len(hint) > max(image):
                net.cond_hint, net.cond_hint_original = None, hint[list(image)]
        if nets:
            first = patcher.controlnet_linked_list
            c["control"] = first.get_control(x, level, dict(c), 1)
            c["control_model"] = first
        wrapper = patcher.model_options.get("model_function_wrapper")
        if wrapper is None:
            return patcher.model.apply_model(x, level, **c)
        return wrapper(patcher.model.apply_model, {"input": x, "timestep": level, "c": c, "cond_or_uncond": [0]})
    finally:
        for one, attributes in zip(counting, before):
            vars(one).update(attributes)  # what it prepared or counted was for these rows alone


def _lllite(options: dict[str, Any]) -> list[nn.Module]:
    """The modules of ControlNet-LLLite, which count their calls to know the step."""
    patches = [patch for own in options.get("patches", {}).values() for patch in own]
    kept = [patch.modules for patch in patches if isinstance(getattr(patch, "modules", None), dict)]
    return [module for modules in kept for module in modules.values()]
