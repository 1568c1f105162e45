"""Writes text with the newest checkpoint of a run."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exajax.cli import flag_types
from exajax.job import runtime
from exajax.spmd.mesh import MeshSpec
from exajax.train.data.tokenizer import BYTES, Tokenizer, load_tokenizer

if TYPE_CHECKING:  # the command line must not cost an import of jax
    from flax import nnx

    from exajax.models.dimensions import ModelConfig
    from exajax.train.checkpoint.parameters import TrainedModel
    from exajax.train.generate import LanguageModel


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("--run-dir", type=flag_types.name, required=True, metavar="DIR", help="the folder of a run")
    add(
        "--prompt",
        type=flag_types.utf8,
        required=True,
        metavar="TEXT",
        help="what the text begins with",
    )
    add(
        "--tokenizer",
        type=flag_types.name,
        default=BYTES,
        metavar="FILE",
        help="bytes, or the run's own tokenizer.json",
    )
    add(
        "--tokens",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        default=200,
        metavar="N",
        help="how many to write at most",
    )
    add(
        "--temperature",
        type=flag_types.number(0, 1e6),
        default=1.0,
        metavar="X",
        help="0 takes the likeliest token",
    )
    add(
        "--top-k",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        metavar="K",
        help="draw among the K likeliest (default: among all)",
    )
    add(
        "--seed",
        type=flag_types.whole(0, flag_types.MOST_SEED),
        default=0,
        metavar="N",
        help="of the draws",
    )
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of the model")
    add("--json", action="store_true", help="print one JSON object on stdout, nothing else")


def run(args: argparse.Namespace) -> int:
    """Prints the text as it is made, or all of it as JSON."""
    out = runtime.claim_stdout()
    from exajax.recipe import text_workload
    from exajax.train.checkpoint.parameters import check_tokenizer, open_trained_model
    from exajax.train.generate import Sampling, as_text, generate

    sampling = Sampling(args.temperature, args.top_k, args.seed)
    tokenizer = load_tokenizer(args.tokenizer)
    (prompt,) = tokenizer.encode([args.prompt])

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(np.array(ids, np.int64))

    run = open_trained_model(Path(args.run_dir))
    build = text_workload.inference_model(run.model, run.interleave)
    check_tokenizer(run, tokenizer)
    model = _model(run, build, tokenizer, args.precision)
    chunks = generate(model, prompt.tolist(), args.tokens, sampling)
    if args.json:
        ids = [token for chunk in chunks for token in chunk]
        result = {
            "model": run.model.name,
            "step": run.step,
            "prompt": args.prompt,
            "text": decode(ids),
            "tokens": ids,
            "seed": args.seed,
        }
        print(runtime.json_text(result), file=out)
        return 0
    texts = as_text(chunks, decode)
    first = next(texts)  # errors are raised before anything is printed
    print(args.prompt + first, end="", file=out, flush=True)
    for text in texts:
        print(text, end="", file=out, flush=True)
    print(file=out)
    return 0


def _model(
    run: "TrainedModel",
    build: "Callable[[nnx.Rngs], nnx.Module]",
    tokenizer: Tokenizer,
    precision: str,
) -> "LanguageModel":
    """The model of a run, its parameters restored onto the attached devices."""
    import jax

    from exajax.spmd.parameters import abstract_parameters
    from exajax.spmd.sharding import use_mesh
    from exajax.spmd.step import COMPUTE_DTYPES
    from exajax.train.generate import LanguageModel

    config = run.model
    ways = _tensor_parallel_ways(config, len(runtime.job_devices()))
    mesh = MeshSpec(model=ways).build(runtime.job_devices()[:ways])
    module, described = abstract_parameters(build, mesh, COMPUTE_DTYPES[precision])

    def logits(params: Any, tokens_BT: jax.Array) -> jax.Array:
        with use_mesh(mesh):
            return module(params)(tokens_BT)

    vocab = min(config.vocab, tokenizer.vocab_size)
    params = run.params(described)
    return LanguageModel(logits, params, config.seq, vocab, tokenizer.end_of_document)


def _tensor_parallel_ways(config: "ModelConfig", devices: int) -> int:
    """The largest number of attached devices that tensor parallelism can divide the model over."""
    return math.gcd(devices, config.kv_heads, config.ffn, config.padded_vocab)
