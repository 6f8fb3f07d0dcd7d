"""Anima in a real Forge Neo, small and random: what in_host_anima.py tells Neo of its sizes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import Forge, Picture
from tests.hosts.test_forge import assert_guided, assert_main_calls_carry, reserves, slopes

HERE = Path(__file__).parent
COUNTED = """
from lib_decouple.core.gradient import LossGradient
from lib_decouple.lab.study.bench.shapes import Alive
kept["differentiate"], kept["bytes"] = LossGradient._differentiate, []
def differentiate(self, *given):
    alive, loss = Alive(self.model), self.loss
    def counted(maps):
        kept["bytes"].append(alive.bytes())
        return loss(maps)
    self.loss = counted
    try:
        with alive:
            return kept["differentiate"](self, *given)
    finally:
        self.loss = loss
LossGradient._differentiate = differentiate
"""
"""Has the bytes counted that a gradient keeps when the loss has been computed."""
TOLD = """
from lib_decouple.core.gradient import LossGradient
LossGradient._differentiate = kept.pop("differentiate")
result = kept.pop("bytes")
"""


@pytest.fixture(scope="module")
def anima(forge: Forge) -> Iterator[Forge]:
    if not forge.is_neo:
        pytest.skip("this host has no Anima")
    before = forge.draw()
    name, blocks, _ = forge.inside((HERE / "in_host_anima.py").read_text())
    assert (name, blocks) == ("Anima", 2)
    yield forge
    forge.post("/sdapi/v1/options", {"sd_model_checkpoint": "small-sd1"})
    assert forge.draw().pixels == before.pixels


@pytest.fixture(scope="module")
def plain(anima: Forge) -> Picture:
    return anima.draw()


@pytest.mark.parametrize(
    ("given", "decouple"),
    [
        ({}, {}),
        ({"prompt": "a cat AND a dog", "batch_size": 2}, {}),
        ({"prompt": "two red (zebras:1.3), very nice, and a porcupine"}, {"entities": ["zebras", "porcupine"]}),
        ({"sampler_name": "ER SDE"}, {"recompute": "on"}),
        ({"cfg_scale": 1.0}, {"treatment": "attend-excite"}),
    ],
    ids=str,
)
def test_gradient_of_anima(anima: Forge, given: dict[str, Any], decouple: dict[str, Any]) -> None:
    found = slopes(anima, given, decouple)
    assert found == pytest.approx([1, 1], abs=2e-3)


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M"])
def test_anima_s_latents_after_every_step_are_those_of_an_independent_reference(anima: Forge, sampler: str) -> None:
    code = (HERE / "in_host_parity.py").read_text()
    found = anima.inside(code, SAMPLER=sampler, STEPS=8, SIZE=128, LOSS="com", SHARE=0.1)
    assert len(set(found["calls"])) == 1
    assert max(found["apart"]) < 1e-3, found
    assert found["moved"] > 0.05


def test_a_main_call_of_a_sampler_for_flows_carries_a_change_to_the_next(anima: Forge) -> None:
    # It shrinks a change as it does the latents: in the last step but one to 0.00065.
    assert_main_calls_carry(anima, "DPM++ 2s a RF", least=1e-4)


def test_anima_is_guided_and_the_host_s_own_afterwards(anima: Forge, plain: Picture) -> None:
    guided = anima.draw({"size": 0.3})
    assert_guided(guided)
    assert guided.value("Decouple found") == "cat, dog"
    assert guided.pixels != plain.pixels
    assert anima.draw().pixels == plain.pixels
    assert anima.draw({"enabled": False}).pixels == plain.pixels


def test_a_long_prompt_of_anima_s_is_one_chunk_and_guided(anima: Forge) -> None:
    prompt = "a cat, " + "very nice, " * 40 + "BREAK a dog"
    status, told = anima.post("/decouple/v1/tokens", {"prompt": prompt})
    assert status == 200, told
    cat, dog = ([word for word in told["words"] if word["text"] == text] for text in ("cat", "dog"))
    assert {word["chunk"] for word in told["words"]} == {0}
    assert dog[0]["tokens"][0] > 77
    named, placed = (
        anima.draw({"size": 0.3, "entities": entities}, prompt=prompt)
        for entities in (["cat", "dog"], [f"#{one[0]['tokens'][0]}" for one in (cat, dog)])
    )
    assert_guided(named)
    assert named.pixels == placed.pixels != anima.draw(prompt=prompt).pixels


@pytest.mark.parametrize(("recompute", "most"), [("off", 1.5), ("on", 2.5)])
def test_memory_reserved_for_anima_covers_what_its_gradient_keeps(anima: Forge, recompute: str, most: float) -> None:
    job = {"width": 384, "height": 384, "steps": 2}
    plain = max(reserves(anima, None, **job))
    anima.inside(COUNTED)
    try:
        asked = max(reserves(anima, {"steps": 2, "recompute": recompute}, **job))
    finally:
        kept = anima.inside(TOLD)
    assert len(kept) >= 2
    assert max(kept) <= asked - plain < most * max(kept), (asked - plain, kept)


def test_an_entity_that_anima_s_prompt_does_not_name_is_told(anima: Forge, plain: Picture) -> None:
    picture = anima.draw({"entities": ["cat", "cow"]})
    assert "cow" in picture.value("Decouple stood aside")
    assert picture.pixels == plain.pixels
