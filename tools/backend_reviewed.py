"""Cases of ONNX's backend tests whose gradient is not right, or not there, and why."""

_NO_BFLOAT16 = "ONNX Runtime has no arithmetic of bfloat16 on the CPU"
_OPTIMIZER = "it is an optimizer"
_RANDOM = "it is random"

REVIEWED: dict[tuple[str, str], str] = {
    ("", "bf16"): _NO_BFLOAT16,
    ("", "bfloat16"): _NO_BFLOAT16,
    ("", "BFLOAT16"): _NO_BFLOAT16,
    ("Attention", "mask_causal"): "the evaluator gives no numbers where a row is masked whole",
    (
        "BatchNormalization",
        "",
    ): "with a trained scale or bias, it normalizes by the batch",
    ("Bernoulli", ""): _RANDOM,
    ("Celu", "float16"): "before opset 28 it is of float32 alone",
    ("ConvTranspose", "output_shape"): "the shape that is asked for is more than the windows cover",
    ("DequantizeLinear", ""): "ONNX Runtime has no numbers of 2 bits, and no floats of 4",
    ("Dropout", "training"): _RANDOM,
    ("DynamicQuantizeLinear", ""): "it rounds: straight_through=True passes a gradient",
    ("GridSample", "volumetric_bilinear"): "differences in float32 cross the kinks of the grid",
    ("LpNormalization", "l1"): "the reference evaluator adds numbers, and not absolute ones",
    ("MaxUnpool", "with_output_shape"): "ONNX Runtime and the evaluator place elements differently",
    ("MelWeightMatrix", ""): "its edges are settings",
    ("OptionalGetElement", ""): "optional values are no tensors",
    ("Pow", "uint"): "ONNX Runtime has no power of floats by unsigned integers",
    ("Range", "float16"): "before opset 27 it is of float32 and float64 alone",
    ("Resize", "align_corners"): "ONNX Runtime and the evaluator take other sizes",
    ("RoiAlign", ""): "no gradient to the boxes, as with PyTorch",
    ("Scan", "scan_sum"): "the evaluator does not run Scan as opset 8 has it",
    ("SpaceToDepth", "crd_mode"): "it is new in opset 28",
    ("Unique", ""): "no gradient, as with PyTorch",
    ("ai.onnx.preview::FlexAttention", ""): "ONNX has it as a preview",
    ("ai.onnx.preview.training::Adagrad", ""): _OPTIMIZER,
    ("ai.onnx.preview.training::Adam", ""): _OPTIMIZER,
    ("ai.onnx.preview.training::Momentum", ""): _OPTIMIZER,
}
"""By operator, or nothing for all, and a part of the case's name."""
