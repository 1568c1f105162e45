"""Where the time of a simulated step goes, as a table: by part, and forward to backward."""

from collections.abc import Sequence

from exajax import units
from exajax.simulate.roofs import Row

COLUMNS = {"forward": "forward", "recompute": "recompute", "backward": "backward", "": "else"}
"""Directions of `program.labels`, and what each is called."""

LEAST = 0.002
"""Share of the step time below which a part is not shown."""

SHOWN = 3
"""Groups of operations that are named as losing most."""

Groups = Sequence[Row]


def cells(groups: Groups) -> dict[str, dict[str, float]]:
    """Returns seconds by part, then by column and `total` and `lost`, the longest part first.

    Args:
        groups: the `roofline` of a report.
    """
    table: dict[str, dict[str, float]] = {}
    for group in groups:
        row = table.setdefault(name(group), dict.fromkeys((*COLUMNS.values(), "total", "lost"), 0))
        for column, seconds in (
            (COLUMNS[group.direction], group.seconds),
            ("total", group.seconds),
            ("lost", group.lost_s),
        ):
            row[column] += seconds
    least_s = LEAST * sum(row["total"] for row in table.values())
    longest = sorted(table.items(), key=lambda entry: -entry[1]["total"])
    return {part: row for part, row in longest if row["total"] >= least_s}


def lines(groups: Groups) -> list[str]:
    """Returns the table as text, and what loses most against its roof."""
    table = cells(groups)
    columns = [*COLUMNS.values(), "total", "lost"]
    shown = [
        "  where       if all alike  " + "".join(f"{column:>10}" for column in columns),
        *(
            f"    {part:24}"
            + "".join(
                f"{units.show(row[column], 's') if row[column] else '-':>10}" for column in columns
            )
            for part, row in table.items()
        ),
    ]
    most = sorted(groups, key=lambda group: -group.lost_s)[:SHOWN]
    named = (
        " ".join([name(group), group.direction, units.show(group.lost_s, "s")]).replace("  ", " ")
        + f" ({group.bound}-bound)"
        for group in most
    )
    return [*shown, "  lost most   against its roof: " + ", ".join(named)]


def name(group: Row) -> str:
    """Returns what a group of operations is called."""
    return f"exposed {group.kind}" if group.exposed else group.part
