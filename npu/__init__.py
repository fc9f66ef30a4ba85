"""The machine: number formats, instructions, programs and their structure, hardware facts, area and energy.

Importing it decides where Numba keeps compiled code: in a folder named by the sources that compiled code depends on, since
Numba itself looks only at the file of a function, not at those of the functions that it calls, and would run stale code after
a change.
"""

import os

from npu.sources import compiled_modules, digest_of_sources, user_cache

if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(user_cache() / f"numba-{digest_of_sources(*compiled_modules())[:16]}")
