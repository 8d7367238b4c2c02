"""The web page: panels, the job worker and the named API. Only this package and ``app.py`` import Gradio."""

from ui.page import Look, build_page
from ui.worker import Worker

__all__ = ["Look", "Worker", "build_page"]
