from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple import presets
from lib_decouple.core.losses import WeightedLoss
from lib_decouple.presets import BUILT_IN, FORMAT, Preset, PresetExists, UnknownPreset
from lib_decouple.settings import VERSION, Settings

MINE = Preset("Mine", "works for cats", {"loss": "kl", "steps": 9, "entities": ["cat", "salt, pepper", "猫"]})
texts = st.text(max_size=30)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12).filter(
    lambda name: not presets._RESERVED.fullmatch(name) and all(p.name.lower() != name.lower() for p in BUILT_IN)
)
jsons = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda preset: preset.name)
def test_a_built_in_preset_has_a_reason_and_valid_settings(preset):
    assert len(preset.reason) > 40
    settings = preset.with_overrides()
    assert settings.enabled
    WeightedLoss.parse(settings.fixed().loss)
    assert presets.matching(settings) == preset.name


def test_auto_and_insist_leave_everything_to_the_profile_and_the_others_nothing():
    given = {preset.name: preset.with_overrides() for preset in BUILT_IN}
    assert next(iter(given)) == "Auto"
    assert given["Auto"] == Settings(enabled=True)
    assert given["Insist"] == Settings(enabled=True, look="insist", drafts=8, restarts=2)
    assert {name for name, settings in given.items() if settings.left_open()} == {"Auto", "Insist"}


def test_a_file_of_the_first_version_keeps_its_defaults():
    """They were not "auto" then."""
    old = json.dumps({**whole(settings={"loss": "kl", "stop": True}), "version": 1}).encode()
    assert presets.from_json(old).with_overrides() == Settings(
        enabled=True, loss="kl", stop="on", steps=0, start=0, rule="relative", size=0.15
    )
    assert presets.from_json(presets.to_json(presets.from_json(old))) == presets.from_json(old)
    now = json.dumps({**whole(settings={"loss": "kl"}), "version": 2}).encode()
    assert presets.from_json(now).with_overrides() == Settings(enabled=True, loss="kl")


def test_built_ins_differ():
    assert len({repr(preset.with_overrides()) for preset in BUILT_IN}) == len(BUILT_IN)


def test_saved_listed_loaded_deleted(tmp_path):
    folder = tmp_path / "new" / "folder"
    path = presets.save(MINE, folder)
    assert path == folder / "Mine.json"
    assert json.loads(path.read_text("utf-8"))["version"] == VERSION
    assert presets.load("mine", folder) == MINE
    assert [preset.name for preset in presets.available(folder)][-1] == "Mine"
    presets.delete("MINE", folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(UnknownPreset, match="did you mean Balanced"):
        presets.load("balnced", folder)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_the_umask_decides_who_may_read_a_preset(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = presets.save(MINE, tmp_path)
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o600)
        assert presets.save(MINE, tmp_path, overwrite=True).stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_overwritten_unasked(tmp_path):
    presets.save(MINE, tmp_path)
    other = replace(MINE, name="mINE", settings={"loss": "cc"})
    with pytest.raises(PresetExists, match="'Mine' already"):
        presets.save(other, tmp_path)
    assert presets.load("Mine", tmp_path) == MINE
    presets.save(other, tmp_path, overwrite=True)
    assert presets.load("Mine", tmp_path).settings == {"loss": "cc"}
    assert len(list(tmp_path.iterdir())) == 1
    for overwrite in (False, True):
        with pytest.raises(PresetExists, match="built in"):
            presets.save(replace(MINE, name="balanced"), tmp_path, overwrite)
    with pytest.raises(ValueError, match="built in"):
        presets.delete("balanced", tmp_path)


def test_a_file_that_can_not_be_read_as_a_preset_is_not_overwritten_either(tmp_path):
    (tmp_path / "Mine.json").write_text("precious")
    with pytest.raises(PresetExists):
        presets.save(MINE, tmp_path)
    assert (tmp_path / "Mine.json").read_text() == "precious"
    assert "Mine.json: preset: not JSON" in presets.problems(tmp_path)[0]


def test_a_write_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    presets.save(MINE, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        presets.save(replace(MINE, settings={}), tmp_path, overwrite=True)
    assert presets.load("Mine", tmp_path) == MINE
    assert [path.name for path in tmp_path.iterdir()] == ["Mine.json"]


def test_links_are_neither_read_nor_followed(tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_bytes(presets.to_json(replace(MINE, name="Linked")))
    before = outside.read_bytes()
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "Linked.json").symlink_to(outside)
    with pytest.raises(UnknownPreset):
        presets.load("Linked", folder)
    with pytest.raises(UnknownPreset):
        presets.delete("Linked", folder)
    with pytest.raises(PresetExists):
        presets.save(replace(MINE, name="Linked"), folder)
    presets.save(replace(MINE, name="Linked"), folder, overwrite=True)
    assert outside.read_bytes() == before
    assert not (folder / "Linked.json").is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "C:x", "con", "NUL", "aux.txt", "COM1", "lpt¹",
        "a\0b", "a\nb", ".hidden", "dot.", "space ", "x" * 121, "\u202egnp", "a\u200bb", "*", "a?b", "\ud800", 5, None,
        ["a"], "file:x", "~/x", "%2e%2e", "\u0301a",
    ],
)  # fmt: skip
def test_names_that_are_no_file_names_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="name"):
        Preset(name, "", {})
    with pytest.raises(UnknownPreset):
        presets.load(name, tmp_path)


@given(texts)
def test_any_name_stays_in_the_folder_or_is_refused(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("fuzz")
    folder = root / "presets"
    try:
        preset = Preset(name, "", {"steps": 3})
        path = presets.save(preset, folder)
    except ValueError:
        assert not list(root.glob("*/*"))
        return
    assert path.parent == folder
    assert {p for p in root.rglob("*") if p.is_file()} == {path}
    assert presets.load(preset.name, folder) == preset


@given(names, texts)
def test_names_that_one_file_system_takes_for_one_collide(tmp_path_factory, name, reason):
    folder = tmp_path_factory.mktemp("fuzz")
    presets.save(Preset(name, "", {}), folder)
    with pytest.raises(PresetExists):
        presets.save(Preset(name.swapcase() if name.swapcase().swapcase() == name else name, "", {}), folder)


def whole(**changed):
    return {"format": FORMAT, "version": VERSION, "name": "x", "reason": "", "settings": {}, **changed}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 50_000, "deep"),
        (b'{"a":' * 10_000, "deep"),
        (b" " * 100_000, "larger than"),
        (b"[]", "format"),
        (b'{"format": 1}', "format"),
        (json.dumps(whole(version=3)), "version: 3 is not known here; this extension reads 1 to 2"),
        (json.dumps(whole(version="1")), "version: '1'"),
        (json.dumps(whole(version=True)), "version: True"),
        (json.dumps(whole(more=1)), "unknown: more"),
        (json.dumps(whole(name="../x")), "name: '../x'"),
        (json.dumps(whole(reason=5)), "reason"),
        (json.dumps(whole(settings=[])), "settings"),
        (json.dumps(whole(settings={"steps": 151})), "steps: 151 is not allowed; -1 to 150 steps"),
        (json.dumps(whole(settings={"loss": "iuo"})), "iuo"),
        (json.dumps(whole(settings={"stps": 1})), "stps: no such field (did you mean steps?)"),
        (json.dumps(whole(settings={"enabled": True})), "enabled"),
        (json.dumps(whole(settings={"size": float("nan")})), "NaN"),
        (json.dumps(whole(settings={"size": 1e999})), "Infinity"),
        (json.dumps(whole())[:-1] + ', "name": "y"}', "twice"),
        (json.dumps(whole(settings={"steps": 10**4000})), "… is not allowed; -1 to 150 steps"),
        (json.dumps(whole(settings={"entities": ["\ud800"]})), "surrogate"),
    ],
)
def test_what_is_wrong_is_named(data, words):
    data = data if isinstance(data, bytes) else data.encode()
    with pytest.raises(ValueError, match=re.escape(words)):
        presets.from_json(data)


def test_a_preset_that_could_not_be_read_again_is_not_made():
    with pytest.raises(ValueError, match="at most 65536"):
        Preset("x", "", {"loss": "+".join(["iou"] * 17_000)})


@given(st.binary(max_size=200) | jsons.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_a_preset_or_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011 - none of these has the format's name
        presets.from_json(data)


@given(st.dictionaries(st.sampled_from([*Settings().as_dict(), "other"]), jsons, max_size=3), jsons, jsons)
def test_any_content_is_a_valid_preset_or_a_value_error(settings, name, reason):
    data = json.dumps(whole(settings=settings, name=name, reason=reason)).encode()
    try:
        preset = presets.from_json(data)
    except ValueError:
        return
    assert isinstance(preset.with_overrides(), Settings)


MESSES = {
    "as it is": lambda text: text,
    "lower case": str.lower,
    "wrapped": lambda text: "\n".join(text[i : i + 20] for i in range(0, len(text), 20)),
    "quoted": lambda text: "\r\n> ".join(["try this:", *(text[i : i + 30] for i in range(0, len(text), 30)), "bye!"]),
    "in a sentence": lambda text: f"Here is my preset (`{text}`), have fun 007",
    "zero width": lambda text: "\u200b".join(text),
    "bold": lambda text: f"**{text}**",
}


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES)
def test_the_text_survives_a_chat_message(mess):
    text = presets.to_text(MINE)
    assert re.fullmatch("[A-Z0-9]+", text)
    assert len(text) < 400
    assert presets.from_text(mess(text)) == MINE
    assert presets.from_text(presets.to_json(MINE).decode()) == MINE


@pytest.mark.parametrize("depth", [10, 200, 500, 900, 950, 980, 990, 995, 1000, 3000, 20_000])
@pytest.mark.parametrize("field", ["steps", "entities", "loss"])
def test_any_depth_is_a_value_error(field, depth):
    deep = "[" * depth + "]" * depth
    with pytest.raises(ValueError, match=r"deep|steps|entities|loss|not allowed"):
        presets.from_json(json.dumps(whole(settings={field: "DEEP"})).replace('"DEEP"', deep).encode())


@given(st.data())
def test_a_damaged_text_is_refused(data):
    text = presets.to_text(MINE)
    place = data.draw(st.integers(9, len(text) - 3))
    char = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda c: c != text[place]))
    with pytest.raises(ValueError, match="damaged"):
        presets.from_text(text[:place] + char + text[place + 1 :])
    with pytest.raises(ValueError, match=r"damaged|no preset"):
        presets.from_text(text[:place] + text[place + 1 :])


@given(texts)
def test_any_text_is_a_preset_or_a_value_error(text):
    for message in (text, "DECOUPLE1" + text + "0", "{" + text):
        with pytest.raises(ValueError):  # noqa: PT011 - any reason will do, no other exception
            presets.from_text(message)


def test_a_bomb_is_not_unpacked():
    import base64
    import hashlib

    data = b"0" * 20_000_000
    packed = hashlib.sha256(data).digest()[:4] + zlib.compress(data, 9)
    text = "DECOUPLE1" + base64.b32encode(packed).decode().rstrip("=") + "0"
    with pytest.raises(ValueError, match="damaged"):
        presets.from_text(text)


def test_differences_name_fields_with_both_values():
    after = MINE.with_overrides(enabled=False)
    assert presets.differences(Settings(), after) == {
        "loss": ("auto", "kl"), "steps": (-1, 9), "entities": ([], ["cat", "salt, pepper", "猫"]),
    }  # fmt: skip


def test_matching_knows_a_user_s_preset_and_no_changed_one(tmp_path: Path):
    presets.save(MINE, tmp_path)
    assert presets.matching(MINE.with_overrides(), tmp_path) == "Mine"
    assert presets.matching(MINE.with_overrides(steps=10), tmp_path) == ""
    assert presets.matching(presets.load("fast").with_overrides(entities=["cat"])) == "Fast"


@pytest.mark.parametrize(
    ("settings", "reason", "name", "identical"),
    [
        ({"loss": "cc", "steps": 3}, "why", "Mine", True),
        ({"steps": 3, "loss": "cc", "size": Settings().size}, "why", "Mine", True),  # a default said aloud
        ({"loss": "cc", "steps": 4}, "why", "Mine", False),
        ({"loss": "cc", "steps": 3}, "another", "Mine", False),
        ({"loss": "cc", "steps": 3}, "why", "mine", False),
        (
            {"loss": "cc", "steps": 3, "entities": []},
            "why",
            "Mine",
            False,
        ),  # which empties the field, the other leaves it
        ({"loss": "cc", "steps": 3}, "why", "Other", False),
    ],
)
def test_an_import_of_what_is_there_already_is_known(settings, reason, name, identical, tmp_path):
    presets.save(presets.Preset("Mine", "why", {"loss": "cc", "steps": 3}), tmp_path)
    shown = presets.preview(presets.to_text(presets.Preset(name, reason, settings)), Settings(), tmp_path)
    assert shown.identical == identical


def test_a_built_in_preset_that_is_imported_is_known(tmp_path):
    own = presets.BUILT_IN[0]
    for preset, identical in ((own, True), (presets.Preset(own.name, "mine", {"size": 0.31}), False)):
        shown = presets.preview(presets.to_text(preset), Settings(), tmp_path)
        assert (shown.taken, shown.identical) == ("built in", identical)
