"""Writing files: complete, or not there. Every file that this package writes goes through here.
Reading tensors with a header back is here too.

What is in them is the callers' business.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

from torch import Tensor

AnyPath = str | os.PathLike[str]


def write_tensors(path: AnyPath, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a safetensors file.

    Args:
        path: the file; what was there before stays until the new one is complete.
        tensors: by name, on any device; written contiguous.
        header: goes as JSON into the metadata's entry "cos_ext".

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    from safetensors import SafetensorError  # not before something is saved
    from safetensors.torch import save_file

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            save_file(owned, part, metadata={"cos_ext": json.dumps(header)})
        except SafetensorError as error:  # its words for a full disk
            raise OSError(
                errno.EIO, f"it could not be written ({error})", os.fspath(path)
            ) from error


def read_header(path: AnyPath) -> dict[str, Any]:
    """The header alone that :func:`write_tensors` wrote; the errors are those of
    :func:`read_tensors`.
    """
    return _read(path, tensors=False)[0]


def read_tensors(path: AnyPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors, on the CPU, that :func:`write_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is no safetensors file. A file without a header has {}.
    """
    return _read(path, tensors=True)


def _read(path: AnyPath, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("cos_ext", "{}"))
            found = {name: file.get_tensor(name) for name in file.keys() if tensors}  # noqa: SIM118, no dict
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"{path} is damaged or is no safetensors file: {error}") from error
    return header if isinstance(header, dict) else {}, found


def write_text(path: AnyPath, text: str) -> None:
    """Write UTF-8, with line ends as they are in ``text``."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_json(path: AnyPath, content: Mapping[str, Any]) -> None:
    """Write numbers, strings, lists and dicts as indented JSON in UTF-8."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_figure(path: AnyPath, figure: Any) -> None:
    """Write a matplotlib figure in the format of the path's suffix. As matplotlib does, add one
    where there is none.
    """
    target, default = Path(os.fsdecode(path)), figure.canvas.get_default_filetype()
    if not target.suffix and not _Target(target).in_place:
        target = target.with_suffix(f".{default}")
    with replacing(target) as part:
        figure.savefig(part, dpi=150, format=target.suffix[1:] or default)


@overload
def replacing(path: AnyPath, /) -> AbstractContextManager[Path]: ...
@overload
def replacing(
    path: AnyPath, second: AnyPath, /, *more: AnyPath
) -> AbstractContextManager[tuple[Path, ...]]: ...


@contextlib.contextmanager
def replacing(*paths: AnyPath) -> Iterator[Any]:
    """Give a new empty file for each path; at the end all of them take their places, or none does.

    The new files lie in their targets' folders, have names of their own with the targets' suffixes,
    and the permissions that the umask leaves. Whatever goes wrong, they are removed, and what was
    there before is there. Where a path is a link, the file it leads to is replaced. A device or a
    pipe stays what it is: the bytes are written into it.

    Gives:
        one path, or a tuple of several, to be written.

    Raises:
        OSError: as :func:`check_target`, before anything is made; or the files cannot be put into
            place.
        ValueError: two of the paths are one file.
    """
    check_target(*paths)
    targets = [_Target(path) for path in paths]
    if len({target.path for target in targets}) < len(targets):
        raise ValueError(f"every file must have a path of its own, got {list(map(str, paths))}")
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_new_file(target)) for target in targets]
        modes = [part.stat().st_mode for part in parts]
        yield parts[0] if len(parts) == 1 else tuple(parts)
        for part, mode in zip(parts, modes, strict=True):
            part.chmod(mode)  # some writers put a file of their own there, for its owner only
        pairs = list(zip(parts, targets, strict=True))
        for part, target in pairs:
            if target.in_place:  # these first: they may fail, and cannot be undone
                with open(part, "rb") as source, open(target.path, "wb") as sink:
                    shutil.copyfileobj(source, sink)
        _put([(part, target.path) for part, target in pairs if not target.in_place])


def check_target(*paths: AnyPath) -> None:
    """Find out before the work whether :func:`replacing` can write these files.

    Raises:
        IsADirectoryError: a path is a folder.
        FileNotFoundError: its folder does not exist.
        NotADirectoryError: its folder is a file.
        PermissionError: the file or its folder may not be written.
        OSError: the system refuses the name.
    """
    for path in paths:
        found = _stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise _error(errno.EISDIR, "it is a folder, name a file", path)
        if found is not None and not os.access(path, os.W_OK):
            raise _error(errno.EACCES, "it may not be written", path)
        if _Target(path).in_place:
            continue
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.exists(folder):
            raise _error(errno.ENOENT, f"its folder {folder} does not exist, make it first", path)
        if not os.path.isdir(folder):
            raise _error(errno.ENOTDIR, f"{folder} is not a folder", path)
        if os.fsdecode(path).endswith(os.sep):
            raise _error(errno.EISDIR, "it ends like a folder, name a file", path)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _error(errno.EACCES, f"its folder {folder} may not be written", path)


class _Target:
    """Where the bytes go in the end.

    Attributes:
        path: of the file itself, where the path that was given is a link.
        in_place: it is written into, not replaced: a device, a pipe, or an open file (/dev/stdout).
        suffix: of the path that was given; by it some writers choose a format.
    """

    def __init__(self, path: AnyPath) -> None:
        given = Path(os.fsdecode(path))
        found = _stat(given)
        regular = found is None or stat.S_ISREG(found.st_mode)
        self.in_place = not regular or _is_open_file(given)
        self.path = given if self.in_place else Path(os.path.realpath(given))
        self.suffix = given.suffix


def _stat(path: AnyPath) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_open_file(path: Path) -> bool:
    """Whether a link of this path is one of /proc: it leads to an open file, not to a name."""
    while path.is_symlink():
        if os.path.realpath(path.parent).startswith("/proc/"):
            return True
        path = path.parent / path.readlink()
    return False


def _error(number: int, message: str, path: AnyPath) -> OSError:
    """The subclass of OSError for this number."""
    return OSError(number, message, os.fspath(path))


@contextlib.contextmanager
def _new_file(target: _Target) -> Iterator[Path]:
    """A new empty file with a name of its own; removed at the end if it is still there."""
    folder = Path(tempfile.gettempdir()) if target.in_place else target.path.parent
    # torch writes to no name that is a suffix alone.
    path = folder / f".cos_ext-{secrets.token_hex(8)}{target.suffix[:16] or '.part'}"
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.close(opened)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _put(pairs: list[tuple[Path, Path]]) -> None:
    """Put each first file into the place of the second: all of them, or none."""
    if len(pairs) == 1:
        os.replace(*pairs[0])
        return
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as undo:
        for folder in sorted({target.parent for _, target in pairs}):
            kept.enter_context(_locked(folder))
        for part, target in pairs:
            before = kept.enter_context(_second_name(target))
            undo.callback(_restore, target, before, part.stat())
            os.replace(part, target)
        undo.pop_all()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time, so that files that belong together come from one of them."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        # Some network folders know no locks, nor does every system.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def _second_name(path: Path) -> Iterator[Path | None]:
    """Another name for this file, until the end; None where there is no file."""
    name = path.parent / f".cos_ext-{secrets.token_hex(8)}"
    try:
        try:
            os.link(path, name)
        except FileNotFoundError:
            yield None
            return
        except OSError:  # a file system without second names
            shutil.copy2(path, name)
        yield name
    finally:
        name.unlink(missing_ok=True)


def _restore(target: Path, before: Path | None, ours: os.stat_result) -> None:
    """What was in the place of ``target`` before, if our file is there now."""
    found = _stat(target)
    if found is None or not os.path.samestat(found, ours):
        return
    if before is None:
        target.unlink()
    else:
        os.replace(before, target)
