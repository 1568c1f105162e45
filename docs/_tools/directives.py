"""Sphinx directives of the parts of the reference.

{options} MODULE.CLASS     the options of a dataclass: flag, values, default, what they are
{commands}                 every command, its usage and the flags that are its own
{schema} MODULE.CLASS ...  the fields of a kind of file, without those that are named
{variables}                environment variables
{presets}, {machines}      what comes with the project
{columns}                  columns of a table of measurements
{result}                   a prediction as `--json` prints it
{public}                   everything in `exajax.__all__`
"""

from collections.abc import Callable
from typing import Any

from docutils import nodes
from reference import PARTS
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def _directive(make: Callable[[str], str]) -> type[SphinxDirective]:
    class Made(SphinxDirective):
        """Parses what a function makes, as if it stood in the page."""

        optional_arguments = 1
        final_argument_whitespace = True

        def run(self) -> list[nodes.Node]:
            text = make(self.arguments[0] if self.arguments else "")
            return list(self.parse_text_to_nodes(text, allow_section_headings=True))

    return Made


def _one_sentence(
    app: Sphinx, what: str, name: str, it: Any, options: Any, lines: list[str]
) -> None:
    """Keeps napoleon from taking what stands before a colon for the type of a property."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " — ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    for name, make in PARTS.items():
        app.add_directive(name, _directive(make))
    app.connect("autodoc-process-docstring", _one_sentence, priority=400)
    return {"parallel_read_safe": True}
