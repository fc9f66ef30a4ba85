"""Training of the shipped model: `corpus` generates problems, `model` and `train` learn them, `evaluate` measures.

Needs torch, which the simulators do not.
"""

import sys
from importlib.util import find_spec

if sys.argv[0] == "-m" and find_spec("torch") is None:  # as `python -m` loads the package before its module
    sys.exit("error: training needs torch, which is not installed; pip install 'tripath[study]'")
