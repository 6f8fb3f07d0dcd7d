"""Checkpoints for AUTOMATIC1111 beside the embedded one: small SD 2 (v and epsilon) and XL, an inpainting model.

``python -m tests.hosts.a1111_checkpoints WEBUI_ROOT FOLDER`` takes ``small-sd2`` and ``small-sdxl`` that
``small_checkpoints`` left in FOLDER and writes what that WebUI needs of them: SD 2 with the last layer of its text
encoder, which the penultimate one is read before, and a yaml with the smaller UNet beside each. ``tiny-inpainting``
is the embedded model with five more input channels, which are random, ``tiny-other`` one with noise on its weights.
``narrow-sd1`` has a random UNet with every block of SD 1.5, a tenth as wide, and the embedded model's other parts;
``control/narrow-control`` is a random ControlNet for it, ``control/narrow-ip-adapter`` a random IP-Adapter.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from lib_decouple.embedded.place import CHECKPOINT, TOKENIZER, yaml_text
from lib_decouple.hosts.checkpoints import FAMILIES
from tests.hosts import small_checkpoints

LDM = "repositories/stable-diffusion-stability-ai/configs/stable-diffusion"
SGM = "repositories/generative-models/configs/inference"
UNET = small_checkpoints.UNETS["narrow"]
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "small-sd2-v": (f"{LDM}/v2-inference-v.yaml", {"channel_mult": [1, 1, 2], "num_res_blocks": 1}),
    "small-sd2-base": (f"{LDM}/v2-inference.yaml", {"channel_mult": [1, 1, 2], "num_res_blocks": 1}),
    "small-sdxl": (f"{SGM}/sd_xl_base.yaml", {"channel_mult": [1, 1, 1]}),
}


def layout(root: Path, name: str, text_encoder: Path) -> Any:
    """The WebUI's own yaml of the family, with the smaller UNet, and XL's first text encoder from a folder."""
    source, changes = SMALL[name]
    found = OmegaConf.load(root / source)
    unet = found.model.params.get("unet_config") or found.model.params.network_config
    unet.params.update({**changes, "use_checkpoint": False})
    unet.params.pop("use_fp16", None)
    if "conditioner_config" in found.model.params:
        found.model.params.conditioner_config.params.emb_models[0].params.version = text_encoder.as_posix()
    return found


def sd2(folder: Path) -> None:
    """As OpenCLIP's file has it: 24 layers."""
    parts = load_file(folder / "small-sd2.safetensors")
    head = "cond_stage_model.model."
    last = f"{head}transformer.resblocks.22."
    parts |= {key.replace(".22.", ".23."): value.clone() for key, value in parts.items() if key.startswith(last)}
    parts[f"{head}text_projection"] = torch.eye(1024, dtype=torch.float16)
    parts[f"{head}logit_scale"] = torch.tensor(1.0, dtype=torch.float16)
    for name in ("small-sd2-v", "small-sd2-base"):
        save_file(parts, folder / f"{name}.safetensors")


def clip_l(folder: Path) -> Path:
    """What the WebUI would take from the hub: XL's first text encoder's configuration, and the tokenizer."""
    target = folder / "clip-l"
    shutil.copytree(TOKENIZER, target, dirs_exist_ok=True)
    (target / "config.json").write_text(json.dumps(FAMILIES["sdxl"]["text_encoder"]))
    return target


def inpainting(folder: Path) -> None:
    """The embedded model as an inpainting one."""
    parts = load_file(CHECKPOINT)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    more = torch.randn(parts[key].shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.02
    parts[key] = torch.cat([parts[key], more.to(parts[key].dtype)], 1)
    save_file(parts, folder / "tiny-inpainting.safetensors")
    text = yaml_text(TOKENIZER.as_posix()).replace("in_channels: 4\n        out", "in_channels: 9\n        out")
    text = text.replace("ddpm.LatentDiffusion", "ddpm.LatentInpaintDiffusion")
    text = text.replace("conditioning_key: crossattn", "conditioning_key: hybrid\n    finetune_keys: null")
    (folder / "tiny-inpainting.yaml").write_text(text)


def other(folder: Path) -> None:
    """A refiner: the embedded model, its UNet a little different."""
    generator = torch.Generator().manual_seed(1)
    parts = load_file(CHECKPOINT)
    for key in [key for key in parts if key.startswith("model.diffusion_model.") and parts[key].ndim > 1]:
        noise = torch.randn(parts[key].shape, generator=generator) * parts[key].float().std() * 0.1
        parts[key] = (parts[key] + noise).to(parts[key].dtype)
    save_file(parts, folder / "tiny-other.safetensors")
    (folder / "tiny-other.yaml").write_text(yaml_text(TOKENIZER.as_posix()))


def narrow(folder: Path) -> None:
    """Every block of SD 1.5, and a ControlNet beside it, for extensions that number the blocks."""
    torch.manual_seed(7)
    parts = {key: value for key, value in load_file(CHECKPOINT).items() if not key.startswith("model.diffusion_model.")}
    parts |= {key: value.detach().half().contiguous() for key, value in small_checkpoints.unet("narrow").items()}
    save_file(parts, folder / "narrow-sd1.safetensors")
    found = OmegaConf.create(yaml_text(TOKENIZER.as_posix()))
    found.model.params.unet_config.params.update(
        {"model_channels": 32, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4],
         "num_heads": 8}
    )  # fmt: skip
    OmegaConf.save(found, folder / "narrow-sd1.yaml")
    (folder / "control").mkdir(exist_ok=True)
    save_file(small_checkpoints.control_net("narrow"), folder / "control" / "narrow-control.safetensors")
    save_file(ip_adapter(), folder / "control" / "narrow-ip-adapter.safetensors")


def ip_adapter(of_image: int = 32, tokens: int = 4) -> dict[str, torch.Tensor]:
    """A random IP-Adapter for ``narrow-sd1``: keys and values of some tokens for each attention, in the order in which
    sd-webui-controlnet counts them (down, up, middle), from the vector that a picture is."""
    torch.manual_seed(12)
    (first, second, third, _), context = UNET["block_out_channels"], UNET["cross_attention_dim"]
    widths = [*(w for w in (first, second, third) for _ in "12"), *(w for w in (third, second, first) for _ in "123")]
    found = {"image_proj.proj.weight": torch.randn(tokens * context, of_image) / of_image**0.5}
    found |= {
        f"image_proj.{name}.bias": torch.zeros(size) for name, size in (("proj", tokens * context), ("norm", context))
    }
    found["image_proj.norm.weight"] = torch.ones(context)
    for number, width in enumerate([*widths, third]):
        for part in "kv":
            found[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(width, context) / context**0.5
    return found


if __name__ == "__main__":
    root, target = Path(sys.argv[1]), Path(sys.argv[2])
    sd2(target)
    inpainting(target)
    other(target)
    narrow(target)
    for name in SMALL:
        OmegaConf.save(layout(root, name, clip_l(target)), target / f"{name}.yaml")
        print(target / f"{name}.yaml")
