"""Jobs whose batches are doubled, as the host goes through them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from lib_decouple.settings import Settings
from lib_decouple.webui import compare, infotext
from lib_decouple.webui.report import Run


def job(n_iter=1, batch_size=1, prompts=None, **given):
    """``p`` when the host calls ``process``."""
    count = n_iter * batch_size if prompts is None else len(prompts)
    return SimpleNamespace(
        **{
            "n_iter": n_iter, "batch_size": batch_size, "scripts": SimpleNamespace(selectable_scripts=[]),
            "script_args": [0], "all_prompts": prompts or [f"prompt {k}" for k in range(count)],
            "all_negative_prompts": [f"not {k}" for k in range(count)], "all_seeds": [7 + k for k in range(count)],
            "all_subseeds": [100 + k for k in range(count)], **given,
        }
    )  # fmt: skip


def state(job_count=-1):
    return SimpleNamespace(job_count=job_count, time_start=1.0)


def batches(p, name):
    """What the host slices for each batch."""
    values, size = getattr(p, name), p.batch_size
    return [values[n * size : (n + 1) * size] for n in range(p.n_iter)]


@pytest.mark.parametrize(("n_iter", "size"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_every_batch_comes_twice_and_holds_what_it_would_alone(n_iter, size):
    asked, p = job(n_iter, size), job(n_iter, size)
    p.all_hr_prompts = [f"hires {k}" for k in range(n_iter * size)]
    asked.all_hr_prompts = list(p.all_hr_prompts)
    compare.begin(p, state())
    assert p.n_iter == 2 * n_iter
    for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "all_hr_prompts"):
        assert batches(p, name)[::2] == batches(p, name)[1::2] == batches(asked, name)


def test_lists_that_another_script_shares_are_not_changed():
    prompts = ["a cat", "a dog"]
    p = job(2, prompts=prompts)
    compare.begin(p, state())
    assert prompts == ["a cat", "a dog"]
    assert p.all_prompts == ["a cat", "a cat", "a dog", "a dog"]


def test_img2img_with_an_image_for_each_of_a_batch_s_places():
    p = job(1, 3, init_images=["one", "two"])  # the host then draws batches of 2
    compare.begin(p, state())
    p.batch_size = 2
    assert batches(p, "all_prompts") == [["prompt 0", "prompt 1"]] * 2


def test_the_host_s_count_of_batches():
    alone, within = state(), state(job_count=6)
    compare.begin(job(2), alone)
    compare.begin(job(2), within)
    assert (alone.job_count, within.job_count) == (-1, 8)  # -1: the host takes p.n_iter


def test_batches_that_are_not_full_are_refused_and_nothing_is_changed():
    p = job(2, 2, prompts=["a", "b", "c"])
    with pytest.raises(ValueError, match="3 images don't fill 2 batches of 2"):
        compare.begin(p, state())
    assert (p.n_iter, p.all_prompts) == (2, ["a", "b", "c"])


def test_a_script_that_draws_by_itself_is_named():
    plot = SimpleNamespace(title=lambda: "X/Y/Z plot")
    p = job(scripts=SimpleNamespace(selectable_scripts=[plot]), script_args=[1, "x"])
    with pytest.raises(ValueError, match='"X/Y/Z plot" draws its own pictures'):
        compare.begin(p, state())
    assert p.n_iter == 1


def test_a_script_that_fills_the_lists_anew_can_not_part_a_pair():
    p = job(2)
    comparison = compare.begin(p, state())
    p.all_prompts = [f"wild {k}" for k in range(4)]
    p.all_seeds = [1, 2, 3, 4]
    for batch in range(4):
        comparison.pair_up(batch)
    assert p.all_prompts == ["wild 0", "wild 0", "wild 2", "wild 2"]
    assert p.all_seeds == [1, 1, 3, 3]


def test_prompts_that_differ_within_a_pair_are_seen():
    p = job()
    comparison = compare.begin(p, state())
    p.iteration, p.prompts = 0, ["a cat"]
    assert comparison.same_prompts()
    p.iteration = 1
    assert comparison.same_prompts()
    p.prompts = ["a dog"]
    assert not comparison.same_prompts()


def test_pairs_are_those_drawn_to_their_end():
    p = job(2, 2)
    comparison = compare.begin(p, state())
    made = {}
    for p.iteration in range(3):  # interrupted in the fourth batch
        for p.batch_index in range(2):
            made[p.iteration, p.batch_index] = Image.new("RGB", (8, 8))
            comparison.keep(made[p.iteration, p.batch_index])
    assert list(comparison.pairs()) == [(2, made[0, 0], made[1, 0]), (3, made[0, 1], made[1, 1])]


def test_infotext_of_ours_stands_with_decoupled_pictures_and_the_grid_only():
    p = job(2, 2)
    settings = Settings(enabled=True, loss="iou")
    run = Run(settings, comparison=compare.begin(p, state()))
    written = run.told_of_guided(infotext.write(settings))
    assert set(written) >= {"Decouple", "Decouple loss"}

    def told(index, prompts, main=False, iteration=0):
        p.iteration = iteration
        return written["Decouple loss"](p=p, index=index, all_prompts=prompts, use_main_prompt=main)

    assert [told(k, p.all_prompts, iteration=3) for k in range(8)] == [None, None, "iou", "iou"] * 2
    assert told(0, p.all_prompts) == "iou"  # the host's "last parameters", written with the first batch
    assert [told(1, p.all_prompts[:2], iteration=n) for n in range(4)] == [None, "iou", None, "iou"]
    assert told(0, p.all_prompts, main=True) == "iou"
    assert Run(settings).told_of_guided({"Decouple": "1"}) == {"Decouple": "1"}
