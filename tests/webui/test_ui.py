"""The accordion under a real gradio, over HTTP as a page sends it.

``run.py test`` runs this in the gradio of A1111 (3.41.2) and in that of Forge (4.40.0).
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gr = pytest.importorskip("gradio", reason="gradio is not installed here; `run.py test` runs this under both versions")

from lib_decouple import presets  # noqa: E402
from lib_decouple.embedded import place  # noqa: E402
from lib_decouple.settings import Settings, specs  # noqa: E402
from lib_decouple.webui import presets_ui, try_out, ui  # noqa: E402
from lib_decouple.webui.api import BESIDE, ORDER, settings_from  # noqa: E402
from lib_decouple.webui.infotext import to_text  # noqa: E402


@contextmanager
def input_accordion(value, elem_id, **given):
    """As the host's: a hidden checkbox that shares its state with an accordion."""
    checkbox = gr.Checkbox(value, visible=False, elem_id=f"{elem_id}-checkbox", **given)
    with gr.Accordion(open=value, elem_id=elem_id, **given):
        yield checkbox


def read(*values):
    """The settings that the page's values are, or what is wrong with them."""
    try:
        return settings_from(values).as_dict()
    except ValueError as error:
        return {"error": str(error)}


@pytest.fixture(scope="module")
def page():
    """A served page: its configuration by field, and ``send`` with changed values."""
    with gr.Blocks(analytics_enabled=False) as demo:
        made, _ = ui.controls(input_accordion, lambda name: f"script_txt2img_attention_decoupling_{name}")
        outside = set(demo.blocks)
        again, _ = ui.controls(input_accordion, lambda name: f"script_img2img_attention_decoupling_{name}")
        button, result = gr.Button(), gr.JSON()
        button.click(read, list(made.values()), result, api_name="read", queue=False)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, show_api=False, server_name="127.0.0.1")
    with urllib.request.urlopen(f"{url}config", timeout=30) as answer:
        config = json.load(answer)
    props = {item["id"]: item["props"] for item in config["components"]}
    of_field = {name: props[control._id] for name, control in made.items()}

    def send(**changed):
        values = [changed.get(name, of_field[name]["value"]) for name in made]
        body = json.dumps({"data": values, "session_hash": "test"}).encode()
        request = urllib.request.Request(f"{url}run/read", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"][0]

    yield SimpleNamespace(of_field=of_field, send=send, config=config, made=made, again=again, outside=outside)
    demo.close()


def test_there_is_a_control_for_every_field_with_its_own_id_label_and_help(page):
    assert tuple(page.made) == ORDER
    for name, props in page.of_field.items():
        if name not in ("enabled", *BESIDE):
            assert props["elem_id"].endswith(f"_{name}")
            assert props["label"] == specs()[name].label
            assert props["info"].startswith(specs()[name].help)
    ids = [item["props"].get("elem_id") for item in page.config["components"] if item["props"].get("elem_id")]
    assert len(ids) == len(set(ids))


def test_the_page_as_it_opens_sends_the_defaults(page):
    assert page.send() == json.loads(json.dumps(Settings().as_dict()))


def test_what_the_page_sends_becomes_settings_of_the_right_types(page):
    sent = page.send(
        enabled=True, loss="intensity + 0.3*com", steps=7, entities='cat, "salt, pepper", dog@2', size=0.25, factor=16,
        refine_steps="0, 10", rule="attend-excite", stop=True, refine_threshold=-1,
    )  # fmt: skip
    assert sent == json.loads(
        json.dumps(
            Settings(
                enabled=True, loss="intensity + 0.3*com", steps=7, entities=("cat", "salt, pepper", "dog@2"), size=0.25,
                factor=16, refine_steps=(0, 10), rule="attend-excite", stop=True, refine_threshold=-1.0,
            ).as_dict()
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", "iuo", ("loss", "iuo")),
        ("refine_steps", "0, x", ("refine_steps", "x")),
        ("size", None, ("size",)),
        ("factor", 3, ("factor", "3")),
    ],
)
def test_a_wrong_value_is_named(page, name, value, words):
    error = page.send(**{name: value})["error"]
    assert all(word in error for word in words)


def test_built_again_it_stands_beside_the_first(page):
    assert {control._id for control in page.again.values()}.isdisjoint(page.outside)
    ours = {control._id for control in page.made.values()}
    assert not any(
        ours & set(one["outputs"])
        for one in page.config["dependencies"]
        if {control._id for control in page.again.values()} & set(one["inputs"])
    )


def test_the_status_line_names_the_run_whose_trace_is_kept():
    assert "<p>a &lt;b&gt;</p>" in ui.status_html(["a <b>"])
    told = ui.status_html(["one", "two"], "x_1")
    assert 'data-run="x_1"><p>one</p><p>two</p></div>' in told


def test_every_status_differs_from_the_one_before_so_that_the_page_tells_a_new_run_s():
    numbers = [re.search('data-told="([0-9]+)"', ui.status_html(["the same"]))[1] for _ in range(2)]
    assert numbers[0] != numbers[1]
    assert ui.status_html([]) == ""


def test_every_setting_stands_in_one_group_and_rare_ones_are_folded(page):
    layout = {}

    def walk(node, above):
        layout[node["id"]] = above
        for child in node.get("children") or ():
            walk(child, [*above, node["id"]])

    walk(page.config["layout"], [])
    props = {item["id"]: item["props"] for item in page.config["components"]}
    for name in ORDER:
        if name in ("enabled", *BESIDE):
            continue
        around = [props.get(one, {}).get("elem_id") or "" for one in layout[page.made[name]._id]]
        assert any(one.endswith(f"_group_{specs()[name].group}") for one in around)
        assert any(one.endswith("_expert") for one in around) == (specs()[name].group in ui.EXPERT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(presets_ui.options, "preset_folder", lambda: tmp_path)
    return tmp_path


def values(**changed):
    """Those of a page's controls."""
    now = {**vars(Settings()), "compare": False, "draw": "", "drafts_only": False, **changed}
    return [to_text(now[name]) if isinstance(now[name], tuple) else now[name] for name in ORDER]


def test_an_import_that_is_there_already_offers_to_replace_nothing(folder):
    own = presets.Preset("Mine", "why", {"size": 0.3})
    presets.save(own, folder)
    other = presets.Preset("Mine", "why", {"size": 0.4})
    for preset, words, replace in ((own, "You have this preset already", False), (other, "Replacing it changes", True)):
        html, _, take, over, use = presets_ui.preview_import(presets.to_text(preset), *values())
        assert words in html
        assert (take["visible"], over["visible"], use["visible"]) == (False, replace, True)
    told, asked = presets_ui.save_preset("Mine", "why", False, *values(size=0.3))
    assert "saved already" in told.message
    assert asked is None
    assert not told.question


def test_what_an_import_changes_is_written_as_the_controls_have_it_and_what_is_wrong_is_marked(folder):
    other = presets.Preset("Mine", "why", {"size": 0.31, "entities": ["cat"], "every": 2})
    html, *_ = presets_ui.preview_import(presets.to_text(other), *values(size=2.0))
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", html)
    assert {label: (before, after) for label, before, after in cells} == {
        "Step size": ("2", "0.31"), "Entities": ("none", "cat"), "Every k-th step": ("1", "2"),
    }  # fmt: skip
    wrong, *_ = presets_ui.preview_import("nonsense", *values())
    missing = presets_ui.export_preset("<Nobody's>")[1]["value"]
    told, _ = presets_ui._answered(presets_ui.apply_preset, "<Nobody's>")
    for one, words in ((wrong, "no preset in this text"), (missing, "&lt;Nobody"), (told.message, "&lt;Nobody")):
        assert one.startswith('<p class="decouple-problem">')
        assert words in one


def test_the_tiny_model_is_offered_where_it_can_be_loaded_and_is_not_there(tmp_path):
    def offered(folder):
        with gr.Blocks(analytics_enabled=False) as demo:
            ui.controls(input_accordion, lambda name: name, folder)
        return any(item["props"].get("elem_id") == "try_out" for item in demo.config["components"])

    assert not offered(None)
    assert offered(tmp_path)
    told, button = try_out.put(tmp_path)
    assert place.CHECKPOINT.stem in told
    assert not button["visible"]
    assert (tmp_path / place.CHECKPOINT.name).stat().st_size == place.CHECKPOINT.stat().st_size
    assert not offered(tmp_path)
    told, button = try_out.put(tmp_path / "nowhere")
    assert "does not exist" in told
    assert "visible" not in button


def test_a_line_of_the_status_does_not_part_a_number_from_its_percent():
    assert "by 40.0\u00a0% of the length" in ui.status_html(["cat: moved at 3 of 6 steps by 40.0 % of the length"])
    of_command = ui.status_html(["(python run.py study missing --split <a> --first-seed 3), -- and a--b"])
    assert re.findall(r"<span[^>]*>(.*?)</span>", of_command) == ["--split", "--first-seed"]
    assert re.sub(r"</?span[^>]*>", "", of_command).endswith("--split &lt;a&gt; --first-seed 3), -- and a--b</p></div>")
