"""Metadata that is of no use."""

from collections.abc import Iterator

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard


@hazard("metadata-differs", "error")
def metadata_differs(subject: Subject) -> Iterator[Finding]:
    """The metadata says something else than the nodes compute."""
    if subject.merged.differences:
        yield Finding(
            ["metadata"],
            f"{'; '.join(subject.merged.differences[:5])}: the nodes are what runs",
            "build the graph again; whoever changed it did not change both",
        )


@hazard("metadata-damaged", "warning")
def metadata_damaged(subject: Subject) -> Iterator[Finding]:
    """The metadata cannot be read."""
    if subject.damage:
        yield Finding(
            ["metadata"],
            subject.damage,
            "build the graph again; what is shown was read in the nodes",
        )
