"""Shapes and dtypes of the values of a graph, as far as shape inference finds them."""

import onnx
import onnx_ir as ir


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and dtypes of a model's values."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    values = ir.convenience.create_value_mapping(model.graph)
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        value = values.get(info.name)
        found = ir.from_proto(info)
        if value is not None:
            if found.dtype is not None:
                value.dtype = found.dtype
            value.shape = value.shape if found.shape is None else found.shape
