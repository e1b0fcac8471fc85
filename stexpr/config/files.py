"""How files reach the disk: whole or not at all, and with one clear word where the disk refuses."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stexpr.errors import DataError

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, write: Callable[[Path], object], *, needs: int = 0) -> None:
    """Let `write` fill a file beside `path`, then put it in place; a failure leaves the old file and no other.

    Args:
        path: The file; its folder is made if need be.
        write: Writes to the path it is given.
        needs: Bytes about to be written, where known. Room for them is asked for beforehand, because HDF5 leaves an open
            file and a page of its own messages behind when the disk fills up under it.

    Raises:
        DataError: The folder is read-only or the disk full.
    """
    partial = path.with_name(f".{path.name}.part")
    with writable(path.parent):
        free = shutil.disk_usage(path.parent).free
        if needs > free:
            raise DataError(
                f"cannot write {path}: No space left on device ({needs / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free); "
                "free space or choose another folder"
            )
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together: all of them beside their places, then each into its place, in the order given.

    Args:
        folder: Made if need be.
        contents: By file name; the one that vouches for the others comes last.

    Raises:
        DataError: The folder is read-only or the disk full; earlier files of these names stay whole.
    """
    partial = {name: folder / f".{name}.part" for name in contents}
    with writable(folder):
        try:
            for name, content in contents.items():
                partial[name].write_bytes(content)
            for name, path in partial.items():
                os.replace(path, folder / name)
        finally:
            for path in partial.values():
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    path.unlink(missing_ok=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Create a folder, and turn what the disk refuses inside the block into an error that names it.

    Raises:
        DataError: The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        reason = err.strerror or str(err)
        raise DataError(f"cannot write into {folder}: {reason}; free space or choose another folder") from err


def is_disk_full(err: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that there is no room left on the disk."""
    while err is not None:
        if isinstance(err, OSError) and err.errno in DISK_FULL:
            return True
        if isinstance(err, DataError) and "No space left on device" in str(err):
            return True
        err = err.__cause__ or err.__context__
    return False


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}") from err
