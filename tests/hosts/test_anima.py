"""Anima in a real Forge Neo, small and random: what in_host_anima.py tells Neo of its sizes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import Forge, Picture
from tests.hosts.test_forge import assert_guided, slopes

HERE = Path(__file__).parent


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


def test_an_entity_that_anima_s_prompt_does_not_name_is_told(anima: Forge, plain: Picture) -> None:
    picture = anima.draw({"entities": ["cat", "cow"]})
    assert "cow" in picture.value("Decouple stood aside")
    assert picture.pixels == plain.pixels
