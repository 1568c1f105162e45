"""Tokenizer files of an exported model, for transformers.

`tokenizer.json` is a copy of the run's own. For a run on bytes it is made here, from GPT-2's map of
bytes to letters (github.com/openai/gpt-2, src/encoder.py), without merges.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


@dataclass(frozen=True)
class TextForm:
    """The tokenizer of an exported model.

    Attributes:
        tokenizer_json: content of `tokenizer.json`.
        end: id of the token that ends a document.
        end_token: its text; None for bytes, since any text could occur in a document.
    """

    tokenizer_json: bytes
    end: int
    end_token: str | None

    @classmethod
    def of_file(cls, content: bytes, end: int) -> "TextForm":
        """The tokenizer of a `tokenizer.json`, with the id of the token that ends a document."""
        return cls(content, end, tokenizers.Tokenizer.from_buffer(content).id_to_token(end))

    @classmethod
    def of_bytes(cls, end: int) -> "TextForm":
        """The tokenizer whose 256 tokens are the bytes of UTF-8."""
        letters = {_letter(byte): byte for byte in range(256)}
        model = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        return cls(model.to_str(pretty=True).encode(), end, None)

    def files(self, seq: int) -> dict[str, bytes]:
        """Contents of the tokenizer's and the generation's files, by file name.

        Args:
            seq: longest sequence of the model, in tokens.
        """
        named = {} if self.end_token is None else {"eos_token": self.end_token}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": seq,
            "clean_up_tokenization_spaces": False,
            **named,
        }
        return {
            "tokenizer.json": self.tokenizer_json,
            "tokenizer_config.json": _json(config),
            "special_tokens_map.json": _json(named),
            "generation_config.json": _json({"bos_token_id": None, "eos_token_id": self.end}),
        }


def _letter(byte: int) -> str:
    """The letter that stands for a byte: its own character if that is printable."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printed:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printed].index(byte))


def _json(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
