"""The training command, run for a few steps: the same seed gives the same weights, bit for bit."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lib_decouple.hosts.checkpoints import open_pipeline


def trained(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    few = ["--vae-steps", "2", "--pool", "20", "--unet-steps", "2", "--seed", str(seed)]
    command = [sys.executable, "-m", "lib_decouple.lab.model.train", "all", "--folder", str(folder), *few]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).resolve().parents[3])
    return load_file(folder / "decouple-drawn.safetensors")


def test_training_is_repeated_by_its_seed(tmp_path):
    first = trained(tmp_path / "first", 7)
    again, other = trained(tmp_path / "again", 7), trained(tmp_path / "other", 8)
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())
    assert open_pipeline(tmp_path / "first" / "decouple-drawn.safetensors").unet.config.cross_attention_dim == 128
