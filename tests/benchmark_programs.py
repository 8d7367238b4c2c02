"""Runs benchmarks one after the other in one process, so that PyTorch and FastVideo are imported once.

Standard input: one JSON list a line, the words after `python`. Standard output ends with one JSON object: by the line's
number, what ended that program before its time.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def ended(program: str, *options: str) -> str | None:
    """What ended it: an exit status that is not 0, or an error. None where it ran to its end."""
    sys.argv = [program, *options]
    try:
        runpy.run_path(str(FOLDER / program), run_name="__main__")
    except SystemExit as leaving:
        return f"exit status {leaving.code}" if leaving.code else None
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    failures = {number: ended(*json.loads(line)) for number, line in enumerate(sys.stdin.read().splitlines())}
    print(json.dumps({number: failure for number, failure in failures.items() if failure}))
