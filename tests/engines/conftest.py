"""Inference engines' own code on a mount. `make test-engines` sets FS3_ENGINES, the folder of their packages."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "FS3_ENGINES" in os.environ else ["test_*.py"]
