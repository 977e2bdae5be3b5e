"""Bad data is told in one list, or skipped and counted."""

import logging
from typing import Literal, get_args

Told = Literal["raise", "skip"]
OnError = Literal[Told, "collect"]
_SHOWN = 20
_log = logging.getLogger(__name__)


class DataError(ValueError):
    """What is wrong with a file of faces, with the file, the record and the offset."""


class Problems:
    """Collects what is wrong with a set of files, so that one error tells all of it.

    Args:
        on_error: `"raise"` to raise one `DataError` for everything, `"skip"` to leave the bad
            entries out, log how many they are and keep them in `found`, `"collect"` to do that but
            leave the telling to the caller, who has a list of its own.
    """

    def __init__(self, on_error: OnError = "raise") -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is one of {get_args(OnError)}, not {on_error!r}")
        self.on_error = on_error
        self.found: list[str] = []

    def add(self, problem: object) -> None:
        """Note one problem; its text names the file and what in it is wrong."""
        self.found.append(str(problem))

    def settle(self, what: str) -> list[str]:
        """Raise everything found in one error, or log it; returns what was found.

        Raises:
            DataError: Something was found and `on_error` is `"raise"`.
        """
        if self.found and self.on_error != "collect":
            lines = [f"  {problem}" for problem in self.found[:_SHOWN]]
            if len(self.found) > _SHOWN:
                lines.append(f"  ... and {len(self.found) - _SHOWN} more")
            text = "\n".join(lines)
            if self.on_error == "raise":
                raise DataError(f"{what}: {len(self.found)} problem(s)\n{text}")
            _log.warning("%s: skipped %d:\n%s", what, len(self.found), text)
        return self.found
