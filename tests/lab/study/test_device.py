"""``bench --parts device``, on a CPU with a narrow copy."""

from __future__ import annotations

from typing import Any

import pytest

from lib_decouple.lab.study.bench import device
from lib_decouple.lab.study.unets import random_unet, unet_config

pytest.importorskip("diffusers")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "SIZES", {"sd15": (16,)})
    monkeypatch.setattr(device, "_random_unet", lambda model, _: random_unet(unet_config(model, 16)))


def cells(row: dict[str, Any]) -> list[str]:
    return [one.strip() for one in device.table([row], "cpu").splitlines()[-1].strip("|").split("|")]


def test_seconds_memory_and_what_was_foreseen_are_of_the_same_steps(narrow: None) -> None:
    (row,) = device.measure("cpu", 1)
    assert (row["model"], row["pixels"]) == ("sd15", 128)
    assert set(row["seconds"]) == set(row["bytes"]) == {"plain", "gradient", "again", "late"}
    assert all(one > 0 for one in row["seconds"].values())
    assert row["foreseen"]["gradient"] > row["foreseen"]["again"] > 0
    row["seconds"] = {"plain": 0.1, "gradient": 0.2, "again": 0.3, "late": 0.2}
    row["bytes"] = {"plain": 0, "gradient": 2**30, "again": 2**29, "late": 2**31}
    row["foreseen"] = {"gradient": int(0.81 * 2**30), "again": int(0.78 * 2**29)}
    assert cells(row) == [
        "sd15, 128 px", "100.0", "200.0", "300.0", "200.0", "2.00", "2.50", "1.50",
        "0.00", "1.00", "0.81", "yes", "0.50", "0.39", "NO", "2.00",
    ]  # fmt: skip


def test_a_device_that_tells_no_memory_has_a_table(narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "peak_of", lambda body, _: (body(), None)[1])
    (row,) = device.measure("cpu", 1)
    own = cells(row)
    assert [own[place] for place in (8, 9, 11, 12, 14, 15)] == ["–"] * 6
