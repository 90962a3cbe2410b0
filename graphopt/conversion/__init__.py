"""State of the optimizers of other frameworks: training goes on here as there, and there as here.

These are ``torch.optim.RMSprop``, timm's ``RMSpropTF`` and ``mindspore.nn.RMSProp``. None of them
need be installed: their files are read and written as data, and nothing in a file is run.
"""

from graphopt.conversion._load import load_state
from graphopt.conversion._names import Names
from graphopt.conversion._save import Framework, save_state
from graphopt.conversion._torch_file import read_torch

__all__ = ["Framework", "Names", "load_state", "read_torch", "save_state"]
