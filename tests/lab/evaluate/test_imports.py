"""Another tool's pictures as arms of a run."""

import re

import pytest
from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.curve import drawn_by
from lib_decouple.lab.evaluate.flops import GUIDED
from lib_decouple.lab.evaluate.pairs import records, summarise
from lib_decouple.lab.evaluate.report import commands, environment
from lib_decouple.lab.evaluate.results import costs
from lib_decouple.lab.evaluate.store import IMPORTED, Store

from .runs import make_run

HEAD = "file,prompt,seed,arm,passes\n"


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run", arms=("plain", "zebracom"))
    return tmp_path / "run"


def drawn(folder, name="a.png", colour="red", size=(32, 32), mode="RGB"):
    (folder / "theirs").mkdir(exist_ok=True)
    Image.new(mode, size, colour).save(folder / "theirs" / name)
    return f"theirs/{name}"


def table(folder, *lines, head=HEAD):
    path = folder / "theirs.csv"
    path.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def judged(store, missing):
    """Scores as a judge gives them: the entities that an arm's pictures lack."""
    store.put_note("judge:toy", {"source": "", "threshold": 0.5})
    for row in store.images():
        lacks = missing.get((row["arm"], row["seed"]), ())
        store.put_scores("toy", {row["id"]: {name: float(name not in lacks) for name in row["entities"]}})


def test_pictures_stand_beside_the_runs_own_of_that_prompt_and_seed(run, tmp_path, capsys):
    lines = [f"{drawn(tmp_path, f'{s}.png')},a cat and a dog,{s},saga,{40 + s}" for s in range(2)]
    assert main(["evaluate", "import", str(run), table(tmp_path, *lines)]) == 0
    assert "saga: 2 pictures beside 6 of plain" in capsys.readouterr().out
    store = Store(run)
    own = [row for row in store.images() if row["arm"] == "saga"]
    assert [(row["prompt_id"], row["seed"], row["entities"], row["passes"]) for row in own] == [
        ("a cat and a dog", 0, ["cat", "dog"], 40),
        ("a cat and a dog", 1, ["cat", "dog"], 41),
    ]
    with Image.open(run / own[0]["file"]) as image:
        assert image.getpixel((3, 3)) == (255, 0, 0)
        assert not image.info
    judged(store, {("plain", 0): ["cat"], ("plain", 1): ["dog"], ("saga", 1): ["dog"]})
    rows = {row["arm"]: row for row in summarise(records(store, "toy"))}
    assert (rows["saga"]["n"], rows["saga"]["missing"], rows["saga"]["missing_p"]) == (2, 0.5, 1.0)
    assert rows["saga"]["removed"] == 0.5
    assert rows["saga"]["flops_20"] == pytest.approx(1 + GUIDED * 40.5 / 20)
    assert costs(store.images(), "plain")[2, "saga"].passes == 40.5
    shown = dict(environment(store, store.images()).rows)
    assert (shown["imported"], shown["drawn by"]) == ("saga: 2 images", "toy, version 1, checkpoint 0123456789ab")
    assert "evaluate import RUN theirs.csv" in commands(store, "plain", ())


def test_the_whole_report_is_written(run, tmp_path):
    name = drawn(tmp_path)
    main(["evaluate", "import", str(run), table(tmp_path, f"{name},a cat and a dog,0,saga,")])
    judged(Store(run), {("plain", 0): ["cat"]})
    assert main(["evaluate", "report", str(run)]) == 0
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "saga: 1 images" in text
    assert "saga" in text.split("imported")[0]


def test_a_picture_tells_nothing_of_its_maker(run, tmp_path):
    path = tmp_path / "theirs"
    path.mkdir()
    Image.new("RGBA", (32, 32), (9, 8, 7, 255)).save(path / "saga.webp", lossless=True, exif=b"Exif\0\0saga")
    main(["evaluate", "import", str(run), table(tmp_path, "theirs/saga.webp,a cat and a dog,0,saga,")])
    own = next(row for row in Store(run).images() if row["arm"] == "saga")
    assert "saga" not in own["file"]
    assert b"saga" not in (run / own["file"]).read_bytes()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["theirs/a.png,a cat and a dog,0,zebracom,"], "arm: 'zebracom' is drawn in this run"),
        (["theirs/a.png,a cat and a dog,0,plain,"], "arm: 'plain' is drawn in this run"),
        (["theirs/a.png,a cat and a dog,0,both,"], "line 2: arm: 'both' is not allowed"),
        (["theirs/a.png,a cat and a dog,0,,"], "line 2: no arm"),
        (["theirs/a.png,a cat and a dog,9,saga,"], "line 2: prompt: 'a cat and a dog' with seed 9 is none of 'plain'"),
        (["theirs/a.png,a cat an a dog,0,saga,"], "line 2: prompt: 'a cat an a dog' with seed 0 is none of 'plain'"),
        (["theirs/a.png,a cat and a dog,-1,saga,"], "line 2: seed: '-1' is not allowed; a whole number from 0"),
        (["theirs/a.png,a cat and a dog,1.0,saga,"], "line 2: seed: '1.0' is not allowed"),
        (["theirs/b.png,a cat and a dog,0,saga,"], "b.png does not exist"),
        (["theirs,a cat and a dog,0,saga,"], "theirs does not exist"),
        (["theirs/cut.png,a cat and a dog,0,saga,"], "cut.png cannot be read"),
        (["theirs/large.png,a cat and a dog,0,saga,"], "64x32 pixels; the run's pictures have 32x32"),
        (["theirs/a.png,a cat and a dog,0,saga,many"], "line 2: passes: 'many' is not allowed"),
        (["theirs/a.png,a cat and a dog,0,saga,-1"], "line 2: passes: '-1' is not allowed"),
        (["theirs/a.png,a cat and a dog,0,saga,nan"], "line 2: passes: 'nan' is not allowed"),
        (["theirs/a.png,a cat, a dog,0,saga,"], "line 2: more values than columns"),
        (["theirs/a.png,a cat and a dog,0,saga,"] * 2, "line 3: 'saga' has this prompt and seed already"),
        ([], "holds no picture"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_imported(run, tmp_path, capsys, lines, said):
    drawn(tmp_path)
    drawn(tmp_path, "large.png", size=(64, 32))
    (tmp_path / "theirs/cut.png").write_bytes((tmp_path / "theirs/a.png").read_bytes()[:40])
    good = "theirs/a.png,a frog and a ball,0,other,"
    given = table(tmp_path, *lines, *([good] if lines else []))
    assert main(["evaluate", "import", str(run), given]) == 2
    assert said in capsys.readouterr().err
    assert {row["arm"] for row in Store(run).images()} == {"plain", "zebracom"}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("file,prompt,seed\n", "no column arm; its columns are file, prompt, seed"),
        ("file,prompt,seed,arm,cfg\n", "column 'cfg' is not allowed; file, prompt, seed, arm, passes"),
        ("", "no column file; its columns are none"),
        (HEAD + f"a.png,{'x' * 200_000},0,saga,\n", "after line 1: field larger than field limit"),
        ("\ufefffile;prompt;seed;arm\n", "no column file; its columns are file;prompt;seed;arm"),
    ],
)
def test_columns_are_named(run, tmp_path, capsys, head, said):
    assert main(["evaluate", "import", str(run), table(tmp_path, head=head)]) == 2
    assert said in capsys.readouterr().err


def test_a_spreadsheets_table_is_read(run, tmp_path):
    text = HEAD + f'{drawn(tmp_path)},"a cat and a dog", 02 ,saga,\n\n'
    (tmp_path / "theirs.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert main(["evaluate", "import", str(run), str(tmp_path / "theirs.csv")]) == 0
    assert [row["seed"] for row in Store(run).images() if row["arm"] == "saga"] == [2]


def test_a_picture_beyond_what_is_opened_is_refused(run, tmp_path, capsys, monkeypatch):
    given = table(tmp_path, f"{drawn(tmp_path, size=(64, 64))},a cat and a dog,0,saga,")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024)
    assert main(["evaluate", "import", str(run), given]) == 2
    assert "a.png cannot be read" in capsys.readouterr().err


def test_a_table_or_run_that_is_not_there(run, tmp_path, capsys):
    assert main(["evaluate", "import", str(run), str(tmp_path / "no.csv")]) == 2
    assert "no.csv does not exist" in capsys.readouterr().err
    assert main(["evaluate", "import", str(tmp_path), table(tmp_path)]) == 2
    assert "no evaluate.sqlite" in capsys.readouterr().err


def test_twice_is_once_and_another_picture_asks_first(run, tmp_path, capsys):
    given = table(tmp_path, f"{drawn(tmp_path)},a cat and a dog,0,saga,")
    assert [main(["evaluate", "import", str(run), given]) for _ in range(2)] == [0, 0]
    store = Store(run)
    (before,) = (row for row in store.images() if row["arm"] == "saga")
    store.put_score(before["id"], "toy", "cat", 1.0)
    drawn(tmp_path, colour="blue")
    assert main(["evaluate", "import", str(run), given]) == 2
    assert "1 pictures were imported before and are others now; --redo" in capsys.readouterr().err
    assert store.scores("toy") == {before["id"]: {"cat": 1.0}}
    assert (run / before["file"]).exists()
    assert main(["evaluate", "import", str(run), given, "--redo"]) == 0
    (after,) = (row for row in store.images() if row["arm"] == "saga")
    with Image.open(run / after["file"]) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert not (run / before["file"]).exists()
    assert before["id"] not in store.scores("toy")
    assert len(re.findall("evaluate import", commands(store, "plain", ()))) == 1


def test_drawing_goes_on_and_leaves_them_in_the_report(tmp_path, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    plan = tmp_path / "plan.toml"
    text = 'arms = ["plain"]\nseeds = 1\n[sampling]\nsteps = 1\n[[prompts]]\nfile = "mine.txt"\n'
    plan.write_text(text)
    (tmp_path / "mine.txt").write_text("a cat and a dog | cat, dog\n")
    out = tmp_path / "run"
    assert main(["evaluate", "run", str(plan), "--out", str(out)]) == 0
    (row,) = Store(out).images()
    given = table(tmp_path, f"{drawn(tmp_path, size=(128, 128))},{row['prompt']},{row['seed']},com,")
    assert main(["evaluate", "import", str(out), given]) == 0
    assert main(["evaluate", "run", str(plan), "--out", str(out)]) == 0
    assert {(one["arm"], one["recipe"] == IMPORTED) for one in Store(out).images()} == {("plain", False), ("com", True)}
    plan.write_text(text.replace('["plain"]', '["plain", "com"]'))
    capsys.readouterr()
    assert main(["evaluate", "run", str(plan), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert "1 x it was imported" in told.out
    assert "--redo" in told.err


def test_pictures_that_change_places_are_both_there_afterwards(run, tmp_path):
    """Two arms were named the wrong way round; each file that is replaced is its own arm's."""
    one, two = drawn(tmp_path, "one.png", "red"), drawn(tmp_path, "two.png", "blue")
    lines = [f"{one},a cat and a dog,0,saga,", f"{two},a cat and a dog,0,initno,"]
    assert main(["evaluate", "import", str(run), table(tmp_path, *lines)]) == 0
    lines = [f"{two},a cat and a dog,0,saga,", f"{one},a cat and a dog,0,initno,"]
    assert main(["evaluate", "import", str(run), table(tmp_path, *lines), "--redo"]) == 0
    shown = {row["arm"]: Image.open(run / row["file"]).getpixel((0, 0)) for row in Store(run).images()}
    assert (shown["saga"], shown["initno"]) == ((0, 0, 255), (255, 0, 0))


def test_who_drew_a_run_is_told_without_those_that_were_imported(run, tmp_path):
    main(["evaluate", "import", str(run), table(tmp_path, f"{drawn(tmp_path)},a cat and a dog,0,saga,")])
    assert drawn_by(Store(run)) == {"0123456789ab"}
