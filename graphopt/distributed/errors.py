"""What a rank raises where another one has failed."""


class OtherRankError(RuntimeError):
    """Another rank has failed or has ended; the state of this one is as it was."""
