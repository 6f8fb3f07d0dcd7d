"""Maps read off passes that are made anyway: the same maps as of a pass of one's own, and nothing disturbed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Runner, Toy, contexts, noise

from lib_decouple.core.host_pass import RowsInOrder, reading_beside
from lib_decouple.core.maps import AttentionReplaced, Entity, ImagePlan, MapReader, MapsMisfit

CAT, DOG = Entity("cat", (2,)), Entity("dog", (4, 5))
PLANS = [
    ImagePlan((CAT, DOG)),
    ImagePlan(()),
    ImagePlan((Entity("cat", (2,), part=1), Entity("dog", (4, 5), part=0)), parts=2),
]
ROWS = contexts(4)
NOTHING = contexts(3, seed=77)
NAMED = [0, 2]


def reader_of(model: Toy, treatment: Any = "raw") -> MapReader:
    return MapReader(model.layers("coarse", "coarse2"), PLANS, treatment)


def by_own_pass(model: Toy, latents: Tensor, treatment: Any = "raw") -> list[Tensor]:
    """The reference: a pass for these maps alone, which ends at the last layer."""
    reader, run = reader_of(model, treatment), Runner(model, ROWS, [1, 1, 2])
    with torch.no_grad(), reader.reading() as capture:
        run(latents[NAMED], NAMED)
    return reader.maps(capture, latents.shape[-2:], NAMED)


def host(model: Toy, latents: Tensor, chunks: Any) -> list[Tensor]:
    """A host's calls: conditional rows image-major, then the unconditional ones, ``chunks`` rows in each call."""
    own = torch.tensor([0, 1, 2, 2, 0, 1, 2])
    context = torch.cat([ROWS, NOTHING])
    found, start = [], 0
    for size in chunks:
        part = slice(start, start + size)
        found.append(model(latents[own[part]], context[part]))
        start += size
    return found


@pytest.mark.parametrize("treatment", ["raw", "attend-excite"])
@pytest.mark.parametrize("chunks", [[7], [4], [3, 3, 1], [1] * 7], ids=str)
def test_the_same_maps_as_of_a_pass_of_ones_own(chunks: list[int], treatment: Any) -> None:
    model, latents = Toy(), noise(3, 7, 10)
    others = (0, 3)
    with torch.no_grad():
        plain = host(model, latents, chunks)
        state = torch.random.get_rng_state()
        with reading_beside(model, reader_of(model, treatment), lambda: RowsInOrder(4, others=others)) as passed:
            seen = host(model, latents, chunks)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen))
    assert torch.equal(state, torch.random.get_rng_state())
    found = passed.maps((7, 10), NAMED)
    assert list(found) == NAMED
    for ours, expected in zip(found.values(), by_own_pass(model, latents, treatment)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_unconditional_rows_may_come_first_and_have_fewer_tokens() -> None:
    model, latents = Toy(), noise(3)
    with torch.no_grad(), reading_beside(model, reader_of(model), lambda: RowsInOrder(4, 3, (3,))) as passed:
        model(latents, contexts(3, tokens=3))
        model(latents[[0, 1, 2, 2]], ROWS)
    for ours, expected in zip(passed.maps((8, 8), NAMED).values(), by_own_pass(model, latents)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_in_inference_mode_the_maps_are_ordinary_tensors() -> None:
    model, latents = Toy(), noise(3)
    with torch.inference_mode(), reading_beside(model, reader_of(model), lambda: RowsInOrder(4)) as passed:
        host(model, latents, [4])
        maps = passed.maps((8, 8), NAMED)
    assert not any(own.is_inference() or own.requires_grad for own in maps.values())


def twice(model: Toy, latents: Tensor) -> None:
    host(model, latents, [7])
    host(model, latents, [7])


def within(model: Toy, latents: Tensor) -> None:
    """Another extension attends once more with a layer in the same call."""

    def more(module: Any, args: tuple[Tensor, Tensor]) -> None:
        module.to_q(args[0])
        module.to_k(args[1])

    handle = model.coarse2.register_forward_pre_hook(more)
    try:
        host(model, latents, [7])
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        (twice, AttentionReplaced),
        (within, AttentionReplaced),
        (lambda model, latents: None, AttentionReplaced),
        (lambda model, latents: host(model, latents, [3]), AttentionReplaced),
        (lambda model, latents: host(model, noise(3, 4, 4), [7]), MapsMisfit),
    ],
    ids=["two pictures", "a layer twice", "no call", "rows missing", "another size"],
)
def test_what_is_not_the_hosts_usual_pass_is_told_and_not_guessed(calls: Any, error: type[Exception]) -> None:
    model, latents = Toy(), noise(3)
    with torch.no_grad(), reading_beside(model, reader_of(model), lambda: RowsInOrder(4, others=(0, 3))) as passed:
        calls(model, latents)
    with pytest.raises(error):
        passed.maps((8, 8), NAMED)


@pytest.mark.parametrize("where", ["rows", "of_call", "attention"])
def test_a_failure_is_kept_from_the_host(where: str, monkeypatch: Any) -> None:
    model, latents = Toy(), noise(3)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    rows = RowsInOrder(4, others=(3,))
    if where == "of_call":
        monkeypatch.setattr(RowsInOrder, "of_call", fail)
    if where == "attention":
        monkeypatch.setattr("lib_decouple.core.host_pass.attention", fail)
    with torch.no_grad():
        (plain,) = host(model, latents, [7])
        with reading_beside(model, reader_of(model), fail if where == "rows" else lambda: rows) as passed:
            (seen,) = host(model, latents, [7])
    assert torch.equal(plain, seen)
    with pytest.raises(RuntimeError, match="out of memory"):
        passed.maps((8, 8), NAMED)


def test_what_the_host_raises_passes_and_no_hook_stays() -> None:
    model = Toy()
    with pytest.raises(KeyboardInterrupt), reading_beside(model, reader_of(model), lambda: RowsInOrder(4)):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
