"""The data in a pickle, read without running it: no name in it is ever imported or called.

A pickle is a program. This reads the instructions that build dicts, lists, numbers, text and the
tensors of PyTorch, and takes every other object for something unknown, which nobody asks for.
"""

import pickletools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_MARK = object()
_NOTHING = {"PROTO", "FRAME"}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}

Call = Callable[[str, tuple[Any, ...]], Any]
"""Makes a value of the name of what is called, and its arguments."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, such as ``torch.FloatStorage``."""

    text: str


@dataclass(frozen=True)
class Unknown:
    """An object that is not data; all that is known is the name of what would make it."""

    text: str


class UnpickleError(ValueError):
    """It is no pickle, or one with instructions that data do not need."""


def read_pickle(data: bytes, call: Call, persistent: Callable[[Any], Any]) -> Any:
    """What a pickle holds.

    Args:
        data: The pickle.
        call: Makes what a call in it would make; called with names that may be anything.
        persistent: Makes what a persistent identifier stands for.

    Raises:
        UnpickleError: It is damaged, or has other instructions than data have.

    Example:
        >>> import pickle
        >>> read_pickle(pickle.dumps({"lr": 0.1, "params": [0, 1]}), Unknown, Unknown)
        {'lr': 0.1, 'params': [0, 1]}
    """
    machine = _Machine(call, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = machine.stack
                return value
            machine.take(opcode.name, argument)
    except UnpickleError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UnpickleError(f"its pickle is damaged: {error}") from None
    raise UnpickleError("its pickle is damaged: it has no end")


class _Machine:
    """The stack and the memory that the instructions work on."""

    def __init__(self, call: Call, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._call, self._persistent = call, persistent

    def take(self, name: str, argument: Any) -> None:
        """Take one instruction."""
        stack = self.stack
        if name in _NOTHING:
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _LENGTHS:
            length = _LENGTHS[name]
            self._pop(length)  # there must be as many
            stack.append(tuple(self._popped))
        elif name in _PUTS:
            self._memory[int(argument)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memory[int(argument)])
        else:
            self._build(name, argument)

    def _pop(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError("a value is missing")
        self._popped = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]

    def _since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise IndexError("a mark is missing")

    def _build(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "LIST":
                stack.append(self._since_mark())
            case "DICT":
                stack.append(mapping(_pairs(self._since_mark())))
            case "MEMOIZE":
                self._memory[len(self._memory)] = stack[-1]
            case "APPEND" | "SETITEM":
                self._pop(1 if name == "APPEND" else 2)
                self._extend(self._popped)
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                values = self._since_mark()
                self._extend(values)
            case "GLOBAL":
                stack.append(Name(".".join(str(argument).split(" ", 1))))
            case "STACK_GLOBAL":
                self._pop(2)
                stack.append(Name(".".join(map(str, self._popped))))
            case "REDUCE" | "NEWOBJ":
                self._pop(2)
                stack.append(self._called(*self._popped))
            case "NEWOBJ_EX":
                self._pop(3)
                stack.append(self._called(*self._popped[:2]))
            case "BUILD":
                self._pop(1)  # what else an object has: attributes
            case "BINPERSID":
                self._pop(1)
                stack.append(self._persistent(*self._popped))
            case _:
                raise UnpickleError(f"its pickle has the instruction {name}, which data do not")

    def _called(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Name) or not isinstance(arguments, tuple):
            raise TypeError("something is called that has no name")
        return self._call(what.text, arguments)

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, dict):
            target.update(mapping(_pairs(values)))
        elif not isinstance(target, Unknown):
            raise TypeError(f"a {type(target).__name__} is filled")


def mapping(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict of plain keys; others, such as tuples that hold each other, may take for ever to hash.

    Raises:
        TypeError: A key is none.
    """
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | float | None):
            raise TypeError(f"a key is a {type(key).__name__}")
        found[key] = value
    return found


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)
