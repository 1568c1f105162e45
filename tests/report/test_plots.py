"""Texts from files are drawn as they stand."""

import pytest
from matplotlib.figure import Figure

from exajax.report import plots

TEXT = r"$\frac$ & <b> $x_{$"


@plots.styled
def drawn() -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.loglog([1, 1e6], [1, 1e6], label=TEXT)
    axes.legend(title=TEXT)
    axes.set_title(TEXT)
    axes.set_xlabel(TEXT)
    axes.annotate(TEXT, (1, 1))
    figure.legend(handles=axes.lines)
    figure.suptitle(TEXT)
    return figure


def test_what_would_begin_a_formula_is_text_and_numbers_of_axes_stay_formulas():
    picture = plots.svg(drawn())
    shown = TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert picture.count(f">{shown}<") == 7
    assert r">$\mathdefault{10^{" not in picture


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_it_is_written(tmp_path, name):
    plots.write(tmp_path / name, drawn())
    assert (tmp_path / name).stat().st_size > 1000
