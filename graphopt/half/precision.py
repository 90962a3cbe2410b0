"""The two element types of 16 bits."""

from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

Precision = Literal["float16", "bfloat16"]
"""In what the safe part of a float32 model is computed."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""Each as ONNX has it."""
HALVES = frozenset(DTYPES.values())


def limits(dtype: ir.DataType) -> tuple[float, float]:
    """The smallest number > 0 with all digits, and the largest number, of a type of 16 bits."""
    if dtype == ir.DataType.BFLOAT16:
        return 2.0**-126, (2 - 2.0**-7) * 2.0**127
    info = np.finfo(np.float16)
    return float(info.smallest_normal), float(info.max)
