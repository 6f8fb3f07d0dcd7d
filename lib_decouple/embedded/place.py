"""``embedded``: put the embedded checkpoint where a WebUI finds it."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "decouple-drawn.safetensors"
TOKENIZER = HERE / "tokenizer"
CHECKPOINTS = Path("models", "Stable-diffusion")
"""A WebUI's folder of checkpoints, from its root."""
HOW = "draw at 128x128 px, CFG 4"
TEXT_ENCODER = "extensions/attention-decoupling/lib_decouple/embedded/tokenizer"
"""The text encoder's folder for an extension installed under its own name, from the WebUI's root."""


@dataclass(frozen=True)
class Layout:
    """The embedded checkpoint's widths; sides in pixels and in latents."""

    name: str
    side: int
    width: int
    attended: list[int]
    """Factors by which the latents are shrunk where there is cross-attention."""
    heads: int
    context: int
    autoencoder: list[int]
    """Its levels' widths as multiples of the first."""
    autoencoder_width: int

    @property
    def latents(self) -> int:
        """Side of the latents."""
        return self.side // 8


DRAWN = Layout(CHECKPOINT.stem, 128, 96, [1, 2], 8, 128, [1, 1, 1, 1], 96)

YAML = """\
# Layout of {layout.name}.safetensors for WebUIs that read a yaml beside a checkpoint.
# `version` is the folder of the text encoder's configuration and tokenizer, as seen from the WebUI's root.
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {layout.latents}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {layout.width}
        attention_resolutions: {layout.attended}
        num_res_blocks: 1
        channel_mult: [1, 2]
        num_heads: {layout.heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {layout.context}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: {layout.side}
          in_channels: 3
          out_ch: 3
          ch: {layout.autoencoder_width}
          ch_mult: {layout.autoencoder}
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {version}
"""


def yaml_text(text_encoder: str, layout: Layout = DRAWN) -> str:
    """The yaml that a WebUI reads beside the checkpoint; ``text_encoder`` is a folder."""
    return YAML.format(version=text_encoder, layout=layout)


def put(folder: Path, overwrite: bool = False) -> Path:
    """Copy the checkpoint into a WebUI's ``folder`` of checkpoints, its yaml beside it, whole or not at all.

    Gives the copy's path. Raises FileNotFoundError, FileExistsError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist")
    target = folder / CHECKPOINT.name
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists")
    target.with_suffix(".yaml").write_text(yaml_text(TOKENIZER.as_posix()), encoding="utf-8")
    half = target.with_suffix(".part")
    shutil.copyfile(CHECKPOINT, half)
    half.replace(target)
    return target


def webui_around(extension: Path = HERE.parents[1]) -> Path | None:
    """The root of the WebUI under whose ``extensions`` this stands, if it does."""
    root = extension.parents[1]
    return root if extension.parent.name == "extensions" and (root / CHECKPOINTS).is_dir() else None


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("embedded", help="copy the embedded checkpoint into a WebUI", description=__doc__)
    around = webui_around()
    parser.add_argument(
        "--webui", type=Path, required=around is None, default=around,
        help="the WebUI's root (or its --data-dir); by default the one whose extension this is",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier copy")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Copy the file and write its yaml. Raises FileNotFoundError, FileExistsError."""
    folder = arguments.webui / CHECKPOINTS
    if not folder.is_dir():
        raise FileNotFoundError(f"webui: {folder} does not exist; is {arguments.webui} a WebUI's root?")
    try:
        target = put(folder, arguments.overwrite)
    except FileExistsError as error:
        raise FileExistsError(f"webui: {error}; --overwrite replaces it") from None
    print(f"{target}\nRefresh the WebUI's checkpoint list and choose {CHECKPOINT.stem}; {HOW}.")
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command alone: needs no more than Python."""
    top = argparse.ArgumentParser(prog="python run.py")
    add_parser(top.add_subparsers(required=True))
    chosen = top.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
