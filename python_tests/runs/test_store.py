from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from catapult_ext import _store as store
from catapult_ext._store import RunFolder, RunFolderError

CONFIG = {"steps": 10, "c": [0.5, 2.1], "model": {"width": 8}}


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_hash_ignores_order_and_container_kind_but_not_values():
    assert store.config_hash(CONFIG) == store.config_hash(
        {"model": {"width": 8}, "c": (0.5, 2.1), "steps": 10}
    )
    assert store.config_hash(CONFIG) != store.config_hash({**CONFIG, "steps": 11})


def test_records_survive_exactly_and_the_same_config_resumes(tmp_path):
    record = {"loss": [0.1 + 0.2, 1e-320, 3.0], "diverged_at": -1, "peak": float("inf")}
    with RunFolder(tmp_path / "r", CONFIG) as run:
        assert not run.resumed
        assert run.load_part("0001") is None
        run.save_part("0001", record)
    with RunFolder(tmp_path / "r", CONFIG) as run:
        assert run.resumed
        assert run.load_part("0000") is None
        assert run.load_part("0001") == {**record, "peak": None}


def test_empty_folder_is_taken_and_a_folder_killed_before_its_first_write_too(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty", CONFIG).close()
    (tmp_path / "early" / "parts").mkdir(parents=True)
    (tmp_path / "early" / ".lock").touch()
    (tmp_path / "early" / ".config.json.77.tmp").write_text('{"for')
    RunFolder(tmp_path / "early", CONFIG).close()
    assert not (tmp_path / "early" / ".config.json.77.tmp").exists()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"thesis.txt": "my only copy"}, "is not a run folder"),
        ({"summary.json": "{}"}, "is not a run folder"),
        ({"parts/0000.json": "{}"}, "is not a run folder"),
        ({"config.json": '{"lr": 1}', "x": "y"}, "was not written by catapult_ext or is damaged"),
        ({"config.json": "not json"}, "was not written by catapult_ext or is damaged"),
    ],
)
def test_foreign_folders_are_refused_untouched(tmp_path, fresh, content, message):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = files(tmp_path)
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path, CONFIG, fresh=fresh)
    assert files(tmp_path) == before


def test_another_configuration_is_refused_untouched_and_named(tmp_path):
    with RunFolder(tmp_path / "r", CONFIG) as run:
        run.save_part("0000", {"a": 1})
    before = files(tmp_path)
    with pytest.raises(RunFolderError, match=r"another configuration \(differing in steps\)"):
        RunFolder(tmp_path / "r", {**CONFIG, "steps": 11})
    assert files(tmp_path) == before


def test_a_folder_that_holds_nothing_but_a_configuration_is_taken(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    (tmp_path / "data.json").write_text("{}")
    other = {**CONFIG, "steps": 11}
    with RunFolder(tmp_path, other) as run:
        assert not run.resumed
        assert not (tmp_path / "data.json").exists()
        with pytest.raises(RunFolderError, match="in use by another process"):
            RunFolder(tmp_path, CONFIG)
        with pytest.raises(RunFolderError, match=r"another configuration \(differing in steps\)"):
            RunFolder(tmp_path, CONFIG, joined=True)
        assert not run.begun
    with RunFolder(tmp_path, other) as run:
        assert run.resumed
    for name in ("claims.json", "notes.txt", "parts/0000.json"):
        (tmp_path / name).write_text("{}")
        before = files(tmp_path)
        with pytest.raises(RunFolderError, match=r"another configuration \(differing in steps\)"):
            RunFolder(tmp_path, CONFIG)
        assert files(tmp_path) == before
        (tmp_path / name).unlink()
    RunFolder(tmp_path, CONFIG).close()


def test_a_folder_that_another_process_took_meanwhile_is_refused(tmp_path, monkeypatch):
    take = store._take_lock

    def late(path):
        monkeypatch.setattr(store, "_take_lock", take)
        with RunFolder(tmp_path, {**CONFIG, "steps": 11}) as run:
            run.save_part("0000", {"a": 1})
        return take(path)

    monkeypatch.setattr(store, "_take_lock", late)
    with pytest.raises(RunFolderError, match=r"another configuration \(differing in steps\)"):
        RunFolder(tmp_path, CONFIG)
    with RunFolder(tmp_path, {**CONFIG, "steps": 11}) as run:
        assert run.load_part("0000") == {"a": 1}


def test_edited_config_is_refused(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"steps": 10', '"steps": 12'))
    with pytest.raises(RunFolderError, match="its hash does not match"):
        RunFolder(tmp_path, CONFIG)


def test_fresh_forgets_the_run_and_nothing_else(tmp_path):
    with RunFolder(tmp_path, CONFIG) as run:
        run.save_part("0000", {"a": 1})
        run.write_json("summary.json", {})
        run.write_bytes("fig_loss.png", b"x")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path, {**CONFIG, "steps": 11}, fresh=True) as run:
        assert not run.resumed
        assert run.load_part("0000") is None
    assert sorted(str(p) for p in files(tmp_path)) == [".lock", "config.json", "notes.txt"]


def test_damaged_rate_files_give_one_error_that_says_what_to_do(tmp_path):
    run = RunFolder(tmp_path, CONFIG)
    run.save_part("0000", {"loss": [1.0, 2.0]})
    path = run.part_path("0000")
    good = path.read_bytes()
    nested = b"[" * 100_000
    renamed = good.replace(b'"run"', b'"ruk"')
    for bad in (good[:-9], b"", b"\xff\xfe", good.replace(b"2.0", b"3.0"), b"[]", nested, renamed):
        path.write_bytes(bad)
        with pytest.raises(RunFolderError, match=r"0000\.json is damaged; delete it to have this"):
            run.load_part("0000")
    path.write_bytes(good.replace(run.hash.encode(), b"0" * 16))
    with pytest.raises(RunFolderError, match="belongs to run 0000000000000000"):
        run.load_part("0000")
    path.write_bytes(good)
    assert run.load_part("0000") == {"loss": [1.0, 2.0]}
    run.close()


@pytest.mark.parametrize("damage", [b"[" * 100_000, b"[]", b'{"format": 1}', b"\xff"])
def test_damaged_configurations_leave_the_folder_untouched(tmp_path, damage):
    RunFolder(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_bytes(damage)
    before = files(tmp_path)
    with pytest.raises(RunFolderError, match="was not written by catapult_ext or is damaged"):
        RunFolder(tmp_path, CONFIG)
    assert files(tmp_path) == before


def test_an_environment_that_is_no_mapping_is_left_out(tmp_path):
    RunFolder(tmp_path, CONFIG, environment={"torch": "2"}).close()
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "environment": [1]}))
    with RunFolder(tmp_path, CONFIG) as run:
        assert run.started_in == {}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is not a folder"):
        RunFolder(tmp_path / "file", CONFIG)
    with pytest.raises(RunFolderError, match=r"cannot (read|write) the run folder .*file/run"):
        RunFolder(tmp_path / "file" / "run", CONFIG)
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(RunFolderError, match="cannot write the run folder"):
            RunFolder(tmp_path / "locked" / "run", CONFIG)


def test_second_process_is_kept_out(tmp_path):
    code = (
        "import sys; from catapult_ext._store import RunFolder\n"
        f"RunFolder({str(tmp_path)!r}, {CONFIG!r})"
    )
    with RunFolder(tmp_path, CONFIG):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by another process" in result.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    store.write_atomically(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        store.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_csv_has_no_surprises(tmp_path):
    with RunFolder(tmp_path, CONFIG) as run:
        run.write_json("summary.json", {"x": float("nan")})
        run.write_csv("summary.csv", [{"c": 0.5, "phase": "lazy"}, {"c": 2.0, "phase": None}])
    assert json.loads((tmp_path / "summary.json").read_text()) == {"x": None}
    assert (tmp_path / "summary.csv").read_text() == "c,phase\n0.5,lazy\n2.0,\n"


def test_the_old_module_path_works_and_warns():
    from catapult_ext import runs
    from catapult_ext.runs import store as old

    with pytest.warns(DeprecationWarning, match="import RunFolder from catapult_ext.runs"):
        assert old.RunFolder is runs.RunFolder
    with pytest.raises(AttributeError):
        old.no_such_name  # noqa: B018
