"""What is updated together."""

from collections.abc import Sequence

from graphopt.graphs import functions
from graphopt.inspection.facts import BucketFacts, ParameterFacts
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.structure.nodes_of import nodes_of


def bucket_facts(reading: Reading) -> tuple[BucketFacts, ...]:
    """The buckets, in the order in which the graph has them."""
    model, optimizer, metadata = reading.file.model, reading.recovered, reading.described
    if optimizer is None:
        return ()
    known = {} if metadata is None else {bucket.name: bucket for bucket in metadata.buckets}
    by_input = {id(write.input): write for write in reading.carried}
    members: dict[str, list[str]] = {}
    for trained in optimizer.trained:
        members.setdefault(trained.write.input.name, []).append(trained.facts.name)
    called, nodes = functions(model), tuple(model.graph)
    buckets = []
    for name, update in optimizer.updates.items():
        old = [update.value("w"), *(old for _, old, _ in update.states())]
        new = [by_input[id(value)].new for value in old if id(value) in by_input]
        made = update.new.operation
        node = None if made is None else nodes[made.node]
        function = None if node is None else called.get((node.domain, node.op_type))
        shape = known[name].shape if name in known else reading.flow.values[name].static_shape or ()
        buckets.append(
            BucketFacts(
                name=name,
                function=None if function is None else function.name,
                shape=shape,
                parameters=tuple(members.get(name, ())),
                nodes=nodes_of(nodes, new, update),
            )
        )
    return tuple(buckets)


def layout_of(
    reading: Reading, buckets: Sequence[BucketFacts], parameters: Sequence[ParameterFacts]
) -> str | None:
    """The name of the layout, from the shapes if the metadata does not say it."""
    metadata = reading.described
    if metadata is not None and metadata.layout is not None:
        return metadata.layout
    if not buckets:
        return None
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    if all(
        len(bucket.parameters) == 1 and shapes.get(bucket.parameters[0]) == bucket.shape
        for bucket in buckets
    ):
        return "separate"
    return "chunks" if all(len(bucket.shape) == 2 for bucket in buckets) else "buckets"
