from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from lib_decouple.core.presence import Presence
from lib_decouple.core.trace import ImageTrace, Measures, StepRecord
from lib_decouple.hosts import seeds
from lib_decouple.hosts.seeds import ExtraPasses, SeedChoice
from lib_decouple.hosts.tell import Teller
from lib_decouple.settings import Settings
from lib_decouple.webui import infotext, report
from lib_decouple.webui.infotext import (
    AGAIN,
    ASKED,
    ASKED_VARIATION,
    BATCH,
    BY_UPDATE,
    FOUND,
    HIRES,
    MOVED,
    NO_DRAFTS,
    NOT_INSISTED,
    RESULTS,
    STOOD_ASIDE,
    TOLD,
    join_list,
)
from lib_decouple.webui.report import Run


@dataclass
class Pass:
    traces: list[ImageTrace]
    left_alone: list[str]
    iteration: int = 0
    hires: bool = False
    stood_aside: str = ""
    exact_since: str = ""
    seconds: float = 1.5
    beside: ExtraPasses = field(default_factory=ExtraPasses)
    step: int = 6
    total: int = 6
    teller: Teller = field(default_factory=lambda: Teller(4))
    choices: list[SeedChoice | None] = field(default_factory=lambda: [None] * 4)
    no_drafts: str = ""
    drew: bool = True
    not_insisted: str = ""


def overlap(iou):
    return None if iou is None else Measures({} if iou == "none" else {"cat/dog": iou}, {}, {}, {}, {}, {})


def trace(*looks, names=("cat", "dog")):
    """A record for each ``(before, after, update)``."""
    steps = [
        StepRecord(i, 0.0, overlap(before), overlap(after), update_norm=update)
        for i, (before, after, update) in enumerate(looks)
    ]
    return ImageTrace(names if looks else (), steps)


FIRST = trace((0.8, 0.5, 0.04), (0.4, None, 0.03), (0.2, None, 0.01))
LAST = trace((0.7, 0.6, 0.04), (0.5, 0.2, 0.02))


def run(**given):
    first = Pass([FIRST, trace()], ["", 'entities: "dog" is not in the prompt'])
    second = Pass(
        [trace((0.4, None, 0.1)), LAST], ["", ""], iteration=1, stood_aside="at step 3 of 6: out of memory"
    )  # fmt: skip
    return Run(Settings(enabled=True), [first, second], drawn={0, 1}, **given)


def of_image(key, index, prompts, iteration=1, main=False):
    p = SimpleNamespace(all_prompts=["a"] * 4, batch_size=2, iteration=iteration)
    made = run().infotext()[key]
    return made(p=p, index=index, all_prompts=prompts, use_main_prompt=main, more="ignored")


def test_results_of_the_image_that_the_host_means():
    whole, batch = ["a"] * 4, ["a"] * 2
    assert of_image(MOVED, 0, whole) == "3 of 6 steps by 8.0 %"
    assert of_image(MOVED, 3, whole) == "2 of 6 steps by 6.0 %"
    assert of_image(MOVED, 1, batch) == "2 of 6 steps by 6.0 %"
    assert of_image(MOVED, 0, batch, iteration=0) == "3 of 6 steps by 8.0 %"
    assert of_image(FOUND, 0, whole) == "cat, dog"
    assert of_image(BATCH, 3, whole) == "2 of 2"


def test_an_effect_is_told_at_one_noise_level_only():
    """From a first to a last look an unguided run's maps change as much."""
    whole = ["a"] * 4
    assert of_image(BY_UPDATE, 0, whole) == "0.800 to 0.500 at step 1"  # not "to 0.200"
    assert of_image(BY_UPDATE, 3, whole) == "0.600 to 0.400 over 2 steps"
    assert of_image(BY_UPDATE, 2, whole) is None  # nobody looked behind an update
    assert infotext.OLD_IOU not in run().infotext()


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([(0.7, 0.7, 0.0)], None),  # it was not moved there
        ([(0.7, "none", 0.1)], None),  # the pair was not in the prompt behind it
        ([("none", "none", 0.1)], None),  # one entity
        ([(0.7, "none", 0.1), (0.6, 0.65, 0.1)], "0.600 to 0.650 at step 2"),  # it rose
    ],
)
def test_only_a_pair_that_was_seen_on_both_sides_of_an_update_counts(looks, told):
    assert Run(Settings(enabled=True), [Pass([trace(*looks)], [""])]).result(BY_UPDATE, 0, 0) == told


def test_an_image_that_was_left_alone_says_why_and_has_no_result():
    assert {key: of_image(key, 1, ["a"] * 4) for key in RESULTS if key != STOOD_ASIDE} == dict.fromkeys(RESULTS[:-1])
    assert "dog" in of_image(STOOD_ASIDE, 1, ["a"] * 4)
    assert of_image(STOOD_ASIDE, 0, ["a"] * 4) is None


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Pass([trace()], [""], total=6), report.NO_STEP),  # interrupted before guidance began
        (Pass([trace((0.5, None, 0.0))], [""]), None),  # it was left alone, which is no failure
        (Pass([trace((0.5, None, 0.0))], [""], stood_aside="at step 2: x"), "at step 2: x"),
        (Pass([trace((0.5, None, 0.1))], [""]), None),
        (Pass([trace()], ["no cat"], hires=True), "hires: no cat"),
        (None, report.NOT_REACHED),
    ],
)
def test_an_image_that_nothing_moved_says_why(one, reason):
    passes = [] if one is None else [one]
    assert Run(Settings(enabled=True), passes, drawn={0}).result(STOOD_ASIDE, 0, 0) == reason
    if reason:
        assert reason.removeprefix("hires: ") in " ".join(Run(Settings(enabled=True), passes, drawn={0}).lines())


def test_updates_that_were_taken_back_are_said_not_to_have_helped():
    def told(*looks):
        own = trace(*looks)
        for record in own.steps:
            record.taken_back = not record.update_norm
        one = Run(Settings(enabled=True), [Pass([own], [""])])
        return one.result(MOVED, 0, 0), one.lines()[0]

    value, line = told((0.5, None, 0.0), (0.4, None, 0.1))
    assert value == "1 of 6 steps by 10.0 %, 1 taken back"
    assert "guidance did not help at 1" in line
    value, line = told((0.5, None, 0.0))
    assert value == "0 of 6 steps, 1 taken back"
    assert "not moved: guidance did not help" in line


def told_of(*presences, guided=FIRST, **given):
    one = Pass([guided] * len(presences), [""] * len(presences), **given)
    one.teller.told = list(presences)
    return Run(Settings(enabled=True), [one], drawn={0})


def test_what_is_there_is_told_in_words_and_first():
    known = Presence(0.5, {"cat": 0.9, "dog": 0.2}, {"cat": 0.97, "dog": 0.34}, ("cat", "dog"))
    unknown = Presence(0.5, {"cat": 0.9, "dog": 0.2, "cow": 0.4}, None, ("cow", "dog"))
    found = told_of(known, unknown, None)
    assert [found.result(TOLD, 0, k) for k in range(3)] == [
        "cat ✓, dog perhaps missing", "attention weakest for dog; closest for cow and dog", None,
    ]  # fmt: skip
    assert found.lines()[0].startswith("Image 1: cat ✓, dog perhaps missing; cat, dog: moved at 3 of 6 steps")
    assert not any("%" in found.result(TOLD, 0, k) for k in range(2))
    aside = told_of(known, guided=trace(), stood_aside="out of memory")
    assert aside.lines()[0] == "cat ✓, dog perhaps missing; stood aside: out of memory"
    assert told_of(unknown).lines()[0].startswith("Attention weakest for dog; closest for cow and dog; cat, dog: moved")
    alone = told_of(Presence(0.5, {"cat": 0.9}))
    assert alone.result(TOLD, 0, 0) is None


@pytest.mark.parametrize(("count", "more"), [(12, ""), (13, " and 1 more"), (40, " and 28 more")])
def test_of_many_entities_the_status_names_the_first_and_the_infotext_all(count, more):
    names = [f"thing {k}" for k in range(count - 1)] + ["salt, pepper"]
    names.insert(0, names.pop())
    found = told_of(None, guided=replace(FIRST, entities=tuple(names)))
    assert found.result(FOUND, 0, 0) == join_list(names)
    assert found.lines()[0].startswith(f'"salt, pepper", {join_list(names[1:12])}{more}: moved')


def test_which_seed_was_drawn_is_told_of_each_image():
    scores = {3: {"cat": 0.2}, 1_000_006: {"cat": 0.9}}
    found = told_of(None, None, None, None)
    (one,) = found.passes
    one.choices = [
        SeedChoice(3, 1_000_006, scores),
        SeedChoice(3, 3, scores),
        SeedChoice(50, 1_000_053, scores, True),
        None,
    ]
    assert [found.result(ASKED, 0, k) for k in range(4)] == ["3", "3", None, None]
    assert [found.result(ASKED_VARIATION, 0, k) for k in range(4)] == [None, None, "50", None]
    lines = found.lines()
    assert lines[0].startswith(
        "Image 1: seed 1000006 drawn, best of 2 drafts by attention, instead of 3; cat, dog: moved"
    )
    assert lines[1].startswith("Image 2: the seed asked for, 3, best of 2 drafts by attention; ")
    assert lines[2].startswith("Image 3: variation seed 1000053 drawn, best of 2 drafts by attention, instead of 50; ")
    assert lines[3].startswith("Image 4: cat, dog: ")
    assert [found.label(0, k) for k in range(2)] == ["decoupled, seed 1000006", "decoupled"]
    assert found.result(NO_DRAFTS, 0, 0) is None
    one.choices, one.no_drafts = [None] * 4, "out of memory"
    assert found.result(NO_DRAFTS, 0, 0) == "out of memory"
    assert found.lines()[0].startswith("Image 1: no drafts: out of memory; cat, dog: ")


def test_what_was_begun_again_is_told_of_each_image_and_why_it_was_not():
    scores = {3: {"cat": 0.2}, 1_000_006: {"cat": 0.9}, 2_000_009: {"cat": 0.3}}
    runs = (
        seeds.BegunRun(3, {"cat": 0.9, "dog": 0.1, "cow": 0.3}),
        seeds.BegunRun(1_000_006, {"cat": 0.4, "dog": 0.9, "cow": 0.9}),
    )
    found = told_of(None, None, None)
    (one,) = found.passes
    one.choices = [
        SeedChoice(3, 2_000_009, scores, accepted=True, runs=(*runs, seeds.BegunRun(2_000_009, {"cat": 0.9}))),
        SeedChoice(3, 3, scores, accepted=True, runs=runs[:1]), None,
    ]  # fmt: skip
    lost = "with seed 3 dog and cow perhaps missing; with seed 1000006 cat perhaps missing"
    assert [found.result(AGAIN, 0, k) for k in range(3)] == [lost, None, None]
    lines = found.lines()
    told = f"Image 1: seed 2000009 drawn, accepted by its draft, instead of 3; begun again: {lost}; cat, dog: moved"
    assert lines[0].startswith(told)
    assert lines[1].startswith("Image 2: the seed asked for, 3, accepted by its draft; cat, dog: moved")
    assert found.result(NOT_INSISTED, 0, 0) is None
    one.not_insisted = "out of memory"
    assert [found.result(NOT_INSISTED, 0, k) for k in range(2)] == ["out of memory"] * 2
    assert "accepted by its draft; out of memory; cat, dog" in found.lines()[1]


def test_where_nothing_was_to_be_moved_nothing_stood_aside():
    still = Pass([trace(), trace()], ["", ""])
    still.choices = [SeedChoice(3, 1_000_006, {3: {"cat": 0.2}, 1_000_006: {"cat": 0.9}}), None]
    found = Run(Settings(enabled=True, gradient="none"), [still], drawn={0})
    assert found.lines() == [
        "Image 1: seed 1000006 drawn, best of 2 drafts by attention, instead of 3",
        "Image 2: not guided, as “Gradient” is none",
    ]  # fmt: skip
    assert [found.result(STOOD_ASIDE, 0, k) for k in range(2)] == [None, None]
    assert found.label(0, 0) == "not guided, seed 1000006"


def test_an_image_that_no_update_moved_is_said_to_be_left_alone():
    still = [Pass([trace((0.5, None, 0.0))], [""])]
    stopped = Run(Settings(enabled=True, stop="on", stop_below=0.81), still, drawn={0})
    assert stopped.lines()[0] == "cat, dog: left alone, as its loss was at most 0.81 at every guided step"
    assert stopped.result(MOVED, 0, 0) == "0 of 6 steps"
    assert "gave no direction" in Run(Settings(enabled=True), still, drawn={0}).lines()[0]


def test_nothing_is_told_of_an_image_that_is_not_drawn_yet():
    """The host writes its "last parameters" before the first batch is sampled."""
    assert Run(Settings(enabled=True)).result(STOOD_ASIDE, 0, 0) is None
    assert Run(Settings(enabled=True), [Pass([trace()], [""])]).result(STOOD_ASIDE, 0, 0) is None


def test_the_second_pass_of_hires_fix_has_figures_of_its_own():
    second = Pass([trace((0.3, 0.1, 0.02), names=("fox", "owl"))], [""], hires=True, total=4)
    both = Run(Settings(enabled=True), [Pass([FIRST], [""]), second], drawn={0})
    assert [both.result(key, 0, 0) for key in (FOUND, MOVED, BY_UPDATE)] == [
        "cat, dog", "3 of 6 steps by 8.0 %", "0.800 to 0.500 at step 1",
    ]  # fmt: skip
    assert [both.result(key, 0, 0) for key in HIRES.values()] == [
        "fox, owl", "1 of 4 steps by 2.0 %", "0.300 to 0.100 at step 1",
    ]  # fmt: skip
    assert "; hires: fox, owl: moved at 1 of 4" in both.lines()[0]
    assert both.lines()[-1] == "More passes of the model: 4 to guide, 3.0 s"  # of one image
    assert Run(Settings(enabled=True), [second], drawn={0}).result(FOUND, 0, 0) is None


def test_batch_and_place_are_told_where_they_matter():
    alone = Run(Settings(enabled=True), [Pass([FIRST], [""])])
    assert alone.result(BATCH, 0, 0) is None
    three = Run(Settings(enabled=True), [Pass([FIRST, trace(), LAST], ["", "no", ""])])
    assert [three.result(BATCH, 0, k) for k in range(3)] == ["1 of 3", None, "3 of 3"]


def test_results_are_the_job_s_own_when_a_copy_went_through_the_scripts_meanwhile():
    p = SimpleNamespace(all_prompts=["a"] * 4, batch_size=2, iteration=1, attention_decoupling=run())
    of_copy = Run(Settings(enabled=True)).infotext()[MOVED]
    assert of_copy(p=p, index=0, all_prompts=["a"] * 4, use_main_prompt=False) == "3 of 6 steps by 8.0 %"


def test_the_grid_carries_no_image_s_result():
    assert [of_image(key, 0, ["a"] * 4, main=True) for key in RESULTS] == [None] * len(RESULTS)


def test_status_lines():
    lines = run().lines()
    assert lines[0] == "Image 1: cat, dog: moved at 3 of 6 steps by 8.0 % of the latents' length"
    assert lines[1].startswith("Image 2: stood aside: entities")
    assert lines[3].endswith("; stood aside: at step 3 of 6: out of memory")
    assert lines[-1] == "More passes of the model (counted image by image): 6 to guide, 3.0 s"
    asked = run(profile_told="Auto for a model")
    asked.settings = Settings(enabled=True, entities=("cat", "dog", "bird"))
    assert "; not in this prompt: bird" in asked.lines()[0]
    assert asked.lines()[-2] == "Auto for a model"
    assert run(problem="loss: no").lines() == ["Stood aside: loss: no"]
    alone = Run(Settings(enabled=True), [Pass([trace()], ["no cat"])], profile_told="Auto", drawn={0})
    assert alone.lines() == ["Stood aside: no cat"]  # no "0 more passes, 0.0 s"


@pytest.mark.parametrize(
    ("looks", "beside", "told"),
    [
        (FIRST, ExtraPasses(), "3 to guide, 1.5 s"),
        (FIRST, ExtraPasses(drafts=16), "3 to guide, 1.5 s; 16 for drafts"),
        (FIRST, ExtraPasses(4, 9, 5), "8 to guide, 1.5 s; 4 for drafts; 9 in pictures that were begun and given up"),
        (trace(), ExtraPasses(drafts=16), "16 for drafts"),
        (trace(), ExtraPasses(), None),
    ],
    ids=["guided", "of the best draft", "begun again", "not guided", "nothing"],
)
def test_what_all_of_it_cost_is_told(looks, beside, told):
    one = Run(Settings(enabled=True), [Pass([looks], [""], beside=beside)], profile_told="Auto", drawn={0})
    assert one.lines()[1:] == [
        *(["Auto"] if looks is FIRST else []),
        *([f"More passes of the model: {told}"] if told else []),
    ]


def test_results_can_be_written_as_json():
    """Forge Classic does so with what a job was given for its infotext, before and beside calling it."""
    found = Run(Settings(enabled=True), problem="no reason").infotext()
    assert json.loads(json.dumps(found)) == dict.fromkeys(found, "")
    p = SimpleNamespace(all_prompts=["a"], batch_size=1, iteration=0, attention_decoupling=None)
    given = {"p": p, "index": 0, "all_prompts": ["a"], "use_main_prompt": False}
    assert found[STOOD_ASIDE](**given) == "no reason"
