"""A device that is not there is told by name, wherever one is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_decouple.__main__ import main
from lib_decouple.core.memory import present
from lib_decouple.lab.evaluate.store import Store

pytest.importorskip("diffusers")
PLAN = """arms = ["plain"]
[[prompts]]
set = "animal-animal"
limit = 1
[backend]
kind = "embedded"
device = "nowhere"
"""


@pytest.mark.parametrize(
    "command",
    [
        "doctor --device nowhere",
        "generate cat --entities cat --device nowhere --out FOLDER/new",
        "study precision --device nowhere --out FOLDER/precision",
        "bench --parts device --device nowhere --out FOLDER/bench",
        "evaluate run FOLDER/plan.toml --out FOLDER/run",
        "evaluate judge FOLDER/drawn --judges drawn --device nowhere",
        "evaluate calibrate FOLDER/drawn --judges drawn --device nowhere",
    ],
)
def test_the_field_and_the_value_are_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "drawn").mkdir()
    Store(tmp_path / "drawn", create=True)
    assert main([word.replace("FOLDER", str(tmp_path)) for word in command.split()]) == 2
    told = capsys.readouterr().err
    assert "device: 'nowhere' is not there" in told
    assert "Traceback" not in told


def test_what_is_there_is_given() -> None:
    assert present("cpu").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_a_torch_without_cuda_says_so() -> None:
    with pytest.raises(ValueError, match=r"device: 'cuda' is not there: .*(CUDA|NVIDIA)"):
        present("cuda")
