"""Tokenises text once, into a dataset of shards for `--data`."""

import argparse
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exajax.cli import flag_types, flags
from exajax.errors import InputError
from exajax.job import runtime
from exajax.train.data.dataset import check_not_part, is_dataset
from exajax.train.data.documents import Piece, scan
from exajax.train.data.listing import Listing
from exajax.train.data.shards import check_free, write
from exajax.train.data.tokenizer import BYTES, load_tokenizer

LOGGER = logging.getLogger(__name__)

ALIASES = ("tokenize",)

EVERY_S = 2.0
"""Seconds between two lines of progress."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="PATH",
        help='text file, folder, or .jsonl whose lines have a "text", also packed with gzip',
    )
    add(
        "--tokenizer",
        type=flag_types.name,
        default=BYTES,
        metavar="FILE",
        help="bytes, or a Hugging Face tokenizer.json",
    )
    flags.add_bad_lines(parser)
    add(
        "--seq",
        type=flag_types.whole(1, flag_types.MOST_SEQ),
        required=True,
        metavar="N",
        help="tokens of a sequence",
    )
    add(
        "--out",
        type=flag_types.name,
        required=True,
        metavar="DIR",
        help="folder to make; it must not be there yet",
    )
    add("--json", action="store_true", help="print one JSON object on stdout, nothing else")


def run(args: argparse.Namespace) -> int:
    """Writes the dataset."""
    if is_dataset(args.data):
        raise InputError("data", f"{args.data} is tokenised already", "give text")
    check_not_part(args.data)
    check_free(Path(args.out))
    tokenizer = load_tokenizer(args.tokenizer)
    # SIGTERM is handled as Ctrl-C is, which removes what was written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = scan(args.data, args.bad_lines)
    if not args.json:
        print(f"{source.title}: {source.found.describe()}", flush=True)
    started_s = time.monotonic()

    def with_progress(texts: Iterator[Piece]) -> Iterator[Piece]:
        """Passes texts on, and logs the progress."""
        done, logged_s = 0, started_s
        for text, last in texts:
            yield text, last
            done += len(text.encode())
            if (now_s := time.monotonic()) - logged_s > EVERY_S:
                logged_s = now_s
                LOGGER.info(
                    "%s of %s MB, %.1f MB/s",
                    f"{done / 1e6:,.0f}",
                    f"{source.size_bytes / 1e6:,.0f}",
                    done / 1e6 / (now_s - started_s),
                )

    manifest = write(source, tokenizer, args.seq, Path(args.out), with_progress)
    result = summarize(manifest) | {
        "out": args.out,
        "seconds": time.monotonic() - started_s,
    }
    print(runtime.json_text(result) if args.json else describe(result))
    return 0


def summarize(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, with its shards counted instead of listed."""
    shards = manifest["splits"]
    windows = {name: sum(s["windows"] for s in found) for name, found in shards.items()}
    fields = {key: value for key, value in manifest.items() if key != "splits"}
    return fields | {"windows": windows, "shards": {name: len(shards[name]) for name in shards}}


def describe(result: dict[str, Any]) -> str:
    """The result for the terminal."""
    windows, listing = result["windows"], Listing.model_validate(result["source"])
    skipped = listing.skipped() + "\n" if listing.bad_lines else ""
    return (
        f"{skipped}{result['tokens']:,} tokens of {result['documents']:,} documents, "
        f"{result['tokenizer']['name']}, in {result['seconds']:.1f} s\n"
        f"{windows['train']:,} sequences of {result['seq']:,} to train on, "
        f"{windows['held_out']:,} held out\n"
        f"train on them: exajax train --data {result['out']} --seq {result['seq']} ..."
    )
