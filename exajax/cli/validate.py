"""Compares simulated steps with published ones by source, and with a null model."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from exajax import units
from exajax.cli import flag_types
from exajax.cli.terminal import log_with_elapsed_time
from exajax.job import runtime
from exajax.machine.software_of_rows import TABLES
from exajax.validate import memory, step_times, tables
from exajax.validate.step_times import StepTimeCheck


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
    """Prints the errors of each source."""
    if args.plot:
        from exajax.report import plots, validation_plot  # matplotlib, for this alone

        plots.check_file(args.plot)
    paths = args.table or sorted(TABLES.glob("*.csv"))
    rows = [row for path in paths for row in tables.read_table(path)]
    out, price = sys.stdout, None
    if args.engine == "compiled":
        out, price = runtime.claim_stdout(with_jax=False), _compiling()
    checked = [step_times.check(row, price) for row in rows]
    sources = step_times.summary(checked)
    memory_rows = [checked_row for row in rows if (checked_row := memory.check(row))]
    result = {
        "kind": "simulated against published",
        "engine": args.engine,
        "sources": sources,
        "rows": [step.to_json() for step in checked],
        "memory_sources": memory.summary(memory_rows),
        "memory_rows": [row.to_json() for row in memory_rows],
    }
    if args.plot:
        figure = validation_plot.predicted_against_published(result["rows"], sources, args.engine)
        plots.write(args.plot, figure)
    text = error_table(sources, checked, args.engine, every_row=args.rows)
    if memory_rows:
        text += "\n\n" + memory_table(memory_rows, every_row=args.rows)
    print(runtime.json_text(result) if args.json else text, file=out, flush=True)
    return 0


def _compiling() -> step_times.Price:
    """A compiler of the steps of rows, which logs each step before it compiles it."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # attached devices are not used
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # a step that does not fit is a result, not an error
    from exajax.validate import compiled_steps

    return compiled_steps.pricer(log_with_elapsed_time("exajax.validate").info)


def error_table(
    sources: Sequence[dict[str, Any]],
    checked: Sequence[StepTimeCheck],
    engine: str,
    *,
    every_row: bool,
) -> str:
    """A table of simulated / published - 1 by source, over rows that nothing was fitted on."""
    head = (
        f"{'source':<56}{'rows':>5}{'held out':>10}{'median':>8}{'MAPE':>8}{'bias':>8}{'null':>8}"
        f"{'ranks':>7}"
    )
    lines = [head]
    for step in sources:
        held_out = step["expressed"] - step["calibrated"]
        shares = [step[key] for key in ("median_error", "mape", "bias", "null_mape")]
        text = "".join(f"{'-' if share is None else f'{share:.1%}':>8}" for share in shares)
        ranks = step["rank_correlation"]
        text += f"{'-' if ranks is None else f'{ranks:.2f}':>7}"
        lines.append(f"{step['source'][:55]:<56}{step['rows']:>5}{held_out:>10}{text}")
    lines.append(
        f"simulated ({engine} engine) against published steps; `held out`: rows that can be "
        "predicted and that no factor was fitted on; `null`: MAPE of one efficiency for "
        "everything; `ranks`: how well slow and fast steps are told apart, 1 is all (Spearman)"
    )
    fitted = [step.row.row_id for step in checked if step.calibrated]
    lines.append(f"fitted on: {', '.join(fitted) or 'none of these rows'}")
    lines += _software(checked)
    if every_row:
        lines += [_line(step) for step in checked]
    else:
        unknown = sum(step.error is None for step in checked)
        lines.append(f"{unknown} of {len(checked)} rows are not predicted; --rows says why")
    return "\n".join(lines)


def _software(checked: Sequence[StepTimeCheck]) -> list[str]:
    """The software profile of each source, assumptions, and combinations without validation."""
    profiles: dict[str, dict[str, None]] = {}
    assumed: dict[str, None] = {}
    for step in checked:
        profiles.setdefault(step.row.profile.name, {})[step.row.source] = None
        if any(text.startswith("software") for text in step.row.assumed):
            assumed[step.row.source] = None
    lines = [f"software {name}: {'; '.join(sources)}" for name, sources in profiles.items()]
    if assumed:
        lines.append(
            f"assumed: the software of {'; '.join(assumed)}, which no profile names; a column "
            "`software` in the table says it"
        )
    missing = sorted({what for step in checked for what in step.row.unvalidated})
    if missing:
        lines.append(
            f"unvalidated, as no measurement of the project is of it: {', '.join(missing)}"
        )
    return lines


def _notes(row: tables.PublishedRow) -> str:
    """Software, assumptions and unvalidated parts of a row, for the end of its line."""
    notes = [row.profile.name]
    notes += [f"assumed: {', '.join(row.assumed)}"] if row.assumed else []
    notes += [f"unvalidated: {', '.join(row.unvalidated)}"] if row.unvalidated else []
    return f" [{'; '.join(notes)}]"


def memory_table(memory_rows: Sequence[memory.MemoryCheck], *, every_row: bool) -> str:
    """A table of simulated / published - 1 of memory, by source."""
    lines = [
        f"{'memory of a device (analytic engine)':<56}{'rows':>5}{'known':>7}{'median':>8}"
        f"{'bias':>8}{'largest':>9}"
    ]
    for step in memory.summary(memory_rows):
        shares = [step[key] for key in ("median_error", "bias", "largest_error")]
        median, bias, largest = ("-" if share is None else f"{share:.1%}" for share in shares)
        lines.append(
            f"{step['source'][:42] + ': ' + step['kind']:<56}{step['rows']:>5}"
            f"{step['expressed']:>7}"
            f"{median:>8}{bias:>8}{largest:>9}"
        )
    for row in memory_rows if every_row else ():
        text = f"not predicted: {row.reason}"
        if row.predicted_bytes and row.error is not None:
            text = (
                f"published {units.show(row.measured.bytes, 'B')}, simulated "
                f"{units.show(row.predicted_bytes, 'B')}, {row.error:+.1%}"
            )
        lines.append(f"{row.row.row_id:<72} {text}{_notes(row.row)}")
    return "\n".join(lines)


def _line(step: StepTimeCheck) -> str:
    if step.error is None or step.predicted_s is None or step.row.measured_s is None:
        return f"{step.row.row_id:<44} not predicted: {step.reason}{_notes(step.row)}"
    fitted = " (fitted on)" if step.calibrated else ""
    return (
        f"{step.row.row_id:<44} published {units.show(step.row.measured_s, 's')}, simulated "
        f"{units.show(step.predicted_s, 's')}, {step.error:+.1%}{fitted}{_notes(step.row)}"
    )
