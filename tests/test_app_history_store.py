"""The record of jobs: what is kept, for whom, for how long, and what is never touched."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ui.storage.disk import DEFAULT_BUDGET, Disk
from ui.storage.files import folder_bytes, remove_folder
from ui.storage.store import Record, Store

OWNER, OTHER = "visitor:a", "visitor:b"


def folder_name(number: int) -> str:
    return f"20260101-000000-{number:012x}"


def ended(store: Store, number: int, owner: str = OWNER, size: int = 1000, **changes) -> Record:
    """Write an ended job with a file of `size` bytes; the jobs' times are their numbers."""
    folder = store.output_dir / folder_name(number)
    folder.mkdir()
    (folder / "sparse.mp4").write_bytes(b"x" * size)
    values = {"state": "done", "folder": folder.name, "submitted": number, "ended": number}
    record = Record(f"{number:012x}", owner, "video", **values | changes)
    store.write(record)
    store.flush()
    return record


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "outputs")
    yield store
    store.close()


def reopened(store: Store, budget: int = DEFAULT_BUDGET) -> Store:
    store.close()
    return Store(store.output_dir, Disk(store.output_dir, budget))


class TestRows:
    def test_newest_first_and_only_the_owners(self, store):
        for number in (1, 2, 3):
            ended(store, number)
        ended(store, 4, OTHER)
        assert [record.submitted for record in store.runs(OWNER)] == [3, 2, 1]
        assert [record.submitted for record in store.runs(OWNER, 2)] == [3, 2]
        assert [record.submitted for record in store.runs(OTHER)] == [4]

    def test_jobs_without_an_owner_are_nobodys(self, store):
        ended(store, 1, owner="")
        assert store.runs("") == []
        assert store.delete("") == []
        assert store.total_bytes() > 1000

    def test_rows_survive_a_restart(self, store):
        ended(store, 1, request={"prompt": "eine „rote“ Kugel 🎈"}, report={"psnr": None}, error="a sentence")
        again = reopened(store)
        (record,) = again.runs(OWNER)
        assert record.request == {"prompt": "eine „rote“ Kugel 🎈"}
        assert (record.report, record.error) == ({"psnr": None}, "a sentence")
        again.close()

    def test_only_this_user_can_read_it(self, store):
        private = store.output_dir / ".app"
        assert private.stat().st_mode & 0o777 == 0o700
        assert (private / "jobs.sqlite").stat().st_mode & 0o777 == 0o600

    def test_many_threads(self, store):
        def work(first):
            for number in range(first, first + 20):
                ended(store, number)
                store.runs(OWNER)

        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.runs(OWNER)) == 100


class TestDeletion:
    def test_one_with_its_folder(self, store):
        ended(store, 1)
        ended(store, 2)
        assert store.delete(OWNER, f"{1:012x}") == [f"{1:012x}"]
        assert [record.submitted for record in store.runs(OWNER)] == [2]
        assert not (store.output_dir / folder_name(1)).exists()
        assert (store.output_dir / folder_name(2)).exists()

    def test_all_of_one_owner(self, store):
        ended(store, 1)
        ended(store, 2)
        ended(store, 3, OTHER)
        assert len(store.delete(OWNER)) == 2
        assert store.runs(OWNER) == []
        assert (store.output_dir / folder_name(3)).exists()

    def test_not_anothers(self, store):
        ended(store, 1, OTHER)
        assert store.delete(OWNER, f"{1:012x}") == []
        assert (store.output_dir / folder_name(1)).exists()

    def test_not_a_running_one(self, store):
        ended(store, 1, state="running")
        assert store.delete(OWNER, f"{1:012x}") == []
        assert (store.output_dir / folder_name(1)).exists()

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("../precious", id="parent"),
            pytest.param("..", id="dots"),
            pytest.param("", id="no name"),
            pytest.param(".", id="the output folder"),
            pytest.param(".app", id="own files"),
            pytest.param("mine", id="not a job's name"),
            pytest.param(folder_name(9) + "/../mine", id="through a job"),
        ],
    )
    def test_a_row_that_names_something_else_only_loses_the_row(self, store, tmp_path, name):
        for folder in (tmp_path / "precious", store.output_dir / "mine", store.output_dir / folder_name(9)):
            folder.mkdir()
            (folder / "file").touch()
        store.write(Record("evil", OWNER, "video", "done", folder=name))
        absolute = Record("evil2", OWNER, "video", "done", folder=str(tmp_path / "precious"))
        store.write(absolute)
        assert sorted(store.delete(OWNER)) == ["evil", "evil2"]
        assert (tmp_path / "precious" / "file").exists()
        assert (store.output_dir / "mine" / "file").exists()
        assert (store.output_dir / folder_name(9) / "file").exists()
        assert (store.output_dir / ".app" / "jobs.sqlite").exists()

    def test_links_are_not_followed(self, store, tmp_path):
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "file").write_bytes(b"x" * 5000)
        (store.output_dir / folder_name(1)).symlink_to(precious)
        inner = ended(store, 2)
        (store.output_dir / inner.folder / "link").symlink_to(precious)
        store.write(Record("linked", OWNER, "video", "done", folder=folder_name(1)))
        assert folder_bytes(store.output_dir, folder_name(1)) == 0
        assert len(store.delete(OWNER)) == 2
        assert (precious / "file").exists()
        assert not (store.output_dir / inner.folder).exists()
        remove_folder(store.output_dir, folder_name(1))
        assert (precious / "file").exists()


class TestBudget:
    def test_oldest_go_first(self, store):
        store.disk.budget = 3500
        for number in (1, 2, 3, 4, 5):
            ended(store, number)
        assert [record.submitted for record in store.runs(OWNER)] == [5, 4, 3]
        assert sorted(folder.name for folder in store.output_dir.glob("2026*")) == [folder_name(n) for n in (3, 4, 5)]
        assert store.total_bytes() <= 3500

    def test_the_newest_stays_whatever_its_size(self, store):
        store.disk.budget = 10
        ended(store, 1)
        ended(store, 2, size=9000)
        assert [record.submitted for record in store.runs(OWNER)] == [2]

    def test_running_jobs_are_not_evicted(self, store):
        store.disk.budget = 1500
        ended(store, 1, state="running")
        ended(store, 2)
        ended(store, 3)
        assert (store.output_dir / folder_name(1)).exists()
        assert not (store.output_dir / folder_name(2)).exists()

    def test_a_folder_that_cannot_be_removed_does_not_stop_the_others(self, store, monkeypatch):
        store.disk.budget = 2500
        stuck = folder_name(1)

        def refuse(folder, *rest):
            if Path(folder).name == stuck:
                raise PermissionError(13, "Permission denied")
            real(folder, *rest)

        real = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", refuse)
        for number in (1, 2, 3):
            ended(store, number)
        assert [record.submitted for record in store.runs(OWNER)] == [3, 1]

    def test_a_smaller_budget_counts_at_the_next_start(self, store):
        for number in (1, 2, 3):
            ended(store, number)
        again = reopened(store, budget=1500)
        assert [record.submitted for record in again.runs(OWNER)] == [3]
        again.close()


class TestStart:
    def test_jobs_of_a_killed_server_are_interrupted(self, store):
        work = (
            "import sys; from pathlib import Path; from ui.storage.store import Record, Store; "
            "store = Store(Path(sys.argv[1])); "
            "store.write(Record('dead', 'visitor:a', 'video', 'running', submitted=5.0)); store.flush(); "
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        )
        root = Path(__file__).parents[1]
        killed = subprocess.run([sys.executable, "-c", work, str(store.output_dir)], cwd=root)
        assert killed.returncode == -9
        assert store.runs(OWNER) == []
        again = reopened(store)
        (record,) = again.runs(OWNER)
        assert (record.id, record.state) == ("dead", "interrupted")
        again.close()

    def test_jobs_of_another_server_that_still_runs_are_not(self, store):
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            import psutil

            server = f"{other.pid}:{psutil.Process(other.pid).create_time():.0f}"
            store.write(Record("theirs", OWNER, "video", "running"))
            store.flush()
            with sqlite3.connect(store.output_dir / ".app" / "jobs.sqlite") as db:
                db.execute("UPDATE jobs SET server = ?", (server,))
            db.close()
            again = reopened(store)
            assert again.read("theirs").state == "running"
            again.close()
        finally:
            other.communicate(b"\n")

    def test_folders_deleted_by_hand_take_no_room(self, store):
        ended(store, 1, size=100_000)
        shutil.rmtree(store.output_dir / folder_name(1))
        again = reopened(store)
        assert again.total_bytes() < 1000
        assert len(again.runs(OWNER)) == 1
        assert again.delete(OWNER) == [f"{1:012x}"]
        again.close()

    def test_folders_that_no_row_knows_count_and_can_be_evicted(self, store):
        ended(store, 1)
        ended(store, 2)
        store.close()
        (store.output_dir / ".app" / "jobs.sqlite").unlink()
        (store.output_dir / "20260101-000000-seed5").mkdir()
        (store.output_dir / "20260101-000000-seed5" / "dense.mp4").write_bytes(b"x" * 9000)
        os.utime(store.output_dir / folder_name(1), (1, 1))
        again = Store(store.output_dir, Disk(store.output_dir, 1500))
        assert again.runs(OWNER) == [], "nobody knows whose they were"
        assert not (store.output_dir / folder_name(1)).exists()
        assert (store.output_dir / folder_name(2)).exists()
        assert (store.output_dir / "20260101-000000-seed5" / "dense.mp4").exists(), "not made by the page"
        again.close()


class TestDamage:
    @pytest.mark.parametrize(
        "harm",
        [
            pytest.param(lambda file: file.write_bytes(b"this is no database" * 500), id="foreign"),
            pytest.param(lambda file: file.write_bytes(file.read_bytes()[:3000]), id="cut off"),
            pytest.param(
                lambda file: file.write_bytes(file.read_bytes()[:4096] + os.urandom(8192) + file.read_bytes()[12288:]),
                id="noise inside",
            ),
            pytest.param(lambda file: execute(file, "DROP TABLE jobs; CREATE TABLE jobs (id)"), id="other columns"),
            pytest.param(lambda file: execute(file, "PRAGMA user_version = 99"), id="from the future"),
        ],
    )
    def test_set_aside_with_a_sentence(self, store, harm, caplog):
        for number in range(1, 30):
            ended(store, number, request={"prompt": "x" * 500})
        store.close()
        file = store.output_dir / ".app" / "jobs.sqlite"
        for end in ("-wal", "-shm"):
            Path(f"{file}{end}").unlink(missing_ok=True)
        harm(file)
        with caplog.at_level(logging.WARNING, "ui"):
            again = Store(store.output_dir)
        assert "it was moved to" in caplog.text
        assert len(list(file.parent.glob("jobs.damaged-*.sqlite"))) == 1
        ended(again, 99)
        assert [record.submitted for record in again.runs(OWNER)] == [99]
        again.close()

    def test_while_it_is_in_use(self, store, caplog):
        ended(store, 1)
        file = store.output_dir / ".app" / "jobs.sqlite"
        execute(file, "PRAGMA wal_checkpoint(TRUNCATE)")
        file.write_bytes(b"garbage" * 2000)
        ended(store, 2)
        assert [record.submitted for record in store.runs(OWNER)][:1] == [2]

    def test_after_closing_it_says_so_and_raises_nothing(self, store, caplog):
        store.close()
        store.write(Record("late", OWNER, "video", "done"))
        assert "could not be used" in caplog.text
        assert not list((store.output_dir / ".app").glob("jobs.damaged*"))


def execute(file: Path, script: str) -> None:
    db = sqlite3.connect(file)
    db.executescript(script)
    db.close()
