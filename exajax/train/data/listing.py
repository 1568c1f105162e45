"""What was found where `data` points: files that are read, and files that are left out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from exajax import units
from exajax.files.reading import shown_path
from exajax.files.schema import Record

Count = Annotated[int, Field(ge=0, lt=2**62)]

HIDDEN = "hidden"
CARD = "dataset card"
LICENCE = "licence"
POINTER = "Git LFS pointer"
PARQUET = "Parquet"
ARROW = "Arrow"
CSV = "CSV"
COMPRESSED = "compressed"
SHARD = "tokenised shard"
NO_ROWS = "JSON without texts"
BINARY = "binary"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
BROKEN_LINK = "broken link"
SECOND_LINK = "linked twice"
OUTWARD_LINK = "link to a folder above"
NO_FILE = "pipe or device"
HUB_CACHE = "Hub cache"

AS_TEXT = " as plain text"
"""Behind the kind of a file that is read as one document of text, whatever it looks like."""

_TO_JSONL = (
    "python -c \"import pandas, sys; [pandas.{read}(f).to_json(f + '.jsonl', "
    "orient='records', lines=True) for f in sys.argv[1:]]\" FILES"
)

ADVICE = {
    POINTER: "git lfs pull fetches the data that it points to",
    PARQUET: "convert it with " + _TO_JSONL.format(read="read_parquet"),
    ARROW: "convert it with " + _TO_JSONL.format(read="read_feather"),
    CSV: "convert it with " + _TO_JSONL.format(read="read_csv"),
    COMPRESSED: "unpack it, or compress it with gzip",
    SHARD: "give the folder of its dataset.json itself as `data`",
    NO_ROWS: 'give an array or lines of objects with a "text"',
    NOT_UTF8: "convert it with iconv -f latin1 -t utf8",
}
"""What makes a kind of file readable that is left out; the likeliest to be the data is first."""

DATA = frozenset({POINTER, PARQUET, ARROW, CSV, COMPRESSED, SHARD, NO_ROWS, BINARY, NOT_UTF8})
"""Kinds of files that a README beside them may describe."""


class Found(Record):
    """Files of one kind.

    Attributes:
        files: how many; a hidden folder counts as one.
        size_bytes: of all of them, unpacked where they are read.
        first: one of them, by its path within the folder.
    """

    files: Count
    size_bytes: Count
    first: Annotated[str, Field(max_length=1000)]


class Listing(Record):
    """What was found, by kind.

    Attributes:
        read: kinds of files that are read: `text`, `jsonl`, `json`, `npz`, with `.gz` if packed.
        left_out: kinds that are not.
        bad_lines: lines of JSON that were skipped because they hold no text.
        first_bad_line: the first of them, and what is wrong with it.
    """

    read: dict[str, Found] = Field(default_factory=dict)
    left_out: dict[str, Found] = Field(default_factory=dict)
    bad_lines: Count = 0
    first_bad_line: Annotated[str, Field(max_length=1000)] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return self.model_dump()

    def describe(self) -> str:
        """Returns it in words; kinds that could be made readable have a line each."""
        text = "read " + (_counts(self.read, sizes=True) or "nothing")
        if self.left_out:
            text += "; left out " + _counts(self.left_out)
        if self.bad_lines:
            text += "; " + self.skipped()
        kinds = [kind.removesuffix(AS_TEXT) for kind in (*self.read, *self.left_out)]
        return "\n".join([text, *(f"  {kind}: {ADVICE[kind]}" for kind in kinds if kind in ADVICE)])

    def skipped(self) -> str:
        """Returns in words how many lines were skipped, and why the first."""
        lines = "line" if self.bad_lines == 1 else "lines"
        return f"skipped {self.bad_lines:,} bad {lines}, the first {self.first_bad_line}"

    def why_nothing(self) -> str:
        """Returns in words why none of the files is read, on one line."""
        return _counts(self.left_out) or "no files"

    def advice(self) -> str:
        """Returns what to do where none of the files is read, as an imperative."""
        known = [advice for kind, advice in ADVICE.items() if kind in self.left_out]
        return known[0] if known else 'give UTF-8 text, or .jsonl whose lines have a "text"'


def total(listings: Sequence[Listing]) -> Listing:
    """Returns the listing of several places together."""
    return Listing(
        read=_together([listing.read for listing in listings]),
        left_out=_together([listing.left_out for listing in listings]),
        bad_lines=sum(listing.bad_lines for listing in listings),
        first_bad_line=next((at.first_bad_line for at in listings if at.bad_lines), None),
    )


def count(files: Iterable[tuple[str, Path, int]], root: Path) -> dict[str, Found]:
    """Counts files by kind.

    Args:
        files: kind, path and size of each.
        root: the folder that the paths lie in, or the file itself.
    """
    groups: dict[str, list[tuple[Path, int]]] = {}
    for kind, path, size_bytes in files:
        groups.setdefault(kind, []).append((path, size_bytes))
    return {
        kind: Found(
            files=len(group),
            size_bytes=sum(size for _, size in group),
            first=_within(min(path for path, _ in group), root),
        )
        for kind, group in sorted(groups.items())
    }


def _together(found: Sequence[Mapping[str, Found]]) -> dict[str, Found]:
    kinds = sorted({kind for one in found for kind in one})
    groups = {kind: [one[kind] for one in found if kind in one] for kind in kinds}
    return {
        kind: Found(
            files=sum(one.files for one in group),
            size_bytes=sum(one.size_bytes for one in group),
            first=group[0].first,
        )
        for kind, group in groups.items()
    }


def _within(path: Path, root: Path) -> str:
    return shown_path(Path(path.name) if path == root else path.relative_to(root))


def _counts(found: Mapping[str, Found], *, sizes: bool = False) -> str:
    return ", ".join(
        f"{one.files:,} {kind} ({units.show(one.size_bytes, 'B') if sizes else one.first})"
        for kind, one in found.items()
    )
