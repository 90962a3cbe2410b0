"""What the server does with what clients send back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt import checkpoint
from graphopt._files import PathLike
from graphopt.build import checked_optimizer, update_graph
from graphopt.carried import Array
from graphopt.federated.group_mask import MASK, flags_of
from graphopt.federated.updates import (
    ClientUpdate,
    as_dtype,
    check_numbers,
    check_updates,
    weighted_mean,
)
from graphopt.fingerprint import of_model
from graphopt.rmsprop import RMSProp
from graphopt.session import Session


class FederatedServer:
    """Updates the parameters of all by RMSProp, once a round.

    The gradient of a round is minus what clients have moved on average, weighted by the examples
    that they have trained on. With parameters w at the start of the round, w_k of client k
    after it, and n_k its examples, summed over all clients::

        g ← w - (Σ n_k · w_k) / (Σ n_k)

    From then on it is `RMSProp`, computed by `graphopt.update_graph` in a session: momentum,
    centered, schedules, whose step is the round, groups, clipping, averages. With
    ``learning_rate=1.0, decay=1.0`` the mean square stays 1, and the new parameters are the
    weighted mean itself, FedAvg; with ``momentum`` too, it is FedAvgM.

    Values that are not parameters of the optimizer, such as running statistics, are those of the
    clients, averaged in the same way; of integers it is the nearest one.

    Args:
        optimizer: Whose parameters the clients train; without a loss scale.
        values: What to start from, by name: its parameters, and all that is averaged.

    Raises:
        TypeError: ``optimizer`` is not one, or there is no mean of a value.
        ValueError: A parameter is missing or has another shape or dtype, or the optimizer has a
            loss scale.

    Source:
        Reddi et al., "Adaptive federated optimization", 2021, whose server optimizers these are,
        with another rule.

    Example:
        >>> opt = RMSProp([Parameter("w", (2,))], learning_rate=1.0, decay=1.0)
        >>> server = FederatedServer(opt, {"w": np.zeros(2, np.float32)})
        >>> updates = [ClientUpdate("a", {"w": np.float32([1, 2])}, 3),
        ...            ClientUpdate("b", {"w": np.float32([5, 2])}, 1)]
        >>> bool(server.apply(updates)["updated"])
        True
        >>> server.values["w"]
        array([2., 2.], dtype=float32)
    """

    def __init__(self, optimizer: RMSProp, values: Mapping[str, Any]) -> None:
        """See the class."""
        self.optimizer = check_server_optimizer(optimizer)
        arrays = {name: np.asarray(value) for name, value in values.items()}
        names = {parameter.name for parameter in optimizer.params}
        self._averaged = {n: array.copy() for n, array in arrays.items() if n not in names}
        check_numbers(self._averaged, self._averaged)
        graph = update_graph(optimizer, group_mask=True)
        given = {n: array for n, array in arrays.items() if n in names}
        self._session = Session(graph, parameters=given)
        self._fingerprint = of_model(graph.model, graph.carried)

    @classmethod
    def from_checkpoint(cls, optimizer: RMSProp, path: PathLike) -> "FederatedServer":
        """Go on from what `save_checkpoint` wrote, bit for bit.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a checkpoint, is damaged, or is one of another optimizer.
        """
        path = checkpoint.file_of(path)
        stored = checkpoint.read_stored(path)
        names = {parameter.name for parameter in checked_optimizer(optimizer).params}
        averaged = stored.note.get("averaged", ())
        given = {n: a for n, a in stored.state.items() if n in names or n in averaged}
        server = cls(optimizer, given)
        expected = {n: (a.shape, a.dtype.name) for n, a in server._session.state.items()}
        problems = server._fingerprint.differences(stored.graph)
        state = {n: array for n, array in stored.state.items() if n not in server._averaged}
        problems += checkpoint.misfits(state, expected) + checkpoint.impossible(stored.state)
        checkpoint.refuse(path, "does not belong to this server", problems)
        server._session.load_state(state)
        return server

    @property
    def values(self) -> dict[str, Array]:
        """What clients start the next round from, by name: a copy."""
        with self._session.borrowed() as state:
            parameters = {p.name: state[p.name].copy() for p in self.optimizer.params}
        return parameters | {name: array.copy() for name, array in self._averaged.items()}

    @property
    def state(self) -> dict[str, Array]:
        """All of it, with the states of the optimizer; see `Session.state`."""
        return self._session.state | {n: array.copy() for n, array in self._averaged.items()}

    @property
    def rounds(self) -> int:
        """How many rounds have been applied."""
        return self._session.global_step

    def asked(self, group_mask: Sequence[bool] | None = None) -> list[str]:
        """The names of the values that clients send back, where only these groups are trained.

        Args:
            group_mask: See `apply`.
        """
        mask = self._mask(group_mask)
        pairs = zip(self.optimizer.params, self.optimizer.rules, strict=True)
        return [p.name for p, rule in pairs if mask[rule.group]] + list(self._averaged)

    def apply(
        self,
        updates: Sequence[ClientUpdate],
        *,
        group_mask: Sequence[bool] | None = None,
        feeds: Mapping[str, Any] | None = None,
    ) -> dict[str, Array]:
        """End a round.

        Args:
            updates: One of each client that has answered; those without examples do not count.
            group_mask: Which groups of the optimizer are updated; the clients then send back the
                parameters of these alone, and the others keep their states as well. All by default.
            feeds: What the graph needs besides: learning rates of ``schedules.FromCaller``.

        Returns:
            What the update reports: ``updated``, and ``gradient_norm`` where it clips by norm.

        Raises:
            FloatingPointError: A client has NaN or infinite numbers; nothing has changed.
            ValueError: An update does not fit, or nobody has examples; nothing has changed. The
                message names the client.
        """
        mask = self._mask(group_mask)
        names, current = self.asked(group_mask), self.values
        expected = {name: (current[name].shape, current[name].dtype.name) for name in names}
        check_updates(updates, expected)
        given: dict[str, Any] = {MASK: np.array(mask), **(feeds or {})}
        for parameter in self.optimizer.params:
            before = current[parameter.name]
            moved = np.zeros(before.shape)
            if parameter.name in expected:
                moved = before.astype(np.float64) - weighted_mean(updates, parameter.name)
            given[f"{parameter.name}_grad"] = moved.astype(before.dtype)
        means = {
            name: as_dtype(weighted_mean(updates, name), array.dtype)
            for name, array in self._averaged.items()
        }
        outputs = self._session.step(given)
        if outputs["updated"]:
            self._averaged = means
        return outputs

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Go on with other parameters and averages; the optimizer's states stay.

        Args:
            values: By name; what is not among them stays as it is.

        Raises:
            ValueError: A name is unknown, or a value has another shape or dtype.
        """
        arrays = {name: np.asarray(array) for name, array in values.items()}
        expected = {name: (a.shape, a.dtype.name) for name, a in self.values.items()}
        checkpoint.check_given(arrays, expected, "values")
        parameters = {n: array for n, array in arrays.items() if n not in self._averaged}
        self._session.load_state(parameters)
        self._averaged |= {n: arrays[n].copy() for n in arrays if n in self._averaged}

    def save_checkpoint(self, path: PathLike, *, note: Mapping[str, Any] | None = None) -> None:
        """Write all of the state to a safetensors file, atomically.

        Args:
            path: Of the file.
            note: What is to be noted in it, as JSON has it.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        said = {**(note or {}), "averaged": sorted(self._averaged)}
        with self._session.borrowed() as state:
            checkpoint.save(path, {**state, **self._averaged}, self._fingerprint.entry, said)

    def _mask(self, group_mask: Sequence[bool] | None) -> list[bool]:
        return flags_of(group_mask, len(self.optimizer.groups), "the optimizer")


def check_server_optimizer(optimizer: Any) -> RMSProp:
    """The optimizer, if a server can update by it.

    Raises:
        TypeError: It is none.
        ValueError: It has a loss scale.
    """
    if checked_optimizer(optimizer).loss_scale != 1.0:
        raise ValueError(
            f"loss_scale: got {optimizer.loss_scale}, but the server's gradient is a difference "
            "of parameters, and not that of a loss; leave it out"
        )
    made: RMSProp = optimizer
    return made
