"""Whether an untrusted model as a whole is what it says."""

import onnx

from graphopt._words import shown
from graphopt.soundness.functions import check_functions
from graphopt.soundness.names import check_name
from graphopt.soundness.nodes import Place, check_place, places
from graphopt.soundness.opsets import check_opsets
from graphopt.soundness.scopes import check_scopes


def check_model(model: onnx.ModelProto) -> tuple[list[Place], bool]:
    """Refuse a model that cannot be relied on.

    What is checked: tensors have dimensions, element types and bytes that fit each other; each
    name is given once where it is seen, and before it is read; attributes hold what their type
    says; functions do not call themselves; branches, loops and calls have as many inputs and
    outputs as what they run; there are less than half a million nodes, and two million with all
    functions written out.

    Returns:
        Its graphs and function bodies, and whether their nodes are in an order in which they can
        run.

    Raises:
        ValueError: It is damaged.
    """
    _check_head(model)
    found = list(places(model))
    for place in found:
        check_place(place)
    check_functions(model, found)
    return found, check_scopes(model)


def _check_head(model: onnx.ModelProto) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise ValueError("it holds no graph")
    if model.ir_version < 1:
        raise ValueError(f"ir_version: got {model.ir_version}, expected 1 or more")
    if not model.opset_import:
        raise ValueError("it has no opset_import, so what its operators mean is not known")
    check_opsets(model)
    check_name(model.producer_name, "its producer")
    texts = [*model.metadata_props, *model.graph.metadata_props]
    for info in model.training_info:
        texts += [*info.update_binding, *info.initialization_binding]
    for text in texts:
        if not isinstance(text.key, str) or not isinstance(text.value, str):
            raise ValueError(f"the text of '{shown(text.key)}' is not UTF-8")
    for value in model.graph.input:
        if value.type.WhichOneof("value") is None:
            raise ValueError(f"input '{shown(value.name)}' of the graph has no type")
