"""Files and folders that appear whole or not at all, even if their writer is killed.

Each is written under a name of ours first, beside its place, and takes its own name when it is
complete. A draft is locked as long as its writer lives; one that is not locked was left by a
process that was killed, and the next writer removes it. Does not know what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["is_draft", "remove_abandoned", "write_file", "write_folder"]

_PREFIX = ".autotune-draft-"

_NOT_BY_RENAMING = frozenset((errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS))
"""What is said of a mount point, and of a folder whose parent is another's."""


def is_draft(name: str) -> bool:
    """Whether a file or folder of this name is a draft, of a living writer or a dead one."""
    return name.startswith(_PREFIX)


def write_file(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file, or leave what is there as it is.

    Args:
        path: where to; the folder must be there.
        content: text is written as UTF-8.
        mode: permissions, less those that the process's mask takes away.

    Raises:
        OSError: it cannot be written.
    """
    remove_abandoned(path.parent)
    with _draft(path.parent, mode=mode) as draft:
        _write(draft, content, mode)
        draft.rename(path)


def write_folder(
    folder: Path,
    files: Mapping[str, bytes],
    modes: Mapping[str, int],
    *,
    folder_mode: int = 0o777,
) -> None:
    """Make a folder with these files, or fill an empty one; the last file is written last.

    An empty folder that cannot be replaced (a mount point, somebody's current folder) is filled
    file by file: it is complete once the last is there.

    Args:
        folder: not there yet, or empty but for the first of these very files.
        files: content by name.
        modes: permissions of those that are more or less than plain files.
        folder_mode: permissions of a folder that was not there.

    Raises:
        OSError: it cannot be written, or holds something.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(folder, files, modes, folder_mode)
        return
    folder = folder.resolve()
    if not _is_current(folder) and not any(folder.iterdir()):
        try:
            _write_whole(folder, files, modes, folder_mode)
        except OSError as error:
            if error.errno not in _NOT_BY_RENAMING:
                raise
        else:
            return
    for name, content in files.items():
        write_file(folder / name, content, mode=modes.get(name, 0o666))


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts in a folder that were left by writers which were killed."""
    with contextlib.suppress(OSError):
        drafts = [path for path in folder.iterdir() if is_draft(path.name)]
        for draft in drafts:
            with contextlib.suppress(OSError), _locked(draft, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove(draft)


def _write_whole(
    folder: Path, files: Mapping[str, bytes], modes: Mapping[str, int], folder_mode: int
) -> None:
    """The folder appears with all of its files at once, also in the place of an empty one."""
    remove_abandoned(folder.parent)
    with _draft(folder.parent, mode=folder_mode, is_folder=True) as draft:
        for name, content in files.items():
            _write(draft / name, content, modes.get(name, 0o666))
        if folder.exists():
            draft.chmod(stat.S_IMODE(folder.stat().st_mode))
        draft.rename(folder)


def _write(path: Path, content: str | bytes, mode: int) -> None:
    """Write a draft of ours, or a file in one, and see it to the disk."""
    data = content.encode() if isinstance(content, str) else content
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _draft(parent: Path, *, mode: int = 0o666, is_folder: bool = False) -> Iterator[Path]:
    """A new draft, locked; removed at the end if it is still there."""
    while True:
        draft = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        if is_folder:
            draft.mkdir(mode=mode)
        else:
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(draft, fcntl.LOCK_EX))
            except FileNotFoundError:
                # Taken for abandoned before it was locked.
                continue
            try:
                yield draft
            finally:
                with contextlib.suppress(OSError):
                    _remove(draft)
            return


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Raises:
        FileNotFoundError: it was removed before it was locked.
        OSError: another process holds it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, how)
        if not os.path.samestat(os.fstat(handle), path.lstat()):
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(handle)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)


def _is_current(folder: Path) -> bool:
    """Whether it is where this process stands: it would stand in a removed one."""
    with contextlib.suppress(OSError):
        return folder.samefile(Path.cwd())
    return False
