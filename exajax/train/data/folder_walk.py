"""Finds the files of a folder that may be text: links are followed, hidden ones are not read."""

import os
from collections.abc import Iterator
from pathlib import Path

from exajax.errors import InputError
from exajax.files.reading import shown_path
from exajax.train.data.listing import BROKEN_LINK, HIDDEN, HUB_CACHE, OUTWARD_LINK, SECOND_LINK

HUB_FOLDERS = frozenset({"blobs", "refs", "snapshots"})
"""What the Hub's cache of a data set holds; its files are named in `snapshots` alone."""

Place = tuple[int, int]
"""Device and inode: what a folder or file is, whatever path leads to it."""


class FolderWalk:
    """The files of a folder, found once each.

    What lies in the folder itself comes first, then what links in it lead to, so that the same
    folder gives the same files on every machine.

    Attributes:
        files: those that may be read.
        left_out: kind and path of those that are not to be looked into.
    """

    def __init__(self, root: Path) -> None:
        self.files: list[Path] = []
        self.left_out: list[tuple[str, Path]] = []
        self._root = root.resolve()
        self._folders: set[Place] = set()
        self._links: list[Path] = []
        self._enter(root)
        seen = {_place(path) for path in self.files} if self._links else set()
        for link in self._links:  # grows by the links in folders that links lead to
            self._follow(link, seen)

    def _enter(self, root: Path) -> None:
        """Finds the files of a folder and of those in it."""
        pending = [root]
        while pending:
            folder = pending.pop()
            self._folders.add(_place(folder))
            entries = sorted(_entries(folder), key=lambda entry: entry.name)
            cache = {entry.name for entry in entries} >= HUB_FOLDERS
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    self.left_out.append((HIDDEN, path))
                elif cache and entry.name != "snapshots":
                    self.left_out.append((HUB_CACHE, path))
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                else:
                    self.files.append(path)

    def _follow(self, link: Path, seen: set[Place]) -> None:
        """Takes what a link leads to, unless it is there already."""
        if not os.path.exists(link):  # nothing is there, or links that lead to each other
            self.left_out.append((BROKEN_LINK, link))
            return
        place = _place(link)
        if place in self._folders or place in seen:
            self.left_out.append((SECOND_LINK, link))
        elif not link.is_dir():
            seen.add(place)
            self.files.append(link)
        elif self._root.is_relative_to(link.resolve()):
            self.left_out.append((OUTWARD_LINK, link))
        else:
            before = len(self.files)
            self._enter(link)
            seen |= {_place(path) for path in self.files[before:]}


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise _unreadable(folder, error) from error


def _place(path: Path) -> Place:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino


def _unreadable(path: Path, error: OSError) -> InputError:
    problem = f"cannot look into {shown_path(path)}: {error.strerror}"
    return InputError("data", problem, "make it readable, or move it away")
