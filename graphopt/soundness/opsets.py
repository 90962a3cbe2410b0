"""Whether the opsets that an untrusted model imports can be."""

import onnx

from graphopt._words import shown
from graphopt.soundness.names import check_name


def check_opsets(model: onnx.ModelProto) -> None:
    """Refuse versions below 1, and domains that are no names.

    Raises:
        ValueError: There is such.
    """
    of_functions = (entry for function in model.functions for entry in function.opset_import)
    for entry in (*model.opset_import, *of_functions):
        check_name(entry.domain, "a domain in opset_import")
        if entry.version < 1:
            raise ValueError(
                f"opset_import: got version {entry.version} of the domain "
                f"'{shown(entry.domain)}', expected 1 or more"
            )
