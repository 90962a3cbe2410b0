"""Checkpoints: the state of a session in a safetensors file, which knows whether it is whole."""

from graphopt.checkpoint.file import (
    OtherFileError,
    Stored,
    Tensors,
    note_of,
    note_without_checksums,
    opened,
    read,
    read_stored,
    save,
)
from graphopt.checkpoint.fit import (
    LoadReport,
    OtherGraphError,
    check_given,
    fits,
    fitting,
    impossible,
    misfits,
    refuse,
)
from graphopt.checkpoint.naming import file_of, in_folder, name_at, step_of
from graphopt.checkpoint.safetensors_file import State, checksum, checksum_of, code_of

__all__ = [
    "LoadReport",
    "OtherFileError",
    "OtherGraphError",
    "State",
    "Stored",
    "Tensors",
    "check_given",
    "checksum",
    "checksum_of",
    "code_of",
    "file_of",
    "fits",
    "fitting",
    "impossible",
    "in_folder",
    "misfits",
    "name_at",
    "note_of",
    "note_without_checksums",
    "opened",
    "read",
    "read_stored",
    "refuse",
    "save",
    "step_of",
]
