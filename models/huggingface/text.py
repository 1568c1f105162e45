"""The tokenizer of an exported model, in the files that transformers reads it from.

`tokenizer.json` is the run's own, byte for byte. Text of bytes has one made here: GPT-2's map from
bytes to letters (github.com/openai/gpt-2, src/encoder.py), and no merges.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers


@dataclass(frozen=True)
class TextForm:
    """How an exported model's text becomes token numbers.

    Attributes:
        tokenizer_json: content of a `tokenizer.json`.
        end: number of the token that ends a document.
        end_token: its name; None for bytes, where a text may hold whatever would name it.
    """

    tokenizer_json: bytes
    end: int
    end_token: str | None

    @classmethod
    def of_file(cls, content: bytes, end: int) -> "TextForm":
        """Returns the form of a `tokenizer.json` whose documents end in the token `end`."""
        return cls(content, end, tokenizers.Tokenizer.from_buffer(content).id_to_token(end))

    @classmethod
    def of_bytes(cls, end: int) -> "TextForm":
        """Returns the form of text whose 256 tokens are the bytes of UTF-8."""
        letters = {_letter(byte): byte for byte in range(256)}
        model = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        return cls(model.to_str(pretty=True).encode(), end, None)

    def files(self, seq: int) -> dict[str, bytes]:
        """Returns the files of a model's tokenizer, and of how it writes text, by name.

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
    """Returns the letter that stands for a byte: itself where it can be printed."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printed:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printed].index(byte))


def _json(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=2) + "\n").encode()
