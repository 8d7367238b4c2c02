"""Code in a Python process of its own, where nothing has been imported yet."""

import os
import subprocess
import sys
from pathlib import Path


def fresh_process(code, **environment):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=root, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=300
    )
