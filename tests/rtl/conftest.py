"""The core, built once for all tests of the RTL."""

import os
import shutil

import pytest

from rtl.hardware import small_core
from rtl.simulator import build


@pytest.fixture(scope="session")
def core():
    """The simulator of the small core; without Verilator there is none."""
    if shutil.which("verilator") is None:
        pytest.skip("needs verilator (Debian: apt install verilator)")
    return build(small_core(), coverage="RTL_COVERAGE" in os.environ)
