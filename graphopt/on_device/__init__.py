"""Training on devices: the files that ONNX Runtime's on-device training API takes."""

from graphopt.on_device._export import Artifacts, export_on_device
from graphopt.on_device.session_state import load_state, read_note, read_state, read_stored

__all__ = ["Artifacts", "export_on_device", "load_state", "read_note", "read_state", "read_stored"]
