"""Fixtures shared by the tests: the random checkpoint, written and loaded once per run, and the browser."""

import signal
import tempfile

import pytest

import pipeline  # noqa: F401  before any test imports PyTorch: it sets how threads wait

# A shell's background job ignores Ctrl-C, and so would every program that a test starts in order to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What asks for the system's folder for temporary files gets one that pytest removes."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def browser():
    """Chromium. One for each module: while it runs, Playwright's event loop does, and others could not start theirs."""
    from browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a random LongCat checkpoint; do not write to it."""
    from tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "longcat-random")


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint):
    """That checkpoint, loaded to the CPU."""
    from pipeline import LongCatPipeline

    return LongCatPipeline.load(tiny_checkpoint, device="cpu")
