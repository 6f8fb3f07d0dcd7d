"""Files are whole or as they were."""

import json

import pytest

from lib_decouple.lab.evaluate.files import reopened, whole_folder, write_whole


def test_log_drops_a_line_cut_by_an_interrupt(tmp_path):
    path = tmp_path / "images.jsonl"
    path.write_text(json.dumps({"seed": 1, "arm": "plain"}) + "\n" + '{"arm": "pl')
    assert [r["seed"] for r in reopened(path)] == [1]
    with path.open("a") as log:
        log.write(json.dumps({"seed": 2}) + "\n")
    assert [r["seed"] for r in reopened(path)] == [1, 2]


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "out"

    def interrupted():
        with whole_folder(target) as folder:
            (folder / "half.png").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(FileExistsError, match="--overwrite"), whole_folder(target):
        pass
    with whole_folder(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_text_is_replaced_in_one_move(tmp_path):
    write_whole(tmp_path / "x" / "a.json", "1")
    write_whole(tmp_path / "x" / "a.json", "2")
    assert [(p.name, p.read_text()) for p in (tmp_path / "x").iterdir()] == [("a.json", "2")]
