"""What runs a model: versions and execution providers of ONNX Runtime."""
