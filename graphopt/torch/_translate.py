"""From a captured program to ONNX, by PyTorch's own exporter."""

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from graphopt.torch import _attention, _batch_norm, _no_gradient
from graphopt.torch._errors import refusal
from graphopt.torch._quiet import quiet

OPSET = 20
"""The newest that ONNX Runtime 1.19 runs all of."""


def translate(program: ExportedProgram) -> tuple[ir.Model, set[str]]:
    """The program as a model, not optimized; and the buffers that it changes.

    Raises:
        ValueError: An operator has no translation, or the program changes an input.
    """
    try:
        with quiet():
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table={
                    _no_gradient.STOP: _no_gradient.to_onnx,
                    _batch_norm.TRAINED: _batch_norm.to_onnx,
                    _attention.ATTENTION: _attention.to_onnx,
                },
            )
    except Exception as error:
        raise refusal("the module cannot be translated to ONNX", error) from error
    assert translated is not None
    assert translated.exported_program is not None
    return translated.model, _changed(translated.exported_program)


def _changed(program: ExportedProgram) -> set[str]:
    """The buffers and parameters that a program changes.

    Raises:
        ValueError: It changes an input.
    """
    signature = program.graph_signature
    if signature.user_inputs_to_mutate:
        listed = ", ".join(f"'{name}'" for name in signature.user_inputs_to_mutate.values())
        raise ValueError(
            f"the forward pass changes its input {listed} in place; let it change a copy: x.clone()"
        )
    parameters = getattr(signature, "parameters_to_mutate", {})
    return {*signature.buffers_to_mutate.values(), *parameters.values()}
