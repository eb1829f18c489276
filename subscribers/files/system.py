"""A folder of files as a system: its settings and the folders of its subscribers."""

from __future__ import annotations

from pathlib import Path

from subscribers.errors import SystemDown
from subscribers.system import Options as SystemOptions
from subscribers.system import System


class FileOptions(SystemOptions):
    """The settings of a system of files, for the example of one named `erp`.

    ERP_FOLDER: the folder, which must exist and be accessible to all worker processes.
    """

    folder: str


class FileSystem(System):
    """A folder with a subfolder for each subscriber."""

    Options = FileOptions

    def folder(self, path: str, *parts: str) -> Path:
        """Return a folder below the system's, and create it. The system's own must exist: its disk may be missing.

        Raises:
          SystemDown: the folder cannot be accessed.
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
