"""Reads the pickles of `.bin` verification sets and lets nothing in them run.

Allowed are lists, tuples, bytes, str, bool, int and 1-D numpy uint8 arrays, which become bytes.
The opcodes are checked first, so that a file neither calls anything nor reserves more memory than
its size justifies; then the standard unpickler runs with every global replaced by a function of
this module.
"""

import io
import pickle
import pickletools
from typing import Any

from recognizer.data.problems import DataError

_OPCODES = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 LONG4
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    LIST EMPTY_LIST APPEND APPENDS TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD""".split()
)


def load_pair_lists(data: bytes) -> tuple[list[Any], list[Any]]:
    """Unpickle `(images, issame)` if the two lists hold nothing but plain values.

    Python 2's `str` and uint8 arrays become bytes.

    Raises:
        DataError: Anything else is in it, or it is broken; the message says what, and where.
    """
    position, file = 0, io.BytesIO(data)
    try:
        for opcode, argument, place in pickletools.genops(data):
            position = place or 0
            if opcode.name not in _OPCODES:
                raise DataError(f"the pickle opcode {opcode.name} is not allowed")
            # The unpickler's memo is an array up to the largest index; real ones count up.
            if "PUT" in opcode.name and isinstance(argument, int) and argument > position:
                raise DataError(f"the memo index {argument} is out of range")
        value = _Unpickler(file, len(data)).load()
    except DataError as error:
        raise DataError(f"offset {file.tell() or position}: {error}") from None
    except Exception as error:  # whatever a broken pickle leads to, it is bad data
        where = f"offset {file.tell() or position}"
        raise DataError(f"{where}: not a pickle of a verification set: {error}") from None
    match value:
        case [list() | tuple() as images, list() | tuple() | _Array() as issame]:
            return _leaves(images), _leaves(issame)
    raise DataError("not a verification set: expected the two lists (images, issame)")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, budget: int) -> None:
        super().__init__(file, encoding="bytes")
        self._budget = budget
        numpy: dict[str, Any] = {
            "_reconstruct": _reconstruct,
            "_frombuffer": self._from_buffer,
            "ndarray": _ndarray,
            "dtype": _Dtype,
        }
        self._known = {
            (package, name): numpy[name]
            for name, modules in {
                "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
                "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
                "ndarray": ("numpy",),
                "dtype": ("numpy",),
            }.items()
            for package in modules
        }
        self._known["_codecs", "encode"] = self._encode
        self._known["__builtin__", "bytes"] = _no_bytes
        self._known["builtins", "bytes"] = _no_bytes

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise DataError(f"it refers to {module}.{name}, which is not allowed") from None

    def _encode(self, text: object, codec: object) -> bytes:
        """How protocol 2 writes bytes in Python 3."""
        if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
            raise DataError("text in a codec that is not latin1")
        self._spend(len(text))
        return text.encode("latin1")

    def _from_buffer(self, data: object, dtype: object, shape: object, *_: object) -> "_Array":
        """How protocol 5 writes an array."""
        if isinstance(data, bytearray):
            self._spend(len(data))
            data = bytes(data)
        array = _Array()
        array.__setstate__((1, shape, dtype, False, data))
        return array

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:  # the same bytes over and over
            raise DataError("it unpacks to more than its own size")


def _no_bytes() -> bytes:
    """How protocol 2 writes empty bytes."""
    return b""


def _ndarray() -> None:
    """Only ever an argument of `_reconstruct`."""


class _Dtype:
    def __init__(self, name: object, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise DataError(f"an array of dtype {name!r}, only uint8 is allowed")

    def __setstate__(self, state: object) -> None:
        """Byte order and fields mean nothing for single bytes."""


class _Array:
    data: bytes | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (_, (int(length),), _Dtype(), _, bytes(data)) if length == len(data):
                self.data = data
            case _:
                raise DataError("an array that is not 1-D uint8")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _leaves(values: Any) -> list[Any]:
    if isinstance(values, _Array):
        values = list(values.data or b"")
    leaves = [value.data if isinstance(value, _Array) else value for value in values]
    for number, value in enumerate(leaves):
        if not isinstance(value, bytes | str | bool | int):
            kind = type(value).__name__.strip("_")
            raise DataError(f"entry {number} of a list is of the kind {kind}, which is not allowed")
    return leaves
