"""UNets of real architecture to measure on, with the inputs of one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.maps import CrossAttentionLayer, Entity, ImagePlan
from ...hosts.base import make_guide
from ...hosts.checkpoints import FAMILIES, open_pipeline
from ...hosts.diffusers import cross_attention_layers, default_level
from ...settings import Settings

Layers = list[CrossAttentionLayer]


@dataclass
class UNetWithInputs:
    """A UNet and what one CFG call of one image gives it."""

    unet: Any
    latents: Tensor
    """``[1, 4, h, w]``"""
    context: Tensor
    """``[2, 77, channels]``, the unconditional row first."""
    added: dict[str, Tensor] = field(default_factory=dict)
    """SDXL's further conditions, a row each."""
    timestep: Tensor = field(default_factory=lambda: torch.tensor(501))
    entities: tuple[Entity, ...] = (Entity("cat", (2,)), Entity("dog", (5,)))
    """At the places of "a cat and a dog"."""
    pipe: Any = None
    """The whole pipeline, where there is one."""

    @torch.no_grad()
    def host(self, *_: Any) -> Tensor:
        """One plain step's CFG call."""
        return self._call(torch.cat([self.latents] * 2), slice(None))

    def run(self, x: Tensor, row: int = 1) -> Tensor:
        """A pass of one row."""
        return self._call(x, slice(row, row + 1))

    def _call(self, x: Tensor, rows: slice) -> Tensor:
        kind = self.unet.dtype
        added = {name: value[rows].to(kind) for name, value in self.added.items()} or None
        context = self.context[rows].to(kind)
        return self.unet(
            x.to(kind), self.timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False
        )[0]

    def guide(self, settings: Settings, pick: Callable[[Layers], Layers] = list) -> Any:
        """A guide of one image for this UNet; ``pick`` chooses among the level's layers."""
        plans = [ImagePlan(self.entities, end=6)]
        return make_guide(settings, self.unet, cross_attention_layers(self.unet), plans, default_level(self.unet), pick)


FULL = {"embedded": "the embedded model", "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}
_FAMILY = {"sd15": "sd1", "sdxl": "sdxl"}


def unet_config(model: str, narrow: int = 1) -> dict[str, Any]:
    """The real architecture's configuration, its channels divided by ``narrow``: depth and heads stay."""
    config = dict(FAMILIES[_FAMILY[model]]["unet"])
    if narrow > 1:
        config["block_out_channels"] = [channels // narrow for channels in config["block_out_channels"]]
        config["norm_num_groups"] = 5
    return config


def with_inputs(unet: Any, side: int, dtype: torch.dtype | None = None) -> UNetWithInputs:
    """Random inputs for ``unet`` at latents ``side`` by ``side``, on its device (``meta`` too)."""
    made = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made).to(unet.device, dtype or unet.dtype)

    added = {}
    if unet.config.addition_embed_type == "text_time":
        size = float(8 * side)
        times = torch.tensor([[size, size, 0, 0, size, size]] * 2).to(unet.device, dtype or unet.dtype)
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": randn(2, pooled), "time_ids": times}
    latents, context = randn(1, unet.config.in_channels, side, side), randn(2, 77, unet.config.cross_attention_dim)
    return UNetWithInputs(unet, latents, context, added, torch.tensor(501, device=unet.device))


def random_unet(config: Mapping[str, Any], sharpened: float = 1) -> Any:
    """A random UNet; where a transformer has several blocks, all have the first's weights.

    So SDXL keeps its depth, heads and widths in a quarter of its memory. ``sharpened`` multiplies the queries and the
    keys of every cross-attention: random weights alone give flat maps. The weights are float32 and have fp16's values,
    as those of most checkpoints.
    """
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config)).eval()
    first_of: dict[nn.Module, nn.Module] = {}
    for module in unet.modules():
        first, *others = getattr(module, "transformer_blocks", None) or [None]
        for other in others:
            first_of.update(zip(other.modules(), first.modules()))
    for name, module in unet.named_modules():
        if module._parameters and module not in first_of:
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
            with torch.no_grad():
                if name.endswith(("attn2.to_q", "attn2.to_k")):
                    module.weight.mul_(sharpened)
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(parameter.half())
    for module, first in first_of.items():
        module._parameters = first._parameters
    return unet


def embedded_unet(device: str = "cpu") -> UNetWithInputs:
    """The embedded model's, with the real context of "a cat and a dog"."""
    pipe = open_pipeline(device=device)
    found = with_inputs(pipe.unet, pipe.unet.config.sample_size)
    named, unnamed = pipe.encode_prompt("a cat and a dog", device, 1, True, negative_prompt="")
    found.context, found.pipe = torch.cat([unnamed, named]), pipe
    return found
