"""Whether ONNX Runtime runs a graph at all, where no more of it can be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt._runtime_session import runtime_session
from graphopt.feeds import Feeds
from graphopt.graph import TrainingGraph
from graphopt.inspection.targets.runtime_operators import TRAINING_ONLY
from graphopt.inspection.verification.made_feeds import KINDS, SIZES, Maker
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError, in_a_line
from graphopt.inspection.verification.training_part import run
from graphopt.operators import name_of


def run_whole(
    model: ir.Model,
    providers: Sequence[str],
    given: Mapping[str, Any] | None,
    random: np.random.Generator,
) -> None:
    """Run a graph once; what it carries from step to step is made up like what it is fed.

    Args:
        model: The graph.
        providers: The execution providers.
        given: What a caller feeds; None to make up everything.
        random: For what is made up.

    Raises:
        GraphFailsError: It does not run.
        TypeError: A feed that is given has the wrong dtype.
        ValueError: One is no input of the graph, or has the wrong shape.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if any(name_of(node) in TRAINING_ONLY for node in model.graph.all_nodes()):
        return  # which only a runtime that is built for on-device training has
    proto = ir.to_proto(model)
    session = loaded_whole(proto, providers)
    if not all(isinstance(value.type, ir.TensorType) for value in inputs):
        return  # such as the sequences of on-device training
    feeds = TrainingGraph(proto, ()).inputs
    maker = Maker.of(feeds, model.graph)
    for size in SIZES:
        try:
            made = maker.make(KINDS[0], size, random)
        except NotRunError as error:
            failure = error
            break
        fed = made if given is None else Feeds(feeds, made).checked(given)
        try:
            run(session, [value.name for value in session.get_outputs()], fed)
        except NotRunError as error:
            failure = error
        else:
            return
    raise GraphFailsError(f"a step does not run with what was made up: {failure}")


def loaded_whole(model: onnx.ModelProto, providers: Sequence[str]) -> Any:
    """A session of a model.

    Raises:
        GraphFailsError: ONNX Runtime does not take it.
    """
    try:
        return runtime_session(TrainingGraph(model, ()), providers, None, kernels=True)[0]
    except ValueError as error:
        raise GraphFailsError(in_a_line(error)) from None
