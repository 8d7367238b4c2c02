"""What the app writes is bounded by one account, and what is deleted is gone."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections import namedtuple
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from app_server import served, until
from fake_pipeline import FakePipeline
from gradio_client import Client
from test_app_history_store import OWNER, ended

import app
from pipeline.machine.paths import RESCUE, temporary_folder
from ui.storage.disk import IDLE_SECONDS, UPLOADS, Disk, own_folder, rescue_folder
from ui.storage.store import Record, Store

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folders(tmp_path):
    for name in ("outputs", "uploads", "rescued"):
        (tmp_path / name).mkdir()
    return tmp_path / "outputs", tmp_path / "uploads", tmp_path / "rescued"


def store_of(folders, budget: int) -> Store:
    output_dir, uploads, rescued = folders
    return Store(output_dir, Disk(output_dir, budget, uploads, rescued))


def kept(where: Path, name: str, size: int = 1000, changed: float = 1.0) -> Path:
    """An upload as Gradio keeps it, or a rescued video: a file in a folder of its own."""
    (where / name).mkdir()
    file = where / name / "clip.mp4"
    file.write_bytes(b"x" * size)
    for path in (file, file.parent):
        os.utime(path, (changed, changed))
    return file


@pytest.fixture(scope="module")
def address(outputs):
    with served(outputs, FakePipeline(step_seconds=0)) as address:
        yield address


class TestServed:
    def test_a_deleted_video_is_gone(self, address, outputs):
        client = Client(address, verbose=False, download_files=False)
        dense, sparse, report = client.predict("a", api_name="/compare")
        answers = [httpx.get(video["url"]) for video in (dense, sparse)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert all(answer.content[4:8] == b"ftyp" for answer in answers)
        assert not list((outputs / UPLOADS).rglob("*.mp4")), "there is no copy"
        store = Store(outputs)
        assert store.delete(f"session:{client.session_hash}") == [report["job_id"]]
        store.close()
        assert [httpx.get(video["url"]).status_code for video in (dense, sparse)] == [403, 403]

    def test_a_broken_off_upload_leaves_nothing(self, address, outputs):
        def written() -> int:
            return sum(file.stat().st_size for file in (outputs / UPLOADS).rglob("*") if file.is_file())

        place = urlsplit(address)
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n' + b"x" * 2**20
        head = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {2**30}\r\n\r\n"
        )
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(head.encode() + part)
            until(lambda: written() > 2**19, "the upload's beginning")
        until(lambda: written() == 0, "the end of what was uploaded")

    def test_a_full_disk_takes_no_upload(self, address, monkeypatch):
        monkeypatch.setattr("ui.storage.disk.shutil.disk_usage", lambda folder: Usage(10**12, 10**12 - 10**8, 10**8))
        answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.mp4", b"x" * 1000)})
        assert answer.status_code == 507
        assert answer.text.startswith("The server's disk is full: 100 MB are free, and an upload must leave 500 MB")


class TestAccount:
    def test_everything_counts(self, folders):
        output_dir, uploads, rescued = folders
        store = store_of(folders, 10**6)
        ended(store, 1, size=1000)
        before = store.total_bytes()
        kept(uploads, "one", 2000)
        kept(rescued, "longcat-1", 3000)
        (output_dir / ".app" / "jobs.damaged-20260101.sqlite").write_bytes(b"x" * 4000)
        assert store.total_bytes() == before + 9000

    def test_uploads_and_rescued_videos_have_a_share_and_the_oldest_go(self, folders):
        _, uploads, rescued = folders
        files = [kept(where, name, 600, changed) for where in (uploads, rescued) for changed, name in enumerate("abc")]
        Disk(*folders[:1], 4800, uploads, rescued).tidy()
        assert [file.exists() for file in files] == [False, True, True] * 2

    def test_idle_uploads_go_before_results_and_new_ones_stay(self, folders):
        _, uploads, _ = folders
        store = store_of(folders, 10_000)
        for number in (1, 2):
            ended(store, number, size=3000)
        idle = kept(uploads, "idle", 2000)
        new = kept(uploads, "new", 400, changed=idle.stat().st_mtime + 10**10 + IDLE_SECONDS)
        ended(store, 3, size=3000)
        assert not idle.exists() and new.exists()
        assert len(store.runs(OWNER)) == 3
        ended(store, 4, size=3000)
        assert new.exists()
        assert [record.submitted for record in store.runs(OWNER)] == [4, 3, 2]

    def test_results_leave_free_space_on_the_disk(self, folders, monkeypatch):
        store = store_of(folders, 10**9)

        def usage(folder):
            taken = sum(file.stat().st_size for file in folders[0].glob("*-*/*.mp4"))
            return Usage(10**12, 0, 500_000_000 + 7000 - taken)

        monkeypatch.setattr("ui.storage.disk.shutil.disk_usage", usage)
        for number in (1, 2, 3):
            ended(store, number, size=3000)
        assert [record.submitted for record in store.runs(OWNER)] == [3, 2]
        ended(store, 4, size=30_000)
        assert [record.submitted for record in store.runs(OWNER)] == [4], "the newest is kept"

    def test_of_damaged_records_the_newest_stays(self, folders):
        private = folders[0] / ".app"
        private.mkdir()
        for number in (1, 2):
            file = private / f"jobs.damaged-{number}.sqlite"
            file.write_bytes(b"x")
            os.utime(file, (number, number))
        store_of(folders, 10**6).close()
        assert [file.name for file in private.glob("jobs.damaged*")] == ["jobs.damaged-2.sqlite"]

    def test_a_clip_that_the_form_copied_goes_with_its_video(self, folders):
        _, uploads, _ = folders
        store = store_of(folders, 10**6)
        ended(store, 1, size=1000)
        copy, other = kept(uploads, "copy", 1000), kept(uploads, "other", 999)
        store.delete(OWNER)
        assert not copy.exists() and other.exists()

    def test_a_rescued_video_goes_with_its_job(self, folders):
        _, _, rescued = folders
        store = store_of(folders, 10**6)
        file, other = kept(rescued, "longcat-1"), kept(rescued, "longcat-2")
        ended(store, 1, state="failed", error=f"cannot write x: full; the video was kept as {file}")
        store.delete(OWNER)
        assert not file.exists() and other.exists()


def test_a_failed_job_is_recorded_on_a_full_disk(folders):
    """The oldest results make room for its row."""
    store = store_of(folders, 10**9)
    for number in range(1, 9):
        ended(store, number, posters={"sparse": "x" * 20_000})
    pages = store._database.connection.execute("PRAGMA page_count").fetchone()[0]
    store._database.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store._write(Record("x", OWNER, "video", "failed", posters={"sparse": "x" * 40_000}))
    ended(store, 9, state="failed", error="no space left on the disk", posters={"sparse": "x" * 40_000})
    newest = store.runs(OWNER)[0]
    assert (newest.state, newest.error) == ("failed", "no space left on the disk")


class TestFolders:
    def test_what_an_ended_server_left_is_removed(self, tmp_path):
        dead, stranger = tmp_path / "server-1-5", tmp_path / "mine"
        for folder in (dead, stranger):
            folder.mkdir()
            (folder / "file").touch()
        own = own_folder(tmp_path)
        assert own.is_dir() and own.stat().st_mode & 0o777 == 0o700
        assert not dead.exists() and (stranger / "file").exists()

    def test_rescued_videos_are_found_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        folder = rescue_folder(tmp_path / "outputs")
        assert rescue_folder(tmp_path / "outputs") == folder
        monkeypatch.setenv(RESCUE, str(folder))
        assert temporary_folder().parent == folder
        folder.rmdir()
        folder.symlink_to(tmp_path)
        assert rescue_folder(tmp_path / "outputs") != folder, "a link may lead anywhere"

    def test_without_a_place_there_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        assert rescue_folder(tmp_path / "outputs") is None

    def test_a_folder_for_uploads_that_cannot_be_written_is_named(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "file").touch()
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "uploads"))
        assert app.main(["--output-dir", str(tmp_path / "outputs")]) == 2
        said = capsys.readouterr().err
        assert f"cannot write to the folder for uploads {tmp_path}/file/uploads" in said
        assert "set GRADIO_TEMP_DIR to another" in said
