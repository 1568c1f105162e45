"""Writes the newest checkpoint of a run as a Hugging Face model."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exajax.cli import flag_types
from exajax.job import runtime
from exajax.spmd.mesh import MeshSpec
from exajax.train.data.tokenizer import FileTokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:  # the command line must not cost an import of jax
    from exajax.models.huggingface.tokenizer_files import TextForm


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add("--run-dir", type=flag_types.name, required=True, metavar="DIR", help="the folder of a run")
    add(
        "--out",
        type=flag_types.name,
        required=True,
        metavar="DIR",
        help="folder to make; it must not be there yet",
    )
    add(
        "--tokenizer",
        type=flag_types.name,
        metavar="FILE",
        help="bytes, or the run's own tokenizer.json (default: the one that the run keeps)",
    )
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights")
    add("--json", action="store_true", help="print one JSON object on stdout, nothing else")


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what it holds."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the host's memory suffices
    out = runtime.claim_stdout()
    result = export(Path(args.run_dir), Path(args.out), args.dtype, args.tokenizer)
    if args.json:
        print(runtime.json_text(result), file=out)
    else:
        print("{model} of step {step}, as {dtype}: {out}".format(**result), file=out)
    return 0


def export(run_dir: Path, folder: Path, dtype: str, tokenizer: str | None = None) -> dict[str, Any]:
    """Writes a run's newest checkpoint as a model folder of Hugging Face transformers.

    Args:
        run_dir: folder of the run.
        folder: the model folder; it must be empty or missing.
        dtype: `fp32` or `bf16`.
        tokenizer: `bytes` or a `tokenizer.json`; None is the one in the run folder.

    Raises:
        InputError: there is no checkpoint, transformers does not have its model, its
            tokenizer is not there or another one, or the folder cannot be written.
    """
    import jax

    from exajax.models.huggingface.weights_writer import DTYPES, check_free, save
    from exajax.recipe import text_workload
    from exajax.spmd.parameters import abstract_parameters
    from exajax.train.checkpoint.parameters import (
        check_tokenizer,
        open_trained_model,
        run_tokenizer,
    )

    check_free(folder)
    run = open_trained_model(run_dir)
    build = text_workload.inference_model(run.model, run.interleave)
    encoder = load_tokenizer(tokenizer) if tokenizer else run_tokenizer(run, run_dir)
    check_tokenizer(run, encoder)
    mesh = MeshSpec().build(runtime.job_devices()[:1])
    _, described = abstract_parameters(build, mesh, DTYPES[dtype])
    params = jax.device_get(run.params(described))
    save(folder, run.model, params, dtype, text=_text_form(encoder))
    return {"model": run.model.name, "step": run.step, "dtype": dtype, "out": str(folder)}


def _text_form(tokenizer: Tokenizer) -> "TextForm":
    from exajax.models.huggingface.tokenizer_files import TextForm

    if isinstance(tokenizer, FileTokenizer):
        return TextForm.of_file(tokenizer.content, tokenizer.end_of_document)
    return TextForm.of_bytes(tokenizer.end_of_document)
