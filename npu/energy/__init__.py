"""Energy, power and area: `technology` holds the numbers, `area` the sizes of blocks, `account` adds up what a run costs.

It stands below the simulators: a timing path hands in its own counts and its own time.
"""

from npu.energy.account import Account, account
from npu.energy.area import Operand, matrix_unit_um2, operand, vector_unit_um2, vector_unit_watts
from npu.energy.technology import NUMBERS, Technology

__all__ = [
    "NUMBERS", "Account", "Operand", "Technology", "account", "matrix_unit_um2", "operand", "vector_unit_um2",
    "vector_unit_watts",
]  # fmt: skip
