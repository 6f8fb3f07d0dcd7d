"""What the Markdown files name is there: files, headings, tests, environment variables, commands and their options."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_decouple.__main__ import parser
from lib_decouple.lab.evaluate import judges

HERE = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in HERE.rglob("*.md")
    if not {".venv", "out", "node_modules", ".pytest_cache"} & set(path.relative_to(HERE).parts)
)
HISTORY = HERE / "docs/results/decouple-tiny"
"""Of a model that is gone, and of the code that drew it."""
SUBJECTS = ("generate", "study", "bench", "evaluate", "doctor", "embedded")

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(HERE)) for path in PAGES])


@functools.cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def sources() -> str:
    """All Python of the project."""
    folders = (HERE / name for name in ("lib_decouple", "tests", "scripts"))
    return "\n".join(
        text(path) for folder in (*folders, HERE) for path in folder.glob("*.py" if folder == HERE else "**/*.py")
    )


@functools.cache
def anchors(path: Path) -> set[str]:
    """Of each heading, as the places where Markdown is shown make them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"(?ms)^```.*?^```", "", text(path)), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", shown).replace(" ", "-"))
    return {name if not found[:k].count(name) else f"{name}-{found[:k].count(name)}" for k, name in enumerate(found)}


def code(path: Path) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, and what stands in backticks."""
    fenced = r"(?ms)^```\w*\n(.*?)^```"
    whole = text(path).replace("\\\n", " ")
    for block in re.findall(fenced, whole):
        yield from block.splitlines()
    rest = re.sub(fenced, "", whole)
    yield from re.findall(r"(?m)^    (\S.*)$", rest)
    yield from (one.replace("\n", " ") for one in re.findall(r"(?<![`\\])`([^`]+)`(?!`)", rest))


def commands(path: Path) -> Iterator[list[str]]:
    """Arguments of each command of ours, up to an ellipsis; of what stands in brackets nothing but the inside."""
    for line in code(path):
        found = re.search(r"python (?:run\.py|-m lib_decouple) (.*)", line) or re.match(
            rf"((?:{'|'.join(SUBJECTS)}) .*)", line
        )
        if found:
            words = shlex.split(found[1].replace("[", "").replace("]", ""), comments=True)
            ends = [k for k, word in enumerate(words) if "…" in word or word == "..."]
            yield words[: ends[0]] if ends else words


@each_page
def test_every_link_leads_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@each_page
def test_every_file_and_test_is_there(page):
    gone = []
    for name in set(re.findall(r"(?<![\w/.])(?:tests|lib_decouple|docs|scripts|javascript)/[\w./-]*\w", text(page))):
        if not (HERE / name).exists() and not (page.parent / name).exists():
            gone.append(name)
    for name in set(re.findall(r"\btest_\w+", text(page))):
        if f"def {name}(" not in sources() and not list((HERE / "tests").rglob(f"{name}.py")):
            gone.append(name)
    for name in set(re.findall(r"\bDECOUPLE_[A-Z0-9_]+\b", text(page))):
        if not re.search(rf"\b{name}\b", sources()):
            gone.append(name)
    for module in set(re.findall(r"python -m ((?:lib_decouple|tests)[\w.]*)", text(page))):
        path = HERE / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            gone.append(module)
    assert page.is_relative_to(HISTORY) or not gone


@pytest.mark.parametrize("page", sorted((HERE / "docs/hosts").glob("*.md")), ids=lambda path: path.name)
def test_every_row_is_a_test(page):
    tests = {plain(name) for name in re.findall(r"def test_(\w+)\(", sources())} | {"row", ""}
    tests |= {plain(path.name) for path in (HERE / "tests/hosts").glob("test_*.py")}  # over their own
    rows = re.findall(r"(?m)^\| ([^|]+?) \|(?:[^|]*\|){2,3}$", text(page))
    assert len(rows) > 20
    assert not [row for row in rows if plain(re.sub(r" \(.*\)$", "", row)) not in tests]


def plain(words: str) -> str:
    """Without what a table may write otherwise than a test's name does."""
    return " ".join(re.findall("[a-z0-9]+", words.lower()))


def test_every_judge_has_its_row():
    rows = re.findall(r"(?m)^\| (`.+?`) \| ", text(HERE / "docs/evaluate/judges.md"))
    assert sorted(kind.strip("` ") for row in rows for kind in row.split(",")) == sorted(judges.KINDS)


@each_page
def test_every_command_has_its_options(page):
    wrong = []
    for words in commands(page):
        if words[:1] in (["test"], ["checks"], ["--help"]):
            continue
        given = ["generate", "a", *words[1:]] if words[:1] == ["demo"] else words
        said = io.StringIO()
        with (
            contextlib.suppress(SystemExit),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            parser().parse_args(given)
        if re.search("unrecognized|invalid|ambiguous", said.getvalue()):
            wrong.append((words, said.getvalue().strip().splitlines()[-1]))
    assert not wrong


def test_commands_are_found_and_told_apart():
    """Of the check itself: it sees the README's commands, and an option that is none."""
    found = list(commands(HERE / "README.md"))
    assert ["demo"] in found
    missing = ["study", "missing", "--split", "unseen", "--n", "500", "--counts", "2"]
    assert [*missing, "--arms", "plain,com,com choose"] in found
    assert "attend-and-excites-276-prompts" in anchors(HERE / "docs/results.md")


def test_no_picture_is_left_over():
    shown = "".join(map(text, PAGES))
    assert not [path.name for path in (HERE / "docs/images").iterdir() if path.name not in shown]
