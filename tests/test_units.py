import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import units
from exajax.files.reading import Malformed


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("3.35 TB/s", "B/s", 3.35e12),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("80 GiB", "B", 80 * 2**30),
        ("2.5 us", "s", 2.5e-6),
        ("1e-3 s", "s", 1e-3),
    ],
)
def test_figures_are_read_in_base_units(text, unit, value):
    assert units.parse(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "3.35 TB",
        "fast",
        "-1 TB/s",
        "0 TB/s",
        "3 XB/s",
        "1.2.3 B/s",
        "3",
        "3 TB/S",
        "9" * 400 + " B/s",
    ],
)
def test_a_figure_of_another_unit_is_refused(text):
    with pytest.raises(Malformed, match="not a figure in B/s"):
        units.parse(text, "B/s")


@pytest.mark.parametrize("text", ["5 Ts", "1.5 ks", "5 s 1", "5 min", "5us us"])
def test_a_time_is_given_in_seconds_or_less(text):
    with pytest.raises(Malformed) as error:
        units.parse(text, "s")
    assert error.value.fix == 'write it as "2.5 us"'


@pytest.mark.parametrize("text", ["3 mB/s", "3 uB/s", "\u0663 TB/s"])
def test_nobody_means_a_millibyte(text):
    with pytest.raises(Malformed):
        units.parse(text, "B/s")


@pytest.mark.parametrize(("unit", "example"), units.EXAMPLES.items())
def test_the_example_of_every_unit_is_one(unit, example):
    assert units.parse(example, unit) > 0


@given(st.floats(1e-8, 1e20))
def test_what_is_shown_reads_back_within_its_digits(value):
    assert units.parse(units.show(value, "s"), "s") == pytest.approx(value, rel=5.1e-3)
    assert units.parse(units.show(value + 1, "B"), "B") == pytest.approx(value + 1, rel=5.1e-3)
