"""Settings of all tests across packages: the fixture and the mark of the packages' own tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "packages" / "t2j-core" / "tests"))

from common import frozen as frozen
from common import pytest_collection_modifyitems as pytest_collection_modifyitems
