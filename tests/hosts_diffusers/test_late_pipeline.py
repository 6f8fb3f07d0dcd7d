"""Late gradients in diffusers' own pipelines: as the study's independent loop has them, and no pass more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import SCHEDULE

from lib_decouple.hosts.diffusers import Drawing, Picture
from lib_decouple.lab.study.late import generate_late
from lib_decouple.settings import Settings

PROMPTS = ["a cat and a dog", "a red circle beside a blue porcupine"]
ENTITIES = [["cat", "dog"], ["circle", "porcupine"]]
LATE = Settings(enabled=True, loss="com", steps=6, size=0.3, gradient="late", look="off").fixed()


@contextmanager
def sampler(pipe: Any, name: str) -> Iterator[None]:
    import diffusers

    before, extra = pipe.scheduler, {"clip_sample": False} if name == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, name)(**SCHEDULE, **extra)
    try:
        yield
    finally:
        pipe.scheduler = before


def drawn(pipe: Any, settings: Settings, **more: Any) -> Picture:
    values = {"seeds": [7, 8], "steps": 8, "output": "latent", "keep_latents": True, **more}
    return Drawing(pipe, PROMPTS, ENTITIES, settings, **values).picture()


def by_the_studys_loop(pipe: Any, settings: Settings) -> Picture:
    return generate_late(pipe, PROMPTS, ENTITIES, settings, seeds=[7, 8], steps=8, output="latent")


@pytest.mark.parametrize("stops", [False, True])
def test_as_the_studys_loop_which_shares_none_of_it(sd1: Any, stops: bool, hooks_are_off: Any) -> None:
    settings, stop = LATE, 0.0
    if stops:
        with sampler(sd1, "DDIMScheduler"):
            losses = sorted(r.loss for trace in by_the_studys_loop(sd1, LATE).traces for r in trace.steps)
        stop = (losses[5] + losses[6]) / 2
        settings = Settings(**{**LATE.as_dict(), "stop": "on", "stop_below": stop})
    calls: list[bool] = []
    with sampler(sd1, "DDIMScheduler"), hooks_are_off(sd1.unet):
        counter = sd1.unet.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        try:
            found = drawn(sd1, settings)
        finally:
            counter.remove()
        expected = by_the_studys_loop(sd1, settings)
        plain = drawn(sd1, Settings())
    assert (found.stood_aside, found.exact_since) == ("", "")
    assert calls == [False] * 8
    assert "forward" not in vars(sd1.unet)
    ours, theirs, untouched = (torch.stack(one.images) for one in (found, expected, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert (ours - untouched).abs().max() > 1e-2
    for own, other in zip(found.traces, expected.traces):
        assert [record.loss for record in own.steps] == pytest.approx([r.loss for r in other.steps], rel=1e-3, abs=1e-4)
        assert [record.step for record in own.steps] == list(range(6))
        assert own.passes == 0
    if stops:
        moved = [record.update_norm > 0 for trace in found.traces for record in trace.steps]
        assert moved == [record.loss > stop for trace in found.traces for record in trace.steps]
        assert set(moved) == {True, False}


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"])
def test_the_share_of_the_latents_is_the_rules_with_every_sampler(sd1: Any, name: str) -> None:
    with sampler(sd1, name):
        found, exact = (drawn(sd1, Settings(**{**LATE.as_dict(), "gradient": g})) for g in ("late", "exact"))
        plain = drawn(sd1, Settings())
    assert (found.stood_aside, found.exact_since) == ("", "")
    shares = [[record.update_norm for record in trace.steps] for trace in found.traces]
    assert shares[0] == pytest.approx([record.update_norm for record in exact.traces[0].steps], rel=1e-3)
    assert sum(shares[0]) == pytest.approx(0.3, rel=1e-3)
    ways = [torch.stack(one.images) - torch.stack(plain.images) for one in (found, exact)]
    assert all(way.abs().max() > 1e-2 for way in ways)


def test_a_wanted_step_of_nothing_leaves_the_pipeline_to_the_bit(sd1: Any) -> None:
    """No image is above this threshold, so that only the pass with a gradient could change something."""
    settings = Settings(**{**LATE.as_dict(), "stop": "on", "stop_below": 100.0})
    with sampler(sd1, "DDIMScheduler"):
        found, plain = drawn(sd1, settings), drawn(sd1, Settings())
    assert [len(trace.steps) for trace in found.traces] == [6, 6]
    assert all(torch.equal(a, b) for a, b in zip(found.latents, plain.latents))


def test_without_classifier_free_guidance_every_row_is_conditional(sd1: Any) -> None:
    with sampler(sd1, "DDIMScheduler"):
        found = drawn(sd1, LATE, guidance_scale=1.0)
    assert (found.stood_aside, found.exact_since) == ("", "")
    assert [trace.passes for trace in found.traces] == [0, 0]
    assert all(record.update_norm > 0 for trace in found.traces for record in trace.steps)
