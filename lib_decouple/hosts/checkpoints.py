"""Open a checkpoint as a `diffusers` pipeline, offline: the embedded one, a single file or a folder."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.memory import present

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded"
CHECKPOINT = EMBEDDED / "decouple-drawn.safetensors"
TOKENIZER = EMBEDDED / "tokenizer"


class Unsupported(ValueError):
    """A checkpoint that cannot be read or is of no supported family; the message says what was found."""


_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}

FAMILIES: dict[str, dict[str, Mapping[str, Any]]] = {
    "drawn": {
        "model_index": _MODEL_INDEX,
        "scheduler": _SCHEDULER,
        "vae": {**_VAE, "block_out_channels": [96, 96, 96, 96], "layers_per_block": 1, "sample_size": 128},
        "unet": {
            **_UNET,
            "sample_size": 16,
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
            "block_out_channels": [96, 192],
            "layers_per_block": 1,
            "cross_attention_dim": 128,
        },
        "text_encoder": {
            **_CLIP_L,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "projection_dim": 128,
            "pad_token_id": 49407,
        },
    },
    "sd1": {
        "model_index": _MODEL_INDEX,
        "scheduler": _SCHEDULER,
        "vae": _VAE,
        "unet": _UNET,
        "text_encoder": _CLIP_L,
    },
    "sd2": {
        "model_index": _MODEL_INDEX,
        "scheduler": _SCHEDULER,
        "vae": _VAE,
        "unet": {
            **_UNET,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        "text_encoder": {
            **_CLIP_L,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
        },
    },
    "sdxl": {
        "model_index": {
            **{k: v for k, v in _MODEL_INDEX.items() if k not in ("safety_checker", "requires_safety_checker")},
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        },
        "scheduler": _SCHEDULER,
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "unet": {
            **_UNET,
            "sample_size": 128,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text_encoder": _CLIP_L,
        "text_encoder_2": {
            **_CLIP_L,
            "architectures": ["CLIPTextModelWithProjection"],
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
    },
}
"""Family -> the configuration of each of its parts, as public model cards give them."""


def family_of(path: Path) -> str:
    """Which of :data:`FAMILIES` a ``.safetensors`` file holds, read off its header.

    Raises Unsupported with what was found.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise Unsupported(
            f"checkpoint: {path} is a {path.suffix or 'nameless'} file; a .safetensors file or a diffusers folder is "
            "needed (pickled .ckpt files can run code and are not opened)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            probe = next((k for k in keys if k.startswith("model.diffusion_model.") and "attn2.to_k.weight" in k), None)
            width = file.get_slice(probe).get_shape()[1] if probe else 0
            incoming = "model.diffusion_model.input_blocks.0.0.weight"
            channels = file.get_slice(incoming).get_shape()[1] if incoming in keys else 0
    except (SafetensorError, OSError) as error:
        raise Unsupported(f"checkpoint: {path} cannot be read as safetensors: {error}") from error
    if not probe:
        first = ", ".join(sorted({key.split(".")[0] for key in keys})[:8])
        raise Unsupported(
            f"checkpoint: {path} is not a Stable Diffusion 1.x, 2.x or SDXL checkpoint; it holds {len(keys)} tensors "
            f"under {first or 'no names'}"
        )
    family = {128: "drawn", 768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(width)
    if family is None or channels != 4:
        raise Unsupported(
            f"checkpoint: {path} has cross-attention of width {width} and {channels} input channels; supported are "
            "768 (SD 1.x), 1024 (SD 2.x) and 2048 (SDXL) with 4 channels"
        )
    return family


_HARMLESS = ("requires torchvision (not installed); falling back", "that should be kept in float32: []")
"""In the libraries' warnings that tell a reader of nothing: what they fall back to does the same, the list is empty."""


def _telling(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in _HARMLESS)


def quieten() -> None:
    """Keep warnings that tell of nothing off the screen, and no others."""
    import diffusers
    import transformers  # noqa: F401 - both set up their handlers when imported

    diffusers.utils.logging.disable_progress_bar()
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            if _telling not in handler.filters:
                handler.addFilter(_telling)


def open_pipeline(
    checkpoint: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
) -> Any:
    """A pipeline from the embedded checkpoint (None), a ``.safetensors`` file, or a diffusers folder.

    Nothing is downloaded. ``prediction`` is "epsilon" or "v_prediction" (SD 2.x at 768 px); None takes what a
    folder says, and "epsilon" for a file, which does not say.
    Raises Unsupported, FileNotFoundError, and ValueError for a device that is not there.
    """
    present(device)
    quieten()
    import diffusers
    from transformers import CLIPTokenizer

    path = Path(checkpoint) if checkpoint else CHECKPOINT
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: {path} does not exist")
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise Unsupported(f"checkpoint: the folder {path} has no model_index.json, so it is no diffusers pipeline")
        name = json.loads((path / "model_index.json").read_text()).get("_class_name")
        if name not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
            raise Unsupported(f"checkpoint: {path} is a {name}; supported are Stable Diffusion 1.x, 2.x and SDXL")
        pipe = diffusers.DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    else:
        family = family_of(path)
        tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        given: dict[str, Any] = {"tokenizer": tokenizer}
        if family == "sdxl":
            given["tokenizer_2"] = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
        elif family == "sd2":
            given["tokenizer"] = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
        with tempfile.TemporaryDirectory() as folder:
            for part, config in FAMILIES[family].items():
                name = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(
                    part, f"{part}/config.json"
                )
                target = Path(folder) / name
                target.parent.mkdir(exist_ok=True)
                target.write_text(json.dumps(config))
            kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
            pipe = kind.from_single_file(str(path), config=folder, local_files_only=True, torch_dtype=dtype, **given)
    if prediction:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
