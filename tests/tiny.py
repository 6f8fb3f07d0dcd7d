"""Shared by all tests: determinism, one thread, tiny real models with random weights."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

settings.register_profile(
    "project",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile("project")
torch.set_num_threads(1)

TOKENIZER = Path(__file__).resolve().parent.parent / "lib_decouple" / "embedded" / "tokenizer"
"""The real CLIP vocabulary."""
CONTEXT = 32
"""Channels of the tiny models' text context."""


def sharpen(model: nn.Module, by: float = 4.0) -> None:
    """Scale up the queries and keys of all cross-attentions, so that a random model's maps are far from uniform."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight.mul_(by)
                module.to_k.weight.mul_(by)


def tiny_unet(context: int = CONTEXT, seed: int = 0, **changes: Any) -> nn.Module:
    """The real SD 1 architecture with two levels, cross-attention at factors 1 and 2."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": context,
            "attention_head_dim": 4,
            **changes,
        }
    )
    sharpen(unet)
    with torch.no_grad():  # keep latents of usual size: with guidance scale 7.5 random noise predictions blow them up
        unet.conv_out.weight.mul_(0.1)
    return unet.eval()


def _text_encoder(kind: Any, seed: int, **changes: Any) -> nn.Module:
    from transformers import CLIPTextConfig

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=CONTEXT,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        **changes,
    )
    model = kind(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)  # tokens differ, instead of drowning in their positions
    return model.eval()


def _vae() -> nn.Module:
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _ddim(**changes: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SCHEDULE, **changes)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def _sd1_parts() -> Any:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    return _quiet(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(CLIPTextModel, 1),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            unet=tiny_unet(),
            scheduler=_ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


@pytest.fixture
def sd1(_sd1_parts: Any) -> Any:
    """A tiny random SD 1 pipeline with a DDIM scheduler; 8 pixels a latent, 8 x 8 latents by default."""
    pipe = copy.copy(_sd1_parts)
    pipe.scheduler = _ddim()
    return pipe


@pytest.fixture(scope="session")
def sd2() -> Any:
    """A tiny random SD 2-like pipeline: linear projections, v-prediction."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    return _quiet(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(CLIPTextModel, 1),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            unet=tiny_unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
            scheduler=_ddim(prediction_type="v_prediction"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


@pytest.fixture(scope="session")
def sdxl() -> Any:
    """A tiny random SDXL pipeline with its two text encoders and its size conditioning."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    return _quiet(
        StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(CLIPTextModel, 1),
            text_encoder_2=_text_encoder(CLIPTextModelWithProjection, 3, projection_dim=32),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
            unet=tiny_unet(
                2 * CONTEXT,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                attention_head_dim=(2, 4),
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=32 + 6 * 8,
            ),
            scheduler=_ddim(),
            add_watermarker=False,
        )
    )


@pytest.fixture
def hooks_are_off() -> Any:
    """A context that fails when a model leaves it with another number of hooks than it came with."""

    @contextlib.contextmanager
    def check(model: nn.Module) -> Any:
        def count() -> int:
            return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())

        before = count()
        try:
            yield
        finally:
            assert count() == before

    return check
