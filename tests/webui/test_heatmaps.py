from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor

from lib_decouple.webui import heatmaps, map_files
from lib_decouple.webui.palette import colours
from lib_decouple.webui.runs import Maps, RunImage

FONT = heatmaps.default_font
PICTURE = heatmaps.small(Image.new("RGB", (100, 50), (255, 255, 255)))


def apart():
    """Two maps on one grid: the left column, and the right with some on the left."""
    return np.array([[[2.0, 0], [2.0, 0]], [[0.25, 0.75], [0.25, 0.75]]], np.float16)


def test_overlap_is_what_the_weaker_hold():
    # Over their sums: 1/2 0 | 1/2 0 and 1/8 3/8 | 1/8 3/8.
    assert heatmaps.overlap(apart()).tolist() == [[0.125, 0.0], [0.125, 0.0]]
    assert heatmaps.overlap(np.stack([apart()[0]] * 3)).tolist() == [[1.0, 0], [1.0, 0]]
    assert heatmaps.overlap(np.zeros((2, 3, 3))).max() == 0


def pixel(picture, x, y):
    """At shares of the panel's area under its strip."""
    width, height = picture.width - 1, picture.height - heatmaps.STRIP - 1
    return picture.getpixel((round(x * width), heatmaps.STRIP + round(y * height)))


def test_a_panel_shows_the_entity_s_colour_where_it_attends():
    cat = heatmaps.row(apart(), ("cat", "dog"), PICTURE, "cat", FONT)
    assert cat.size == (256, 128 + heatmaps.STRIP)
    assert pixel(cat, 0, 0.5) == pytest.approx(ImageColor.getrgb(colours(("cat", "dog"))[0]), abs=3)
    assert pixel(cat, 1, 0.5) == pytest.approx((89, 89, 89), abs=3)  # the dimmed picture
    overlap = heatmaps.row(apart(), ("cat", "dog"), b"", heatmaps.OVERLAP, FONT)
    bright = round(255 * 0.25)  # 1/8 of the highest share, 1/2
    assert pixel(overlap, 0, 0.5) == pytest.approx((bright,) * 3, abs=10)  # bicubic
    assert pixel(overlap, 1, 0.5) == (0, 0, 0)


@pytest.mark.parametrize("name", ["cat", "猫", "Ж" * 60, "a\nb"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_name_and_number_of_entities(name, count):
    maps = np.random.default_rng(0).random((count, 5, 7)).astype(np.float16)
    names = [name, *map(str, range(count - 1))]
    made = heatmaps.sheet([("first", maps), ("last", maps)], names, PICTURE, FONT)
    assert made.width == (count + (count > 1)) * (256 + heatmaps.GAP) + heatmaps.GAP
    assert Image.open(io.BytesIO(heatmaps.as_png(made))).size == made.size


def test_an_entity_called_overlap_keeps_its_panel():
    assert heatmaps.names(("cat",)) == ["cat"]
    assert heatmaps.names(("cat", "dog")) == ["cat", "dog", "overlap"]
    assert heatmaps.names(("overlap", "cat")) == ["overlap", "cat", "overlap of all"]
    whole = heatmaps.row(apart(), ("overlap", "cat"), PICTURE, "", FONT)
    assert whole.width == 3 * (256 + heatmaps.GAP) + heatmaps.GAP


def test_maps_without_any_attention_are_dark():
    made = heatmaps.row(np.zeros((2, 4, 4)), ("cat", "dog"), b"", "cat", FONT)
    assert pixel(made, 0.5, 0.5) == (0, 0, 0)


def test_a_file_never_replaces_another(tmp_path):
    beside = tmp_path / "00001-3.png"
    taken = tmp_path / "00001-3-maps.png"
    taken.write_text("mine")
    drawn = Image.new("RGB", (4, 4))
    assert map_files.save(drawn, beside).name == "00001-3-maps-2.png"
    assert map_files.save(drawn, beside).name == "00001-3-maps-3.png"
    assert taken.read_text() == "mine"
    assert not beside.exists()


def test_a_sheet_has_a_row_for_each_moment():
    maps = [Maps(hires, moment, 0, apart()) for hires in (False, True) for moment in map_files.TITLES]
    image = RunImage(0, "", 1, ("cat", "dog"), [], maps, PICTURE)
    one_row = 128 + 2 * heatmaps.STRIP + heatmaps.GAP
    assert map_files.draw(image, FONT).height == 6 * one_row + heatmaps.GAP


@pytest.fixture
def opts(monkeypatch):
    import sys
    import types

    found = SimpleNamespace(return_mask=False, return_mask_composite=False, enable_pnginfo=True)
    package, shared, images = (types.ModuleType(name) for name in ("modules", "modules.shared", "modules.images"))
    shared.opts, images.get_font = found, FONT
    package.shared, package.images = shared, images
    for module in (package, shared, images):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def drawn(count, grid, masks=0):
    """A job's pictures, each of its own red, as the host leaves them."""
    pictures = [Image.new("RGB", (32, 32), (10 * k + 10, 0, 0)) for k in range(count)]
    listed = [one for picture in pictures for one in [picture, *[Image.new("L", (32, 32))] * masks]]
    texts = [f"text {k}" for k in range(count)]
    return SimpleNamespace(
        images=[*[Image.new("RGB", (64, 64))] * grid, *listed], infotexts=[*["grid"] * grid, *texts],
        index_of_first_image=grid,
    )  # fmt: skip


@pytest.mark.parametrize("grid", [0, 1])
@pytest.mark.parametrize("masks", [0, 1, 2])
def test_each_picture_s_maps_stand_behind_all_pictures(opts, grid, masks):
    opts.return_mask, opts.return_mask_composite = masks > 0, masks > 1
    p = SimpleNamespace(all_prompts=["a"] * 3, mask_for_overlay=object() if masks else None, script_args=(0,))
    processed = drawn(3, grid, masks)
    before, texts = list(processed.images), list(processed.infotexts)
    small = map_files.pictures(p, processed)
    reds = [Image.open(io.BytesIO(small[k])).getpixel((5, 5))[0] for k in range(3)]
    assert reds == pytest.approx([10, 20, 30], abs=3)
    images = [RunImage(k, "", 1, ("cat", "dog"), [], [Maps(False, "first", 0, apart())], small[k]) for k in (0, 2)]
    run = SimpleNamespace(images=images)
    map_files.write("gallery", run, p, processed)
    assert processed.images[: len(before)] == before
    assert len(processed.images) == len(before) + 2
    assert processed.infotexts == [*texts, "text 0", "text 2"]
    assert processed.images[-1].info["parameters"] == "text 2"
    for wanted, args in (("off", (0,)), ("gallery", (3,))):
        p.script_args = args
        map_files.write(wanted, run, p, processed)
        assert len(processed.images) == len(before) + 2


def test_files_stand_beside_the_saved_pictures_alone(opts, tmp_path):
    p = SimpleNamespace(all_prompts=["a"] * 2, script_args=(0,))
    processed = drawn(2, 0)
    processed.images[1].already_saved_as = str(tmp_path / "x" / "00002.jpg")
    (tmp_path / "x").mkdir()
    images = [RunImage(k, "", 1, ("cat", "dog"), [], [Maps(False, "first", 0, apart())]) for k in (0, 1)]
    map_files.write("files", SimpleNamespace(images=images), p, processed)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["00002-maps.png"]
    assert (len(processed.images), len(processed.infotexts)) == (2, 2)
