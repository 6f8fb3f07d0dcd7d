"""Random checkpoints that Forge takes for Stable Diffusion 1.5, 2.1 and XL, as small as it lets them be.

Forge knows a family by the widths of its UNet, and loads text encoders and VAE only in full size; depth and
channel multiples of the UNet are free. ``python -m tests.hosts.small_checkpoints FOLDER [sd1] [sd1-other] [sd2]
[sdxl] [control] [lllite] [lora]`` writes ``small-sd1.safetensors`` (0.5 GB) and so on, in fp16; ``sd1-other`` is one to
refine with. The weights are those of a fixed seed. ``sdxl-v`` and ``sdxl-rectified`` are ``sdxl`` under a name or with
a layout by which Forge Neo takes it for a v-prediction model and for a rectified flow; ``sd1-fp8-mixed`` and
``sd1-int8-mixed`` are ``sd1`` with the linear layers of its transformers in 8 bits, as ComfyUI's quantised
checkpoints have them, and ``sd1-fp8-scaled`` as its older ones do.
"""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_decouple.embedded.place import DRAWN
from lib_decouple.hosts.checkpoints import FAMILIES
from lib_decouple.lab.model.export import unet_keys, vae_keys
from tests.tiny import sharpen

CROSS = {"down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {**CROSS, "block_out_channels": (320, 320, 640), "layers_per_block": 1},
    "sd2": {**CROSS, "block_out_channels": (320, 320, 640), "layers_per_block": 1, "attention_head_dim": (5, 5, 10)},
    # The twofold width is one that FreeU acts on.
    # Depths of 0, 2 and 10 with two blocks each are how XL is known.
    "sdxl": {"block_out_channels": (320, 320, 320), "attention_head_dim": (5, 5, 5)},
    # Every block that SD 1.5 has, for extensions of AUTOMATIC1111 that number them; with the embedded text encoder.
    "narrow": {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": DRAWN.context},
}
BASE = {"narrow": "sd1"}
"""A small one that is another's of its family -> the family."""


def unet(family: str) -> dict[str, Tensor]:
    """Keys as in latent-diffusion."""
    from diffusers import UNet2DConditionModel

    config = {k: v for k, v in FAMILIES[BASE.get(family, family)]["unet"].items() if not k.startswith("_")}
    model = UNet2DConditionModel(**{**config, **UNETS[family]}).eval()
    sharpen(model)
    with torch.no_grad():  # keeps latents of usual size: random noise predictions would blow them up
        model.conv_out.weight.mul_(0.1)
    weights = model.state_dict()
    sizes = {k: weights.pop(k) for k in list(weights) if k.startswith("add_embedding.")}
    names = unet_keys(SimpleNamespace(config=model.config, state_dict=lambda: weights))
    found = {names[key]: value for key, value in weights.items()}
    for key, value in sizes.items():
        found[
            key.replace("add_embedding.linear_1", "label_emb.0.0").replace("add_embedding.linear_2", "label_emb.0.2")
        ] = value
    return {f"model.diffusion_model.{key}": value for key, value in found.items()}


def vae() -> dict[str, Tensor]:
    """The same for all three; keys as in latent-diffusion."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**{k: v for k, v in FAMILIES["sd1"]["vae"].items() if not k.startswith("_")}).eval()
    names = vae_keys(model)
    found = {}
    for key, value in model.state_dict().items():
        square = "attn_1" in names[key] and value.ndim == 2
        found[f"first_stage_model.{names[key]}"] = value[:, :, None, None] if square else value
    return found


def text_encoder(config: dict[str, Any], projection: bool) -> nn.Module:
    """A random CLIP whose tokens differ."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**copy.deepcopy(config)))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)  # tokens differ, instead of drowning in their positions
        for name, value in model.named_parameters():
            if name.endswith("final_layer_norm.bias"):
                value.add_(0.1)  # the WebUIs divide by the mean of the context
    return model.eval()


def hugging_face(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """SD 1's layout of a text encoder."""
    keys = {key: re.sub(r"^(text_model\.)?", "text_model.", key) for key in model.state_dict()}
    return {prefix + keys[key]: value for key, value in model.state_dict().items() if "position_ids" not in key}


def open_clip(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's layout of a text encoder, as SD 2 and XL have it."""
    renamed = (
        (r"^(text_model\.)?embeddings\.token_embedding\.", "token_embedding."),
        (r"^(text_model\.)?embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^(text_model\.)?final_layer_norm\.", "ln_final."),
        (r"^(text_model\.)?encoder\.layers\.", "transformer.resblocks."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
        (r"^text_projection\.weight", "text_projection"),
    )
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        for old, new in renamed:
            key = re.sub(old, new, key)
        found[key] = value.T if key == "text_projection" else value
    for key in [k for k in found if ".self_attn.q_proj." in k]:
        parts = [found.pop(key.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        found[re.sub(r"self_attn\.q_proj\.", "attn.in_proj_", key)] = torch.cat(parts)
    return {prefix + key: value for key, value in found.items() if "position_ids" not in key}


def checkpoint(family: str, seed: int = 7) -> dict[str, Tensor]:
    """All parts of one family's checkpoint, in fp16."""
    torch.manual_seed(seed)
    parts = {**unet(family), **vae()}
    if family == "sdxl":
        parts |= hugging_face(
            text_encoder(FAMILIES[family]["text_encoder"], False), "conditioner.embedders.0.transformer."
        )
        parts |= open_clip(text_encoder(FAMILIES[family]["text_encoder_2"], True), "conditioner.embedders.1.model.")
    elif family == "sd2":
        parts |= open_clip(text_encoder(FAMILIES[family]["text_encoder"], False), "cond_stage_model.model.")
    else:
        parts |= hugging_face(text_encoder(FAMILIES[family]["text_encoder"], False), "cond_stage_model.transformer.")
    return {key: value.detach().to(torch.float16).contiguous() for key, value in parts.items()}


def control_net(family: str = "sd1") -> dict[str, Tensor]:
    """A random ControlNet for ``small-sd1`` or another of its kind: its UNet's way down, a hint of three channels."""
    torch.manual_seed(8)
    encoder = ("time_embed.", "input_blocks.", "middle_block.")
    parts = {key.removeprefix("model.diffusion_model."): value for key, value in unet(family).items()}
    parts = {key: value for key, value in parts.items() if key.startswith(encoder)}
    config = {**FAMILIES["sd1"]["unet"], **UNETS[family]}
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    hint = (3, 16, 16, 32, 32, 96, 96, 256, widths[0])
    for number, (wide, into) in enumerate(pairwise(hint)):
        parts[f"input_hint_block.{2 * number}.weight"] = torch.randn(into, wide, 3, 3) / (9 * wide) ** 0.5
        parts[f"input_hint_block.{2 * number}.bias"] = torch.zeros(into)
    blocks = [widths[0], *(wide for wide in widths for _ in range(layers + 1))][:-1]  # the last level has no way down
    outs = [f"zero_convs.{number}" for number in range(len(blocks))]
    for name, channels in zip((*outs, "middle_block_out"), (*blocks, widths[-1])):
        parts[f"{name}.0.weight"] = torch.randn(channels, channels, 1, 1) / channels**0.5
        parts[f"{name}.0.bias"] = torch.zeros(channels)
    return {f"control_model.{key}": value.detach().half().contiguous() for key, value in parts.items()}


def lllite() -> dict[str, Tensor]:
    """A random ControlNet-LLLite for ``small-sd1``, on queries of its first block and keys of its second."""
    torch.manual_seed(10)
    found = {}
    for block, attention, into, kernel in (
        (1, "attn1_to_q", 320, 2),
        (1, "attn2_to_q", 320, 2),
        (3, "attn1_to_k", 320, 4),
    ):
        shapes = {
            "conditioning1.0": (16, 3, 4, 4), "conditioning1.2": (32, 16, kernel, kernel), "down.0": (16, into),
            "mid.0": (16, 48), "up.0": (into, 16),
        }  # fmt: skip
        for name, shape in shapes.items():
            key = f"lllite_unet_input_blocks_{block}_1_transformer_blocks_0_{attention}.{name}"
            found[f"{key}.weight"] = torch.randn(shape) / math.prod(shape[1:]) ** 0.5
            found[f"{key}.bias"] = torch.zeros(shape[0])
    return {key: value.half().contiguous() for key, value in found.items()}


def lora() -> dict[str, Tensor]:
    """A random LoRA of rank 4 on the queries and keys of ``small-sd1``'s way down."""
    torch.manual_seed(9)
    found = {}
    for level, wide in enumerate((320, 320, 640)):
        for attention, into in (("attn1", wide), ("attn2", 768)):
            for part in ("to_q", "to_k"):
                name = f"lora_unet_down_blocks_{level}_attentions_0_transformer_blocks_0_{attention}_{part}"
                source = wide if part == "to_q" else into
                found[f"{name}.lora_down.weight"] = torch.randn(4, source) / source**0.5
                found[f"{name}.lora_up.weight"] = torch.randn(wide, 4) * 0.05
                found[f"{name}.alpha"] = torch.tensor(4.0)
    return {key: value.half().contiguous() for key, value in found.items()}


def mixed(kind: str, older: bool = False) -> dict[str, Tensor]:
    """``sd1``, quantised to ``float8_e4m3fn`` or ``int8_tensorwise`` with one scale a layer.

    ``older``: as before ComfyUI told each layer's kind, which is the layout that Forge knows.
    """
    found = checkpoint("sd1")
    stored, largest = {"float8_e4m3fn": (torch.float8_e4m3fn, 448.0), "int8_tensorwise": (torch.int8, 127.0)}[kind]
    told = torch.frombuffer(bytearray(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    for key in [key for key in found if ".transformer_blocks." in key and key.endswith("weight")]:
        weight = found[key].float()
        if key.startswith("model.diffusion_model.") and weight.ndim == 2:
            scale = weight.abs().max() / largest
            scaled = weight / scale
            found[key] = (scaled if stored.is_floating_point else scaled.round()).to(stored)
            layer = key.removesuffix("weight")
            found[layer + ("scale_weight" if older else "weight_scale")] = scale
            if not older:
                found[layer + "comfy_quant"] = told.clone()
    if older:
        found["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(stored)
    return found


def write(folder: Path, family: str) -> Path:
    """The checkpoint's file in ``folder``, made if it is not there."""
    target = folder / f"small-{family}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        others = {
            "control": control_net, "lllite": lllite, "lora": lora, "sd1-other": lambda: checkpoint("sd1", 17),
            "sd1-fp8-mixed": lambda: mixed("float8_e4m3fn"), "sd1-int8-mixed": lambda: mixed("int8_tensorwise"),
            "sd1-fp8-scaled": lambda: mixed("float8_e4m3fn", older=True),
        }  # fmt: skip
        save_file(others[family]() if family in others else checkpoint(family), target)
    return target


def files(folder: Path, family: str) -> list[Path]:
    """What a WebUI needs of one family, made if it is not there."""
    if family not in ("sdxl-v", "sdxl-rectified"):
        return [write(folder, family)]
    found = [folder / f"small-{family}.safetensors"]
    if not found[0].exists():
        found[0].hardlink_to(write(folder, "sdxl"))
    if family == "sdxl-v":
        found.append(found[0].with_suffix(".yaml"))
        found[1].write_text("model:\n  params:\n    parameterization: v\n")
    return found


if __name__ == "__main__":
    for wanted in sys.argv[2:] or UNETS:
        print(*files(Path(sys.argv[1]), wanted), flush=True)
