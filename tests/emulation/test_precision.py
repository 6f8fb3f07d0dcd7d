"""The shipped gradient under the emulation of fp16, and the command that measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONTEXT, tiny_unet
from torch import Tensor
from torch.nn import functional

from lib_decouple.__main__ import main
from lib_decouple.lab.study import precision
from lib_decouple.lab.study.precision import BAR, gradient, half, map_error
from lib_decouple.lab.study.unets import UNetWithInputs, random_unet, with_inputs

SMALL = 2.0**-15
"""What SDXL's means over 60 layers and a megapixel's pixels make of a loss."""


@pytest.fixture
def model() -> UNetWithInputs:
    unet = tiny_unet()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(parameter.half())
    found = with_inputs(unet, 16)
    assert found.context.shape == (2, 77, CONTEXT)
    return found


def angle(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a.double(), b.double(), 0))


@pytest.mark.parametrize("kind", ["fp16", "autocast fp16"])
@pytest.mark.parametrize("loss", ["com", "kl", "spread", "intensity", "iou(form=product)"])
def test_a_small_loss_keeps_its_direction_in_fp16(model: UNetWithInputs, loss: str, kind: str) -> None:
    """Losses without kinks: a random model's maps are so alike that rounding turns the ``min`` of iou and cc around."""
    small = f"{SMALL}*{loss}"
    exact, _ = gradient(model, small, "fp32")
    scaled, seen = gradient(model, small, kind)
    bare, lost = gradient(model, small, kind, scaled=False)
    assert seen["scale"] >= 4096
    assert angle(scaled, exact) >= BAR
    assert angle(bare, exact) < 0.98
    assert lost["flushed"] > 0


@pytest.mark.parametrize("kind", list(precision.KINDS))
def test_half_and_float32_are_held_against_each_other_at_the_same_latents_and_context(
    model: UNetWithInputs, kind: str
) -> None:
    """Those that half precision holds; autocast holds float32's own."""
    held, dtype = precision.as_held_in(model, kind), precision.KINDS[kind][0]
    for found, given in ((held.latents, model.latents), (held.context, model.context)):
        assert found.dtype == torch.float32
        rounded = given.to(dtype).float()
        assert not torch.equal(rounded, given)
        assert torch.equal(found, given if "autocast" in kind else rounded)


@pytest.mark.parametrize("kind", list(precision.KINDS))
def test_maps_are_float32s_whatever_the_model_computes_in(model: UNetWithInputs, kind: str) -> None:
    assert map_error(model, kind) < 5e-6


def test_the_model_is_as_before_after(model: UNetWithInputs) -> None:
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    for kind in precision.KINDS:
        with half(model, kind):
            assert model.unet.dtype == (torch.float32 if "autocast" in kind else precision.KINDS[kind][0])
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_tied_blocks_share_weights_and_are_as_sharp_as_asked() -> None:
    config = {**tiny_unet().config, "transformer_layers_per_block": 3, "_use_default_values": []}
    plain, sharp = random_unet(config), random_unet(config, 4)
    blocks = sharp.mid_block.attentions[0].transformer_blocks
    assert len(blocks) == 3
    assert all(block.attn2.to_q.weight is blocks[0].attn2.to_q.weight for block in blocks)
    own = plain.mid_block.attentions[0].transformer_blocks[0]
    for name in ("to_q", "to_k"):
        expected = 4 * getattr(own.attn2, name).weight
        torch.testing.assert_close(getattr(blocks[0].attn2, name).weight, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(blocks[0].attn1.to_q.weight, own.attn1.to_q.weight, rtol=0, atol=0)
    assert all(torch.equal(one, one.half().float()) for one in sharp.parameters())
    assert not any(one.is_meta for one in sharp.parameters())


def test_the_command_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: UNetWithInputs, capsys: Any
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(precision, "open_model", lambda name, *_: opened.append(name) or model)
    arguments = ["study", "precision", "--models", "sd15", "--sharpened", "4", "--out", str(tmp_path)]
    assert main([*arguments, "--losses", "com", "--kinds", "fp16"]) == 0
    assert main([*arguments, "--losses", "com;iou", "--kinds", "fp16,bf16"]) == 0
    assert main([*arguments, "--losses", "com;iou", "--kinds", "fp16,bf16"]) == 0
    assert opened == ["sd15", "sd15"]
    found = json.loads((tmp_path / "precision.json").read_text())["records"]
    assert [(one["kind"], one["loss"]) for one in found] == [
        ("fp16", "com"), ("fp16", "iou"), ("bf16", "com"), ("bf16", "iou"),
    ]  # fmt: skip
    assert all("unscaled" in one for one in found[:2])
    assert not any("unscaled" in one for one in found[2:])
    assert f"fp16: least cosine of 2 {min(one['scaled']['cosine'] for one in found[:2]):.4f}" in capsys.readouterr().out


def test_what_the_order_of_two_maps_costs_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: UNetWithInputs, capsys: Any
) -> None:
    """bf16 rounds coarsely enough to turn the order of a random model's maps at some places."""
    monkeypatch.setattr(precision, "open_model", lambda *_: model)
    arguments = ["--models", "sd15", "--sharpened", "4", "--losses", "iou;com", "--kinds", "bf16", "--scaled-only"]
    assert main(["study", "precision", *arguments, "--out", str(tmp_path)]) == 0
    kinked, smooth = json.loads((tmp_path / "precision.json").read_text())["records"]
    changed, places = kinked["sides"]["changed"], kinked["sides"]["places"]
    assert 0 < changed < 0.1 * places
    assert 0 < kinked["sides"]["apart"] < 0.2
    assert kinked["scaled"]["cosine"] < kinked["held"]["cosine"]
    assert kinked["held"]["cosine"] > 0.99
    assert kinked["scaled"]["cosine"] < BAR < 0.999 < kinked["same_values"]["cosine"]
    assert not {"held", "sides"} & smooth.keys()
    told = capsys.readouterr().out
    assert f"With the sides held: {min(kinked['held']['cosine'], smooth['scaled']['cosine']):.4f}." in told
    assert f"| {kinked['held']['cosine']:.4f} | {changed} of {places} (" in told
    assert f" | {kinked['same_values']['cosine']:.4f} | " in told


def test_scaled_only_leaves_out_the_gradients_without_a_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: UNetWithInputs
) -> None:
    monkeypatch.setattr(precision, "open_model", lambda *_: model)
    arguments = ["--models", "sd15", "--sharpened", "4", "--losses", "com", "--kinds", "fp16", "--out", str(tmp_path)]
    assert main(["study", "precision", *arguments, "--scaled-only"]) == 0
    (found,) = json.loads((tmp_path / "precision.json").read_text())["records"]
    assert "unscaled" not in found
    assert (
        f"| {found['scaled']['cosine']:.4f} | {found['scaled']['scale']:.0f} |"
        in (tmp_path / "precision.md").read_text()
    )


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--models", "sd9", "models: 'sd9' is not one of embedded"),
        ("--kinds", "fp4", "kinds: 'fp4' is not one of fp16"),
        ("--losses", "area", "loss: 'area' is not one of iou"),
    ],
)
def test_wrong_arguments(option: str, value: str, told: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["study", "precision", option, value, "--out", str(tmp_path / "none")]) == 2
    assert told in capsys.readouterr().err
