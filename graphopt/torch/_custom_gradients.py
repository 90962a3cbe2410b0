"""Functions with a gradient of their own, which a captured program does not show."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from graphopt.torch._errors import NotExportableError


@contextmanager
def no_custom_gradients() -> Iterator[None]:
    """Refuse calls of ``torch.autograd.Function``: capturing keeps their forward pass alone."""

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise NotExportableError(
            f"{cls.__name__} is a torch.autograd.Function with a gradient of its own, which the "
            "exported model would not have. Write what it computes with differentiable functions "
            "and detach(): a straight-through gradient, for example, is x + (f(x) - x).detach()"
        )

    with patch.object(torch.autograd.Function, "apply", classmethod(apply)):
        yield
