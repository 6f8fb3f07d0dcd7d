"""A job's pictures in another order, and how they are ranked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from lib_decouple.core.presence import Presence
from lib_decouple.core.trace import ImageTrace
from lib_decouple.hosts.seeds import ExtraPasses
from lib_decouple.settings import Settings
from lib_decouple.webui import order
from lib_decouple.webui.report import Run

from .test_jobs import host  # noqa: F401


def sampling(iteration, weakest, chances=False, hires=False):
    """A pass whose images' weakest entities have these scores, or chances; None where nothing is told."""
    told = [
        None if own is None
        else Presence(0.5, {"cat": 0.9, "dog": own}, {"cat": 0.8, "dog": own} if chances else None, None)
        for own in weakest
    ]  # fmt: skip
    count = len(told)
    return SimpleNamespace(
        iteration=iteration, hires=hires, traces=[ImageTrace(()) for _ in told], left_alone=[""] * count,
        stood_aside="", exact_since="", teller=SimpleNamespace(told=told), choices=[None] * count,
        no_drafts="", not_insisted="", drew=True,
        seconds=0.0, beside=ExtraPasses(), step=1, total=4,
    )  # fmt: skip


def run_of(*passes):
    return Run(Settings(enabled=True, gradient="none"), list(passes))


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([sampling(0, [0.2, 0.5]), sampling(1, [0.4, 0.3])], [(0, 1), (1, 0), (1, 1), (0, 0)]),
        ([sampling(0, [0.2, 0.5], True)], [(0, 1), (0, 0)]),
        ([sampling(0, [0.2, None]), sampling(1, [0.2, float("nan")])], [(0, 0), (1, 0), (1, 1)]),  # of equals the first
        ([sampling(0, [0.9]), sampling(1, [0.1], chances=True)], [(1, 0), (0, 0)]),  # a score is no chance
        ([sampling(0, [0.1, 0.2]), sampling(0, [0.3, 0.2], hires=True)], [(0, 0), (0, 1)]),  # the last pass counts
        ([], []),
    ],
)
def test_images_are_ranked_by_their_weakest_entity(passes, expected):
    assert run_of(*passes).best_first() == expected


def test_the_status_ranks_more_than_one():
    assert run_of(sampling(0, [0.2, 0.5]), sampling(1, [0.4, 0.3])).lines()[-1].endswith(": images 2, 3, 4, 1")
    for one in (run_of(sampling(0, [0.2])), run_of(sampling(0, [0.2, None]))):
        assert not any("ranked" in line for line in one.lines())
    many = run_of(sampling(0, [k / 20 for k in range(12)])).lines()[-1]
    assert many.endswith("images 12, 11, 10, 9, 8, 7, 6, 5 … and 4 more")


@pytest.fixture
def webui(monkeypatch):
    """The host's options."""
    shared = ModuleType("modules.shared")
    shared.opts = SimpleNamespace(return_mask=False, return_mask_composite=False)
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    return shared.opts


def result(count=4, grid=True, more=()):
    """A job and what the host made of it."""
    names = [f"{k}" for k in range(count)]
    p = SimpleNamespace(
        all_prompts=[f"prompt {k}" for k in names], all_negative_prompts=[f"not {k}" for k in names],
        all_seeds=[*range(count)], all_subseeds=[*range(50, 50 + count)], script_args=[0], mask_for_overlay=None,
    )  # fmt: skip
    lists = {name: getattr(p, name) for name in order.LISTS}
    images = [*(["grid"] if grid else []), *names, *more]
    texts = [f"of {one}" for one in images]
    return p, SimpleNamespace(
        images=images, infotexts=texts, index_of_first_image=int(grid), seed=0, subseed=50, info=texts[0], **lists
    )


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("more", [(), ("maps of 0", "maps of 1")])
def test_pictures_and_all_that_belongs_to_them_are_put_in_order(webui, grid, more):
    p, processed = result(grid=grid, more=more)
    assert order.put([2, 0, 3], p, processed) == ""  # of picture 1 nothing is told
    start = ["grid"] if grid else []
    assert processed.images == [*start, "2", "0", "3", "1", *more]
    assert processed.infotexts == [f"of {one}" for one in processed.images]
    assert (processed.all_seeds, processed.all_subseeds) == ([2, 0, 3, 1], [52, 50, 53, 51])
    assert processed.all_prompts == ["prompt 2", "prompt 0", "prompt 3", "prompt 1"]
    assert processed.all_negative_prompts == ["not 2", "not 0", "not 3", "not 1"]
    assert (processed.seed, processed.subseed) == (2, 52)
    assert processed.info == ("of grid" if grid else "of 2")
    assert (p.all_seeds, p.all_prompts[0]) == ([0, 1, 2, 3], "prompt 0")  # other scripts go by them


def test_of_an_interrupted_job_what_was_drawn_is_put_in_order(webui):
    p, processed = result(grid=False)
    del processed.images[2:], processed.infotexts[2:]
    assert order.put([3, 1, 0], p, processed) == ""
    assert (processed.images, processed.all_seeds) == (["1", "0"], [1, 0, 2, 3])
    p, processed = result(grid=False)
    del processed.images[:], processed.infotexts[1:]
    assert order.put([3, 1], p, processed) == ""
    assert (processed.images, processed.infotexts, processed.all_seeds) == ([], ["of 0"], [0, 1, 2, 3])


def test_what_can_t_be_put_in_order_stays(webui):
    for option, told in (("script", "the script"), ("mask", "masks")):
        p, processed = result()
        if option == "script":
            p.script_args = [2]
        else:
            webui.return_mask, p.mask_for_overlay = True, "a mask"
        before = list(processed.images)
        assert told in order.put([2, 0, 3], p, processed)
        assert (processed.images, processed.all_seeds) == (before, [0, 1, 2, 3])


@pytest.mark.parametrize("wanted", [True, False])
def test_a_job_s_pictures_are_put_in_order_where_that_is_wanted(host, wanted):  # noqa: F811
    host.opts.data["decouple_best_first"] = wanted
    host.opts.return_mask = host.opts.return_mask_composite = False
    p, processed = result(count=2, grid=False)
    p.batch_size, p.attention_decoupling = 2, run_of(sampling(0, [0.1, 0.4]))
    p.extra_generation_params = processed.extra_generation_params = {}
    host.jobs.end(p, "txt2img", processed)
    assert processed.images == (["1", "0"] if wanted else ["0", "1"])
    assert host.jobs.told[p.attention_decoupling.id].lines[-1].endswith("images 2, 1")
