"""Where data, checkpoints and cases lie that are too large or too foreign for the repository.

FULLRES_SHARED names their folder; tests that need one of them skip where it is absent.
"""

import os
from pathlib import Path

SHARED = Path(os.environ.get("FULLRES_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared"))
DATA, CHECKPOINTS, CASES = SHARED / "data", SHARED / "checkpoints", SHARED / "cases"
