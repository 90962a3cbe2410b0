"""Reading a configuration: a file in TOML, and what is said beside it; all of it checked."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt._files import PathLike, existing_file
from graphopt._slips import nearest
from graphopt.configuration.schema import SECTIONS, Section

GROUPS = "groups"
_OF_FILE = re.compile(r"^'[^']*': ")
Given = Mapping[str, Mapping[str, Any]]
"""Values by section and key."""


@dataclass(frozen=True)
class Configuration:
    """What a training graph shall be.

    Attributes:
        sections: The checked values, by section and key; of what is not said there is no key.
        groups: Those of each group.
        file: Where it was read, if it was.
        beside: The values that were given beside the file, which override what it has.
    """

    sections: Mapping[str, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...] = ()
    file: Path | None = None
    beside: frozenset[tuple[str, str]] = frozenset()

    def section(self, name: str) -> Mapping[str, Any]:
        """The values of a section."""
        return self.sections.get(name, {})

    @contextmanager
    def naming(self, section: str) -> Iterator[None]:
        """Let errors of Python's functions that are about a key of the file name both.

        Raises:
            TypeError: As there was.
            ValueError: The same; also for a KeyError.
        """
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            said = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            words = _OF_FILE.sub("", said)  # the key is said after the model
            key = words.partition(":")[0]
            if key not in self.section(section) or (section, key) in self.beside:
                raise kind(said) from None
            raise kind(f"'{self.file}': {section}.{words}") from None


@dataclass
class _Reader:
    """Checks a document.

    Attributes:
        file: Where it stands, for errors.
        beside: What was given beside it.
    """

    file: Path | None
    beside: frozenset[tuple[str, str]] = frozenset()
    sections: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def configuration(self, document: Mapping[str, Any]) -> Configuration:
        """The document, if it is one of the schema."""
        groups: tuple[Mapping[str, Any], ...] = ()
        for name, table in document.items():
            if name not in SECTIONS:
                raise self.error(name, f"there is no such section{_meant(name)}")
            section = SECTIONS[name]
            if section.repeated:
                groups = self._groups(section, table)
            elif isinstance(table, Mapping):
                self.sections[name] = self._checked(section, name, table)
            else:
                kind = type(table).__name__
                raise self.error(name, f"got {table!r} ({kind}), expected a section [{name}]")
        return Configuration(self.sections, groups, self.file, self.beside)

    def error(self, where: str, said: str) -> ValueError:
        """An error at a place of the file."""
        return ValueError(f"'{self.file}': {where}: {said}" if self.file else f"{where}: {said}")

    def _groups(self, section: Section, tables: Any) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
            raise self.error(GROUPS, f"expected [[{GROUPS}]], a section for each group")
        return tuple(
            self._checked(section, f"{GROUPS}[{index}]", table)
            for index, table in enumerate(tables)
        )

    def _checked(self, section: Section, where: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
        checked, keys = {}, section.by_name
        for name, value in table.items():
            if name not in keys:
                said = f"there is no such key{_meant(name, section.name)}"
                raise self.error(f"{where}.{name}", said)
            beside = (section.name, name) in self.beside
            try:
                checked[name] = keys[name].kind(name if beside else f"{where}.{name}", value)
            except (TypeError, ValueError) as error:
                if beside or self.file is None:
                    raise
                raise type(error)(f"'{self.file}': {error}") from None
        return checked


def read_configuration(path: PathLike | None = None, beside: Given | None = None) -> Configuration:
    r"""Read a configuration.

    Args:
        path: A file in TOML; None where there is none.
        beside: Values that override those of the file, by section and key.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A value has the wrong type; the error has the file and the dotted key.
        ValueError: It is not TOML; a section or a key is unknown; a value is out of range.

    Example:
        >>> _ = Path("train.toml").write_text('[optimizer]\nmomentun = 0.9')
        >>> read_configuration("train.toml")
        Traceback (most recent call last):
        ...
        ValueError: 'train.toml': optimizer.momentun: there is no such key; did you mean
        'optimizer.momentum'?
    """
    file = None if path is None else Path(path)
    document: dict[str, Any] = {} if file is None else _parsed(existing_file(file))
    given = beside or {}
    for section, values in given.items():
        table = document.setdefault(section, {})
        if isinstance(table, dict):
            table.update(values)
    pairs = frozenset((section, key) for section, values in given.items() for key in values)
    return _Reader(file, pairs).configuration(document)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise ValueError(f"'{path}' is not TOML: {error}") from None


def _meant(name: str, section: str | None = None) -> str:
    """What a key or a section that there is not may stand for."""
    if section is None:
        meant = nearest(name, SECTIONS)
        holders = [other for other, found in SECTIONS.items() if name in found.by_name]
        if meant is None and holders:
            return f"; did you mean the key '{holders[0]}.{name}'?"
        return f"; did you mean '{meant}'?" if meant else f"; expected {', '.join(SECTIONS)}"
    own = SECTIONS[section].by_name
    # The right word in the wrong section is nearer than another word in the right one.
    for other in (section, *SECTIONS):
        if name in SECTIONS[other].by_name:
            return f"; did you mean '{other}.{name}'?"
    for other in (section, *SECTIONS):
        if meant := nearest(name, SECTIONS[other].by_name):
            return f"; did you mean '{other}.{meant}'?"
    return f"; expected {', '.join(own)}"
