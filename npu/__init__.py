"""The machine: number formats, instructions, programs and their structure, hardware facts, area and energy.

Importing it decides where Numba keeps compiled code (`npu.compiled`).
"""

import os

from npu.sources import user_cache

os.environ.setdefault("NUMBA_CACHE_DIR", str(user_cache() / "compiled"))
os.environ.setdefault("NUMBA_CACHE_LOCATOR_CLASSES", "npu.compiled.BySources,UserProvidedCacheLocator")
