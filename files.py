"""Files that come from outside or must not be left half-written: download, atomic write, one error for both."""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class BadInput(Exception):
    """Something that the user can mend. Its text is one line: what is wrong, where, what to do."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    Whoever reads `path` sees the old file or the new one, never a part of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save's is a RuntimeError
        raise BadInput(f"cannot write {path}: {str(error).splitlines()[0]}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def require_writable(directory: Path) -> None:
    """Make `directory` if need be. Raises BadInput, now and not after hours of work, where nothing can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise BadInput(f"cannot write into {directory}: {error.strerror}") from error


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, with a progress bar; a download that was cut off goes on where it stopped.

    The bytes gather in `path` + ".part", which takes its final name only once its MD5 is right.
    Raises BadInput where the server can't be reached, breaks off, or sends other bytes than those.
    """
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            resumed = response.status == 206  # a server may ignore the range, and send it all again
            total = (have if resumed else 0) + int(response.headers.get("Content-Length", 0))
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                open(part, "ab" if resumed else "wb") as file,
                tqdm(desc=path.name, total=total or None, initial=file.tell(), unit="B", unit_scale=True) as bar,
            ):
                while block := response.read(1 << 16):
                    bar.update(file.write(block))
        # http.client takes a connection that closes early for the end of the file
        if part.stat().st_size < total:
            raise OSError(f"the connection closed after {part.stat().st_size:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part file has every byte already
            raise BadInput(f"cannot download {url}: {error}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(
            f"cannot download {url} ({reason}): try again, or fetch it by other means and put it at {path}"
        ) from error
    if md5_of(part) != md5:
        part.unlink()
        raise BadInput(f"{url} sent other bytes than expected (MD5 is not {md5}); they were deleted: try again")
    os.replace(part, path)
