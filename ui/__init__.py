"""The web page: panels, the job worker and the named API. Only this package and ``app.py`` import Gradio."""

from ui.jobs.worker import Worker
from ui.page import Look, build_page

__all__ = ["Look", "Worker", "build_page"]
