"""Which part of a network a node belongs to: its layer, and the modules around that."""

from graphopt.module_names.by_layer import layer_names, name_of
from graphopt.module_names.by_module import BUCKETS, Path, modules

__all__ = ["BUCKETS", "Path", "layer_names", "modules", "name_of"]
