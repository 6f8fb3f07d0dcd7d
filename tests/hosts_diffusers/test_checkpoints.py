"""The families' configurations, against the published sizes of the real models."""

import json
import subprocess
import sys

import pytest
import torch

from lib_decouple.hosts.checkpoints import FAMILIES

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PARAMETERS = {
    ("sd1", "unet"): 859_520_964,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
"""Known of Stable Diffusion 1.5, 2.1 and SDXL 1.0."""


@pytest.mark.parametrize(("family", "part"), list(PARAMETERS))
def test_configurations_build_the_published_models(family, part):
    config = json.loads(json.dumps(FAMILIES[family][part]))
    with torch.device("meta"):
        if part in ("unet", "vae"):
            model = getattr(diffusers, config.pop("_class_name"))(**config)
        else:
            kind = getattr(transformers, config["architectures"][0])
            model = kind(transformers.CLIPTextConfig(**config))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[family, part]


def test_opening_says_nothing_and_keeps_warnings_that_tell_something() -> None:
    code = (
        "import logging; from lib_decouple.hosts.checkpoints import open_pipeline; open_pipeline()\n"
        "for library in ('diffusers', 'transformers'): logging.getLogger(library + '.some').warning('weights missing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("weights missing") == 2
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
