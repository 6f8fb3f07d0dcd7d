"""Extensions that have replaced the attention: they are made ready for a guided pass, and find no trace of it after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lib_decouple.hosts.bystanders import caches, keepers, made_ready, put_back, replaced_forwards

calls = 0
seen: list[str] = []


class Counting:
    """As Regional Prompter and NegPiP do: counts in itself and in its module, relies on its callback."""

    def __init__(self) -> None:
        self.count = 0
        self.ready: list[str] | None = None
        self.log: dict[str, int] = {}

    def callback(self, params: Any) -> None:
        self.ready = [params]

    def hook(self, module: nn.Module) -> None:
        def forward(x: torch.Tensor) -> torch.Tensor:
            global calls
            calls += 1
            seen.append("call")
            assert self.ready is not None
            self.count += len(self.ready)
            self.log["size"] = x.shape[-1]
            self.fresh = True
            return x

        module.forward = forward  # type: ignore[assignment]


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Identity())


def test_nothing_is_called_where_nothing_is_replaced(model: nn.Sequential) -> None:
    one = Counting()
    made_ready(lambda: pytest.fail("no callbacks are wanted"), model, lambda: pytest.fail("no params are wanted"))
    with put_back(model):
        one.count = 5
    assert one.count == 5
    assert replaced_forwards(model) == []


def test_only_the_owners_callback_is_called_with_params_of_its_own(model: nn.Sequential) -> None:
    owner, other = Counting(), Counting()
    owner.hook(model[1])
    owner.hook(model[2])
    assert keepers(replaced_forwards(model)) == [owner]
    made: list[object] = []
    made_ready(lambda: [other.callback, owner.callback, seen.append], model, lambda: made.append(object()) or made[-1])
    assert owner.ready == made
    assert len(made) == 1
    assert other.ready is None


@pytest.mark.parametrize("fails", [False, True])
def test_all_that_was_counted_is_put_back(model: nn.Sequential, fails: bool) -> None:
    owner = Counting()
    owner.hook(model[1])
    owner.log["kept"] = 1
    held, before = owner.log, (calls, list(seen))
    with pytest.raises(ZeroDivisionError) if fails else put_back(model), put_back(model):
        made_ready(lambda: [owner.callback], model, object)
        model(torch.ones(1, 2))
        assert (owner.count, calls, owner.fresh) == (1, before[0] + 1, True)
        if fails:
            raise ZeroDivisionError
    assert (owner.count, owner.ready) == (0, None)
    assert not hasattr(owner, "fresh")
    assert owner.log is held
    assert held == {"kept": 1}
    assert (calls, seen) == before


class Remembering(nn.Module):
    """As IP-Adapter of sd-webui-controlnet: one replaced ``forward`` for all, which calls decorated functions of its
    module's list; keys are computed once and read by their number, whatever a call's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, torch.Tensor] = {}

    def hook(self, module: nn.Module) -> None:
        @torch.no_grad()
        def remembered(x: torch.Tensor) -> torch.Tensor:
            return self.cache.setdefault("1_to_k", x + 1)

        module.hacks = [remembered]  # type: ignore[assignment]
        module.forward = _hacked.__get__(module, type(module))  # type: ignore[method-assign]


def _hacked(self: Any, x: torch.Tensor) -> torch.Tensor:
    return sum((hack(x) for hack in self.hacks), torch.zeros(()))


def test_what_is_remembered_of_other_rows_is_neither_read_nor_left(model: nn.Sequential) -> None:
    owner, two, one = Remembering(), torch.ones(2, 2), torch.zeros(1, 2)
    owner.hook(model[2])
    with put_back(model):
        assert model[2](one).shape == one.shape
    assert owner.cache == {}
    host_s = model[2](two)
    assert host_s.tolist() == (two + 1).tolist()
    held = owner.cache
    with put_back(model):
        assert model[2](one).tolist() == (one + 1).tolist()
    assert owner.cache is held
    assert model[2](two).tolist() == host_s.tolist()
    assert caches(replaced_forwards(model)) == [held]


def test_a_forward_that_was_put_back_is_no_replaced_one(model: nn.Sequential) -> None:
    own = model[1].forward
    Remembering().hook(model[1])
    assert replaced_forwards(model) != []
    model[1].forward = own  # type: ignore[method-assign]
    assert replaced_forwards(model) == []
