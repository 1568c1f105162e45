"""Compares predicted steps with published ones, source by source, beside a null model."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from exajax import units
from exajax.cli import flag_types
from exajax.job import runtime
from exajax.machine.software_of_rows import TABLES
from exajax.validate import memory as memory_validation
from exajax.validate import step_times
from exajax.validate import tables as published
from exajax.validate.step_times import Checked


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        "--table",
        type=flag_types.path,
        action="append",
        metavar="FILE.csv",
        help="measured steps, a row each; may be given again (default: those of the project)",
    )
    add(
        "--plot",
        type=flag_types.path,
        metavar="FILE.png|FILE.svg",
        help="draw simulated against published steps",
    )
    add(
        "--engine",
        choices=("analytic", "compiled"),
        default="analytic",
        help="closed formulas, or every row's program compiled ahead: seconds a row",
    )
    add("--rows", action="store_true", help="every row, and why some cannot be predicted")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Prints the errors of every source."""
    if args.plot:
        from exajax.report import plots, validation_plot  # matplotlib, for this alone

        plots.check_file(args.plot)
    tables = args.table or sorted(TABLES.glob("*.csv"))
    rows = [row for table in tables for row in published.read_table(table)]
    out, price = sys.stdout, None
    if args.engine == "compiled":
        out, price = runtime.claim_stdout(with_jax=False), _compiling()
    checked = [step_times.check(row, price) for row in rows]
    sources = step_times.summary(checked)
    memory = [found for row in rows if (found := memory_validation.check(row))]
    result = {
        "kind": "simulated against published",
        "engine": args.engine,
        "sources": sources,
        "rows": [one.to_json() for one in checked],
        "memory_sources": memory_validation.summary(memory),
        "memory_rows": [one.to_json() for one in memory],
    }
    if args.plot:
        figure = validation_plot.predicted_against_published(result["rows"], sources, args.engine)
        plots.write(args.plot, figure)
    text = described(sources, checked, args.engine, every_row=args.rows)
    if memory:
        text += "\n\n" + memory_described(memory, every_row=args.rows)
    print(runtime.json_text(result) if args.json else text, file=out, flush=True)
    return 0


def _compiling() -> step_times.Price:
    """Returns what compiles rows, and says on standard error which one."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # whatever is attached, it is compiled for a described one
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # that a step does not fit is a result, not an error
    from exajax.validate import compiled_steps

    began_s = time.monotonic()

    def told(program: str) -> None:
        print(f"{time.monotonic() - began_s:8.1f} s  {program}", file=sys.stderr, flush=True)

    return compiled_steps.pricer(told)


def described(
    sources: Sequence[dict[str, Any]], checked: Sequence[Checked], engine: str, *, every_row: bool
) -> str:
    """Returns simulated / published - 1 in words, of rows that nothing was fitted on."""
    head = (
        f"{'source':<56}{'rows':>5}{'held out':>10}{'median':>8}{'MAPE':>8}{'bias':>8}{'null':>8}"
        f"{'ranks':>7}"
    )
    lines = [head]
    for one in sources:
        held_out = one["expressed"] - one["calibrated"]
        shares = [one[key] for key in ("median_error", "mape", "bias", "null_mape")]
        told = "".join(f"{'-' if share is None else f'{share:.1%}':>8}" for share in shares)
        ranks = one["rank_correlation"]
        told += f"{'-' if ranks is None else f'{ranks:.2f}':>7}"
        lines.append(f"{one['source'][:55]:<56}{one['rows']:>5}{held_out:>10}{told}")
    lines.append(
        f"simulated ({engine} engine) against published steps; `held out`: rows that can be "
        "predicted and that no factor was fitted on; `null`: MAPE of one efficiency for "
        "everything; `ranks`: how well slow and fast steps are told apart, 1 is all (Spearman)"
    )
    fitted = [one.row.row_id for one in checked if one.calibrated]
    lines.append(f"fitted on: {', '.join(fitted) or 'none of these rows'}")
    lines += _software(checked)
    if every_row:
        lines += [_line(one) for one in checked]
    else:
        unknown = sum(one.error is None for one in checked)
        lines.append(f"{unknown} of {len(checked)} rows are not predicted; --rows says why")
    return "\n".join(lines)


def _software(checked: Sequence[Checked]) -> list[str]:
    """Returns which software profile each source is priced with, and what nothing validates."""
    profiles: dict[str, dict[str, None]] = {}
    assumed: dict[str, None] = {}
    for one in checked:
        profiles.setdefault(one.row.profile.name, {})[one.row.source] = None
        if any(text.startswith("software") for text in one.row.assumed):
            assumed[one.row.source] = None
    lines = [f"software {name}: {'; '.join(sources)}" for name, sources in profiles.items()]
    if assumed:
        lines.append(
            f"assumed: the software of {'; '.join(assumed)}, which no profile names; a column "
            "`software` in the table says it"
        )
    missing = sorted({what for one in checked for what in one.row.unvalidated})
    if missing:
        lines.append(
            f"unvalidated, as no measurement of the project is of it: {', '.join(missing)}"
        )
    return lines


def _notes(row: published.Row) -> str:
    """Returns software, assumptions and what is unvalidated of a row, for the end of its line."""
    notes = [row.profile.name]
    notes += [f"assumed: {', '.join(row.assumed)}"] if row.assumed else []
    notes += [f"unvalidated: {', '.join(row.unvalidated)}"] if row.unvalidated else []
    return f" [{'; '.join(notes)}]"


def memory_described(memory: Sequence[memory_validation.Checked], *, every_row: bool) -> str:
    """Returns simulated / published - 1 of memory in words."""
    lines = [
        f"{'memory of a device (analytic engine)':<56}{'rows':>5}{'known':>7}{'median':>8}"
        f"{'bias':>8}{'largest':>9}"
    ]
    for one in memory_validation.summary(memory):
        shares = [one[key] for key in ("median_error", "bias", "largest_error")]
        median, bias, largest = ("-" if share is None else f"{share:.1%}" for share in shares)
        lines.append(
            f"{one['source'][:42] + ': ' + one['kind']:<56}{one['rows']:>5}{one['expressed']:>7}"
            f"{median:>8}{bias:>8}{largest:>9}"
        )
    for row in memory if every_row else ():
        told = f"not predicted: {row.reason}"
        if row.predicted_bytes and row.error is not None:
            told = (
                f"published {units.show(row.measured.bytes, 'B')}, simulated "
                f"{units.show(row.predicted_bytes, 'B')}, {row.error:+.1%}"
            )
        lines.append(f"{row.row.row_id:<72} {told}{_notes(row.row)}")
    return "\n".join(lines)


def _line(one: Checked) -> str:
    if one.error is None or one.predicted_s is None or one.row.measured_s is None:
        return f"{one.row.row_id:<44} not predicted: {one.reason}{_notes(one.row)}"
    fitted = " (fitted on)" if one.calibrated else ""
    return (
        f"{one.row.row_id:<44} published {units.show(one.row.measured_s, 's')}, simulated "
        f"{units.show(one.predicted_s, 's')}, {one.error:+.1%}{fitted}{_notes(one.row)}"
    )
