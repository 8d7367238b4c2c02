"""The tab of sweeps: the settings to vary, the grid of clips, and the plot of speed-up against similarity."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ui.form.read import file_of, new_seed
from ui.form.restore import OF_ONE_VIDEO
from ui.jobs.job import VideoJob
from ui.jobs.sweep_job import SweepJob
from ui.look.parts import QUIET, Drawn, box
from ui.site import Site
from ui.storage.store import Store
from ui.views.follow import GONE
from ui.views.report import report_panel
from ui.views.stage import StageViews
from ui.views.sweep_view import (
    NONE,
    default_values,
    plan_html,
    problem,
    progress_view,
    read_search,
    read_sweep,
    sweep_view,
)

SWEEP_TAB = "sweep_tab"
NAMES = {
    "Sparsity": "sparsity",
    "CDF threshold": "cdf_threshold",
    "Chunk shape": "chunk",
    "Scores": "selection",
    "Dense steps": "dense_steps",
    "Dense layers": "dense_layers",
    "Select every": "select_every",
    "Seed": "seed",
    "Denoising steps": "steps",
}
HINT = (
    "One video for every pair of values, over the settings of the form; each is compared with a dense video of its own "
    "seed and steps. A chunk is written 4x4x4 (frames, rows, columns), or 4x4x4/4x4x8 for query/key."
)
FIND_HINT = (
    "Or name a floor: the dense video and a few sparse ones find the fastest sparsity of this prompt that keeps it, "
    "with the chunks and scores of the form."
)
FLOORS = {"psnr": 30.0, "ssim": 0.95}
RUNNING = "Another sweep is being made in that tab; stop it, or wait for its end, to see this one."


class FindRow:
    """The controls that search for the fastest sparsity above a floor. The panel that holds them starts the search."""

    def __init__(self) -> None:
        gr.Markdown(FIND_HINT, elem_classes="hint")
        with gr.Row(elem_id="sweep_find"):
            self.quality = gr.Dropdown(
                [("PSNR", "psnr"), ("SSIM", "ssim")],
                value="psnr",
                label="Likeness to dense",
                elem_id="find_quality",
                min_width=120,
            )
            self.floor = gr.Number(FLOORS["psnr"], label="At least", elem_id="find_floor", min_width=120)
            self.button = gr.Button("Find my sparsity", elem_id="find_run", min_width=160)
        self.quality.change(lambda quality: FLOORS[quality], self.quality, self.floor, **QUIET)


class SweepGrid(Drawn):
    """The grid. Its value is {"ticket"} and, if there is a sweep to show, the data of `sweep_view`.

    The page calls `look` about once a second and fetches a new value when another video is done. So it finds the
    running sweep after a reload, in a second tab and after a lost connection.
    """

    def __init__(self, look: Any, **kwargs: Any) -> None:
        super().__init__("sweep", ["pareto.js", "clips.js", "sweep.js"], {}, [look], **kwargs)


class SweepPanel:
    """The controls and the grid. Create it inside its tab, and call `connect` when the form exists."""

    def __init__(self, site: Site, store: Store) -> None:
        self.site = site
        self.store = store
        self._chosen: dict[str, str] = {}  # owner -> id of the sweep in the tab, the newest or one from the history
        defaults = default_values(site.checkpoint.defaults["num_inference_steps"])
        choices = list(NAMES.items())
        gr.Markdown(HINT, elem_classes="hint")
        with gr.Row(elem_classes="sweep-axes"):
            self.row_name = gr.Dropdown(choices, value="sparsity", label="Rows", elem_id="sweep_rows", min_width=120)
            self.row_values = gr.Textbox(
                defaults["sparsity"], label="Values of the rows", elem_id="sweep_row_values", min_width=160, max_lines=1
            )
            self.column_name = gr.Dropdown(
                [("None", NONE), *choices], value="chunk", label="Columns", elem_id="sweep_columns", min_width=120
            )
            self.column_values = gr.Textbox(
                defaults["chunk"],
                label="Values of the columns",
                elem_id="sweep_column_values",
                min_width=160,
                max_lines=1,
            )
        self.plan = box("sweep_plan")
        with gr.Row(elem_id="sweep_buttons"):
            self.run = gr.Button("Run sweep", variant="primary", elem_id="sweep_run")
            self.stop = gr.Button("Stop sweep", variant="stop", interactive=False, elem_id="sweep_stop")
        self.find = FindRow()
        self.grid = SweepGrid(self._look_function())
        for name, values in ((self.row_name, self.row_values), (self.column_name, self.column_values)):
            name.change(  # not `input`, which also fires when the field loses focus and would undo the typing
                lambda chosen: gr.update(value=defaults.get(chosen, ""), interactive=chosen != NONE),
                name,
                values,
                **QUIET,
            )

    def connect(
        self,
        fields: dict[str, Any],
        visitor: Any,
        stage: gr.HTML,
        report: gr.HTML,
        shown: gr.State,
        page: gr.Blocks,
        views: StageViews,
    ) -> None:
        """Connect the events. fields: the form's by name. visitor: the browser's ticket.

        stage, report, shown: the components that show a clip when it is opened. views: makes the stage's values.
        """
        axes = [self.row_name, self.row_values, self.column_name, self.column_values]
        inputs, names = [*axes, *fields.values()], list(fields)

        async def plan(*values: Any) -> str:
            form = dict(zip(names, values[4:], strict=True))
            try:
                return await self.site.clips.read(file_of(form), plan_html, self.site, values[:4], form)
            except ValueError as error:
                return problem(error)

        async def submit(request: gr.Request, ticket: Any, form: dict[str, Any], read: Any, *values: Any) -> tuple:
            """Submit the sweep that `read(site, *values, form)` describes: changes of the parts, and what is wrong."""
            if form["randomise"]:
                form["seed"] = new_seed()
            self._greet(request, ticket)
            try:
                sweep = await self.site.clips.read(file_of(form), partial(read, self.site, *values, form))
                job = self.site.submit(SweepJob(sweep), request)
            except ValueError as error:
                return *[gr.skip()] * len(self.parts), problem(error)
            self._chosen[job.owner] = job.id
            return *self._follow(request, job), ""

        async def press(request: gr.Request, ticket: Any, *values: Any) -> tuple:
            form = dict(zip(names, values[4:], strict=True))
            *changes, wrong = await submit(request, ticket, form, read_sweep, values[:4])
            return *changes, wrong or await plan(*values)

        async def press_find(request: gr.Request, ticket: Any, quality: str, floor: Any, *values: Any) -> tuple:
            form = dict(zip(names, values, strict=True))
            *changes, wrong = await submit(request, ticket, form, read_search, quality, floor)
            return *changes, wrong or gr.skip()

        def press_stop(request: gr.Request) -> tuple:
            job = self._job(self.site.owner(request))
            if job is not None and not job.over:
                self.site.worker.stop(job)
            return self._follow(request, job)

        def refresh(request: gr.Request, ticket: Any) -> tuple:
            self._greet(request, ticket)
            return self._follow(request, self._job(self.site.owner(request)))

        def open_cell(request: gr.Request, event: gr.EventData) -> tuple:
            job = self._opened(self.site.owner(request), event._data)
            if job is None:
                return gr.skip(), gr.skip(), gr.skip()
            return views.of(job), report_panel(job.results, job.comparison), job.id

        start = [field.value for field in inputs]
        self.plan.value = plan_html(self.site, tuple(start[:4]), dict(zip(names, start[4:], strict=True)))
        watched = [*axes, *(field for name, field in fields.items() if name not in OF_ONE_VIDEO)]
        changes = [*(field.change for field in watched), shown.change]
        gr.on(changes, plan, inputs, self.plan, trigger_mode="always_last", **QUIET)
        self.run.click(press, [visitor, *inputs], [*self.parts, self.plan], **QUIET)
        goal = [self.find.quality, self.find.floor]
        self.find.button.click(press_find, [visitor, *goal, *fields.values()], [*self.parts, self.plan], **QUIET)
        self.stop.click(press_stop, None, self.parts, **QUIET)
        self.grid.retry(refresh, visitor, self.parts, **QUIET)
        self.grid.select(open_cell, None, [stage, report, shown], **QUIET)
        page.load(refresh, visitor, self.parts, **QUIET)

    @property
    def parts(self) -> list[Any]:
        """The components of the tab that change with the sweep."""
        return [self.grid, self.run, self.find.button, self.stop]

    def open(self, request: gr.Request, job_id: str) -> dict[Any, Any]:
        """Changes that show an earlier sweep of this visitor in the tab.

        Raises:
            ValueError: the sweep is gone, or another one is running there.
        """
        owner = self.site.owner(request)
        current = self._job(owner)
        if current is not None and not current.over and current.id != job_id:
            raise ValueError(RUNNING)
        job = self._job(owner, job_id)
        if job is None or job.id != job_id:
            raise ValueError(GONE)
        self._chosen[owner] = job_id
        return dict(zip(self.parts, self._follow(request, job), strict=True))

    def _greet(self, request: gr.Request, ticket: Any) -> None:
        # on a page that is just opening, this may run before the page has greeted its visitor
        if self.site.visitors.owner_of(ticket):
            self.site.visitors.greet(request, ticket)

    def _follow(self, request: gr.Request, job: SweepJob | None) -> tuple:
        live = job is not None and not job.over
        view = {"ticket": self.site.visitors.ticket(request)} | ({} if job is None else sweep_view(job))
        return view, *[gr.update(interactive=not live)] * 2, gr.update(interactive=live)

    def _job(self, owner: str, named: Any = "") -> SweepJob | None:
        """The owner's sweep with this id, or the sweep in the tab, even if an earlier server made it."""
        if owner not in self._chosen:
            self._chosen[owner] = self.store.newest(owner, "sweep")
        for job_id in (named, self._chosen[owner]):
            job = self.site.worker.find(job_id, owner) if isinstance(job_id, str) and job_id else None
            if isinstance(job, SweepJob):
                self.site.worker.adopt(job)  # a page asks every second, and would read it from disk each time
                return job
        return None

    def _look_function(self) -> Any:
        def look(ask: dict[str, str]) -> dict[str, Any]:
            ask = ask if isinstance(ask, dict) else {}
            owner = self.site.visitors.owner_of(ask.get("ticket"))
            job = self._job(owner) if owner else None
            return {"job": ""} if job is None else progress_view(self.site, job)

        return look

    def _opened(self, owner: str, place: Any) -> VideoJob | None:
        """The cell as a finished job that the other panels can find."""
        place = place if isinstance(place, dict) else {}
        sweep = self._job(owner, place.get("job"))
        if sweep is None or sweep.id != place.get("job"):
            return None
        cell = sweep.cell(place.get("row"), place.get("column"))
        if cell is not None:
            self.site.worker.adopt(cell)
        return cell
