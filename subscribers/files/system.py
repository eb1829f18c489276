"""A folder of files as a system: its settings and the folders of its subscribers."""

from __future__ import annotations

from pathlib import Path

from subscribers.errors import SystemDown
from subscribers.system import Options as SystemOptions
from subscribers.system import System


class FileOptions(SystemOptions):
    """The settings of a system of files, by the example of one named `erp`.

    ERP_FOLDER: the folder, which must exist; all worker processes need to reach it.
    """

    folder: str


class FileSystem(System):
    """One folder, with a folder in it for each subscriber."""

    Options = FileOptions

    def folder(self, path: str, *parts: str) -> Path:
        """A folder below the system's, which is made; the system's own is not: it may be a disk that is missing.

        Raises:
          SystemDown: it cannot be reached.
        """
        top = Path(self.options.folder)
        if not top.is_dir():
            raise SystemDown(f"there is no folder {top}")
        folder = top.joinpath(path, *parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise system_down(error) from error
        return folder


def system_down(error: OSError) -> SystemDown:
    """Return the failure of a folder or file that cannot be reached."""
    return SystemDown(f"{error.filename or 'the folder'}: {error.strerror}")
