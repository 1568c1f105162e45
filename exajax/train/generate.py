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


def draw(logits_V: jax.Array, key: jax.Array, how: Sampling) -> jax.Array:
    """Returns the number of the next token, int32.

    Args:
        logits_V: logits of every token that may come.
        key: of this one draw.
        how: temperature and top_k; the seed is in the key.
    """
    if how.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    K = min(how.top_k or logits_V.size, logits_V.size)
    logits_K, tokens_K = jax.lax.top_k(logits_V, K)
    return tokens_K[jax.random.categorical(key, logits_K / how.temperature)].astype(jnp.int32)


def generate(
    logits: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: Sequence[int],
    *,
    tokens: int,
    window: int,
    vocab: int,
    end: int | None = None,
    how: Sampling,
) -> Iterator[list[int]]:
    """Yields the tokens that follow a prompt, `CHUNK` at a time.

    Text that is longer than the window goes on from its last `window` tokens.

    Args:
        logits: `logits(params, tokens_BT)` returns [B, T, V], causal.
        params: the parameters.
        prompt: numbers of the first tokens, at least one.
        tokens: how many to make.
        window: how many the model can see.
        vocab: only the first so many tokens may be drawn.
        end: the token behind which there is no more text; it is not yielded.
        how: how they are drawn; equal ones draw equal tokens.

    Raises:
        InputError: the prompt is empty or longer than the window, or `tokens` is less than 1.
    """
    if tokens < 1:
        raise InputError("tokens", f"{tokens} is less than 1", "give a whole number from 1 on")
    if not 1 <= len(prompt) <= window:
        raise InputError(
            "prompt",
            f"it has {len(prompt)} tokens, and the model sees 1 to {window}",
            f"give 1 to {window} tokens",
        )
    # Shorter than the model's sequence where all of the text fits; what is behind is not seen.
    T = min(window, -(-(len(prompt) + tokens) // CHUNK) * CHUNK)

    def one(params: Any, carry: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
        window_T, length = carry
        logits_TV = logits(params, window_T[None])[0]
        token = draw(logits_TV[length - 1, :vocab].astype(jnp.float32), key, how)
        moved_T = jnp.where(length == T, jnp.roll(window_T, -1), window_T)
        return (
            moved_T.at[jnp.minimum(length, T - 1)].set(token),
            jnp.minimum(length + 1, T),
        ), token

    @jax.jit
    def advance(params: Any, carry: tuple[jax.Array, jax.Array], first: jax.Array) -> Any:
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(how.seed), n))(
            first + jnp.arange(CHUNK)
        )
        return jax.lax.scan(lambda carry, key: one(params, carry, key), carry, keys)

    window_T = jnp.zeros(T, jnp.int32).at[: len(prompt)].set(jnp.array(prompt, jnp.int32))
    carry = window_T, jnp.int32(len(prompt))
    for first in range(0, tokens, CHUNK):
        carry, made = advance(params, carry, jnp.int32(first))
        chunk = made[: tokens - first].tolist()
        if end in chunk:
            yield chunk[: chunk.index(end)]
            return
        yield chunk


def as_text(chunks: Iterable[list[int]], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yields the text of tokens as they come; a character that is not complete yet waits."""
    ids: list[int] = []
    said = 0
    for chunk in chunks:
        ids += chunk
        complete = decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")
        yield complete[said:]
        said = len(complete)
    yield decode(ids)[said:]
