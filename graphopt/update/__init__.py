"""The update: its ONNX functions, what is updated together, and the nodes that do it."""
