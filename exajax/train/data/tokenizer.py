"""Text to token numbers and back: bytes, or a Hugging Face `tokenizer.json`."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tokenizers

from exajax.errors import InputError
from exajax.files import paths
from exajax.files.reading import Malformed, read_bytes, shown, shown_path

BYTES = "bytes"

KEPT = "tokenizer.json"
"""Name of the file in a tokenised folder and in a run's: a copy of the one that was given."""

END_OF_DOCUMENT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<EOS_TOKEN>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Names of the special token that ends a document, the first that a tokenizer has is taken.

GPT-2 and its heirs; Llama 3; Llama 2, Mistral and other SentencePiece models; Gemma; others;
Cohere; DeepSeek.
"""

MOST_BYTES = 64 << 20
"""Largest `tokenizer.json`; that of Gemma 3, of 262,144 tokens, has 33 MB."""

MOST_TOKENS = 1 << 31
"""Token numbers are trained on as int32."""

FIX = "give bytes, or a Hugging Face tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is: two with the same digest number the same text alike.

    Attributes:
        name: `bytes` or `tokenizer.json`.
        digest: SHA-256 of its file.
        vocab_size: one more than the largest token number.
        end_of_document: number of the token behind every document.
    """

    name: str
    digest: str
    vocab_size: int
    end_of_document: int

    @property
    def label(self) -> str:
        """Name and digest, for messages and to tell tokenizers apart."""
        return f"{self.name} {self.digest[:16]}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest type that holds every token number, little-endian."""
        narrow = next(t for t in ("<u1", "<u2", "<u4") if np.iinfo(t).max >= self.vocab_size - 1)
        return np.dtype(narrow)

    def to_json(self) -> dict[str, Any]:
        """Returns its four facts."""
        return {name: asdict(self)[name] for name in Vocabulary.__dataclass_fields__}


@dataclass(frozen=True)
class ByteTokenizer(Vocabulary):
    """The bytes of UTF-8. Byte 0 ends a document: no text holds one."""

    name: str = BYTES
    digest: str = hashlib.sha256(BYTES.encode()).hexdigest()
    vocab_size: int = 256
    end_of_document: int = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token numbers of each text."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text; what is not UTF-8 is replaced."""
        return ids.astype(np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True)
class FileTokenizer(Vocabulary):
    """A Hugging Face `tokenizer.json`.

    Attributes:
        content: the file.
        model: what the library made of it.
    """

    content: bytes = field(repr=False)
    model: tokenizers.Tokenizer = field(repr=False, compare=False)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token numbers of each text, on all cores; none ends a document.

        Raises:
            InputError: the tokenizer cannot encode a text, or not without the token that ends
                documents.
        """
        try:
            with _faults():
                found = self.model.encode_batch_fast(list(texts), add_special_tokens=False)
        except TokenizerFault as error:
            raise InputError("tokenizer", f"cannot encode the text: {error}", FIX) from error
        ids = [np.array(encoding.ids, self.dtype) for encoding in found]
        return [
            self._encode_around_ends(text) if self.end_of_document in numbers else numbers
            for text, numbers in zip(texts, ids, strict=True)
        ]

    def _encode_around_ends(self, text: str) -> np.ndarray:
        """Returns the token numbers of a text that spells the end token, cut within each of them.

        Such vocabularies hold the name of the token as a piece or a word like any other.
        """
        found = self.model.encode(text, add_special_tokens=False)
        spelled = [
            span
            for number, span in zip(found.ids, found.offsets, strict=True)
            if number == self.end_of_document
        ]
        if any(end - begin < 2 for begin, end in spelled):
            name = self.model.id_to_token(self.end_of_document)
            problem = f"its end token {shown(name)} is also what {_around(text, spelled)} becomes"
            raise InputError("tokenizer", problem, "give one with an end that text cannot spell")
        cuts = [0, *((begin + end) // 2 for begin, end in spelled), len(text)]
        parts = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
        return np.concatenate(self.encode(parts))

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text, special tokens by their names."""
        return str(self.model.decode(ids.tolist(), skip_special_tokens=False))


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(given: str) -> Tokenizer:
    """Returns a tokenizer.

    Args:
        given: `bytes`, or the path of a `tokenizer.json`.

    Raises:
        InputError: there is no such file, it is not a tokenizer, or none of its tokens ends a
            document.
    """
    if given == BYTES:
        return ByteTokenizer()
    path = paths.existing_path(given, "tokenizer", FIX)
    try:
        content = read_bytes(path, MOST_BYTES)
    except Malformed as error:
        raise error.within("tokenizer", path) from error
    name = shown_path(path)
    try:
        with _quietly(), _faults():
            model = tokenizers.Tokenizer.from_buffer(content)
            _make_plain(model)
            model.encode_batch_fast(["a text"], add_special_tokens=False)
        numbers = model.get_vocab(with_added_tokens=True)
        end = _end_of_document(model)
    except TokenizerFault as error:
        raise InputError("tokenizer", f"{name} is not a tokenizer ({error})", FIX) from error
    except Malformed as error:
        raise error.within("tokenizer", path) from error
    size = max(numbers.values()) + 1
    if size > MOST_TOKENS:
        raise InputError("tokenizer", f"{name} has a token of number {size - 1:,}", FIX)
    digest = hashlib.sha256(content).hexdigest()
    return FileTokenizer("tokenizer.json", digest, size, end, content, model)


class TokenizerFault(Exception):  # noqa: N818 - of a file or a text, not of ours
    """The library could not read a tokenizer, or not encode with it."""


def _make_plain(model: tokenizers.Tokenizer) -> None:
    """Makes a tokenizer number whole texts, the same way each time, and nothing but texts."""
    # Some files cut or pad every text for one model's input; and text that merely spells a
    # special token must not end a document.
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    if getattr(model.model, "dropout", None):  # of BPE: leaves out merges by chance
        model.model.dropout = None


def _end_of_document(model: tokenizers.Tokenizer) -> int:
    """Returns the number of the special token that ends documents.

    Raises:
        Malformed: there is none.
    """
    added = model.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    for name in END_OF_DOCUMENT:
        if name in special:
            return int(special[name])
    ordinary = [name for name in END_OF_DOCUMENT if model.token_to_id(name) is not None]
    if ordinary:
        raise Malformed(
            "",
            f"has no special token that ends a document: its {ordinary[0]} is an ordinary one, "
            "which any text may hold",
            f'give {ordinary[0]} in its added_tokens "special": true, if that is what it is',
        )
    raise Malformed(
        "",
        "has no token that ends a document",
        f'add one of {", ".join(END_OF_DOCUMENT)} to its added_tokens, "special": true',
    )


def _around(text: str, spelled: list[tuple[int, int]]) -> str:
    """Returns a text that became a token and cannot be cut, to be shown."""
    begin, end = next(span for span in spelled if span[1] - span[0] < 2)
    return shown(text[begin:end] or text[max(0, begin - 5) : end + 5])


@contextmanager
def _faults() -> Iterator[None]:
    """Turns what the library raises, panics of Rust included, into `TokenizerFault`."""
    try:
        yield
    except BaseException as error:
        # A panic is no Exception, and its class has no name that could be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerFault(" ".join(str(error).split())[:200]) from error
        raise


@contextmanager
def _quietly() -> Iterator[None]:
    """Leaves out what a fault prints: Rust writes a stack to the file of standard error itself."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except BaseException:
            printed.truncate(0)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            os.write(2, printed.read())
