"""Files by name, from a folder or out of a zip; nothing is ever extracted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from consistency_models.errors import DataError

__all__ = ["Files"]

FILE_BYTES = 256 << 20  # no image file is larger; a member of a zip that says it is would fill the memory


@dataclass(frozen=True)
class Files:
    """The files below a folder or in a zip, without hidden ones.

    Args:
        origin: where they lie, for messages.
        stamps: relative name (with /) of each file, sorted -> what changes with its content: size and time, or CRC.
        folders: relative names of all sub-folders, empty ones too.
        read: the content of a file by its name; raises OSError, or `zipfile.BadZipFile`.
    """

    origin: str
    stamps: dict[str, str]
    folders: frozenset[str]
    read: Callable[[str], bytes]

    @classmethod
    def open(cls, root: str | Path) -> Files:
        """The files of a folder or zip.

        Raises:
            DataError: root is neither a folder nor a readable zip, or a member of the zip is absurdly large.
        """
        root = Path(root).expanduser()
        if root.is_dir():
            return cls._of_folder(root)
        if root.is_file() and zipfile.is_zipfile(root):
            try:
                return cls._of_zip(root)
            except zipfile.BadZipFile as error:
                raise DataError(f"data.root={root}: the zip is damaged ({error}): make it again") from error
        found = "a file that is no zip" if root.exists() else "nothing"
        raise DataError(f"data.root={root}: found {found}, need a folder or a zip of images: set data.root to one")

    @classmethod
    def _of_folder(cls, root: Path) -> Files:
        stamps, folders = {}, set()
        for parent, below, names in os.walk(root, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            relative = Path(parent).relative_to(root)
            folders |= {(relative / name).as_posix() for name in below}
            for name in names:
                if not name.startswith("."):
                    stamps[(relative / name).as_posix()] = _stamp(os.path.join(parent, name))
        return cls(str(root), dict(sorted(stamps.items())), frozenset(folders), lambda name: (root / name).read_bytes())

    @classmethod
    def _of_zip(cls, root: Path) -> Files:
        archive = zipfile.ZipFile(root)
        stamps, folders = {}, set()
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if any(part.startswith((".", "__MACOSX")) for part in path.parts):
                continue
            if member.file_size > FILE_BYTES:
                raise DataError(
                    f"{root}: {member.filename} would unpack to {member.file_size:,} bytes; an image file may have "
                    f"{FILE_BYTES:,}: take it out of the zip"
                )
            folders |= {parent.as_posix() for parent in path.parents} - {"."}
            if member.is_dir():
                folders.add(path.as_posix())
            else:
                stamps[member.filename] = f"{member.file_size} {member.CRC:08x}"
        return cls(str(root), dict(sorted(stamps.items())), frozenset(folders), archive.read)

    def below(self, folder: str) -> Files:
        """The files below one sub-folder, with names relative to it."""
        start = folder + "/"
        return Files(
            f"{self.origin}/{folder}",
            {name.removeprefix(start): stamp for name, stamp in self.stamps.items() if name.startswith(start)},
            frozenset(name.removeprefix(start) for name in self.folders if name.startswith(start)),
            lambda name: self.read(start + name),
        )


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a broken link: whoever reads it is told so
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"
