"""Run inside Forge Neo by the probe: a small random Anima in the layout that Neo loads, written, then loaded by it.

Neo knows the sizes of Anima by heart, so while it loads this one it is told smaller ones: two blocks of 28, one layer
of 28 of the text encoder and of six of its adapter, a narrow VAE. What is left of Neo's own way is the rest: how the
layout is known, the loader, the engine with both tokenizers, the predictor, the module.
"""

import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from backend.args import dynamic_args
from backend.nn import anima, wan_vae_2d
from backend.nn.llm import llama
from backend.operations import using_forge_operations
from huggingface_guess import detection
from modules import sd_models, shared
from safetensors.torch import save_file

BLOCKS = 2


class NarrowVAE(wan_vae_2d.Qwen2DVAE):
    @classmethod
    def from_config(cls, config):
        return wan_vae_2d_whole(base_dim=16)


wan_vae_2d_whole = wan_vae_2d.Qwen2DVAE


@contextmanager
def smaller():
    whole = detection.detect_unet_config, llama.Qwen3_06BConfig, llama.LLMAdapter, wan_vae_2d.Qwen2DVAE

    def detect(*args, **kwargs):
        found = whole[0](*args, **kwargs)
        return {**found, "num_blocks": BLOCKS} if found and found.get("image_model") == "anima" else found

    detection.detect_unet_config = detect
    llama.Qwen3_06BConfig = partial(whole[1], num_hidden_layers=1)
    llama.LLMAdapter = partial(whole[2], num_layers=1)
    wan_vae_2d.Qwen2DVAE = NarrowVAE
    try:
        yield
    finally:
        detection.detect_unet_config, llama.Qwen3_06BConfig, llama.LLMAdapter, wan_vae_2d.Qwen2DVAE = whole


def drawn(name, like):
    """Random weights whose products keep their size; embeddings whose tokens differ."""
    if name.endswith("bias"):
        return torch.zeros(like.shape)
    if like.ndim < 2 or name.endswith("gamma"):
        return torch.ones(like.shape)
    size = 1 if "embed." in name or "embed_tokens" in name else math.prod(like.shape[1:]) ** -0.5
    if name.startswith("model.diffusion_model.final_layer.linear"):
        size /= 10  # keeps latents of usual size
    return torch.randn(like.shape) * size


@torch.inference_mode(False)
def write(target):
    torch.manual_seed(11)
    with using_forge_operations(device=torch.device("cpu"), dtype=torch.float32):
        network = anima.Anima(16, 16, 2, 1, model_channels=2048, num_blocks=BLOCKS)
        text, vae = llama.Qwen3_06B({}), NarrowVAE.from_config({})
    parts = {f"model.diffusion_model.{key}": value for key, value in network.state_dict().items()}
    for key, value in text.state_dict().items():
        kept = "model.diffusion_model." if key.startswith("llm_adapter.") else "text_encoders.qwen3_06b.transformer."
        parts[kept + key] = value
    parts |= {f"vae.{key}": value for key, value in vae.state_dict().items()}
    save_file({key: drawn(key, value).half() for key, value in parts.items()}, target)


with smaller():
    folder = Path(sd_models.model_path)
    target = folder / "small-anima.safetensors"
    if not target.exists():
        write(target)
        sd_models.list_models()
    shared.opts.set("sd_model_checkpoint", "small-anima")
    from modules_forge import main_entry

    main_entry.refresh_model_loading_parameters()
    sd_models.forge_model_reload()
network = shared.sd_model.forge_objects.unet.model.diffusion_model
result = [type(shared.sd_model).__name__, len(network.blocks), bool(dynamic_args.ref_latents)]
