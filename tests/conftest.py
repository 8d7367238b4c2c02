"""Fixtures shared by the tests: the random checkpoint, written and loaded once per run, and the browser.

Tests in a browser are run once more when they fail, as Playwright's own runner does: a machine that is busy with other
things may starve Chromium. The summary lists them, and one that fails twice has failed.
"""

import os
import signal
import tempfile

import pytest

# Here and in every program that a test starts. The tensors are small: more threads would mostly wait for each other,
# and take the processors from the browser and from the other worker of pytest-xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import pipeline  # noqa: E402, F401  before any test imports PyTorch: it sets how threads wait
except ImportError as error:  # a circle of imports ends here, before any test could name it
    from import_graph import read
    from test_laws import LAWS

    sentences = [sentence for law in LAWS for sentence in law(read())]
    raise pytest.UsageError("\n".join([f"pipeline cannot be imported: {error}", *sentences])) from error

# A shell's background job ignores Ctrl-C, and so would every program that a test starts in order to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests train, measure, build or start whole programs: `make test-fast` leaves them out.
SLOW = {
    "test_app_api",
    "test_app_api_jobs",
    "test_app_api_result",
    "test_app_e2e",
    "test_app_engines",
    "test_app_faults",
    "test_app_hang",
    "test_app_history_records",
    "test_app_load",
    "test_app_monitor",
    "test_app_offline",
    "test_app_queue",
    "test_app_ray",
    "test_app_sweep_records",
    "test_app_weights",
    "test_app_worker",
    "test_bsa_compile",
    "test_bsa_triton",
    "test_cli",
    "test_cli_long",
    "test_environment",
    "test_load",
    "test_pipeline_fast_forward",
    "test_pipeline_generate",
    "test_pipeline_long",
    "test_pipeline_long_refinement",
    "test_pipeline_original",
    "test_pipeline_parallel",
    "test_pipeline_search",
    "test_pipeline_settings",
    "test_pipeline_sweep",
    "test_pipeline_tasks",
    "test_pipeline_team",
    "test_pipeline_weights",
    "test_requests",
    "test_wheel",
}
SLOW_KINDS = ("test_benchmarks", "test_training")


def pytest_collection_modifyitems(config, items):
    again = config.pluginmanager.hasplugin("rerunfailures")  # -p no:rerunfailures shows every failure
    for item in items:
        if item.path.stem in SLOW or item.path.stem.startswith(SLOW_KINDS):
            item.add_marker("slow")
        if in_browser(item):
            item.add_marker("browser")
            if again:
                item.add_marker(pytest.mark.flaky(reruns=1))


def in_browser(item) -> bool:
    """By its fixtures, or by its own mark `browser.needs_chromium` where it starts Chromium itself."""
    reasons = [mark.kwargs.get("reason", "") for mark in item.own_markers]
    return not {"browser", "page"}.isdisjoint(item.fixturenames) or any("no chromium" in reason for reason in reasons)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What asks for the system's folder for temporary files gets one that pytest removes."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="session", autouse=True)
def plain_processor():
    """In this process "auto" means fp32 on every machine, so that figures and videos are the same on all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.weights.precision.processor_flags", frozenset)
        yield


@pytest.fixture(scope="module")
def browser():
    """Chromium. One for each module: while it runs, Playwright's event loop does, and others could not start theirs."""
    from browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def fake():
    """The pipeline behind the page at `address`: it draws instead of computing."""
    from fake_pipeline import FakePipeline

    return FakePipeline()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Folder of its videos."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def address(fake, outputs):
    """One server for each module. A module that needs another kind of it has an `address`, or a `fake`, of its own."""
    from app_server import running_page

    with running_page(fake, outputs) as address:
        yield address


@pytest.fixture(scope="module")
def tab(browser):
    """Where one visitor after the other opens the page."""
    from browser import new_tab

    tab = new_tab(browser)
    yield tab
    tab.context.close()


@pytest.fixture
def page(tab, address):
    """The page, opened by a new visitor."""
    from browser import enter_as_stranger

    enter_as_stranger(tab, address)
    return tab


@pytest.fixture(scope="module")
def pair(browser, address):
    """The page with a finished pair, for tests that leave it as they find it, or put it back before they begin."""
    from browser import generate, open_page

    page = open_page(browser, address)
    generate(page)
    yield page
    page.context.close()


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
