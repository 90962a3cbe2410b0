"""What the graph shall run on."""

from collections.abc import Iterator

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard


@hazard("above-target", "error")
def above_target(subject: Subject) -> Iterator[Finding]:
    """With `target`: opset or file format are newer than that ONNX Runtime."""
    if subject.above_target:
        yield Finding(
            ["model"],
            "; ".join(subject.above_target),
            "export the forward model with a lower opset, or run a newer ONNX Runtime",
        )
