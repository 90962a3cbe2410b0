"""``python -m tools.gpu.export`` writes the forward models, without weights, for a GPU machine.

There, the weights are those of PyTorch's module of the same names. It needs the environment of
``make field``; the GPU machine needs only what can run a module.
"""

import onnx

import graphopt.torch
from tools.gpu.networks import GRAPHS, NETWORKS


def main() -> None:
    """Export each network."""
    import onnx_ir as ir
    import torch

    GRAPHS.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        module = network.make()
        exported = graphopt.torch.export(
            module, (network.inputs(2),), input_names=["x"], output_names=["logits"]
        )
        model = ir.to_proto(exported)
        for tensor in model.graph.initializer:
            if tensor.name in module.state_dict():
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
                tensor.ClearField("int64_data")
        path = GRAPHS / f"{name}.onnx"
        onnx.save(model, path)
        print(path, f"{path.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
