"""The laws of the architecture, held on the import graph (see `import_graph`). What fails says which line breaks a law,
and where that line belongs. Every law is shown to fail on a small tree that breaks it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from import_graph import PARTS, ROOMS, ROOT, Graph, Import, circles, levels, read, room_of

# What each part may import besides itself.
MAY = {
    "bsa": (),
    "pipeline": ("bsa",),
    "ui": ("pipeline", "bsa"),
    "app": ("ui", "pipeline", "bsa"),
    "training": ("pipeline", "bsa"),
    "benchmarks": ("training", "pipeline", "bsa"),
}
# Who may import a package. Benchmarks compare with all of them.
OWNERS = {
    "gradio": (
        *("app", "benchmarks", "ui.access", "ui.look", "ui.site", "ui.form", "ui.tasks", "ui.views", "ui.api"),
        "ui.page",
    ),
    "fastvideo": ("pipeline.model.fastvideo_adapter", "benchmarks"),
    "triton": ("bsa.kernels", "pipeline.transformer.fused_triton", "benchmarks"),
}
REMEDY = {
    "gradio": "the views are the lowest that may; keep the value here and draw it in ui.views or ui.form",
    "fastvideo": "put what touches FastVideo into pipeline/model/fastvideo_adapter.py and call that",
    "triton": "a kernel belongs to bsa/kernels, or beside pipeline/transformer/fused_triton.py",
}
DIVIDED = ("pipeline", "ui")  # into rooms
# What stays light: importing it brings in none of these, at whatever distance.
LIGHT = {
    "bsa": ("torch", "triton"),
    "pipeline": ("torch", "triton", "fastvideo", "gradio"),
    "pipeline.request": ("torch", "triton", "fastvideo", "gradio"),  # and every module in it
    "pipeline.checkpoint": ("torch", "triton", "fastvideo", "gradio"),
}


def parts_import_downwards(graph: Graph) -> list[str]:
    wrong = []
    for one in ours(graph):
        importer, imported = one.importer.partition(".")[0], one.imported.partition(".")[0]
        if imported != importer and imported not in MAY[importer]:
            allowed = " and ".join(MAY[importer]) or "nothing of this repository"
            wrong.append(
                f"{one}: {importer} may import {allowed}. Move what it needs from {imported} down into {importer}, "
                f"or this line up into {imported}"
            )
    return wrong


def rooms_import_downwards(graph: Graph) -> list[str]:
    height, wrong = {room: at for at, room in enumerate(ROOMS)}, []
    for one in ours(graph):
        importer, imported = room_of(one.importer), room_of(one.imported)
        if height[imported] > height[importer]:
            wrong.append(
                f"{one}: the room {importer} is below {imported}. Move what it needs down into {importer} or a room "
                f"below, or this line up into {imported}"
            )
    return wrong


def no_circles(graph: Graph) -> list[str]:
    wrong = []
    for trip in circles(graph.edges()):
        lines = "; ".join(str(graph.line(*edge)) for edge in zip(trip, trip[1:]))
        wrong.append(f"{lines}: a circle. Move what they share into a file that imports none of them")
    return wrong


def packages_have_owners(graph: Graph) -> list[str]:
    return [
        f"{one}: only {', '.join(OWNERS[package])} may import {package}; {REMEDY[package]}"
        for one in graph.imports
        if (package := one.imported.partition(".")[0]) in OWNERS
        and not any(within(one.importer, owner) for owner in OWNERS[package])
    ]


def light_stays_light(graph: Graph) -> list[str]:
    wrong = {}
    for light, heavy in LIGHT.items():
        inside = [light] if light in ("bsa", "pipeline") else [name for name in graph.modules if within(name, light)]
        for start in inside:
            for lines in graph.at_import(start) if start in graph.modules else ():
                last = lines[-1]
                if last.imported.partition(".")[0] in heavy:
                    wrong.setdefault(
                        last,
                        f"{last}: `import {start}` would bring it in ({through(start, lines)}). "
                        "Import it inside the function that computes, or hand the name on lazily",
                    )
    return list(wrong.values())


def rooms_have_four_to_twelve_files(graph: Graph) -> list[str]:
    """Rooms of packages that are divided into rooms; `__init__` does not count."""
    rooms: dict[str, list[str]] = {}
    for name, path in graph.modules.items():
        top, _, rest = name.partition(".")
        if top in DIVIDED and path.name != "__init__.py" and "." in rest:
            rooms.setdefault(f"{top}.{rest.partition('.')[0]}", []).append(name)
    wrong = []
    for room, files in sorted(rooms.items()):
        if len(files) > 12:
            wrong.append(f"{room} has {len(files)} files: divide it by what they are about, and place the new room")
        elif len(files) < 4:
            wrong.append(f"{room} has {len(files)} files: move them into a room that they fit, or what fits them here")
    return wrong


LAWS: list[Callable[[Graph], list[str]]] = [
    parts_import_downwards,
    rooms_import_downwards,
    no_circles,
    packages_have_owners,
    light_stays_light,
    rooms_have_four_to_twelve_files,
]


def ours(graph: Graph) -> list[Import]:
    return [one for one in graph.imports if one.imported in graph.modules]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def through(start: str, lines: list[Import]) -> str:
    return " -> ".join([start, *(one.imported for one in lines)])


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_holds(graph: Graph, law: Callable[[Graph], list[str]]) -> None:
    assert not law(graph), "\n" + "\n".join(law(graph))


def test_graph_sees_the_repository(graph: Graph) -> None:
    """Laws about nothing would hold, too."""
    assert {name.partition(".")[0] for name in graph.modules} == {part.removesuffix(".py") for part in PARTS} == {*MAY}
    edges = graph.edges()
    for importer, imported in (
        ("bsa", "bsa.attention"),  # handed on lazily
        ("bsa.attention", "bsa.kernels.attend"),  # inside a function
        ("pipeline", "pipeline.runs.longcat"),
        ("pipeline.cli.engines", "pipeline.engine.child"),  # named in a string
        ("ui.page", "ui.api.endpoints"),
        ("benchmarks.attention", "benchmarks.gpu"),  # scripts
        ("training.export", "training.dit"),
    ):
        assert imported in edges[importer], f"{importer} -> {imported}"


def test_every_room_is_placed_and_used(graph: Graph) -> None:
    packages = {name for name, path in graph.modules.items() if path.name == "__init__.py" and name.count(".") == 1}
    assert packages <= {prefix for prefixes in ROOMS.values() for prefix in prefixes}, "place it in import_graph.ROOMS"
    assert {room_of(name) for name in graph.modules} == {*ROOMS}, "a room without files"


def test_importing_brings_in_nothing_heavy(graph: Graph) -> None:
    """Other packages might bring it in, which our sources do not tell."""
    light = ("pipeline.request", "pipeline.checkpoint")
    request = [name for name in graph.modules if any(within(name, room) for room in light)]
    code = f"import sys, {', '.join(['bsa', 'pipeline', *request])}; print({{*sys.modules}} & {{*sys.argv[1:]}})"
    command = [sys.executable, "-c", code, *LIGHT["pipeline"]]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_the_script_prints_rooms_and_circles() -> None:
    command = [sys.executable, "tests/import_graph.py"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in shown[:-1]].index("pipeline.request") > 0
    assert shown[-1].endswith("0 circles")


# Trees that break a law: the files, the law, what its message says.
TREES = [
    pytest.param(
        {"bsa/a.py": "import pipeline"}, parts_import_downwards,
        ["bsa/a.py:1", "bsa may import nothing", "up into pipeline"], id="bsa-pipeline",
    ),
    pytest.param(
        {"pipeline/runs/a.py": "def f():\n    from ui.jobs import job"}, parts_import_downwards,
        ["pipeline/runs/a.py:2", "ui.jobs.job", "pipeline may import bsa"], id="pipeline-ui-inside-a-function",
    ),
    pytest.param(
        {"ui/jobs/job.py": "if TYPE_CHECKING:\n    import app"}, parts_import_downwards,
        ["ui/jobs/job.py:2", "up into app"], id="ui-app-typing-only",
    ),
    pytest.param(
        {"pipeline/runs/a.py": "import training.run"}, parts_import_downwards,
        ["pipeline/runs/a.py:1", "up into training"], id="pipeline-training",
    ),
    pytest.param(
        {"training/run.py": "import ui"}, parts_import_downwards, ["training/run.py:1", "pipeline and bsa"],
        id="training-ui",
    ),
    pytest.param(
        {"pipeline/request/video.py": "\nfrom pipeline.runs import plan"}, rooms_import_downwards,
        ["pipeline/request/video.py:2", "pipeline.request is below pipeline.runs", "up into pipeline.runs"],
        id="request-runs",
    ),
    pytest.param(
        {"pipeline/model/a.py": "from ..estimate import cost"}, rooms_import_downwards,
        ["pipeline/model/a.py:1", "pipeline.estimate.cost"], id="relative",
    ),
    pytest.param(
        {"pipeline/machine/a.py": "from .. import VideoRequest"}, rooms_import_downwards,
        ["pipeline/machine/a.py:1", "below pipeline."], id="relative-package",
    ),
    pytest.param(
        {"pipeline/media/a.py": "from pipeline import LongCatPipeline"}, rooms_import_downwards,
        ["pipeline/media/a.py:1", "below pipeline."], id="through-the-package",
    ),
    pytest.param(
        {"pipeline/estimate/a.py": "TARGETS = {'x': 'pipeline.runs.plan:plan'}"}, rooms_import_downwards,
        ["pipeline/estimate/a.py:1", "pipeline.runs.plan"], id="named-in-a-string",
    ),
    pytest.param(
        {"pipeline/engine/a.py": "def f():\n    return import_module('pipeline.cli')"}, rooms_import_downwards,
        ["pipeline/engine/a.py:2", "pipeline.engine is below pipeline.cli"], id="import-module",
    ),
    pytest.param(
        {"ui/jobs/job.py": "import ui.views"}, rooms_import_downwards,
        ["ui/jobs/job.py:1", "ui.jobs is below ui.views"], id="jobs-views",
    ),
    pytest.param(
        {"bsa/kernels/order.py": "from bsa.attention import f"}, rooms_import_downwards,
        ["bsa/kernels/order.py:1", "bsa.kernels is below bsa."], id="kernels-attention",
    ),
    pytest.param(
        {"bsa/a.py": "import bsa.b", "bsa/b.py": "def f():\n    import bsa.a"}, no_circles,
        ["bsa/a.py:1", "bsa/b.py:2", "a circle"], id="circle-inside-a-function",
    ),
    pytest.param(
        {"bsa/a.py": "import bsa.b", "bsa/b.py": "import bsa.c", "bsa/c.py": "if TYPE_CHECKING:\n    from . import a"},
        no_circles, ["bsa/a.py:1", "bsa/b.py:1", "bsa/c.py:2"], id="circle-of-three-typing-only",
    ),
    pytest.param(
        {"bsa/__init__.py": "_MODULES = {'x': 'bsa.a'}", "bsa/a.py": "from bsa import x"}, no_circles,
        ["bsa/__init__.py:1", "bsa/a.py:1"], id="circle-through-a-lazy-table",
    ),
    pytest.param(
        {"benchmarks/a.py": "import b", "benchmarks/b.py": "from a import Case"}, no_circles,
        ["benchmarks/a.py:1", "benchmarks/b.py:1"], id="circle-of-scripts",
    ),
    pytest.param(
        {"ui/jobs/job.py": "def f():\n    import gradio as gr"}, packages_have_owners,
        ["ui/jobs/job.py:2", "draw it in ui.views"], id="gradio-in-jobs",
    ),
    pytest.param(
        {"pipeline/runs/a.py": "from gradio import utils"}, packages_have_owners, ["pipeline/runs/a.py:1", "gradio"],
        id="gradio-in-pipeline",
    ),
    pytest.param(
        {"pipeline/transformer/forward.py": "def f():\n    from fastvideo.layers import x"}, packages_have_owners,
        ["pipeline/transformer/forward.py:2", "fastvideo_adapter.py"], id="fastvideo",
    ),
    pytest.param(
        {"bsa/attention.py": "import triton.language as tl"}, packages_have_owners,
        ["bsa/attention.py:1", "bsa/kernels"], id="triton",
    ),
    pytest.param(
        {"bsa/__init__.py": "from bsa.a import f", "bsa/a.py": "import torch"}, light_stays_light,
        ["bsa/a.py:1", "bsa -> bsa.a -> torch", "inside the function"], id="torch-with-bsa",
    ),
    pytest.param(
        {"pipeline/request/video.py": "import numpy\nfrom torch import Tensor"}, light_stays_light,
        ["pipeline/request/video.py:2", "pipeline.request.video -> torch"], id="torch-in-the-request-room",
    ),
    pytest.param(
        {"pipeline/request/a.py": "import bsa.b", "bsa/__init__.py": "import bsa.c", "bsa/c.py": "import torch.nn"},
        light_stays_light, ["bsa/c.py:1", "torch.nn"], id="torch-through-a-package-on-the-way",
    ),
    pytest.param(
        {"pipeline/__init__.py": "import_module('torch')"}, light_stays_light, ["pipeline/__init__.py:1"],
        id="torch-by-import-module",
    ),
    pytest.param(
        {f"pipeline/media/{letter}.py": "" for letter in "abcdefghijklm"}, rooms_have_four_to_twelve_files,
        ["pipeline.media has 13 files", "divide it"], id="room-of-thirteen",
    ),
    pytest.param(
        {f"ui/look/{letter}.py": "" for letter in "abc"}, rooms_have_four_to_twelve_files,
        ["ui.look has 3 files", "move them"], id="room-of-three",
    ),
]  # fmt: skip

SOUND = {
    "app.py": "import gradio\nimport ui",
    "bsa/__init__.py": "if TYPE_CHECKING:\n    from bsa.attention import f\nT = {'f': 'bsa.attention'}",
    "bsa/attention.py": "import torch\ndef f():\n    from bsa.kernels import order",
    "bsa/kernels/__init__.py": "",
    "bsa/kernels/order.py": "import triton\nfrom bsa.layout import x",
    "bsa/layout.py": "'bsa.attention says more'",
    "pipeline/__init__.py": "from pipeline.request import video\nif TYPE_CHECKING:\n    import torch",
    "pipeline/request/video.py": "import bsa\ndef f():\n    import torch",
    **{f"pipeline/request/{letter}.py": "" for letter in "xyz"},
    "ui/__init__.py": "",
    "ui/views/a.py": "import gradio, pipeline",
    "benchmarks/a.py": "import attention, fastvideo, training.run",
    "training/run.py": "from pipeline.model import x",
}


def tree(root: Path, files: dict[str, str]) -> Graph:
    """The files, with a package around each and the modules that they name."""
    wanted = {"pipeline/runs/plan.py", "pipeline/estimate/cost.py", "pipeline/cli/main.py", "ui/jobs/job.py"}
    wanted |= {"ui/views/a.py", "training/run.py", "bsa/attention.py", "app.py"}
    rooms = ("pipeline/runs", "pipeline/estimate", "pipeline/cli", "ui/jobs", "ui/views")
    wanted |= {f"{room}/{letter}.py" for room in rooms for letter in "xyz"}  # as few as a room may have
    for name in sorted(wanted | {*files}):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files.get(name, ""))
        for folder in path.relative_to(root).parents:
            if folder.parts and folder.parts[0] != "benchmarks" and not (root / folder / "__init__.py").exists():
                (root / folder / "__init__.py").write_text(files.get(f"{folder}/__init__.py", ""))
    (root / "benchmarks").mkdir(exist_ok=True)
    return read(root)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_holds_on_a_sound_tree(tmp_path: Path, law: Callable[[Graph], list[str]]) -> None:
    assert law(tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("files", "law", "words"), TREES)
def test_law_fails_and_says_where(tmp_path: Path, files: dict[str, str], law, words: list[str]) -> None:
    (message,) = law(tree(tmp_path, files))
    assert all(word in message for word in words), message


def test_levels_count_from_what_imports_nothing() -> None:
    edges = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "x": {"y"}, "y": {"x", "c"}}
    assert levels(edges) == {"a": 2, "b": 1, "c": 0, "x": 1, "y": 1}
