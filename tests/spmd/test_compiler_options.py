"""Options that a release of XLA does not know are left out, and known to be."""

import jax
import pytest

from exajax.spmd import compiler_options


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(compiler_options, "_rejected", set())


def lowered():
    return jax.jit(lambda x: x + 1).lower(1.0)


def test_an_option_that_xla_does_not_know_is_left_out_and_recorded():
    more = {"xla_no_such_thing": True, "xla_dump_hlo_as_text": True}
    compiled = compiler_options.compile(lowered(), "cpu", more)
    assert compiled(1.0) == 2.0
    assert compiler_options.left_out() == ("xla_no_such_thing",)


def test_an_option_with_another_name_in_this_release_goes_by_that_one(monkeypatch):
    renamed = {"xla_no_such_thing": ("xla_dump_hlo_as_text", True)}
    monkeypatch.setattr(compiler_options, "SUCCESSORS", renamed)
    compiler_options.compile(lowered(), "cpu", {"xla_no_such_thing": True})
    assert compiler_options.left_out() == ()
    renamed["xla_no_such_thing"] = ("xla_nor_this_one", True)
    compiler_options.compile(lowered(), "cpu", {"xla_no_such_thing": True})
    assert compiler_options.left_out() == ("xla_no_such_thing",)


def test_the_compiler_knows_every_option_of_a_gpu_or_its_successor():
    compiler_options.compile(lowered(), "cuda")
    assert compiler_options.left_out() == ()


def test_other_errors_are_not_taken_for_unknown_options():
    with pytest.raises(Exception, match="xla_dump_max_hlo_modules"):
        compiler_options.compile(lowered(), "cpu", {"xla_dump_max_hlo_modules": "many"})
    assert compiler_options.left_out() == ()
