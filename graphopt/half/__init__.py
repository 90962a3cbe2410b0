"""Computing a float32 model in float16 or bfloat16, where that is safe.

`operators` says which operators are computed in half precision, and why; `casts` puts the casts
into a forward model, so that its gradients follow; `kernels` says what runtimes have, and `fitting`
computes in float32 what they lack.
"""

from graphopt.half.casts import compute_in_half
from graphopt.half.fitting import fit_kernels
from graphopt.half.kernels import check_float32, check_precision, lacking, own_half
from graphopt.half.precision import Precision

__all__ = [
    "Precision",
    "check_float32",
    "check_precision",
    "compute_in_half",
    "fit_kernels",
    "lacking",
    "own_half",
]
