"""A server over the fake pipeline in its own process, whose memory a test can watch: python load_server.py FOLDER"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from app_server import running_page
from fake_pipeline import FakePipeline

if __name__ == "__main__":
    with running_page(FakePipeline(step_seconds=0.005), Path(sys.argv[1])) as address:
        print(address, flush=True)
        threading.Event().wait()
