"""The training command, run for a few steps: the same seed gives the same weights, bit for bit."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from lib_decouple.hosts.checkpoints import open_pipeline
from lib_decouple.lab.model import look


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


def test_the_log_s_curves_are_those_of_what_was_kept(tmp_path):
    """A stop goes back to the last checkpoint; what is made again is the training's."""
    log = tmp_path / "train.jsonl"
    steps = [(50, 0.9), (100, 0.7), (150, 0.6), (100, 0.8), (150, 0.5)]
    rows = [{"stage": "unet", "step": step, "error": error} for step, error in steps]
    log.write_text("\n".join(map(json.dumps, [{"stage": "vae", "step": 50, "psnr": 20.0}, *rows])))
    assert look.logged(log, "unet") == ([50, 100, 150], [0.9, 0.8, 0.5])
    assert look.logged(log, "vae") == ([50], [20.0])
    assert look.logged(log, "judge") == ([], [])
    look.curves(log, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.width > picture.height


def test_the_log_that_is_kept_is_whole():
    log = Path(look.__file__).with_name("train.jsonl")
    for stage, last in (("vae", 1500), ("unet", 17000), ("judge", 14000)):
        found, values = look.logged(log, stage)
        assert found[-1] == last
        assert max(b - a for a, b in pairwise(found)) <= 100
        assert all(math.isfinite(value) for value in values)
