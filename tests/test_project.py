"""The files around the code: one version, what the hosts and the workflow read."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lib_decouple
from lib_decouple.settings import TITLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parents[1]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lib_decouple.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", lib_decouple.__version__)
    done = subprocess.run(
        ["git", "grep", "-lF", f'"{lib_decouple.__version__}"', "--", "*.py", "*.toml", "*.ini", "*.yml", "*.js"],
        cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 128:
        pytest.skip("no git here")
    assert done.stdout.split() == ["lib_decouple/__init__.py"]


def test_the_changes_begin_with_this_version():
    headings = re.findall(r"^## (.+)$", (HERE / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == lib_decouple.__version__
    parts = [tuple(map(int, one.split("."))) for one in headings]
    assert parts == sorted(parts, reverse=True)


def test_the_hosts_can_read_the_metadata():
    read = configparser.ConfigParser()
    read.read(HERE / "metadata.ini", encoding="utf-8")
    name = read["Extension"]["Name"]
    assert name == TITLE.lower().replace(" ", "-")
    assert not any(section.startswith("callbacks/") for section in read.sections())  # they would name our folder
    after = re.split(r"[,\s]+", read["scripts"]["After"])
    assert all(re.fullmatch(r"[a-z0-9-]+", one) for one in after)  # A host compares lower case.


def test_the_workflow_runs_what_the_readme_says_and_pre_commit_what_that_checks():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    jobs = yaml.safe_load((HERE / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    own = jobs["tests"]["strategy"]["matrix"]
    assert {one.partition("-")[0] for one in own["os"]} == {"ubuntu", "windows", "macos"}
    assert own["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert [step["run"] for step in jobs["tests"]["steps"] if "run" in step] == ["python run.py test"]
    assert "python run.py test" in (HERE / "README.md").read_text(encoding="utf-8")
    (hook,) = yaml.safe_load((HERE / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert hook["entry"] == "python run.py checks"
    source = (HERE / "run.py").read_text(encoding="utf-8")
    assert source.count("    check()\n") == 2  # of `checks` and of `test`
    for path in (HERE / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
    bug = yaml.safe_load((HERE / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    doctor = next(part for part in bug["body"] if part.get("id") == "doctor")
    assert doctor["validations"]["required"]
    assert "python run.py doctor" in json.dumps(doctor)


def test_no_file_holds_both_sides_of_a_conflict():
    done = subprocess.run(
        ["git", "grep", "-nIE", r"^(<{7} |={7}$|>{7} )"], cwd=HERE, capture_output=True, text=True
    )  # fmt: skip
    if done.returncode == 128:
        pytest.skip("no git here")
    assert done.stdout == ""


def test_no_file_names_a_folder_of_one_machine():
    done = subprocess.run(
        ["git", "grep", "-nIE", "(^|[^.[:alnum:]])/(root|work)/", "--", ":!tests"],
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    if done.returncode == 128:
        pytest.skip("no git here")
    assert done.stdout == ""
