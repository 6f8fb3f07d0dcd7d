"""Guidance inside AUTOMATIC1111's WebUI (v1.10), for the UNets of ldm and sgm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from modules import prompt_parser, sd_samplers_common, shared
from torch import Tensor, nn

from ..core.differentiable import WeightsAsUsed
from ..core.gradient import Pass, rows
from ..core.host_pass import ConditionalRows, RowsInOrder
from ..prompt.align import Piece
from ..settings import Settings
from . import sampling
from .denoisers import cross_attention_layers
from .reasons import Unsupported


def tokenize(text: str) -> list[Piece]:
    """The loaded model's tokens of ``text``, weights and BREAK understood, with their positions in the context."""
    return sampling.tokens_of(shared.sd_model.cond_stage_model, text)


class SamplingPass(sampling.SamplingPass):
    """Guidance of one sampling pass of a batch; made in ``process_before_every_sampling``."""

    tokenize = staticmethod(tokenize)

    _in_8_bits = False
    """Has a weight of the UNet 8 bits? Looked up once a pass, not at each of its blocks."""

    def __init__(self, p: Any, settings: Settings, looking: sampling.Looking | None = None) -> None:
        super().__init__(p, settings, looking)
        thrift = self._learned.thrift
        thrift.recompute = thrift.recompute or (thrift.may_recompute and _sends_blocks_away(self.unet()))

    def unet(self) -> nn.Module:
        """``ldm``'s or ``sgm``'s UNet."""
        return shared.sd_model.model.diffusion_model

    def switch_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor) -> bool:
        """Make the host's refiner switch if it is due; was it made?"""
        return bool(sd_samplers_common.apply_refiner(denoiser, sigma))

    def differentiable(self) -> AbstractContextManager[Any]:
        """Inside, gradients can be taken where ``devices.manual_cast`` widens weights of 8 bits for each call."""
        self._in_8_bits = any(one.element_size() == 1 for one in self.unet().parameters())
        return self.recomputing()

    def differentiable_as_it_is(self) -> AbstractContextManager[Any]:
        """Nothing is needed: the products of the host's own pass keep their weights as they are used."""
        return nullcontext()

    def recomputing(self) -> AbstractContextManager[Any]:
        """Inside :meth:`differentiable`, what a block runs in that is computed twice."""
        return WeightsAsUsed() if self._in_8_bits else nullcontext()

    @contextmanager
    def attention_instead(self) -> Iterator[None]:
        """The host's own way with torch's attention, in the classes whose ``forward`` it replaces."""
        from modules import sd_hijack_optimizations

        instead = sd_hijack_optimizations.scaled_dot_product_attention_forward
        kinds = {type(layer.module) for layer in cross_attention_layers(self.unet())}
        before = {kind: kind.forward for kind in kinds}
        for kind in kinds:
            kind.forward = instead
        try:
            yield
        finally:
            for kind, forward in before.items():
                kind.forward = forward

    def noise_level(self, denoiser: Any, sigma: Tensor) -> float:
        """That of the timestep where the sampler has timesteps."""
        level = float(sigma.reshape(-1)[0])
        kept = getattr(denoiser, "alphas", None)
        return level if kept is None else float(((1 - kept[round(level)]) / kept[round(level)]).sqrt())

    def conditional_rows(self, denoiser: Any, given: dict[str, Any], batch: int) -> ConditionalRows:
        """Conditional rows, in one call or in several, then the unconditional ones, unless they are skipped."""
        _refuse_reference(self.unet())
        # InstructPix2Pix has two unconditional rows an image.
        unconditional = 2 * batch if getattr(shared.sd_model, "cond_stage_key", "") == "edit" else batch
        return RowsInOrder(sum(map(len, given["cond"].batch)), others=(0, batch, unconditional))

    def callback_rows(self, denoiser: Any, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> sampling.CallbackRows:
        """Conditional rows, then unconditional ones."""
        conds, text = prompt_parser.reconstruct_multicond_batch(given["cond"], denoiser.step)
        negative = prompt_parser.reconstruct_cond_batch(given["uncond"], denoiser.step)
        images = [*(k for k, own in enumerate(conds) for _ in own), *range(len(x))]
        return sampling.CallbackRows(x[images], given["image_cond"][images], sigma[images], text, negative)

    def conditional_pass(self, denoiser: Any, sigma: Tensor, given: dict[str, Any]) -> Pass:
        """The host's denoiser on the conditional rows alone, with the conds of this step."""
        _refuse_reference(self.unet())
        if _sends_blocks_away(self.unet()) and not self._learned.thrift.recompute:
            raise Unsupported(
                "--lowvram sends the model's blocks away before a gradient is taken through them; set “Save memory” to "
                "auto or on, which brings them back, or start the WebUI with --medvram"
            )
        conds, tensor = prompt_parser.reconstruct_multicond_batch(given["cond"], denoiser.step)
        image_cond = given["image_cond"]

        def run(latents: Tensor, images: Sequence[int]) -> object:
            if denoiser.mask_before_denoising and denoiser.mask is not None:
                latents = latents * denoiser.nmask + rows(denoiser.init_latent, images) * denoiser.mask
            texts = [row for image in images for row, _ in conds[image]]
            own = [k for k, image in enumerate(images) for _ in conds[image]]
            image = [images[k] for k in own]
            if shared.sd_model.model.conditioning_key == "crossattn-adm":
                extra: dict[str, Any] = {"c_adm": rows(image_cond, image)}
            else:
                extra = {"c_concat": [rows(image_cond, image)]}
            if isinstance(tensor, dict):
                text: dict[str, Any] = {k: rows(v, texts) for k, v in tensor.items()}
            else:
                text = {"c_crossattn": [rows(tensor, texts)]}
            return denoiser.inner_model(rows(latents, own), rows(sigma, image), cond={**text, **extra})

        return run


def _sends_blocks_away(unet: nn.Module) -> bool:
    """Is but one of the blocks on the device at a time (``--lowvram``)? A gradient finds them again only where they
    are computed again, by which the host's hook brings each back."""
    hooks = (hook for block in unet.modules() if block is not unet for hook in block._forward_pre_hooks.values())
    return any(getattr(hook, "__name__", "") == "send_me_to_gpu" for hook in hooks)


def _refuse_reference(unet: nn.Module) -> None:
    """Raises Unsupported where sd-webui-controlnet has put its function for reference pictures into the blocks."""
    inner = (vars(block).get("_forward") for block in unet.modules())
    if any(getattr(one, "__name__", "") == "hacked_basic_transformer_inner_forward" for one in inner):
        raise Unsupported(
            "ControlNet's reference draws its own picture within each step, which a guided pass can't tell from "
            "yours; choose another control type, or draw without guidance"
        )
