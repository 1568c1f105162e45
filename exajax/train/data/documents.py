"""Documents: every text file is one, and in rows of JSON the "text" of every row.

What is read in a folder: text in UTF-8, `.jsonl`, and `.json` with an array or lines of objects,
packed with gzip or not. Names that begin with a dot, dataset cards, licences and pointers to data
that is elsewhere are not read, nor is what is not text; all of it is counted in a `Listing`.

Documents are read as a stream of pieces, so that a corpus or a single document may be larger than
the memory.
"""

import dataclasses
import hashlib
import io
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exajax.errors import InputError
from exajax.files.paths import existing_path
from exajax.files.reading import Malformed, shown_path
from exajax.train.data import rows
from exajax.train.data.folder_walk import FolderWalk
from exajax.train.data.kinds import (
    DataFile,
    as_text,
    errors_named,
    is_card,
    is_licence,
    look,
    opened,
)
from exajax.train.data.listing import (
    AS_TEXT,
    CARD,
    DATA,
    EMPTY,
    LICENCE,
    NO_FILE,
    POINTER,
    Listing,
    count,
)
from exajax.train.data.tokenizer import Tokenizer

BAD_LINES = ("refuse", "skip")
"""What to do about a row of JSON that holds no text."""

PIECE_CHARACTERS = 1 << 20
"""Longer documents are tokenised in pieces of about this length, cut before white space."""

GROUP_CHARACTERS = 4 << 20
"""Text that is handed to the tokenizer at once, which divides it among the cores."""

FIX = "give a UTF-8 text file or a folder"

Piece = tuple[str, bool]
"""Text, and whether it is the last of its document."""


@dataclass
class BadLines:
    """What becomes of rows of JSON that hold no text.

    Attributes:
        skip: whether they are left out; otherwise the first is an error.
        count: how many were left out.
        first: where the first of them stands, and what is wrong with it.
    """

    skip: bool = False
    count: int = 0
    first: str | None = None

    def take(self, place: str, error: Malformed) -> None:
        """Counts a row, or raises an `InputError`."""
        problem = f"{place}: {error}"
        if not self.skip:
            raise InputError("data", problem, f"{error.fix}, or give `bad_lines` skip")
        self.count += 1
        self.first = self.first or problem


@dataclass(frozen=True)
class Source:
    """Files with documents.

    Attributes:
        title: where they were looked for, or what they are.
        files: in the order of their paths.
        sha256: hash of their contents, file by file.
        size_bytes: of all of them, unpacked.
        found: which files were found, read or not.
        bad_lines: rows that hold no text, of the pieces that have been read.
    """

    title: str
    files: tuple[DataFile, ...]
    sha256: str
    size_bytes: int
    found: Listing
    bad_lines: BadLines = field(default_factory=BadLines, compare=False)

    @property
    def listing(self) -> Listing:
        """What was found; complete with the rows that were skipped once all pieces are read."""
        bad = self.bad_lines
        return self.found.model_copy(update={"bad_lines": bad.count, "first_bad_line": bad.first})


def scan(path: str | None, bad_lines: str = "refuse") -> Source:
    """Finds the text at a path.

    Args:
        path: a file, which is read whatever its name, or a folder; None is the Python standard
            library's own source, which is on every machine that runs this.
        bad_lines: one of `BAD_LINES`.

    Raises:
        InputError: nothing there can be read; lists what was found.
    """
    left_out: list[tuple[str, Path]] = []
    if path is None:
        root, title = Path(sysconfig.get_paths()["stdlib"]), "Python standard library"
        looked = {file: look(file) for file in _standard_library(root)}
    else:
        root, title = existing_path(path, "data", FIX), shown_path(Path(path))
        if root.is_dir():
            walk = FolderWalk(root)
            left_out = walk.left_out
            looked = {file: LICENCE if is_licence(file) else look(file) for file in walk.files}
            looked |= dict.fromkeys(_cards(root, looked), CARD)
        else:
            looked = {root: _given_file(root)}
    files = tuple(at for _, at in sorted(looked.items()) if isinstance(at, DataFile))
    left_out += [(kind, file) for file, kind in looked.items() if isinstance(kind, str)]
    found = Listing(
        read=count(((file.kind, file.path, file.size_bytes) for file in files), root),
        left_out=count(((kind, file, _size_bytes(file)) for kind, file in left_out), root),
    )
    if not files:
        why = f"has nothing to read: {found.why_nothing()}"
        if root in looked:
            why = f"is not text: {looked[root]}"
        raise InputError("data", f"{title} {why}", found.advice())
    digest = hashlib.sha256(b"".join(file.digest for file in files)).hexdigest()
    size_bytes = sum(file.size_bytes for file in files)
    return Source(title, files, digest, size_bytes, found, BadLines(bad_lines == "skip"))


def pieces(source: Source) -> Iterator[Piece]:
    """Yields the text of all documents, in order.

    Raises:
        InputError: a row of JSON holds no text and such rows are refused, or none does; or a file
            has changed since it was found.
    """
    any_text, bad = False, source.bad_lines
    bad.count, bad.first = 0, None
    for file in source.files:
        with errors_named(file.path), opened(file.path, file.packed) as opening:
            if file.form == "text":
                any_text = True
                yield from _pieces_of_text(io.TextIOWrapper(opening, "utf-8-sig", newline=""))
                continue
            for place, row in (rows.lines if file.form == "lines" else rows.items)(opening):
                try:
                    text = rows.text_of(row)
                except Malformed as error:
                    bad.take(f"{place} of {shown_path(file.path)}", error)
                    continue
                any_text = True
                yield text, True
    if not any_text:
        why = f": {bad.first}" if bad.count else ""
        raise InputError("data", f"{source.title} holds no document{why}", FIX)


def tokens(texts: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yields the token numbers of documents as one stream, the end token behind each document."""
    end = np.array([tokenizer.end_of_document], tokenizer.dtype)
    for group in _groups(texts):
        encoded = tokenizer.encode([text for text, _ in group])
        for ids, (_, last) in zip(encoded, group, strict=True):
            yield ids
            if last:
                yield end


def _groups(texts: Iterable[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size = 0
    for piece in texts:
        group.append(piece)
        size += len(piece[0])
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _standard_library(root: Path) -> Iterator[Path]:
    """Yields its source files, without tests and what was installed below it."""
    for folder, folders, names in os.walk(root):
        folders[:] = {*folders} - {"site-packages", "dist-packages", "test", "tests"}
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _given_file(path: Path) -> DataFile | str:
    """Returns a file that was given itself: one of text is read whatever its name promises.

    Its kind says so, as whoever gives JSON or CSV seldom means to learn its commas and braces.
    """
    found = look(path)
    if isinstance(found, DataFile) or found in (POINTER, NO_FILE, EMPTY):
        return found
    text = as_text(path)
    if not isinstance(text, DataFile):
        return found
    return dataclasses.replace(text, kind=found + AS_TEXT)


def _cards(root: Path, looked: dict[Path, DataFile | str]) -> list[Path]:
    """Returns the texts that describe the data of a folder."""
    texts = [file for file, kind in looked.items() if isinstance(kind, DataFile)]
    top = [file for file in texts if is_card(file, root, beside_data=True)]
    data = len(texts) > len(top) or any(kind in DATA for kind in looked.values())
    return [file for file in top if is_card(file, root, beside_data=data)]


def _size_bytes(path: Path) -> int:
    """Returns the size of a file that is left out; 0 for a folder, and for a link to nowhere."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _pieces_of_text(file: io.TextIOWrapper) -> Iterator[Piece]:
    text = file.read(PIECE_CHARACTERS)
    while following := file.read(PIECE_CHARACTERS):
        # Tokenizers, too, cut before white space.
        cut = max(text.rfind(" "), text.rfind("\n"))
        cut = cut if cut > 0 else len(text)
        yield text[:cut], False
        text = text[cut:] + following
    yield text, True
