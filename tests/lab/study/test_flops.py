"""What is counted on shapes, against hand counts and the bench's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_unet

from lib_decouple.lab.study import flops
from lib_decouple.lab.study.unets import with_inputs


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    unet = tiny_unet().half().to("meta")
    monkeypatch.setattr(flops, "on_meta", lambda _: with_inputs(unet, 16))
    return {path: flops.count("sd15", path) for path in flops.PATHS}


def test_a_product_by_hand() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert flops.counted(lambda: a @ b) == 2 * 3 * 5 * 7


def test_fewer_layers_cost_less(rows: dict[str, dict[str, Any]]) -> None:
    whole, first, middle = rows.values()
    assert whole["layers"] > first["layers"] > middle["layers"]
    for cost in ("look", "guided", "late"):
        assert whole[cost] > first[cost] > middle[cost]
    for row in rows.values():
        assert row["look"] < 0.5  # of two rows, one is looked at, and not to its end
        assert row["look"] < row["late"] < row["guided"]
        assert row["run"] == pytest.approx(1 + row["guided"] / 2)


def test_the_table_has_every_row(rows: dict[str, dict[str, Any]]) -> None:
    text = flops.table(list(rows.values()))
    assert len(text.splitlines()) == 5
    whole = rows["all layers of the level"]
    assert f"| {whole['look']:.2f} | {whole['guided']:.2f} | {whole['late']:.2f} |" in text
