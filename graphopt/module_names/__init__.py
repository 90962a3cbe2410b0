"""Which part of a network a node belongs to: its layer, and the modules around that."""

from graphopt.module_names.layer_names import layer_names, name_of
from graphopt.module_names.modules import BUCKETS, SHARED, Path, modules

__all__ = ["BUCKETS", "SHARED", "Path", "layer_names", "modules", "name_of"]
