"""What a folder's files are taken for: those that are read, and the kinds that are left out."""

import gzip
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from exajax import InputError
from exajax.train.data import kinds
from exajax.train.data.documents import pieces, scan
from exajax.train.data.kinds import DataFile, look

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text, "id": 2**64}) + "\n" for text in texts)


def texts(path: Path) -> list[str]:
    return [text for text, _ in pieces(scan(str(path)))]


def left_out(path: Path) -> dict[str, int]:
    return {kind: found.files for kind, found in scan(str(path)).found.left_out.items()}


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder as the Hub's tools leave it."""
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.metadata").write_text('{"etag": 1}')
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / "README.md").write_text("# A card\n")
    (folder / "LICENSE").write_text("Anyone may read this.\n")
    (folder / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (folder / "data" / "pointer.parquet").write_text(POINTER)
    (folder / "data" / "train.parquet").write_bytes(b"PAR1" + bytes(range(256)) + b"PAR1")
    (folder / "data" / "a.jsonl.gz").write_bytes(gzip.compress(rows("one", "two").encode()))
    (folder / "data" / "b.json").write_text(json.dumps([{"text": "three"}, {"text": "four"}]))
    (folder / "data" / "c.json").write_text(rows("five"))
    (folder / "data" / "d.txt.gz").write_bytes(gzip.compress(b"six", mtime=0))
    return folder


def test_of_a_folder_of_the_hub_the_data_is_read_and_the_rest_is_counted(hub: Path) -> None:
    source = scan(str(hub))
    assert [text for text, _ in pieces(source)] == ["one", "two", "three", "four", "five", "six"]
    assert {kind: found.files for kind, found in source.found.read.items()} == {
        "jsonl.gz": 1, "json": 2, "text.gz": 1
    }  # fmt: skip
    assert left_out(hub) == {
        "hidden": 2, "dataset card": 1, "licence": 1, "JSON without texts": 1,
        "Git LFS pointer": 1, "Parquet": 1,
    }  # fmt: skip
    words = source.listing.describe()
    assert "1 Parquet (data/train.parquet)" in words
    assert "git lfs pull" in words


def test_where_nothing_can_be_read_it_lists_what_is_there_and_what_to_do(hub: Path) -> None:
    for path in (hub / "data").iterdir():
        if path.suffix != ".parquet":
            path.unlink()
    with pytest.raises(InputError) as caught:
        scan(str(hub))
    for words in ("1 Parquet (data/train.parquet)", "1 dataset card (README.md)", "2 hidden"):
        assert words in caught.value.problem
    assert "git lfs pull" in caught.value.fix


def test_packed_text_is_the_same_corpus_as_its_content(tmp_path: Path) -> None:
    for name, content in (("plain", rows("one")), ("packed", gzip.compress(rows("one").encode()))):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"a.jsonl{'.gz' * isinstance(content, bytes)}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    plain, packed = scan(str(tmp_path / "plain")), scan(str(tmp_path / "packed"))
    assert (plain.sha256, plain.size_bytes) == (packed.sha256, packed.size_bytes)
    (tmp_path / "plain" / "a.jsonl").rename(tmp_path / "plain" / "a.txt")
    assert scan(str(tmp_path / "plain")).sha256 != packed.sha256  # one document of other text


@pytest.mark.parametrize(
    "name", ["README.md", ".hidden", "LICENSE", "a.parquet", "b.json", "a.csv", "c"]
)
def test_a_text_that_is_given_itself_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("just text")
    assert texts(tmp_path / name) == ["just text"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '{"data": [{"text": "a"}]}', "1 JSON without texts as plain text (25 B)"),
        ("a.json", '{\n"text": "a"}', "1 JSON without texts as plain text"),
        ("a.json", "just text", "1 JSON without texts as plain text"),
        ("a.csv", "text\na\n", "1 CSV as plain text"),
    ],
)
def test_rows_of_another_form_that_are_read_as_text_are_named_with_what_to_do(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    (tmp_path / name).write_text(content)
    read, advice = scan(str(tmp_path / name)).listing.describe().splitlines()
    assert says in read
    assert ("read_csv" if name == "a.csv" else 'objects with a "text"') in advice


@pytest.mark.parametrize(
    ("name", "content", "says", "fix"),
    [
        ("a.parquet", b"PAR1\0\0", "Parquet", "read_parquet"),
        ("a.arrow", b"ARROW1\0\0", "Arrow", "read_feather"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\0", "compressed", "unpack"),
        ("a.txt", POINTER.encode(), "Git LFS pointer", "git lfs pull"),
        ("a.txt", "ä".encode("latin1"), "not UTF-8", "iconv"),
        ("a.txt", "ä".encode("utf-16"), "not UTF-8", "iconv"),
        ("a.txt.gz", gzip.compress(b"a\0b", mtime=0), "binary", "UTF-8"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "empty", "UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_named_by_its_kind(
    tmp_path: Path, name: str, content: bytes, says: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not text: {says}") as caught:
        scan(str(tmp_path / name))
    assert fix in caught.value.fix


def test_a_readme_is_data_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("all there is")
    (tmp_path / "LICENSE").write_text("anyone")
    assert texts(tmp_path) == ["all there is"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "README.md").write_text("a text of some project")
    assert texts(tmp_path) == ["a text of some project"]
    (tmp_path / "more" / "README.md").write_text("---\nlicense: mit\n---\na card")
    (tmp_path / "more" / "a.txt").write_text("data")
    assert texts(tmp_path) == ["data"]


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    given, elsewhere = tmp_path / "given", tmp_path / "elsewhere"
    (given / "in").mkdir(parents=True)
    elsewhere.mkdir()
    (given / "in" / "a.txt").write_text("a")
    (elsewhere / "b.txt").write_text("b")
    (elsewhere / "back").symlink_to(given)
    (given / "in" / "up").symlink_to("..")
    (given / "above").symlink_to(tmp_path)
    (given / "one").symlink_to(elsewhere)
    (given / "two").symlink_to(elsewhere)
    (given / "same.txt").symlink_to("in/a.txt")
    (given / "lost").symlink_to("nowhere")
    (given / "loop").symlink_to("loop")
    assert texts(given) == ["a", "b"]
    assert left_out(given) == {"linked twice": 4, "link to a folder above": 1, "broken link": 2}


def test_of_a_cache_of_the_hub_the_snapshots_are_read(tmp_path: Path) -> None:
    for name in ("blobs", "refs", "snapshots/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "blobs" / "0123").write_text(rows("one", "two"))
    (tmp_path / "refs" / "main").write_text("1")
    (tmp_path / "snapshots" / "1" / "a.jsonl").symlink_to("../../blobs/0123")
    assert texts(tmp_path) == ["one", "two"]


def test_a_pipe_in_a_folder_is_left_out_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("text")
    assert left_out(tmp_path) == {"pipe or device": 1}
    with pytest.raises(InputError, match="is not text: pipe or device"):
        scan(str(tmp_path / "pipe"))


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(5000).hex().encode())
    for content in (whole[:-9], whole[:100], whole[:-6] + b"abcdef", whole[:50] + whole[60:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.txt\.gz is damaged") as caught:
            scan(str(tmp_path))
        assert caught.value.field == "data"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_what_unpacks_without_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(kinds, "ALWAYS_UNPACKED_BYTES", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(b" " * (8 << 20)))
    with pytest.raises(InputError, match="unpacks to more than"):
        scan(str(tmp_path))


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    assert texts(tmp_path) == ["text"]
    json.dumps(scan(str(tmp_path)).listing.to_json()).encode()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "it is empty"),
        ("x" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
        ("a\0b", "is no path"),
        ("none", "does not exist"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        scan(path)
    assert caught.value.field == "data"
    assert len(str(caught.value)) < 500


DROPPED = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Without these, root may look into any folder."""


def test_a_folder_that_one_may_not_enter_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "open" / "secret"
    secret.mkdir(parents=True)
    (secret / "a.txt").write_text("text")
    closed = tmp_path / "open" / "closed.txt"
    closed.write_text("text")
    closed.chmod(0)
    secret.chmod(0)
    tell = "import sys; from exajax.train.data.documents import scan; scan(sys.argv[1])"
    first = DROPPED if os.geteuid() == 0 else ()
    try:
        for path, says in (
            (secret / "a.txt", "cannot look at"),
            (secret, "cannot look into"),
            (tmp_path, "cannot look into"),
            (closed, "cannot read"),
        ):
            result = subprocess.run(
                [*first, sys.executable, "-c", tell, str(path)], capture_output=True, text=True
            )
            assert f"InputError: data: {says}" in result.stderr.splitlines()[-1], result.stderr
            assert "Permission denied" in result.stderr
    finally:
        secret.chmod(stat.S_IRWXU)


def test_misnamed_files_are_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "unpacked.jsonl.gz").write_text(rows("one"))
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(rows("two").encode()))
    found = [look(path) for path in sorted(tmp_path.iterdir())]
    assert [file.kind for file in found if isinstance(file, DataFile)] == ["jsonl.gz", "jsonl"]
    assert sorted(texts(tmp_path)) == ["one", "two"]
