"""Token positions that the page tells, against those that a job finds, in real WebUIs; see conftest.py and
test_forge.py. ``small-sdxl`` (DECOUPLE_CHECKPOINTS for A1111) is tried where it is there."""

from __future__ import annotations

import pytest

PROMPTS = {
    "short": "a photo of an old man, a dog and (a red fire hydrant:1.2)",
    "over 75 tokens": "a cat, " + "very nice, " * 30 + "and a dog",
    "BREAK": "a cat in a box BREAK a dog",
}


@pytest.fixture(params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


def entities_of(webui, prompt):
    """Suggested entities by name, and by the positions that the route tells."""
    status, told = webui.post("/decouple/v1/tokens", {"prompt": prompt})
    assert status == 200, told
    words = told["words"]
    names = [" ".join(words[k]["text"] for k in one) for one in told["suggested"]]
    places = [[token for k in one for token in words[k]["tokens"]] for one in told["suggested"]]
    assert all(place == list(range(place[0], place[-1] + 1)) for place in places)
    return names, [f"#{place[0]}-{place[-1]}" if len(place) > 1 else f"#{place[0]}" for place in places]


@pytest.mark.parametrize("family", ["", "small-sdxl"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_positions_that_the_page_tells_are_those_that_a_job_uses(webui, prompt, family):
    there = [one["model_name"] for one in webui.get("/sdapi/v1/sd-models")]
    if family and family not in there:
        pytest.skip(f"{family} is not among the WebUI's checkpoints")
    more = {"override_settings": {"sd_model_checkpoint": family}, "override_settings_restore_afterwards": False}
    more = {**(more if family else {}), "steps": 2, "width": 64, "height": 64}
    if family:
        webui.draw(prompt=prompt, **more)  # loads it, so that the route has its tokenizer
    names, places = entities_of(webui, prompt)
    for seed in range(3, 9):
        given = {"prompt": prompt, "seed": seed, **more}
        by_name = webui.draw({"entities": names, "steps": 1}, **given)
        if "taken back" not in str(by_name.value("Decouple moved")):
            break  # as the loss of random weights may rise
    assert by_name.value("Decouple found") == ", ".join(names)
    assert by_name.pixels == webui.draw({"entities": places, "steps": 1}, **given).pixels
    assert by_name.pixels == webui.draw({"steps": 1}, **given).pixels
    assert by_name.pixels != webui.draw(**given).pixels


def test_a_word_that_is_not_found_is_named_and_left_out_only_on_demand(webui):
    given = {"prompt": "a cat and a dog", "steps": 2, "width": 64, "height": 64}
    refused = webui.draw({"entities": ["cat", "dgo"]}, **given)
    told = refused.value("Decouple stood aside")
    assert '"dgo"' in told
    assert 'did you mean "dog"?' in told
    assert refused.value("Decouple found") is None
    assert refused.pixels == webui.draw(**given).pixels
    left_out = webui.draw({"entities": ["cat", "dog", "hen"], "skip_missing": True}, **given)
    assert left_out.value("Decouple found") == "cat, dog"
    assert left_out.pixels == webui.draw({"entities": ["cat", "dog"]}, **given).pixels


def test_each_image_s_own_prompt_is_read_styles_and_all(webui):
    style = {"name": "decouple test", "prompt": "{prompt} and a hen", "negative_prompt": ""}
    add = "from modules import shared\nfrom modules.styles import PromptStyle\n"
    add += "shared.prompt_styles.styles[one['name']] = PromptStyle(**one)\nresult = 1"
    webui.inside(add, one=style)
    try:
        found = webui.draw(
            {"steps": 1}, prompt="a cat", styles=[style["name"]], steps=2, width=64, height=64, batch_size=2
        )
    finally:
        webui.inside(
            "from modules import shared\nresult = shared.prompt_styles.styles.pop(one) and 1", one=style["name"]
        )
    assert [found.value("Decouple found", k) for k in range(2)] == ["cat, hen"] * 2
