"""Command lines and configuration files filled from one options dataclass."""

from typing import TypeVar

import jsonargparse

T = TypeVar("T")


def parse_options(cls: type[T], argv: list[str] | None = None) -> T:
    """Options from the command line and from `--config FILE` (YAML or JSON).

    Fields become `--field VALUE`, nested dataclasses `--outer.inner VALUE`; the string under a
    field is its help. Bad values end the program with one line, not a traceback.

    Args:
        cls: the dataclass; its docstring is the description.
        argv: arguments; by default those of the process.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.auto_cli(cls, args=argv, as_positional=False)
