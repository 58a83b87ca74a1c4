"""Files: written whole or not at all, by one process at a time; read without trust; results that are kept."""

import hashlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout


class BadInput(Exception):
    """An error that the user can mend. Its text is one line: what is wrong, in which file or flag, what to do."""


def in_a_line(error: Exception) -> str:
    """The message of another library's error, for the text of a BadInput."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It becomes `path` on success, and is removed on any error.

    A reader of `path` sees the old file or the new one, never a part of it, even after a power cut. Raises BadInput
    where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "ab") as file:
            os.fsync(file.fileno())  # or the name could reach the disk before the bytes
        os.replace(temporary, path)
        with suppress(OSError):  # Windows cannot open a directory
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
    except OSError as error:
        reason = error.strerror or in_a_line(error)
        raise BadInput(f"cannot write {path}: {reason} (nothing there has changed)") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `path` as long as the block lasts and this process lives: nobody else should write `path`.

    If another process holds it, raises BadInput at once, or waits with `wait`. Where no lock file can be made or
    locked, the block runs without a lock: then nothing stops two processes from writing the same file.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        other = f"{path} is being made by another process"
        if not wait:
            raise BadInput(f"{other}: wait for it, stop it, or name another directory") from error
        print(f"{other}: waiting for it", file=sys.stderr)
        lock.acquire()
    except OSError:  # a directory that is read-only, or a file system without locks
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # a process that waits notices this, and makes a new lock file
                os.unlink(lock.lock_file)
            lock.release()


def require_writable(directory: Path) -> None:
    """Make `directory` if need be. Raises BadInput where nothing can be written: call it before the work."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror}") from error


def write_tensors(path: Path, content: dict) -> None:
    """Write `path` with torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)  # into a file, it would hide the OSError of a full disk
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_tensors(path: Path, kind: str) -> dict:
    """Read onto the CPU a dict that torch.save wrote: as data, never as code.

    Raises BadInput where `path` is missing, and says that it "is not `kind`" where it is damaged or holds no dict. What
    is in the dict, and how large it is, is for the caller to check.
    """
    problem = "torch cannot read it as plain data"
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # the format since torch 1.6
        if zipped:  # torch itself reads compressed data of any size, and checks no checksum
            with zipfile.ZipFile(path) as file:
                if any(record.compress_type for record in file.infolist()) or file.testzip():
                    problem = "it is damaged, or torch.save did not write it"
                    raise ValueError(problem)
        with warnings.catch_warnings(action="ignore"):  # about how an old file was pickled
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            problem = f"it holds a {type(content).__name__}"
            raise ValueError(problem)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # zipfile and torch.load raise almost anything on damaged bytes
        raise BadInput(f"{path} is not {kind}: {problem}") from error
    return content


def key_of(*depends: bytes | str | np.ndarray | Path) -> str:
    """A key that changes with anything a result depends on. A Path stands for the content of the file."""
    parts = [part.read_bytes() if isinstance(part, Path) else part for part in depends]
    parts = [part.encode() if isinstance(part, str) else np.ascontiguousarray(part) for part in parts]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def keep(path: Path, key: str, **arrays: np.ndarray) -> None:
    """Write arrays into an .npz file for `read_kept`, or nothing where `path` cannot be written."""
    with suppress(BadInput), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key_of(key, *arrays.values()), **arrays)


def read_kept(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays that `keep` wrote under this key; an empty dict if there are none, or the file is damaged."""
    with suppress(Exception), np.load(path, allow_pickle=False) as file:  # numpy raises almost anything
        arrays = {name: file[name] for name in file.files if name != "key"}
        return arrays if file["key"] == key_of(key, *arrays.values()) else {}
    return {}


def kept(path: Path, make: Callable[[], np.ndarray], *depends: bytes | str | np.ndarray | Path) -> np.ndarray:
    """The array that `make` makes, kept in `path` until something changes that it depends on.

    Where several processes want it at once, one makes it and the others wait.
    """
    key = key_of(*depends)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path, wait=True):
        found = read_kept(path, key)
        if not found:
            found = {"array": make()}
            keep(path, key, **found)
    return found["array"]
