from __future__ import annotations

import csv
import sys
import types
from copy import copy
from types import SimpleNamespace

import pytest

from lib_decouple import presets
from lib_decouple.settings import Settings, specs
from lib_decouple.webui import api, options, xyz


class AxisOption:
    """As in scripts/xyz_grid.py of v1.10.1."""

    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None):
        self.label, self.type, self.apply, self.confirm = label, type, apply, confirm
        self.choices, self.prepare = choices, prepare


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """The plot's module, with our axes."""
    monkeypatch.setattr(options, "preset_folder", lambda: tmp_path)
    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    scripts = types.ModuleType("modules.scripts")
    scripts.scripts_data = [SimpleNamespace(module=SimpleNamespace()), SimpleNamespace(module=module)]
    package = types.ModuleType("modules")
    package.scripts = scripts
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
    xyz.add()
    return module


def job(*args):
    ours = SimpleNamespace(title=lambda: api.TITLE, args_from=1, args_to=1 + len(args))
    return SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[ours]), script_args=[0, *args])


def values(axis, p, typed):
    """What the plot makes of what was typed, without its ranges."""
    items = axis.prepare(typed) if axis.prepare else next(csv.reader([typed], skipinitialspace=True))
    found = [axis.type(item) for item in items]
    axis.confirm(p, found)
    return found


def cell(grid, p, **chosen):
    """Settings of a cell: label -> typed value, or several by comma, of which the last is taken."""
    own = copy(p)
    for label, typed in chosen.items():
        axis = next(one for one in grid.axis_options if one.label == label.replace("_", " "))
        found = values(axis, p, typed)
        axis.apply(own, found[-1], found)
    return xyz.settings_of(own, api.settings_from(p.script_args[1:]))


def test_every_setting_and_the_preset_have_one_axis_however_often_the_page_is_made(grid):
    xyz.add()
    labels = [axis.label for axis in grid.axis_options]
    assert len(labels) == len(set(labels)) == 1 + len(specs()) + 1
    assert {"Decouple loss", "Decouple steps", "Decouple size", "Decouple preset", "Decouple entities"} <= set(labels)
    assert "Decouple on/off" in labels


def test_a_cell_s_values_stand_over_the_accordion_s_and_turn_on(grid):
    p = job({"loss": "iou", "size": 0.3})
    assert cell(grid, p) == Settings(loss="iou", size=0.3)
    assert cell(grid, p, Decouple_steps="3, 9") == Settings(enabled=True, loss="iou", size=0.3, steps=9)
    assert cell(grid, p, Decouple_size="0.00012") == Settings(enabled=True, loss="iou", size=0.00012)
    assert cell(grid, p, Decouple_entities='cat, "cat, dog"').entities == ("cat", "dog")
    assert not hasattr(p, "attention_decoupling_cell")


def test_a_preset_stands_over_the_accordion_and_below_other_axes(grid, tmp_path):
    presets.save(presets.Preset("Mine", "", {"loss": "kl", "every": 3}), tmp_path)
    p = job({"loss": "iou", "size": 0.3, "entities": ["cat"]})
    wanted = Settings(enabled=True, loss="kl", steps=9, every=3, entities=("cat",))
    assert cell(grid, p, Decouple_preset="mine", Decouple_steps="9") == wanted
    assert cell(grid, p, Decouple_steps="9", Decouple_preset="mine") == wanted
    names = next(axis for axis in grid.axis_options if axis.label == "Decouple preset").choices()
    assert names[-1] == "Mine"
    off = axis_named(grid, "Decouple on/off")
    own = copy(p)
    off.apply(own, "False", ["False"])
    assert not xyz.settings_of(own, Settings(enabled=True)).enabled


def axis_named(grid, label):
    return next(one for one in grid.axis_options if one.label == label)


@pytest.mark.parametrize(
    ("label", "typed", "words"),
    [
        ("Decouple steps", "3, many", "steps: 'many' is not allowed; a number, -1 to 150 steps"),
        ("Decouple steps", "151", "steps: 151 is not allowed"),
        ("Decouple steps", "1.5", "steps: 1.5 is not allowed; a whole number"),
        ("Decouple size", "-1", "size: -1 is not allowed"),
        ("Decouple loss", "com, iuo", "iuo"),
        ("Decouple preset", "Balnced", "did you mean Balanced"),
        ("Decouple on/off", "maybe", "enabled: 'maybe' is not allowed; true or false"),
        ("Decouple level", "3", "factor: 3"),
        ("Decouple refine steps", "150", "refine_steps"),
        ("Decouple start", "5", "start: 5 is not allowed; fewer than the guided steps, 4"),
    ],
)
def test_a_bad_value_is_refused_before_the_first_cell(grid, label, typed, words):
    with pytest.raises(ValueError, match=words):
        values(axis_named(grid, label), job({"steps": 4}), typed)


@pytest.mark.parametrize("typed", ["1-5", "1-5 (+2)", "1-10 [5]", " 1 - 5 "])
def test_the_plot_s_ranges_are_left_to_it(grid, typed):
    assert axis_named(grid, "Decouple steps").prepare(f"{typed}, 3.0") == [typed.lstrip(), "3"]


def test_every_choice_that_is_offered_is_taken(grid):
    for axis in grid.axis_options[1:]:
        if axis.choices:
            axis.confirm(job(), axis.choices())
