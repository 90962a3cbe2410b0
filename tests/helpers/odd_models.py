"""Forward models that are unusual but valid, with their loss in PyTorch."""

import numpy as np
import onnx
import onnx.parser
import torch
from onnx import numpy_helper
from torch.nn import functional

RNG = np.random.default_rng(0)


HEADER = '<ir_version: 8, opset_import: ["" : 17]> '


def model(text, **initializers):
    parsed = onnx.parser.parse_model(HEADER + text)
    for name, value in initializers.items():
        array = (
            value
            if isinstance(value, np.ndarray | np.generic)
            else RNG.normal(size=value).astype("f")
        )
        parsed.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return parsed


X = RNG.normal(size=(4, 3)).astype("f")
FORWARD = {
    "matrix times vector": (
        model("m (float[N,3] x) => (float loss) { h = MatMul(x, w) k = Mul(h, h) "
              "loss = ReduceSum<keepdims=0>(k) }", w=(3,)),
        lambda p: ((torch.tensor(X).double() @ p["w"]) ** 2).sum(),
    ),
    "vector times matrix": (
        model("m (float[N,3] x) => (float loss) { t = Transpose(x) h = MatMul(w, t) k = Mul(h, h) "
              "loss = ReduceSum<keepdims=0>(k) }", w=(3,)),
        lambda p: ((p["w"] @ torch.tensor(X).double().T) ** 2).sum(),
    ),
    "vector times vector": (
        model("m (float[N,3] x) => (float loss) { h = MatMul(w, v) s = ReduceSum<keepdims=0>(x) "
              "loss = Mul(h, s) }", w=(3,), v=(3,)),
        lambda p: p["w"] @ p["v"] * float(X.astype("d").sum()),
    ),
    "Dropout that drops nothing": (
        model("m (float[N,3] x) => (float[N,2] y, float loss) { h = MatMul(x, w) y = Dropout(h) "
              "k = Mul(y, y) loss = ReduceSum<keepdims=0>(k) }", w=(3, 2)),
        lambda p: ((torch.tensor(X).double() @ p["w"]) ** 2).sum(),
    ),
    "Dropout switched off": (
        model("m (float[N,3] x) => (float[N,2] y, float loss) { h = MatMul(x, w) "
              "y = Dropout(h, r, off) k = Mul(y, y) loss = ReduceSum<keepdims=0>(k) }",
              w=(3, 2), r=np.float32(0.9).reshape(()), off=np.array(False)),
        lambda p: ((torch.tensor(X).double() @ p["w"]) ** 2).sum(),
    ),
    "LayerNormalization without bias": (
        model("m (float[N,3] x) => (float loss) { h = MatMul(x, w) n = LayerNormalization(h, g) "
              "c = Mul(n, x) k = Mul(c, n) loss = ReduceSum<keepdims=0>(k) }", w=(3, 3), g=(3,)),
        lambda p: (functional.layer_norm(torch.tensor(X).double() @ p["w"], [3], p["g"]) ** 2
                   * torch.tensor(X)).sum(),
    ),
    "tied embedding": (
        model("m (float[N,3] x) => (float loss) { r = Gather(w, i) t = Transpose(w) "
              "h = MatMul(r, t) k = Mul(h, h) s = ReduceSum<keepdims=0>(k) "
              "z = ReduceSum<keepdims=0>(x) loss = Mul(s, z) }",
              w=(5, 3), i=np.array([0, 3, 3])),
        lambda p: ((p["w"][[0, 3, 3]] @ p["w"].T) ** 2).sum() * float(X.astype("d").sum()),
    ),
}  # fmt: skip
