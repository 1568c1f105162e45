"""Text from a language model, one token after the other.

Every token costs a forward pass over the whole window: there is no cache of keys and values, so
the time of a token grows with the window and does not depend on the layout of the model.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from exajax.errors import InputError

CHUNK = 16
"""Tokens that are made in one call of the device, and shown together."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only so many of the likeliest may be drawn; None is all.
        seed: of the draws.
    """

    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError("temperature", f"it is {self.temperature}", "give a number >= 0")
        if self.top_k is not None and self.top_k < 1:
            raise InputError("top_k", f"it is {self.top_k}", "give a whole number from 1 on")
        if self.seed < 0:
            raise InputError("seed", f"{self.seed} is negative", "give a whole number from 0 on")


def draw(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns the number of the next token, int32.

    Args:
        logits_V: logits of every token that may come.
        key: of this one draw.
        sampling: temperature and top_k; the seed is in the key.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    K = min(sampling.top_k or logits_V.size, logits_V.size)
    logits_K, tokens_K = jax.lax.top_k(logits_V, K)
    return tokens_K[jax.random.categorical(key, logits_K / sampling.temperature)].astype(jnp.int32)


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its parameters.

    Attributes:
        logits: `logits(params, tokens_BT)` returns [B, T, V], causal.
        params: the parameters.
        window: tokens that it can see.
        vocab: only the first so many tokens may be drawn.
        end: token that ends a document; None if none does.
    """

    logits: Callable[[Any, jax.Array], jax.Array]
    params: Any
    window: int
    vocab: int
    end: int | None = None


def generate(
    model: LanguageModel, prompt: Sequence[int], tokens: int, sampling: Sampling
) -> Iterator[list[int]]:
    """Yields the tokens that follow a prompt, `CHUNK` at a time.

    Text that is longer than the model's window goes on from its last tokens; the end of a document
    ends it, and is not yielded.

    Args:
        model: what writes.
        prompt: numbers of the first tokens, at least one.
        tokens: how many to generate.
        sampling: how they are drawn; equal ones draw equal tokens.

    Raises:
        InputError: the prompt is empty or longer than the window, or `tokens` is less than 1.
    """
    if tokens < 1:
        raise InputError("tokens", f"{tokens} is less than 1", "give a whole number from 1 on")
    if not 1 <= len(prompt) <= model.window:
        raise InputError(
            "prompt",
            f"it has {len(prompt)} tokens, and the model sees 1 to {model.window}",
            f"give 1 to {model.window} tokens",
        )
    # Shorter than the model's sequence where all of the text fits: what follows is not seen.
    T = min(model.window, -(-(len(prompt) + tokens) // CHUNK) * CHUNK)
    advance = _chunk_function(model, T, sampling)
    window_T = jnp.zeros(T, jnp.int32).at[: len(prompt)].set(jnp.array(prompt, jnp.int32))
    carry = window_T, jnp.int32(len(prompt))
    for first in range(0, tokens, CHUNK):
        carry, drawn = advance(model.params, carry, jnp.int32(first))
        chunk = drawn[: tokens - first].tolist()
        if model.end in chunk:
            yield chunk[: chunk.index(model.end)]
            return
        yield chunk


def _chunk_function(model: LanguageModel, T: int, sampling: Sampling) -> Any:
    """Returns a jitted `advance(params, (window_T, length), first)`, which draws `CHUNK` tokens.

    It returns the next (window_T, length), and the tokens. `first` is the number of the first of
    them, which with the seed makes their keys.
    """

    def one(params: Any, carry: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
        window_T, length = carry
        logits_TV = model.logits(params, window_T[None])[0]
        token = draw(logits_TV[length - 1, : model.vocab].astype(jnp.float32), key, sampling)
        moved_T = jnp.where(length == T, jnp.roll(window_T, -1), window_T)
        moved_T = moved_T.at[jnp.minimum(length, T - 1)].set(token)
        return (moved_T, jnp.minimum(length + 1, T)), token

    @jax.jit
    def advance(params: Any, carry: tuple[jax.Array, jax.Array], first: jax.Array) -> Any:
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(sampling.seed), n))(
            first + jnp.arange(CHUNK)
        )
        return jax.lax.scan(lambda carry, key: one(params, carry, key), carry, keys)

    return advance


def as_text(chunks: Iterable[list[int]], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yields the text of tokens as they come; a character that is not complete yet waits."""
    ids: list[int] = []
    shown = 0
    for chunk in chunks:
        ids += chunk
        complete = decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")
        yield complete[shown:]
        shown = len(complete)
    yield decode(ids)[shown:]
