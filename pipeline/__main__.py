"""``python -m pipeline``: see `pipeline.cli`."""

import sys

from pipeline import _start
from pipeline.cli import main

try:
    _start.end()
    raise SystemExit(main())
except KeyboardInterrupt:  # while the options are read
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None
