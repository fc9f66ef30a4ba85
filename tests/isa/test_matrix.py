"""The array computes its columns side by side; each must be what it is alone."""

import numpy as np
import pytest

from npu.formats import FORMATS
from npu.isa.matrix import m_mm


@pytest.mark.parametrize("weights", ["mxint8", "mxint4", "mxfp8_e4m3", "mxfp6_e2m3", "bf16"])
@pytest.mark.parametrize(("columns", "block"), [(32, 5), (33, 5), (17, 4), (16, 5)])
def test_many_columns_are_what_each_is_alone(weights, columns, block):
    rng, rows, k = np.random.default_rng(columns), 5, 128
    record = FORMATS[weights].record_bytes(1 << block)
    stride = k // (1 << block) * record
    # Bytes up to 0x37 keep scales and BF16 exponents moderate, and every code finite.
    matrix = rng.integers(0x20, 0x38, columns * stride).astype(np.uint8)
    vector = rng.standard_normal(rows * k).astype(np.float32)
    vector = (vector.view(np.uint32) & 0xFFFF0000).view(np.float32)
    codes = FORMATS[weights].code, FORMATS["mxint8"].code
    together = np.zeros((rows, columns), np.float32)
    m_mm(matrix, vector, together, 0, stride, 0, k, rows, columns, k, block, *codes, record)
    for column in range(columns):
        alone = np.zeros((rows, 1), np.float32)
        m_mm(matrix, vector, alone, column * stride, stride, 0, k, rows, 1, k, block, *codes, record)
        assert (alone[:, 0].view(np.uint32) == together[:, column].view(np.uint32)).all()
    assert np.isfinite(together).all()
    assert np.unique(together).size > columns
