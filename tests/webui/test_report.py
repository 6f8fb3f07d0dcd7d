from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

from lib_decouple.core.trace import ImageTrace, Measures, StepRecord
from lib_decouple.settings import Settings
from lib_decouple.webui.infotext import STOOD_ASIDE
from lib_decouple.webui.report import Run


@dataclass
class Pass:
    traces: list[ImageTrace]
    left_alone: list[str]
    iteration: int = 0
    hires: bool = False
    stood_aside: str = ""
    seconds: float = 1.5


def trace(*ious):
    steps = [StepRecord(i, 0.0, Measures({"cat/dog": iou}, {}, {}, {}, {}, {})) for i, iou in enumerate(ious)]
    return ImageTrace(("cat", "dog") if ious else (), steps)


def run(**given):
    first = Pass([trace(0.8, 0.5, 0.25), trace()], ["", 'entities: "dog" is not in the prompt'])
    second = Pass([trace(0.4), trace(0.6, 0.7)], ["", ""], iteration=1, stood_aside="at step 2 of 6: out of memory")
    return Run(Settings(enabled=True), [first, second], **given)


def of_image(key, index, prompts, iteration=1, main=False):
    p = SimpleNamespace(all_prompts=["a"] * 4, batch_size=2, iteration=iteration)
    made = run().infotext()[key]
    return made(p=p, index=index, all_prompts=prompts, use_main_prompt=main, more="ignored")


def test_results_of_the_image_that_the_host_means():
    whole, batch = ["a"] * 4, ["a"] * 2
    assert of_image("Decouple IoU", 0, whole) == "0.800 to 0.250"
    assert of_image("Decouple IoU", 3, whole) == "0.600 to 0.700"
    assert of_image("Decouple IoU", 1, batch) == "0.600 to 0.700"
    assert of_image("Decouple IoU", 0, batch, iteration=0) == "0.800 to 0.250"
    assert of_image("Decouple found", 0, whole) == "cat, dog"


def test_an_image_that_was_left_alone_says_why_and_has_no_result():
    assert of_image("Decouple IoU", 1, ["a"] * 4) is None
    assert "dog" in of_image("Decouple stood aside", 1, ["a"] * 4)
    assert of_image("Decouple stood aside", 0, ["a"] * 4) is None


def test_results_are_the_job_s_own_when_a_copy_went_through_the_scripts_meanwhile():
    p = SimpleNamespace(all_prompts=["a"] * 4, batch_size=2, iteration=1, attention_decoupling=run())
    of_copy = Run(Settings(enabled=True)).infotext()["Decouple IoU"]
    assert of_copy(p=p, index=0, all_prompts=["a"] * 4, use_main_prompt=False) == "0.800 to 0.250"


def test_the_grid_carries_no_image_s_result():
    assert of_image("Decouple IoU", 0, ["a"] * 4, main=True) is None


def test_status_lines():
    lines = run().lines()
    assert lines[0] == "Image 1: cat, dog: overlap (IoU) 0.800 to 0.250"
    assert lines[1].startswith("Image 2: stood aside: entities")
    assert lines[-1] == "6 more passes of the UNet, 3.0 s"
    asked = run()
    asked.settings = Settings(enabled=True, entities=("cat", "dog", "bird"))
    assert "; not in this prompt: bird" in asked.lines()[0]
    assert run(problem="loss: no").lines() == ["Stood aside: loss: no"]


def test_results_can_be_written_as_json():
    """Forge Classic does so with what a job was given for its infotext, before and beside calling it."""
    found = Run(Settings(enabled=True), problem="no reason").infotext()
    assert json.loads(json.dumps(found)) == dict.fromkeys(found, "")
    p = SimpleNamespace(all_prompts=["a"], batch_size=1, iteration=0, attention_decoupling=None)
    given = {"p": p, "index": 0, "all_prompts": ["a"], "use_main_prompt": False}
    assert found[STOOD_ASIDE](**given) == "no reason"
