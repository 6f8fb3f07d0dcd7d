"""What is counted on shapes, against hand counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_unet

from lib_decouple.lab.study.bench import shapes
from lib_decouple.lab.study.bench.counting import count_flops
from lib_decouple.lab.study.bench.ways import WAYS, guide_of
from lib_decouple.lab.study.unets import with_inputs


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    unet = tiny_unet().half().to("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "on_meta", lambda _: with_inputs(unet, 16))
        paths = [path for path in shapes.PATHS if "first" not in path]  # it has two transformers on the way up
        return {path: shapes.count("sd15", path) for path in paths}


def test_a_product_by_hand() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_fewer_layers_cost_less(rows: dict[str, dict[str, Any]]) -> None:
    whole, less, middle = rows.values()
    assert whole["layers"] > less["layers"] > middle["layers"]
    for cost in ("look", "guided", "again", "late"):
        assert whole["flops"][cost] > less["flops"][cost] > middle["flops"][cost]
    for row in rows.values():
        flops, kept = row["flops"], row["bytes"]
        assert flops["look"] < 0.5  # of two rows, one is looked at, and not to its end
        assert flops["look"] < flops["late"] < flops["guided"] < flops["again"] < flops["guided"] + flops["look"]
        assert kept["again"] < kept["guided"] <= kept["late"]
        assert row["run"]["guided"] == pytest.approx(1 + flops["guided"] / 2)


@pytest.mark.parametrize(("model", "read"), [("sd15", 3), ("sdxl", 40)])
def test_the_default_of_large_models_ends_with_the_first_transformer_on_the_way_up(model: str, read: int) -> None:
    layers = guide_of(shapes.on_meta(model), WAYS["default layers"]).gradient.reader.layers
    assert (
        len(layers) == read
    )  # two transformers down and one up; SDXL's have ten blocks, and its middle is of the level
    assert [layer.name for layer in layers] == [
        layer.name
        for layer in shapes.PATHS["to the first transformer on the way up"](
            guide_of(shapes.on_meta(model), WAYS["all layers"]).gradient.reader.layers
        )
    ]


def test_what_is_told_costs_the_products_of_queries_and_keys_of_two_passes(rows: dict[str, dict[str, Any]]) -> None:
    unet = tiny_unet().half().to("meta")
    found = with_inputs(unet, 16)
    products = 0
    for row in rows.values():
        gradient = shapes.gradient_of(found, row["path"])
        side = [16 // layer.factor for layer in gradient.reader.layers]
        widths = [layer.module.to_q.out_features for layer in gradient.reader.layers]
        products = sum(2 * own**2 * width * found.context.shape[1] for own, width in zip(side, widths))
        assert row["flops"]["told"] * row["plain"] == pytest.approx(products)
        assert row["told"] == pytest.approx(1 + 2 * row["flops"]["told"] / 50)
    assert products > 0


def test_bytes_by_hand() -> None:
    a = torch.empty(4, 8, device="meta", requires_grad=True)
    with shapes.Alive(torch.nn.Identity()) as alive:
        kept = (a * 2).sigmoid()  # keeps its result alone: 4 x 8 numbers of 4 bytes
        assert alive.bytes() == 4 * 8 * 4
        del kept
        assert alive.bytes() == 0


def test_the_table_has_every_row(rows: dict[str, dict[str, Any]]) -> None:
    text = shapes.table(list(rows.values()))
    found = [line for line in text.splitlines() if line.startswith("| Stable")]
    assert len(found) == len(rows)
    assert ["(default)" in line for line in found] == [row["default"] for row in rows.values()]
    whole = rows["all layers of the level"]["flops"]
    assert f"| {whole['look']:.2f} | {whole['guided']:.2f} | {whole['again']:.2f} |" in found[0]
