"""Many endpoints on Ray: they join, die, hang and have the wrong checkpoint; every image has one row all the same."""

import collections
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate import fleet
from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate.backends import About, Unreachable
from lib_decouple.lab.evaluate.store import Store

from .standin import picture

PLAN = 'arms = ["plain", "com", "iou"]\nseeds = 4\n[[prompts]]\nset = "animal-animal"\nlimit = 5\n'


def opener(**part) -> fleet.BackendOpener:
    given = {"arms": ["plain"], "prompts": [{"set": "tiam-2"}], "backend": {"kind": "webui", **part}}
    plan = plans.parsed(given)
    return fleet.BackendOpener(plan.backend, plan.sampling, Path(), expected="0123456789")


class Endpoints:
    """Instead of WebUIs: name -> checkpoint, or None for one that does not answer."""

    def __init__(self, monkeypatch, **has):
        self.has = {f"http://{name}": checkpoint for name, checkpoint in has.items()}
        monkeypatch.setattr(fleet.BackendOpener, "names", lambda own: list(self.has))
        monkeypatch.setattr(fleet.BackendOpener, "open", lambda own, name: self.backend(name))

    def backend(self, name):
        class Backend:
            def about(backend):
                if self.has[name] is None:
                    raise Unreachable(f"{name}: gone")
                return About("toy", "1", self.has[name], "toy")

        return Backend()


def test_the_directory_lends_each_endpoint_once_and_leaves_out_what_fails(monkeypatch):
    ends = Endpoints(monkeypatch, a="0123456789", b="ffffffffff", c=None)
    directory = fleet.Directory(opener(urls=["http://a"], patience=1))
    state = directory.refresh()
    assert state.live == 1
    told = "\n".join(state.messages)
    assert "http://a: joins" in told
    assert "http://b: has checkpoint toy [ffffffffff], the run has [0123456789]; left out" in told
    assert "http://c: gone; left out" in told
    assert directory.lend(1) == "http://a"
    taken = []
    thread = threading.Thread(target=lambda: taken.append(directory.lend(1)))
    thread.start()
    time.sleep(0.2)
    assert taken == []  # lent already
    directory.give_back("http://a", "")
    thread.join(10)
    assert taken == ["http://a"]
    directory.give_back("http://a", "http://a: broke")
    ends.has["http://a"], ends.has["http://d"] = None, "0123456789"
    state = directory.refresh()
    assert (state.live, directory.lend(1)) == (1, "http://d")
    assert "http://a: broke; left out" in state.messages
    assert "http://d: joins" in state.messages
    del ends.has["http://d"]
    assert "http://d: left the list" in directory.refresh().messages
    monkeypatch.setattr(fleet.BackendOpener, "names", lambda own: plans.checked_url("a:1"))
    told = [line for _ in range(2) for line in directory.refresh().messages]
    assert [line.partition(";")[0] for line in told].count("endpoints: urls: 'a:1' is not allowed") == 1
    with pytest.raises(fleet.NoEndpoint, match="none for 1 s: http://a: broke; http://b: has checkpoint"):
        directory.lend(1)


def test_a_failed_endpoint_comes_back_and_a_dead_borrowers_is_taken_back(monkeypatch):
    monkeypatch.setattr(fleet, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(fleet, "LEASE_MARGIN", 0.0)
    Endpoints(monkeypatch, a="0123456789")
    directory = fleet.Directory(opener(urls=["http://a"], timeout=1))
    directory.refresh()
    assert directory.lend(1) == "http://a"
    directory.give_back("http://a", "broke")
    time.sleep(0.01)
    assert "http://a: is back" in directory.refresh().messages
    assert directory.lend(1) == "http://a"  # and never gives it back
    time.sleep(1.1)
    assert "http://a: its borrower died; left out" in directory.refresh().messages
    assert directory.refresh().live == 1


def test_the_file_of_endpoints_is_read_each_time(tmp_path):
    file = tmp_path / "ends.txt"
    own = opener(endpoints=str(file))
    with pytest.raises(FileNotFoundError, match=r"endpoints: .* does not exist"):
        own.names()
    file.write_text("# mine\nhttp://a:1/\n\nhttp://b:2\nhttp://a:1\n")
    assert own.names() == ["http://a:1", "http://b:2"]
    file.write_text("a:1\n")
    with pytest.raises(ValueError, match="urls: 'a:1' is not allowed"):
        own.names()


def check_whole(tmp_path, jobs):
    """One row and one right picture for each job."""
    store = Store(tmp_path / "run")
    rows = store.images()
    assert sorted((r["prompt_id"], r["arm"], r["seed"]) for r in rows) == sorted(job.key for job in jobs)
    for row in rows:
        loss = row["settings"]["loss"] if row["settings"]["enabled"] else ""
        with Image.open(store.folder / row["file"]) as image:
            assert image.tobytes() == picture(row["prompt"], row["seed"], loss).tobytes()
    assert len(list((store.folder / "images").rglob("*"))) == len(rows) + len({r["prompt_id"] for r in rows})
    return rows


def test_one_dies_one_hangs_one_joins_and_nothing_is_lost_or_doubled(start, tmp_path, capfd):
    """Two stand-ins and a third that joins: one is killed half-way, one hangs, one has another checkpoint."""
    pytest.importorskip("ray", reason="ray is not installed")
    dies, hangs = start("--seconds", "0.1"), start("--seconds", "0.1", "--hang-after", "12")
    late, wrong = start("--seconds", "0.1"), start("--sha256", "e" * 64)
    ends = tmp_path / "ends.txt"
    ends.write_text(f"{dies.url}\n{hangs.url}\n")
    text = PLAN + f'[backend]\nkind = "webui"\nendpoints = "{ends.name}"\ntimeout = 4\n'
    (tmp_path / "plan.toml").write_text(text)
    _, jobs = plans.read(tmp_path / "plan.toml")

    def disturb():
        while len(dies.sent) < 8:
            time.sleep(0.05)
        dies.kill()
        ends.write_text(f"{dies.url}\n{hangs.url}\n{late.url}\n{wrong.url}\n")

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    assert main(["evaluate", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]) == 0
    disturbing.join()
    rows = check_whole(tmp_path, jobs)
    by = collections.Counter(row["endpoint"] for row in rows)
    assert set(by) == {dies.url, hangs.url, late.url}
    assert by[hangs.url] == 12
    told = capfd.readouterr()
    told = told.out + told.err
    assert f"{late.url}: joins" in told
    assert f"{hangs.url}: no answer to /sdapi/v1/txt2img within 4 s" in told
    assert f"{wrong.url}: has checkpoint tiny.safetensors [eeeeeeeeee], the run has [71af53dcd6]" in told
    assert wrong.sent == []
    # Whatever was sent more than once was sent again because its first endpoint went before the row was written.
    sent = collections.Counter(map(tuple, dies.sent + hangs.sent + late.sent))
    assert sum(sent.values()) - len(sent) <= 1


def test_when_all_are_gone_the_run_tells_why_and_goes_on_later(start, tmp_path, capsys):
    pytest.importorskip("ray", reason="ray is not installed")
    first, second = start("--seconds", "0.1"), start("--seconds", "0.1", "--change-after", "10")
    text = PLAN.replace("limit = 5", "limit = 2")
    text += f'[backend]\nkind = "webui"\nurls = ["{first.url}", "{second.url}"]\npatience = 3\n'
    (tmp_path / "plan.toml").write_text(text)
    _, jobs = plans.read(tmp_path / "plan.toml")

    def disturb():
        while len(first.sent) < 5:
            time.sleep(0.05)
        first.kill()

    threading.Thread(target=disturb).start()
    command = ["evaluate", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "endpoints: none for 3 s" in told
    assert first.url in told
    assert "[ffffffffff], not [71af53dcd6]" in told  # its checkpoint was changed under way: refused, not kept
    before = Store(tmp_path / "run").images()
    assert 10 <= len(before) < len(jobs)
    second.kill()
    other = start()
    (tmp_path / "ends.txt").write_text(other.url)
    assert main([*command, "--endpoints", str(tmp_path / "ends.txt")]) == 0
    rows = check_whole(tmp_path, jobs)
    assert len(other.sent) == len(jobs) - len(before)
    assert [row["id"] for row in before] == [row["id"] for row in rows[: len(before)]]


def test_endpoints_of_several_checkpoints_stop_the_run_before_it_begins(start, tmp_path, capsys):
    one, two = start(), start("--sha256", "e" * 64)
    text = PLAN + f'[backend]\nkind = "webui"\nurls = ["{one.url}", "{two.url}"]\n'
    (tmp_path / "plan.toml").write_text(text)
    assert main(["evaluate", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"{one.url} has tiny.safetensors [71af53dcd6]; {two.url} has tiny.safetensors [eeeeeeeeee]" in told
    assert one.sent == two.sent == []


def test_without_ray_several_endpoints_say_what_to_install(start, tmp_path, capsys, monkeypatch):
    one, two = start(), start()
    text = PLAN + f'[backend]\nkind = "webui"\nurls = ["{one.url}", "{two.url}"]\n'
    (tmp_path / "plan.toml").write_text(text)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["evaluate", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]) == 2
    assert "several endpoints need Ray; pip install ray" in capsys.readouterr().err


def test_ray_s_objects_hold_no_password(monkeypatch):
    from dataclasses import replace

    own = replace(opener(urls=["http://a"]), auth="ann:a password of hers")
    data = pickle.dumps(own)
    assert b"a password of hers" not in data
    assert "a password of hers" not in repr(own)
    opened = []
    monkeypatch.setattr(fleet, "_opened", lambda given, url: opened.append((given.auth, url)))
    monkeypatch.delenv(fleet.AUTH_VARIABLE, raising=False)
    own.open("http://a")
    monkeypatch.setenv(fleet.AUTH_VARIABLE, "ann:of the environment")
    pickle.loads(data).open("http://a")  # as Ray's workers do
    assert opened == [("ann:a password of hers", "http://a"), ("ann:of the environment", "http://a")]


def test_where_ray_is_started_it_is_said_who_may_reach_it(monkeypatch):
    monkeypatch.setattr(fleet, "find_spec", lambda name: object())
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "other users, can run code" in fleet.ports_of_ray("2.60.0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "only who has the token of this run" in fleet.ports_of_ray("2.60.0")
    monkeypatch.setattr(fleet, "find_spec", lambda name: None)
    assert "other users, can run code" in fleet.ports_of_ray("2.40.0")


def test_workers_draw_with_the_password_and_ray_asks_for_its_token(start, tmp_path, capfd, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.delenv(fleet.AUTH_VARIABLE, raising=False)
    before = os.environ.get("PYTHONPATH")
    ends = [start("--auth", "ann:secret"), start("--auth", "ann:secret")]
    text = PLAN.replace("limit = 5", "limit = 1")
    text += f'[backend]\nkind = "webui"\nurls = ["{ends[0].url}", "{ends[1].url}"]\n'
    (tmp_path / "plan.toml").write_text(text)
    _, jobs = plans.read(tmp_path / "plan.toml")
    command = ["evaluate", "run", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]
    assert main([*command, "--api-auth", "ann:secret"]) == 0
    check_whole(tmp_path, jobs)
    told = capfd.readouterr()
    assert "Ray" in told.out + told.err
    assert "listens on ports" in told.out + told.err
    assert fleet.AUTH_VARIABLE not in os.environ
    assert os.environ.get("PYTHONPATH") == before
