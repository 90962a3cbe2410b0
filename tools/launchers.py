"""What starts several ranks on this machine."""

import sys
from pathlib import Path


def launcher(engine: str, ranks: int, python: Path = Path(sys.executable)) -> list[str]:
    """The command that starts so many ranks of a Python program; its arguments follow.

    Args:
        engine: "mpi" for mpiexec, "torch" for torchrun.
        ranks: How many.
        python: The interpreter, that of an environment which has mpiexec beside it.

    Example:
        >>> launcher("mpi", 2, Path("bin/python"))
        ['bin/mpiexec', '-n', '2', 'bin/python']
    """
    if engine == "mpi":
        return [str(python.with_name("mpiexec")), "-n", str(ranks), str(python)]
    torchrun = [str(python), "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(ranks)]
