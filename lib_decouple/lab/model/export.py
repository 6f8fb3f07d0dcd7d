"""The trained parts as one file in the Stable Diffusion 1 layout, with the yaml that A1111 reads.

Key names are those of CompVis' latent-diffusion; `diffusers` reads the same file with the
configurations beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from ...embedded.place import DRAWN, TEXT_ENCODER, yaml_text

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)

_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def _resnet(key: str) -> str:
    for ours, theirs in _RESNET:
        if key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    return key


def unet_keys(unet: Any) -> dict[str, str]:
    """diffusers key -> latent-diffusion key below ``model.diffusion_model``. Raises ValueError for a part left over."""
    each = unet.config.layers_per_block
    names: dict[str, str] = {}
    for key in unet.state_dict():
        down = re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", key)
        up = re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)", key)
        mid = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
        if down:
            level, kind, index, rest = int(down[1]), down[2], int(down[3]), down[4]
            place = 1 + level * (each + 1) + (each if kind == "downsamplers" else index)
            if kind == "downsamplers":
                names[key] = f"input_blocks.{place}.0.op.{rest.removeprefix('conv.')}"
            else:
                names[key] = f"input_blocks.{place}." + (f"0.{_resnet(rest)}" if kind == "resnets" else f"1.{rest}")
        elif up:
            level, kind, index, rest = int(up[1]), up[2], int(up[3]), up[4]
            place = level * (each + 1) + (each if kind == "upsamplers" else index)
            if kind == "upsamplers":
                attended = any(other.startswith(f"up_blocks.{level}.attentions") for other in unet.state_dict())
                names[key] = f"output_blocks.{place}.{2 if attended else 1}.{rest}"
            else:
                names[key] = f"output_blocks.{place}." + (f"0.{_resnet(rest)}" if kind == "resnets" else f"1.{rest}")
        elif mid:
            place = 1 if mid[1] == "attentions" else 2 * int(mid[2])
            names[key] = f"middle_block.{place}." + (mid[3] if mid[1] == "attentions" else _resnet(mid[3]))
        else:
            for ours, theirs in (
                ("conv_in.", "input_blocks.0.0."),
                ("time_embedding.linear_1.", "time_embed.0."),
                ("time_embedding.linear_2.", "time_embed.2."),
                ("conv_norm_out.", "out.0."),
                ("conv_out.", "out.2."),
            ):
                if key.startswith(ours):
                    names[key] = theirs + key[len(ours) :]
    left = sorted(set(unet.state_dict()) - set(names))
    if left:
        raise ValueError(f"unet: {left[0]} has no place in the Stable Diffusion 1 layout")
    return names


def vae_keys(vae: Any) -> dict[str, str]:
    """diffusers key -> latent-diffusion key below ``first_stage_model``."""
    last = len(vae.config.block_out_channels) - 1
    names = {}
    for key in vae.state_dict():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        name = name.replace("conv_shortcut", "nin_shortcut")
        if "attn_1" in name:
            for ours, theirs in _ATTENTION:
                name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
        names[key] = name
    return names


def state_dict(unet: Any, vae: Any, text: Any) -> dict[str, Tensor]:
    """All parts under the Stable Diffusion 1 key names, in fp16."""
    full: dict[str, Tensor] = {}
    for key, name in unet_keys(unet).items():
        full["model.diffusion_model." + name] = unet.state_dict()[key]
    for key, name in vae_keys(vae).items():
        value = vae.state_dict()[key]
        if "attn_1" in name and name.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        full["first_stage_model." + name] = value
    for key, value in text.state_dict().items():
        key = key.removeprefix("text_model.")
        if not key.endswith("position_ids"):
            full["cond_stage_model.transformer.text_model." + key] = value
    return {key: value.detach().to(torch.float16).contiguous() for key, value in full.items()}


def export(folder: Path, target: Path) -> None:
    """Write ``target`` (a ``.safetensors``) and the yaml beside it from a training folder's parts."""
    parts = state_dict(
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
    )
    save_file(parts, target, metadata={"format": "pt", "modelspec.title": DRAWN.name})
    target.with_suffix(".yaml").write_text(yaml_text(TEXT_ENCODER), encoding="utf-8")
