"""The analytical path: `simulator` is the entry; `tree` counts, `facts` prices, `chains` and `overlap` estimate.

It imports nothing of the cycle path, and executes nothing: all is closed form in trip counts.
"""

import npu  # noqa: F401  before Numba is imported: it decides where compiled code is kept
from analytical.simulator import simulate

__all__ = ["simulate"]
