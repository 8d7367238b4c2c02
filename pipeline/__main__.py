"""``python -m pipeline``: see `pipeline.cli.main`."""

import sys

from pipeline import _start
from pipeline.cli.main import main

try:
    _start.end()
    raise SystemExit(main())
except KeyboardInterrupt:  # while the options are read
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None
