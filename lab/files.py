"""Files: written whole or not at all, by one process at a time; read without trust; results that are kept."""

import errno
import hashlib
import io
import os
import re
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

FORMULA = "1"  # raise it with a change that changes a score, a generated image or a feature: kept ones are made anew
SAVE_EVERY = 45  # seconds between two saves of a long work


class BadInput(Exception):
    """An error that the user can mend. Its text is one line: what is wrong, in which file or flag, what to do."""


def in_a_line(error: Exception) -> str:
    """The message of another library's error, for the text of a BadInput."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It becomes `path` on success, and is removed on any error.

    A reader of `path` sees the old file or the new one, whole, even after a power cut. Raises BadInput if it can't be.
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

    If another process holds it, raises BadInput at once, or waits with `wait`. On some file systems there is no lock.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def require_writable(path: Path, directory: bool = False) -> None:
    """Raise BadInput unless a file `path`, or with `directory` a file in it, can be written. Missing folders can be."""
    try:
        parent = path if directory else path.parent
        if path.exists() and path.is_dir() != directory:
            raise OSError(None, f"it is {'no' if directory else 'a'} directory")
        while not parent.exists():
            parent = parent.parent
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise BadInput(f"cannot write {'into ' if directory else ''}{path}: {error.strerror}") from error


def write_tensors(path: Path, content: dict) -> None:
    """Write `path` with torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)  # into a file, it would hide the OSError of a full disk
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_tensors(path: Path, kind: str) -> dict:
    """Read onto the CPU a dict that torch.save wrote: as data, never as code.

    Raises BadInput where `path` is missing, damaged ("is not `kind`") or holds no dict. The caller checks its values.
    """
    problem = "torch cannot read it as plain data"
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # the format since torch 1.6
        if zipped:  # torch itself reads compressed data of any size, and checks no checksum
            with zipfile.ZipFile(path) as file:
                for record in file.infolist():
                    if not record.CRC:  # torch can be told to write none
                        del record.CRC
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
        if refused := re.search(r"GLOBAL ([\w.]{1,99})", str(error)):
            convert = "save its tensors alone, as in torch.save({'ema_model': weights}, FILE)"
            problem = f"it holds a {refused[1]}, which torch loads only from a file that you trust; there, {convert}"
        raise BadInput(f"{path} is not {kind}: {problem}") from error
    return content


def key_of(*depends: bytes | str | np.ndarray | Path) -> str:
    """A key that changes with anything a result depends on. A Path stands for the content of the file."""
    parts = [part.read_bytes() if isinstance(part, Path) else part for part in depends]
    parts = [part.encode() if isinstance(part, str) else np.ascontiguousarray(part) for part in parts]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def keep(path: Path, key: str, **arrays: np.ndarray) -> None:
    """Write arrays for `read_kept`, or nothing where nobody may write. Raises BadInput where the disk is full."""
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key_of(key, FORMULA, *arrays.values()), **arrays)
    except BadInput as error:
        if error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def read_kept(path: Path, key: str) -> dict[str, np.ndarray]:
    """The arrays that `keep` wrote under this key; an empty dict if there are none, or the file is damaged."""
    with suppress(Exception), np.load(path, allow_pickle=False) as file:  # numpy raises almost anything
        arrays = {name: file[name] for name in file.files if name != "key"}
        return arrays if file["key"] == key_of(key, FORMULA, *arrays.values()) else {}
    return {}


def kept_rows(
    path: Path, key: str, n: int, batches: Callable[[int], Iterator[tuple[Tensor, ...]]], *generators: torch.Generator
) -> list[Tensor]:
    """Tensors of n rows; `batches(k)` yields them from row k on, in parts. Rows that `path` has are not made again.

    They are kept when the work ends, is interrupted or fails, and in between, with the states of its `generators`.
    """
    kept, saved = read_kept(path, key), time.monotonic()
    for generator, state in zip(generators, kept.pop("states", ())):
        generator.set_state(torch.from_numpy(state))
    parts = [tuple(torch.from_numpy(rows[:n]) for rows in kept.values())] if kept else []
    now, done = (parts, None), len(parts[0][0]) if parts else 0

    def save() -> None:
        if now[1] is not None:
            rows = {str(i): torch.cat(its).numpy() for i, its in enumerate(zip(*now[0], strict=True))}
            keep(path, key, states=now[1], **rows)

    try:
        for part in batches(done) if done < n else []:
            # one value: Ctrl-C finds both of them changed, or neither
            now = [*now[0], part], np.array([generator.get_state().numpy() for generator in generators], np.uint8)
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    finally:
        save()
    return [torch.cat(its) for its in zip(*now[0], strict=True)]
