from dataclasses import fields

import pytest

from lib_decouple.settings import FIXED, Settings, specs


def test_every_field_is_described_and_its_default_is_allowed():
    assert list(specs()) == [item.name for item in fields(Settings)]
    labels = [spec.label for spec in specs().values()]
    infotext = [spec.infotext for spec in specs().values()]
    assert len(set(labels)) == len(labels)
    assert len(set(infotext)) == len(infotext)
    assert Settings.from_dict(Settings().as_dict()) == Settings()


def test_any_subset_of_names_with_defaults_for_the_rest():
    settings = Settings.from_dict({"enabled": True, "loss": "kl(form=js)", "entities": ["cat", " traffic light "]})
    assert settings.entities == ("cat", "traffic light")
    assert settings.steps == Settings().steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"los": "iou"}, r"los: no such field \(did you mean loss\?\); allowed are enabled, loss,"),
        ({"loss": "iuo"}, "loss: 'iuo' is not one of iou, com, kl, cc, intensity, spread"),
        ({"loss": ""}, "loss: empty"),
        ({"steps": -2}, "steps: -2 is not allowed; -1 to 150 steps"),
        ({"steps": 2.5}, "steps: 2.5 is not allowed; a whole number"),
        ({"steps": True}, "steps: True is not allowed; a whole number"),
        ({"steps": "5"}, "steps: '5' is not allowed; a whole number"),
        ({"size": float("nan")}, "size: nan is not allowed; a number"),
        ({"size": -0.1}, "size: -0.1 is not allowed; 0 to 10000"),
        ({"stop": "yes"}, "stop: 'yes' is not allowed; one of auto, on, off"),
        ({"stop": 1}, "stop: 1 is not allowed; one of auto, on, off"),
        ({"enabled": 1}, "enabled: 1 is not allowed; true or false"),
        ({"entities": "cat, dog"}, "entities: 'cat, dog' is not allowed; a list"),
        ({"entities": ["cat", " "]}, "entities: .* none empty"),
        ({"rule": "adam"}, "rule: 'adam' is not allowed; one of auto, relative, attend-excite"),
        ({"factor": 3}, "factor: 3 is not allowed; 0 or a power of two"),
        ({"refine_steps": [0, 1.5]}, r"refine_steps: \[0, 1.5\] is not allowed; a whole number"),
        ({"steps": 4, "start": 4}, "start: 4 is not allowed; fewer than the guided steps, 4"),
        ({"refine_rounds": 0}, "refine_rounds: 0 is not allowed; 1 to 100"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.from_dict(values)


def test_what_was_a_tick_is_a_switch_that_still_takes_one():
    assert [Settings(stop=value).stop for value in (True, False, "on", "off", "auto")] == [
        "on", "off", "on", "off", "auto",
    ]  # fmt: skip


def test_saving_memory_was_a_tick_too():
    assert Settings().recompute == "auto"
    assert [Settings.from_dict({"recompute": value}).recompute for value in (True, False)] == ["on", "off"]


def test_what_is_left_open_has_the_first_version_s_defaults_where_nobody_fills_it():
    assert Settings().left_open() == ("loss", "steps", "rule", "size", "stop", "start")
    assert Settings().fixed().as_dict() == {**Settings().as_dict(), **FIXED}
    assert Settings().fixed().left_open() == ()
    chosen = Settings(loss="kl", steps=0, start=0, size=0.3)
    assert chosen.left_open() == ("rule", "stop")
    assert chosen.fixed() == Settings(loss="kl", steps=0, start=0, size=0.3, rule="relative", stop="off")
