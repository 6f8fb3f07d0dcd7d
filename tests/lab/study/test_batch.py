"""A batch's member beside the same seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_unet

from lib_decouple.__main__ import main
from lib_decouple.lab.study import batch


def test_the_first_module_that_differs_is_named() -> None:
    unet = tiny_unet()
    part: Any = unet.down_blocks[0].resnets[0].conv1
    forward = part.forward
    part.forward = lambda x: forward(x) * (1 + 1e-3 * (len(x) > 1))
    name, here, whole = batch.first_difference(unet, 3)
    # Rounding may differ before, but not by that much.
    assert whole > 1e-6
    assert (name, here > 5e-4) == ("down_blocks.0.resnets.0.conv1 (Conv2d)", True) or here < 1e-5


def test_rows_that_come_out_alike_are_told_so() -> None:
    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"in_channels": 4, "sample_size": 8, "cross_attention_dim": 6})
            self.part = torch.nn.SiLU()

        def forward(self, x: Any, *_: Any, **__: Any) -> Any:
            return (self.part(x),)

    assert batch.first_difference(Doubled(), 3) == ("none", 0.0, 0.0)


@pytest.mark.parametrize(("given", "told"), [("--arms=nothing", "arms: 'nothing'"), ("--n=1", "n: 1 is not allowed")])
def test_bad_arguments_are_named(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "batch", given]) == 2
    assert told in capsys.readouterr().err
