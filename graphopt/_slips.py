"""What is meant by a name that another framework has for it, or that is nearly the right one."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Called = TypeVar("_Called", bound=Callable[..., Any])

# Arguments of PyTorch, TensorFlow, Keras, optax and timm, by what they are called here.
_ARGUMENTS = {
    "epsilon": ("eps",),
    "learning_rate": ("lr", "step_size"),
    "decay": ("alpha", "rho", "decay_rate", "smoothing_constant", "discount"),
    "weight_decay": ("wd", "l2", "weightdecay"),
    "clip_norm": ("clipnorm", "global_clipnorm", "max_norm", "max_grad_norm", "grad_clip"),
    "clip_value": ("clipvalue", "max_value"),
    "average": ("ema", "use_ema", "model_ema"),
    "initial_mean_square": ("initial_scale", "rms_init"),
    "learning_rate_inside_moment": ("lr_in_momentum",),
    "epsilon_inside_root": ("eps_in_sqrt",),
    "decoupled_weight_decay": ("decoupled_decay",),
    "loss_scale": ("grad_scale", "init_scale"),
    "params": ("parameters", "named_parameters", "parameter_list"),
    "accumulation": ("accumulation_steps", "gradient_accumulation_steps"),
    "loss": ("criterion", "loss_fn"),
    "optimizer": ("optim", "opt"),
    "model": ("module", "network", "net"),
    "providers": ("provider", "execution_providers", "device"),
    "provider": ("providers", "device"),
    "session_options": ("sess_options", "options"),
}
_MEANT = {(foreign, own) for own, names in _ARGUMENTS.items() for foreign in names}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that another framework's, or a misspelled one, stands for."""
    own = list(names)
    if found := next((o for o in own if (name, o) in _MEANT or name.lower() == o.lower()), None):
        return found
    return next(iter(difflib.get_close_matches(name, own, n=1, cutoff=0.7)), None)


def says_what_is_meant(function: _Called) -> _Called:
    """Let a function say which argument is meant where it gets one that it does not have."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in names:
                meant = nearest(name, names)
                remedy = f"did you mean '{meant}'?" if meant else f"expected {', '.join(names)}"
                raise TypeError(f"{called}: there is no argument '{name}'; {remedy}")
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]  # of the same signature


def no_attribute(
    owner: str, name: str, names: Iterable[str], what: str = "attribute"
) -> AttributeError:
    """The error of an attribute that something has not."""
    meant = nearest(name, names)
    return AttributeError(
        f"{owner} has no {what} '{name}'" + (f"; did you mean '{meant}'?" if meant else "")
    )


def is_of_torch(value: Any) -> bool:
    """Whether a value is one of PyTorch, which may not be installed."""
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(value).__mro__)


def kind_of(value: Any) -> str:
    """How an error names what a value is."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__name__}" if is_of_torch(value) else kind.__name__
