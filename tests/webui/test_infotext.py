"""Settings through the host's own writing and reading of infotext, copied below as the stand-in."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple import presets
from lib_decouple.settings import Settings, specs
from lib_decouple.webui import infotext, options
from lib_decouple.webui.infotext import PASTE, from_text, join_list, read, split_list, write


def host_writes(params):
    """modules/processing.py and infotext_utils.quote of v1.10.1."""

    def quote(text):
        if "," not in str(text) and "\n" not in str(text) and ":" not in str(text):
            return text
        return json.dumps(text, ensure_ascii=False)

    line = ", ".join(k if k == v else f"{k}: {quote(v)}" for k, v in params.items() if v is not None)
    return f"a prompt\nSteps: 20, Sampler: Euler, CFG scale: 7, {line}"


def host_reads(text):
    """infotext_utils.parse_generation_parameters of v1.10.1, the last line."""
    found = {}
    *_, last = text.strip().split("\n")
    for k, v in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        if not v:
            continue
        if v[0] == '"' and v[-1] == '"':
            with contextlib.suppress(ValueError):
                v = json.loads(v)
        size = re.match(r"^(\d+)x(\d+)$", v)
        if size:
            found[f"{k}-1"], found[f"{k}-2"] = size[1], size[2]
        else:
            found[k] = v
    return found


ODD = [
    "512x512",
    "a, b",
    'say "hi"',
    '"quoted"',
    "line\nbreak",
    "a: b",
    "back\\slash",
    '"',
    "tab\there",
    "é猫",
    '\\"',
    "#5-7",
]
MINE = presets.Preset("Mine", "", {"loss": "cc", "size": 0.4})
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@pytest.mark.parametrize("entities", [[one] for one in ODD] + [ODD])
def test_odd_entities_survive_the_host(entities):
    settings = Settings(enabled=True, entities=tuple(entities))
    assert read(host_reads(host_writes(write(settings)))) == settings


@given(st.lists(names, max_size=4))
def test_any_entities_survive_the_host(entities):
    settings = Settings(enabled=True, entities=tuple(entities))
    assert read(host_reads(host_writes(write(settings)))) == settings


@given(st.lists(names, max_size=4))
def test_lists_survive_as_text(values):
    assert split_list(join_list(values)) == values


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_typed_list_is_read(text):
    assert all(isinstance(item, str) and item.strip() for item in split_list(text))


def test_a_typed_list():
    assert split_list(' cat,, "salt, pepper" ,a dog ') == ["cat", "salt, pepper", "a dog"]
    assert split_list('the "big" cat, "half') == ['the "big" cat', '"half']


def test_every_setting_survives_the_host():
    changed = Settings(
        enabled=True, loss="iou + 0.5*kl(form=js, pool=sum)", steps=7, entities=("cat",), rule="attend-excite",
        size=0.123456789, factor=8, treatment="attend-excite", combine="max", refine_steps=(0, 10, 20),
        refine_threshold=-0.25, refine_rounds=3, stop=True, stop_below=1e-5, every=2, hires=True, one_at_a_time=True,
        layers="up", start=3, recompute=True, skip_missing=True, look="off", drafts=7, restarts=3, gradient="late",
    )  # fmt: skip
    text = host_writes(write(changed))
    assert read(host_reads(text)) == changed
    assert all(f"{spec.infotext}: " in text for spec in specs().values())


@pytest.mark.parametrize(("text", "value"), [("True", "on"), ("false", "off"), ("on", "on"), ("auto", "auto")])
def test_a_switch_that_was_a_tick_is_read_as_one(text, value):
    assert read({"Decouple": "1", "Decouple stop": text}).stop == value
    with pytest.raises(ValueError, match="stop: 'yes' is not allowed; one of auto, on, off, presence"):
        read({"Decouple": "1", "Decouple stop": "yes"})


def test_an_infotext_with_the_overlap_of_two_steps_is_still_read():
    params = host_reads("Decouple: 1, Decouple loss: kl, Decouple IoU: 0.709 to 0.140")
    assert read(params) == Settings(enabled=True, loss="kl").fixed()


@pytest.mark.parametrize("key", [infotext.ASKED, infotext.ASKED_VARIATION, infotext.NO_DRAFTS])
def test_a_paste_makes_no_drafts_where_the_picture_s_seed_is_that_to_draw(key):
    """It is the chosen one, or the one that was asked for, where none could be drafted."""
    written = write(Settings(enabled=True, look="choose", drafts=8))
    assert read(written) == Settings(enabled=True, look="choose", drafts=8)
    again = read({**written, key: "33"})
    assert (again.look, again.drafts) == ("tell", 8)


def test_defaults_are_omitted_and_off_writes_nothing():
    assert write(Settings()) == {}
    assert write(Settings(), "Balanced") == {}
    assert write(Settings(enabled=True).fixed()) == {"Decouple": "1"}


def test_paste_without_our_keys_turns_off_and_leaves_the_rest():
    assert PASTE["enabled"]({"Steps": "20"}) is False
    assert all(PASTE[name]({"Steps": "20"}) is None for name in PASTE if name != "enabled")


def test_paste_restores_defaults_that_were_omitted():
    pasted = {name: paste({"Decouple": "1", "Decouple steps": "9"}) for name, paste in PASTE.items()}
    assert pasted["enabled"] is True
    assert pasted["steps"] == 9
    assert (pasted["loss"], pasted["size"], pasted["start"], pasted["stop"]) == ("com", 0.15, 0, "off")
    assert pasted["entities"] == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of the user's presets, in a WebUI."""
    monkeypatch.setattr(options, "preset_folder", lambda: tmp_path)
    return tmp_path


def test_a_recorded_preset_is_exact_whatever_became_of_it(folder):
    presets.save(MINE, folder)
    settings = MINE.with_overrides()
    text = host_writes(write(settings, presets.matching(settings, folder)))
    assert "Decouple preset: Mine" in text
    presets.save(replace(MINE, settings={"steps": 3}), folder, overwrite=True)
    assert read(host_reads(text), lambda: folder) == settings
    presets.delete("Mine", folder)
    assert read(host_reads(text), lambda: folder) == settings
    assert infotext.pasted_problem(host_reads(text)) == ""


def test_a_written_preset_is_applied_with_the_other_keys_over_it(folder):
    presets.save(MINE, folder)
    pasted = host_reads("a prompt\nSteps: 20, Decouple preset: mine, Decouple steps: 9")
    assert read(pasted, lambda: folder) == MINE.with_overrides(steps=9)
    values = {name: paste(pasted) for name, paste in PASTE.items()}
    assert (values["enabled"], values["loss"], values["steps"]) == (True, "cc", 9)


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ({"Decouple preset": "balnced"}, "did you mean Balanced"),
        ({"Decouple preset": "../x"}, "there is no '../x'"),
        ({"Decouple preset": "fast", "Decouple steps": "999"}, "steps: 999"),
        ({"Decouple": "2", "Decouple steps": "9"}, "version 2 is not known here"),
        ({"Decouple": "1", "Decouple steps": "many"}, "steps: 'many'"),
    ],
)
def test_what_can_not_be_pasted_turns_off_and_says_why(folder, pasted, words):
    assert words in infotext.pasted_problem(pasted)
    assert PASTE["enabled"](pasted) is False
    assert all(paste(pasted) is None for name, paste in PASTE.items() if name != "enabled")


def test_a_value_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="steps: 'many' is not allowed; a number, -1 to 150 steps"):
        from_text("steps", "many")


def test_lists_are_parted_by_the_commas_of_any_script():
    assert infotext.split_list("cat，dog、hen；owl; fox،  bee؛ant") == ["cat", "dog", "hen", "owl", "fox", "bee", "ant"]
    assert infotext.split_list(infotext.join_list(["a、b", "c;d", "e"])) == ["a、b", "c;d", "e"]
