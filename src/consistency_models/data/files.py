"""Reading of files by name from a folder or a zip. A zip is never extracted to the disk."""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from consistency_models.errors import DataError

__all__ = ["Below", "Files", "FolderReader", "ZipReader", "content_of", "is_litter", "stamp_of", "time_of"]

FILE_BYTES = 256 << 20  # larger files and zip members are refused, because they could fill the memory
LITTER = ("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found")
LITTER += ("system volume information", "thumbs.db", "desktop.ini")
NO_FILE = "no regular file"
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # bzip2 and LZMA decompress in blocks of unbounded size


@dataclass(frozen=True)
class Files:
    """The files below a folder or in a zip, without hidden files and metadata files of operating systems.

    Args:
        origin: the folder or zip, for messages.
        stamps: relative name (with /) of each file, sorted -> size and time, or CRC, which change with the content.
        folders: relative names of all sub-folders, including empty ones.
        read: returns the content of a file by its name, in any process; raises OSError, `zipfile.BadZipFile`, or
            DataError without the name.
        left_out: relative name -> the reason that the name is in neither `stamps` nor `folders`.
        times: path of each folder that was listed -> its time before; it changes if a name in the folder does. For a
            zip, the path and time of the zip.
    """

    origin: str
    stamps: dict[str, str]
    folders: frozenset[str]
    read: Callable[[str], bytes]
    left_out: dict[str, str] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: str | Path) -> Files:
        """List the files of a folder or zip.

        Raises:
            DataError: root is neither a readable folder nor a readable zip.
        """
        root = Path(root).expanduser()
        try:
            if root.is_dir():
                return cls._of_folder(root)
            if root.is_file() and zipfile.is_zipfile(root):
                return cls._of_zip(root)
        except OSError as error:
            raise DataError(f"data.root={root}: {error.filename} cannot be read ({error.strerror})") from error
        except Exception as error:  # zipfile raises many exception types for damaged archives
            raise DataError(f"data.root={root}: the zip is damaged ({error}): make it again") from error
        found = "a file that is no zip" if root.exists() else "nothing"
        kinds = "a folder, zip, tar, parquet file or LMDB of images"
        raise DataError(f"data.root={root}: found {found}, need {kinds}: set data.root")

    @classmethod
    def _of_folder(cls, root: Path) -> Files:
        unusual, stamps, folders, left_out, times = {}, {}, set(), {}, {}
        for folder, names in _walk(root, left_out, times):
            relative = _portable(os.path.relpath(folder, root))
            folders |= {relative} - {"."}
            start = "" if relative == "." else f"{relative}/"
            for name in names:
                path, key = os.path.join(folder, name), start + _portable(name)
                stamps[key] = stamp_of(path)
                if stamps[key] == NO_FILE:
                    left_out[key] = stamps.pop(key)
                    continue
                if os.sep == "/" and "\\" in path:
                    unusual[key] = path
        folders |= _parents(stamps)
        read = FolderReader(str(root), unusual)
        return cls(str(root), dict(sorted(stamps.items())), frozenset(folders), read, left_out, times)

    @classmethod
    def _of_zip(cls, root: Path) -> Files:
        times = {str(root): time_of(root)}
        read = ZipReader(root)
        folders = _parents([*read.members, *read.folders])
        stamps = {name: f"{member.file_size} {member.CRC:08x}" for name, member in sorted(read.members.items())}
        return cls(str(root), stamps, frozenset(folders | read.folders), read, {}, times)

    def below(self, folder: str) -> Files:
        """Select the files below one sub-folder, with names relative to the sub-folder."""
        start = folder + "/"

        def inner(names: dict[str, str]) -> dict[str, str]:
            return {name.removeprefix(start): value for name, value in names.items() if name.startswith(start)}

        return Files(
            f"{self.origin}/{folder}",
            inner(self.stamps),
            frozenset(name.removeprefix(start) for name in self.folders if name.startswith(start)),
            Below(self.read, start),
            inner(self.left_out),
            self.times,
        )


@dataclass(frozen=True)
class FolderReader:
    """Reads the files of a folder. `unusual` has the paths of files whose names have backslashes."""

    root: str
    unusual: dict[str, str]

    def __call__(self, name: str) -> bytes:
        """The content of a file."""
        return content_of(self.unusual.get(name) or os.path.join(self.root, name))


@dataclass(frozen=True)
class Below:
    """Reads the files below one sub-folder, whose name ends with a slash."""

    read: Callable[[str], bytes]
    start: str

    def __call__(self, name: str) -> bytes:
        """The content of a file."""
        return self.read(self.start + name)


class ZipReader:
    """Reads the members of a zip, which is opened by the first reading. A pickled copy opens the zip again."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """The open zip."""
        return zipfile.ZipFile(_ForkSafeFile(self.root) if hasattr(os, "preadv") else self.root)

    @cached_property
    def _all(self) -> dict[str, zipfile.ZipInfo]:
        names = {}
        for member in self.archive.infolist():
            name = _portable(member.filename)  # the compressor of Windows writes backslashes
            path = PurePosixPath(name.strip("/"))
            if path != PurePosixPath() and not any(is_litter(part) for part in path.parts):
                names[path.as_posix() + "/" * name.endswith("/")] = member
        return names

    @property
    def folders(self) -> set[str]:
        """Names of the members that are folders."""
        return {name.removesuffix("/") for name in self._all if name.endswith("/")}

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """Name of each file -> its member."""
        return {name: member for name, member in self._all.items() if not name.endswith("/")}

    def __reduce__(self) -> tuple:
        return ZipReader, (self.root,)

    def __call__(self, name: str) -> bytes:
        """The content of a member."""
        return _member(self.archive, self.members[name])


class _ForkSafeFile(io.RawIOBase):
    """A file whose position belongs to the process: forked processes share the position of an ordinary file."""

    def __init__(self, path: Path) -> None:
        self._file, self._position = open(path, "rb"), 0  # noqa: SIM115

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._file.fileno()).st_size}
        self._position = start[whence] + offset
        if self._position < 0:
            self._position = 0
            raise OSError(errno.EINVAL, "Invalid argument")
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        count = os.preadv(self._file.fileno(), [buffer], self._position)
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def content_of(path: str | Path) -> bytes:
    """Read the content of a regular file.

    Raises:
        DataError: the path is a device, a pipe or a folder, or the file is larger than `FILE_BYTES`.
        OSError: the file cannot be read.
    """
    # Opening a pipe without a writer would block.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError("is no regular file: remove it")
        if status.st_size > FILE_BYTES:
            raise DataError(f"has {status.st_size:,} bytes; an image file may have {FILE_BYTES:,}: remove it")
        return file.read(status.st_size)  # a larger number would be allocated


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > FILE_BYTES:
        raise DataError(
            f"would unpack to {member.file_size:,} bytes; an image file may have {FILE_BYTES:,}: take it out of the zip"
        )
    if member.compress_type not in PLAIN:
        kind = zipfile.compressor_names.get(member.compress_type, "an unknown method")
        raise DataError(f"is compressed by {kind}; deflate and no compression are allowed: make the zip again")
    return archive.read(member)


def _walk(root: Path, left_out: dict[str, str], times: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) for each folder once. Links are followed.

    Links are followed after all real folders, so that a folder is listed under its own name. A link to a folder that
    was already visited is added to `left_out`, because such links can form loops.
    """
    starts, seen = [str(root)], set()
    while starts:
        links: list[str] = []
        for start in starts:
            times[start] = time_of(start)
            for folder, below, names in os.walk(start, onerror=_raise):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    left_out[_portable(os.path.relpath(folder, root))] = "a link to a folder that is read already"
                    below.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                inner = sorted(name for name in below if not is_litter(name))
                links += [path for name in inner if os.path.islink(path := os.path.join(folder, name))]
                below[:] = [name for name in inner if not os.path.islink(os.path.join(folder, name))]
                times.update({path: time_of(path) for name in below if (path := os.path.join(folder, name))})
                yield folder, [name for name in names if not is_litter(name)]
        starts = links


def _raise(error: OSError) -> None:
    raise error


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or holds metadata of an operating system."""
    return name.startswith(".") or name.lower() in LITTER


def stamp_of(path: str | Path) -> str:
    """Size and time of a file; "unreadable" for a broken link; `NO_FILE` for pipes and devices."""
    try:
        status = os.stat(path)
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else NO_FILE


def time_of(path: str | Path) -> str:
    """Time and inode of a folder, or of a file that is only replaced as a whole."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _parents(names: Iterable[str]) -> set[str]:
    """All folders that the names of files lie in."""
    folders = {name.rpartition("/")[0] for name in names} - {""}
    return folders | {parent.as_posix() for folder in folders for parent in PurePosixPath(folder).parents} - {"."}


def _portable(name: str) -> str:
    return name.replace("\\", "/")
