"""The reference as Markdown, made from the code: nothing of it is written twice.

Every function in `PARTS` takes the argument of the directive of its name (`directives.py`).
"""

import argparse
import csv
import dataclasses
import importlib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import exajax
from exajax import units
from exajax.cli import dispatch, multihost
from exajax.job import environment
from exajax.machine import software_of_rows
from exajax.machine.cluster import cluster_names, load_cluster
from exajax.models.presets import PRESETS
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.resilience.options import JobOptions
from exajax.simulate.formulas import prediction
from exajax.spmd.mesh import MeshSpec
from exajax.train.options import TrainOptions
from exajax.validate import tables as measurements

SCOPES = {
    "results": "a run with another value is another job",
    "rounding": "may change in a run: its numbers change by rounding alone",
    "length": "may change in a run: how long it is",
    "course": "may change in a run, the same on all hosts",
    "host": "may change in a run, and differ between hosts",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table of cells whose bars are escaped."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _named(path: str) -> Any:
    module, _, name = path.strip().rpartition(".")
    return getattr(importlib.import_module(module), name)


def options(path: str) -> str:
    """The options of a dataclass: flag, values, default, meaning, and what may change in a run."""
    rows = []
    for field, known in option.option_fields(_named(path)):
        missing = field.default is dataclasses.MISSING
        default = known.derived or (
            "required" if missing else "none" if field.default is None else f"`{field.default}`"
        )
        values = known.unit if known.least == -math.inf else known.range
        if known.choices:
            values = ", ".join(f"`{choice}`" for choice in known.choices)
        elif "bool" in str(field.type):
            values = f"or `--no-{field.name.replace('_', '-')}`"
        rows.append(
            (f"`--{field.name.replace('_', '-')}`", values, default, known.help, known.scope)
        )
    scopes = "\n".join(
        f"- *{name}*: {text}" for name, text in SCOPES.items() if name in {r[-1] for r in rows}
    )
    return table(("option", "values", "default", "what it is", "scope"), rows) + f"\n\n{scopes}"


SHARED = {
    "recipe": option.option_names(Recipe),
    "training": option.option_names(TrainOptions),
    "job": option.option_names(JobOptions),
}
"""Options that commands share, by the name of their heading in `options.md`."""


def commands(_: str) -> str:
    """Every command: what it does, how it is called, and the flags that no other page lists."""
    whole = dispatch.parser()
    (chosen,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    listed = [action.dest for action in chosen._choices_actions]
    parsers = {f"exajax {name}": chosen.choices[name] for name in listed}
    parsers = {"python launch/multihost.py": multihost.multihost_parser()} | parsers
    return "\n\n".join(_command(name, parser) for name, parser in parsers.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    flags = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    known = {action.dest for action in flags}
    full = [name for name, names in SHARED.items() if known.issuperset(names)]
    taken = {dest for name in full for dest in SHARED[name]}
    rows = [
        (
            ", ".join(f"`{text}`" for text in action.option_strings),
            _values(action),
            _default(action),
            _help(action),
        )
        for action in flags
        if action.dest not in taken
    ]
    told = [f"## {name}", (parser.description or "")]
    if full:
        links = ", ".join(f"[{name} options](options.md#{name}-options)" for name in full)
        told.append(f"Takes the {links}, and:")
    return "\n\n".join([*told, table(("flag", "values", "default", "what it is"), rows)])


def _values(action: argparse.Action) -> str:
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    return "" if action.nargs == 0 else str(action.metavar or action.dest.upper())


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    none = action.default is None or action.default is False
    return "" if none else f"`{action.default}`"


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def schema(path: str) -> str:
    """The fields of a kind of file: name, whether it must be there, meaning."""
    path, *left_out = path.split()
    kind = _named(path)
    about = {}
    for one in reversed(kind.__mro__):
        about |= _attributes(one) if one.__module__.startswith("exajax") else {}
    rows = []
    fields = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
    for name, field in fields.items():
        if name in left_out:
            continue
        alias = _alias(field) or name
        required = field.is_required() if hasattr(field, "is_required") else _required(field)
        rows.append((f"`{alias}`", "yes" if required else "", about.get(name, _constraint(field))))
    lead = "" if about else f"{inspect.getdoc(kind)}\n\n"
    return lead + table(("field", "required", "what it is"), rows)


def _alias(field: Any) -> str | None:
    if alias := getattr(field, "validation_alias", None):
        return str(getattr(alias, "choices", [alias])[0])
    found = re.search(r"validation_alias='(\w+)'", repr(getattr(field, "type", "")))
    return found[1] if found else None


def _required(field: Any) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _constraint(field: Any) -> str:
    return ", ".join(
        re.sub(r"^(Ge|Le|Gt|Lt)\(\w+=(.*)\)$", _bound, repr(one))
        for one in getattr(field, "metadata", ())
        if re.match(r"(Ge|Le|Gt|Lt)\(", repr(one))
    )


def _bound(match: re.Match[str]) -> str:
    words = {"Ge": "at least", "Le": "at most", "Gt": "above", "Lt": "below"}
    return f"{words[match[1]]} {float(match[2]):,g}"


def _attributes(kind: type) -> dict[str, str]:
    """Returns the `Attributes:` of a class's docstring by name, constants in them written out."""
    _, _, part = (inspect.cleandoc(kind.__doc__ or "")).partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", part, re.MULTILINE)
    module = inspect.getmodule(kind)

    def values(match: re.Match[str]) -> str:
        constant = getattr(module, match[1], None)
        return match[0] if constant is None else ", ".join(f"`{value}`" for value in constant)

    return {
        name: re.sub(r"`(?:\w+\.)?([A-Z]{2,})`", values, " ".join(text.split()))
        for name, text in found
    }


def variables(_: str) -> str:
    """Environment variables: those that people set, then those of one process for another."""
    by_hand = {variable.name for variable in environment.BY_HAND}
    rows = [
        (f"`{one.name}`", one.form, one.about, "people" if one.name in by_hand else "exajax")
        for one in environment.VARIABLES
    ]
    return table(("variable", "form", "what it is for", "set by"), rows)


def presets(_: str) -> str:
    """Models by name."""
    rows = [
        (
            f"`{name}`",
            m.family,
            units.show(float(m.parameters), "").strip(),
            m.layers,
            m.width,
            m.heads,
            m.seq,
            m.source,
        )
        for name, m in PRESETS.items()
    ]
    return table(
        ("model", "family", "parameters", "layers", "width", "heads", "seq", "source"), rows
    )


def machines(_: str) -> str:
    """Machines by name."""
    names: dict[str, list[str]] = {}
    for name in cluster_names():
        names.setdefault(load_cluster(name).title, []).append(name)
    rows = []
    for title, aliases in names.items():
        found = load_cluster(aliases[0])
        proxy = f"that of {found.chip.proxy}" if found.chip.proxy else "its own"
        shown = ", ".join(f"`{name}`" for name in aliases)
        rows.append(
            (shown, title, f"{found.nodes:,} x {found.devices_per_node}", found.chip.title, proxy)
        )
    return table(("cluster", "machine", "nodes x devices", "device", "program"), rows)


def columns(_: str) -> str:
    """Columns of a table of measurements."""
    names = list(dict.fromkeys([*measurements.COLUMNS, *_columns_that_ship()]))
    rows = [
        (
            f"`{name}`",
            "yes" if name in measurements.COLUMNS else "",
            "a number" if name in measurements.NUMBERS else "a text",
        )
        for name in names
    ]
    return table(("column", "required", "form"), rows)


def _columns_that_ship() -> list[str]:
    found = []
    for path in sorted(software_of_rows.TABLES.glob("*.csv")):
        with path.open(newline="") as file:
            found += next(csv.reader(file))
    return found


def result(_: str) -> str:
    """A prediction as `exajax simulate --engine analytic --json` prints it, to four digits."""
    recipe = Recipe.of(PRESETS["llama2-7b"], MeshSpec(model=8))
    found = prediction.predict(recipe, load_cluster("dgx-h100")).to_json()
    text = json.dumps(found, indent=2)
    short = re.sub(r"-?\d+\.\d+(e[+-]\d+)?", lambda match: f"{float(match[0]):.4g}", text)
    return f"```json\n{short}\n```"


def public(_: str) -> str:
    """Everything in `exajax.__all__`."""
    lines = []
    for name in sorted(exajax.__all__):
        directive = "autoclass" if inspect.isclass(getattr(exajax, name)) else "autofunction"
        lines += [f".. {directive}:: exajax.{name}"]
        lines += ["   :members:"] * (directive == "autoclass")
        fields = ", ".join(getattr(getattr(exajax, name), "_fields", ()))  # of a named tuple
        lines += [f"   :exclude-members: {fields}", ""] if fields else [""]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


PARTS: dict[str, Callable[[str], str]] = {
    make.__name__: make
    for make in (
        *(options, commands, schema, variables, presets, machines, columns, result, public),
    )
}
