"""MindSpore."""

from tools.bench.cases import DECAY, EPSILON, UpdateCase
from tools.bench.contenders.contender import Run


def update(case: UpdateCase, threads: int) -> Run:
    """``mindspore.nn.RMSProp`` in graph mode."""
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE, device_target="CPU")
    mindspore.device_context.cpu.op_tuning.threads_num(threads)
    parameters = [
        mindspore.Parameter(mindspore.Tensor(array), name=f"p{index}")
        for index, array in enumerate(case.parameters())
    ]
    gradients = [mindspore.Tensor(array) for array in case.gradients()]
    optimizer = mindspore.nn.RMSProp(
        case.grouped(parameters),
        decay=DECAY,
        momentum=case.variant.momentum,
        epsilon=EPSILON,
        centered=case.variant.centered,
    )
    # It wants the gradients in the order of the groups.
    ordered = tuple(gradients[index] for group in case.groups for index in group.indices)

    def step() -> None:
        optimizer(ordered)  # returns when it is done

    return Run(step, lambda: [parameter.asnumpy().copy() for parameter in parameters])
