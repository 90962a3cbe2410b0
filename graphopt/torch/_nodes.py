"""Nodes of a captured program, put in the place of others."""

from typing import Any

from torch.fx import Graph, Node

_WHERE = ("stack_trace", "nn_module_stack")


def call(graph: Graph, node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node, which stands where another one does in the module."""
    new = graph.call_function(target, args, kwargs)
    new.meta = {key: value for key, value in node.meta.items() if key in _WHERE}
    return new


def replace(graph: Graph, node: Node, by: Node) -> None:
    """Let a node take the place and the name of another one, which outputs may be called by."""
    name, value = node.name, node.meta["val"]
    node.replace_all_uses_with(by)
    graph.erase_node(node)
    by.name, by.meta["val"] = name, value
