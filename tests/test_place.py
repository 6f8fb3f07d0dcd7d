"""The command that puts the embedded model into a WebUI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib_decouple.embedded import place

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def webui(tmp_path):
    (tmp_path / place.CHECKPOINTS).mkdir(parents=True)
    return tmp_path


def called(*arguments, run=ROOT / "run.py", cwd=ROOT):
    """By a Python that has no packages at all."""
    command = [sys.executable, "-I", "-S", str(run), "embedded", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def is_there(webui):
    folder = webui / place.CHECKPOINTS
    assert sorted(one.name for one in folder.iterdir()) == [
        f"{place.CHECKPOINT.stem}{end}" for end in (".safetensors", ".yaml")
    ]
    assert (folder / place.CHECKPOINT.name).read_bytes() == place.CHECKPOINT.read_bytes()
    version = next(
        line for line in (folder / f"{place.CHECKPOINT.stem}.yaml").read_text().splitlines() if "version:" in line
    )
    assert (Path(version.split("version:")[1].strip()) / "vocab.json").exists()


def test_without_a_package_from_any_folder_and_not_twice_unasked(webui):
    done = called("--webui", ".", cwd=webui)
    assert done.returncode == 0, done.stderr
    assert place.CHECKPOINT.stem in done.stdout
    is_there(webui)
    again = called("--webui", webui)
    assert (again.returncode, "--overwrite replaces it" in again.stderr) == (2, True)
    (webui / place.CHECKPOINTS / place.CHECKPOINT.name).write_bytes(b"half")
    assert called("--webui", webui, "--overwrite").returncode == 0
    is_there(webui)


def test_an_extension_knows_the_webui_around_it(webui):
    home = webui / "extensions" / "attention-decoupling"
    shutil.copytree(ROOT / "lib_decouple", home / "lib_decouple", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", home)
    done = called(run=home / "run.py", cwd="/")
    assert done.returncode == 0, done.stderr
    is_there(webui)


def test_a_folder_that_is_no_webui_is_named(tmp_path):
    done = called("--webui", tmp_path)
    assert done.returncode == 2
    assert f"is {tmp_path} a WebUI's root?" in done.stderr
    assert "Traceback" not in done.stderr


def test_elsewhere_the_webui_has_to_be_told():
    assert place.webui_around(Path("/srv/attention-decoupling")) is None
    assert "--webui" in called().stderr


def test_a_copy_that_fails_leaves_no_half_checkpoint(webui, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        place.put(webui / place.CHECKPOINTS)
    assert not (webui / place.CHECKPOINTS / place.CHECKPOINT.name).exists()
