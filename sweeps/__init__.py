"""The commands, and the rooms behind them."""

import sys
from pathlib import Path

CLONE = Path(__file__).parents[1]
if (CLONE / "pyproject.toml").exists() and sys.path[0] != str(CLONE):
    sys.path.insert(0, str(CLONE))  # another project's `storage` on PYTHONPATH is not this one's
