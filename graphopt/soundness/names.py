"""Whether the names in an untrusted model are names."""

from graphopt._words import shown

_LONGEST = 2**16


def check_name(name: object, what: str) -> None:
    """Refuse a name that is not text, or so long that nobody can have meant it.

    Args:
        name: The name; may be empty.
        what: What has it, for the error.

    Raises:
        ValueError: It is one of these.
    """
    if not isinstance(name, str):  # protobuf gives bytes where text is not UTF-8
        raise ValueError(f"the name of {what} is not UTF-8: {shown(name)}")
    if len(name) > _LONGEST:
        raise ValueError(
            f"the name of {what} has {len(name)} characters, expected at most {_LONGEST}"
        )
