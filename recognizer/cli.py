"""Command lines and configuration files filled from one options dataclass."""

import sys
from typing import TypeVar

import jsonargparse

from recognizer.memory import keep_freed_memory

T = TypeVar("T")


def parse_options(
    cls: type[T], argv: list[str] | None = None, short: dict[str, str] | None = None
) -> T:
    """Options from the command line and from `--config FILE` (YAML or JSON).

    The first thing that programs do; it also sets the allocator up for them.

    Fields become `--field VALUE`, nested dataclasses `--outer.inner VALUE`; the string under a
    field is its help. Bad values end the program with one line, not a traceback.

    Args:
        cls: the dataclass; its docstring is the description.
        argv: arguments; by default those of the process.
        short: other names of nested fields: `{"data": "env.dataset"}` lets `--data` stand for
            `--env.dataset`.
    """
    keep_freed_memory()
    argv = [_spelled_out(word, short or {}) for word in (sys.argv[1:] if argv is None else argv)]
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return jsonargparse.auto_cli(cls, args=argv, as_positional=False)


def _spelled_out(word: str, short: dict[str, str]) -> str:
    flag, equals, value = word.partition("=")
    name = short.get(flag.removeprefix("--")) if flag.startswith("--") else None
    return f"--{name}{equals}{value}" if name else word
