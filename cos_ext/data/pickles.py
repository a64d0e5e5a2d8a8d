"""Reading the pickles of CIFAR's python version: dicts, lists, numbers, bytes and NumPy arrays, and
nothing else. What is in them is cifar.py's business.

Pickle is a program. It runs here with a few instructions, without calls, and in bounded memory.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

_MOST_READS = 1 << 20  # an official batch has 450,000; each can make an object of some 60 bytes
_OPERATIONS = """
    MARK STOP POP INT BININT BININT1 BININT2 LONG LONG1 NONE NEWTRUE NEWFALSE FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
    TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM
    SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE
    BUILD PROTO FRAME
"""


def read_plain(file: Any, size: int) -> Any:
    """What was pickled in a file of ``size`` bytes, in protocols 0 to 4. Its arrays are read-only.

    Raises:
        Exception: of nearly any kind, where the file is damaged or asks for more.
    """
    return _done(_PlainUnpickler(_Source(file, size), encoding="bytes").load())


class _Source:
    """A file that may be read so many times, and gives nothing that is not there."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.size, self.left = file, size, _MOST_READS

    def read(self, size: int) -> bytes:
        self._count()
        found = self.file.read(size) if size <= self.size else b""
        if len(found) < size:
            raise EOFError(f"{size} bytes are claimed, the file has {self.size}")
        return found

    def readline(self) -> bytes:
        self._count()
        found: bytes = self.file.readline()
        return found

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("there are more parts than a CIFAR batch has")


class _Dtype:
    """numpy.dtype, of integers."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.value = np.dtype(name.decode() if isinstance(name, bytes) else name)
        if self.value.kind not in "ui":
            raise pickle.UnpicklingError(f"arrays must be of integers, got {self.value}")

    def __setstate__(self, state: Any) -> None:
        if state[1] in (b">", ">"):
            self.value = self.value.newbyteorder(">")


class _Array:
    """numpy.ndarray, which has no values before its state is set."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, raw = state
        if not isinstance(raw, bytes) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array must have a dtype and bytes")
        flat = np.frombuffer(raw, dtype.value)
        self.value = flat.reshape(shape, order="F" if columns_first else "C")


def _latin1(text: str, encoding: Any) -> bytes:
    """_codecs.encode, by which Python 3 writes bytes in older protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes must be latin1, got {encoding!r}")
    return text.encode("latin1")


def _done(value: Any) -> Any:
    """The arrays of a dict themselves."""
    if isinstance(value, dict):
        return {key: _done(part) for key, part in value.items() if not isinstance(part, dict)}
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array has no values")
        return value.value
    return value


# The one written in Python: its parts can be left out, and it allocates nothing for a claim.
_Unpickler: Any = pickle._Unpickler


class _PlainUnpickler(_Unpickler):
    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPERATIONS.split())
    }

    def find_class(self, module: str, name: str) -> Any:
        # Made anew each time, since a pickle may set attributes of what it names.
        known: dict[tuple[str, str], Callable[..., Any] | None] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): lambda *arguments: _Dtype(*arguments),
            ("_codecs", "encode"): lambda *arguments: _latin1(*arguments),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR batch")
        return known[module, name]

    def load_frame(self) -> None:
        self.read(8)  # what is in a frame is read, and counted, as what is not

    def _plain_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, (str, bytes)) for key in keys):  # a tuple's hash may take years
            raise pickle.UnpicklingError("the keys of a dict must be strings")

    def load_dict(self) -> None:
        self._plain_keys(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        self._plain_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._plain_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
