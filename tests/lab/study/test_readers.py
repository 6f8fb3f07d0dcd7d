"""What two readers say of pictures, weighted to all that a run drew."""

import csv
import itertools

import numpy as np
import pytest
from scipy import stats

from lib_decouple.__main__ import main
from lib_decouple.lab.study import readers


def row(arm, seed, thing, judge, first, second, stratum="incomplete", size=10, extra=(0, 0, 0), **more):
    own = {"set": "pairs", "arm": arm, "prompt": "a cat and a dog", "seed": seed, "stratum": stratum}
    own |= {"stratum_size": size, "thing": thing, "judge": judge, "first": first, "second": second}
    return {**own, **dict(zip(("judge_extra", "first_extra", "second_extra"), extra)), **more}


@pytest.fixture
def labels(tmp_path):
    """Plain: 10 incomplete pictures, of which two were read (one lacks the dog), and 30 whole ones, of which one was.
    Guided: 4 and 36, of which one each was read; the dog is mangled in the incomplete one."""
    rows = [
        row("plain", 1, "cat", "there", "there", "there", extra=(2, 1, 1)),
        row("plain", 1, "dog", "missing", "absent", "absent", extra=(2, 1, 1)),
        row("plain", 2, "cat", "there", "there", "there", extra=(1, 0, 1)),
        row("plain", 2, "dog", "missing", "there", "mangled", extra=(1, 0, 1)),
        row("plain", 3, "cat", "there", "there", "there", "whole", 30),
        row("plain", 3, "dog", "there", "there", "there", "whole", 30),
        row("com", 1, "cat", "there", "there", "there", size=4),
        row("com", 1, "dog", "missing", "mangled", "mangled", size=4),
        row("com", 3, "cat", "there", "there", "there", "whole", 36),
        row("com", 3, "dog", "there", "there", "there", "whole", 36),
    ]
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_verdicts_are_what_both_readers_bear_out():
    told = {pair: readers.verdict(*pair) for pair in itertools.product(readers.WORDS, repeat=2)}
    assert all(told[a, b] == told[b, a] for a, b in told)
    assert told["there", "there"] == "there"
    assert {told["there", other] for other in readers.WORDS[1:]} == {"doubtful"}
    assert told["absent", "absent"] == "absent"
    assert told["hybrid", "absent"] == told["hybrid", "hybrid"] == "no object of its own"
    assert told["mangled", "absent"] == told["mangled", "hybrid"] == told["mangled", "mangled"] == "mangled"
    with pytest.raises(ValueError, match="'unsure' is not one of there"):
        readers.verdict("there", "unsure")


def test_pictures_count_for_those_of_their_stratum_that_nobody_read(labels, capsys, tmp_path):
    assert main(["study", "readers", "--labels", str(labels), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "readers.md").read_text()
    assert text == capsys.readouterr().out[:-1]
    assert "5 pictures, 10 things. The readers use the same word of 9 things" in text
    assert "| pairs | plain | missing | 2 | 1 | 0 | 0 | 1 | 0 |" in text
    assert "| pairs | com | missing | 1 | 0 | 0 | 1 | 0 | 0 |" in text
    own = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines()
           if line.count("|") == 4}  # fmt: skip
    # Of 10 incomplete plain pictures half lack the dog: 5 of 40, and one whole picture says little of 29 others.
    share = {words: [int(cell.split()[0]) for cell in cells if "[" in cell] for words, cells in own.items()}
    assert share["pictures that lack an object of its own for a thing"] == [12, 0]
    assert share["pictures with a thing that neither calls there"] == [12, 10]
    assert share["pictures with something extra"] == [12, 0]
    assert share["the same, by the judge"] == [25, 0]
    assert share["pictures in which all is there"] == [75, 90]
    assert share["brought back: absent"] == [100]
    # 5 of 40 dogs neither sees plainly, 4 of 40 guided.
    assert share["brought back: not there: these, or mangled"] == [20]
    low, high = own["pictures with something extra"][1].split("[")[1].rstrip("]").split(", ")
    assert int(low) < 5
    assert int(high) > 50


@pytest.mark.parametrize(("seen", "read"), [(0, 1), (0, 12), (3, 12), (12, 12), (40, 200)])
def test_the_interval_of_a_share_is_jeffreys(seen, read):
    """Against the quantiles of scipy's beta distribution: of one stratum the resamples are its posterior."""
    found = [readers.Read("pairs", "com", "whole", 500, ("there",), ("there",), k < seen, False) for k in range(read)]
    values = readers.estimate(found, lambda one: float(one.extra), 1)
    assert values[0] == pytest.approx(seen / read)
    for share in (0.025, 0.5, 0.975):
        expected = stats.beta(seen + 0.5, read - seen + 0.5).ppf(share)
        assert np.quantile(values[1:], share) == pytest.approx(expected, abs=0.02)


def test_a_stratum_weighs_as_many_pictures_as_it_has():
    """Nine in ten of 1,000 pictures are of a stratum of which four were read, none with anything extra."""
    lacking = [readers.Read("p", "com", "incomplete", 100, ("there",), ("missing",), True, False)] * 50
    whole = [readers.Read("p", "com", "whole", 900, ("there",), ("there",), False, False)] * 4
    values = readers.estimate(lacking + whole, lambda one: float(one.extra), 1)
    assert values[0] == pytest.approx(0.1)
    assert np.quantile(values[1:], 0.975) == pytest.approx(0.1 + 0.9 * stats.beta(0.5, 4.5).ppf(0.975), abs=0.02)


def test_a_table_that_lacks_a_column_or_an_arm_is_refused(labels, capsys, tmp_path):
    assert main(["study", "readers", "--labels", str(labels), "--against", "kl", "--out", str(tmp_path)]) == 2
    assert "against: 'kl' is not one of com, plain" in capsys.readouterr().err
    labels.write_text(labels.read_text().replace("stratum_size", "size"))
    assert main(["study", "readers", "--labels", str(labels), "--out", str(tmp_path)]) == 2
    assert "has no column 'stratum_size'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stratum_size", "many", "line 3: stratum_size: 'many' is not a number from 1 on"),
        ("stratum_size", "0", "line 3: stratum_size: '0' is not a number from 1 on"),
        ("first", "unsure", "line 3: first: 'unsure' is not one of there, mangled, hybrid, absent"),
        ("judge", "gone", "line 3: judge: 'gone' is not one of there, missing"),
        ("second_extra", "", "line 3: second_extra: '' is not one of 0, 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(labels, capsys, tmp_path, name, value, words):
    head, *lines = labels.read_text().splitlines()
    cells = lines[1].split(",")
    cells[head.split(",").index(name)] = value
    labels.write_text("\n".join([head, lines[0], ",".join(cells), *lines[2:]]))
    assert main(["study", "readers", "--labels", str(labels), "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
