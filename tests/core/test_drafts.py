from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Toy, contexts, noise

from lib_decouple.core.drafts import Draft, MoveFailed, best, draft, in_groups, levels, passes
from lib_decouple.core.host_pass import RowsInOrder
from lib_decouple.core.maps import AttentionReplaced, Entity, ImagePlan, MapReader
from lib_decouple.core.presence import presence
from lib_decouple.core.schedule import Schedule

CAT, DOG = Entity("cat", (2,)), Entity("dog", (4, 5))
PLANS = [ImagePlan((CAT, DOG)), ImagePlan(()), ImagePlan((DOG,))]


def test_levels_go_down_to_where_the_maps_tell() -> None:
    assert levels(14.6) == [14.6, 7.6, 3.6, 1.6]
    assert levels(4.0) == [4.0, 3.6, 1.6]
    assert levels(0.9) == [0.9]
    assert levels(1e6)[1:] == [7.6, 3.6, 1.6]
    assert levels(14.6, guided=True) == [14.6, 6.0, 3.35]
    assert levels(3.0, guided=True) == [3.0]


RUN = (14.6, 10.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("schedule", "run", "pooled"),
    [
        (Schedule(steps=8), RUN, [[], [0, 1, 2, 3, 4], [5]]),
        (Schedule(steps=8, start=3), RUN, [[], [3, 4], [5]]),
        (Schedule(steps=8, start=5), RUN, [[], [], [5]]),
        (Schedule(steps=8, start=6), RUN, None),
        (Schedule(steps=8), (), None),
        (Schedule(steps=8, start=1), (3.0, 2.0, 1.0), None),
        (Schedule(steps=8), (3.0, 2.0, 1.0), [[0]]),
    ],
    ids=["all", "from the fourth", "from where it is read", "behind it", "nothing moves", "img2img, second", "img2img"],
)
def test_what_guidance_does_not_reach_is_drafted_as_without_it(schedule: Schedule, run: Any, pooled: Any) -> None:
    """Read where guided drafts are, a draft that nothing has moved does not tell yet."""
    first = run[0] if run else 14.6
    sigmas, steps = passes(first, run, schedule)
    assert sigmas == levels(first, guided=pooled is not None)
    assert steps == (pooled or [[] for _ in sigmas])


def test_with_a_denoiser_that_knows_the_picture_the_draft_is_that_picture_at_every_level() -> None:
    """x = x0 + sigma n stays on the straight way to x0, which is what Euler's steps are exact for."""
    model, x0, n = Toy(), noise(3, seed=1), noise(3, seed=2)
    seen = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append((sigma, x))
        model(x, contexts(3))
        return x0

    reader = MapReader(model.layers("coarse"), PLANS)
    made = draft(denoise, x0 + 14.6 * n, levels(14.6), model, reader, lambda: RowsInOrder(3))
    assert [sigma for sigma, _ in seen] == levels(14.6)
    for sigma, x in seen:
        assert torch.allclose(x, x0 + sigma * n, atol=1e-4)
    assert all(torch.equal(one.x0, own) for one, own in zip(made, x0))
    with torch.no_grad(), reader.reading() as capture:
        model(seen[-1][1][[0, 2]], contexts(3)[[0, 2]])
    maps = reader.maps(capture, (8, 8), [0, 2])
    assert made[0].scores == pytest.approx(dict(zip(("cat", "dog"), presence(maps[0][None])[0].tolist())))
    assert made[2].scores == pytest.approx({"dog": float(presence(maps[1][None]))})
    assert made[1].scores == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_draft_is_moved_before_each_pass_and_counts_its_moves() -> None:
    """What is moved is denoised and read: here the way leads to another picture from the second pass on."""
    model, x0, n, other = Toy(), noise(3, seed=1), noise(3, seed=2), noise(3, seed=4)
    seen = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        model(x, contexts(3))
        return x0

    def move(x: Tensor, k: int) -> Tensor:
        return x if k == 0 else x + other

    reader = MapReader(model.layers("coarse"), PLANS)
    made = draft(denoise, x0 + 14.6 * n, [14.6, 6.0, 3.0], model, reader, lambda: RowsInOrder(3), move)
    torch.testing.assert_close(seen[1], x0 + 6.0 * n + other)
    torch.testing.assert_close(seen[2], x0 + (6.0 * n + other) / 2 + other)
    assert [one.moves for one in made] == [2, 2, 2]
    with torch.no_grad(), reader.reading() as capture:
        model(seen[-1][[0, 2]], contexts(3)[[0, 2]])
    maps = reader.maps(capture, (8, 8), [0, 2])
    assert made[0].scores == pytest.approx(dict(zip(("cat", "dog"), presence(maps[0][None])[0].tolist())))


@pytest.mark.parametrize(
    ("error", "rows", "raised"),
    [
        (ValueError("cut"), 4, MoveFailed),
        (MemoryError(), 4, MemoryError),
        (MemoryError(), 2, MoveFailed),
        (MemoryError(), 1, MoveFailed),
    ],
)
def test_guidance_that_fails_is_told_from_a_draft_that_fails(error: Exception, rows: int, raised: Any) -> None:
    """Where memory ends for several at once, fewer are tried first, as long as there can be fewer."""

    def move(x: Tensor, k: int) -> Tensor:
        raise error

    reader = MapReader(Toy().layers("coarse"), PLANS[:1] * rows)
    with pytest.raises(raised) as found:
        draft(lambda x, sigma: x, noise(rows), [3.0], Toy(), reader, lambda: RowsInOrder(rows), move, 2)
    assert found.value is error or found.value.__cause__ is error


def test_maps_that_cannot_be_read_are_raised() -> None:
    model = Toy()
    reader = MapReader(model.layers("coarse"), PLANS)
    with pytest.raises(AttentionReplaced):
        draft(lambda x, sigma: x, noise(3), [1.6], model, reader, lambda: RowsInOrder(3))


@pytest.mark.parametrize(("fits", "groups"), [(9, [5]), (4, [5, 2, 2, 1]), (2, [5, 2, 2, 1]), (1, [5, 2] + [1] * 5)])
def test_groups_are_halved_where_memory_ends(fits: int, groups: list[int]) -> None:
    seen: list[int] = []

    def make(group: range) -> list[int]:
        seen.append(len(group))
        if len(group) > fits:
            raise MemoryError
        return list(group)

    assert in_groups(make, 5, 8) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    assert seen == groups


def test_where_one_alone_does_not_fit_and_for_any_other_reason_it_is_raised() -> None:
    seen: list[int] = []

    def make(error: Exception) -> object:
        def fails(group: object) -> list[int]:
            seen.append(len(group))  # type: ignore[arg-type]
            raise error

        return fails

    with pytest.raises(MemoryError):
        in_groups(make(MemoryError()), 4, 4)  # type: ignore[arg-type]
    assert seen == [4, 2, 1]
    with pytest.raises(KeyError):
        in_groups(make(KeyError()), 4, 4)  # type: ignore[arg-type]
    assert seen == [4, 2, 1, 4]


def of(**scores: float) -> Draft:
    return Draft(scores, torch.zeros(1))


def test_the_best_is_the_one_whose_weakest_is_surest_and_of_equals_the_first() -> None:
    assert best([of(cat=0.9, dog=0.1), of(cat=0.3, dog=0.2), of(cat=0.2, dog=0.3)]) == 1
    for unknown in (of(cat=math.nan, dog=0.9), of(cat=0.9, dog=math.nan)):
        assert best([unknown, of(cat=0.0, dog=0.1)]) == 1
    assert best([of(), of()]) == 0
    assert best([of(cat=math.nan), of(cat=math.nan)]) == 0
