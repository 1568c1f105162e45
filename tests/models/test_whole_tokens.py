"""Where the tokens of a sublayer lie, and what that makes the partitioner do."""

import re

import pytest

from exajax import MeshSpec
from exajax.models.whole_tokens import needs_whole_tokens
from tests.spmd.runs import step_on


@pytest.mark.parametrize(
    ("mesh", "zero", "needed"),
    [
        ("fsdp=2,context=2,model=2", 0, True),
        ("fsdp=2,context=4,model=2", 0, True),
        ("data=2,context=2,model=2", 3, True),
        ("data=2,context=2,model=2", 2, False),  # whole matrices: none to match with
        ("fsdp=4,context=2,model=2", 0, False),  # more parts than the sequence
        ("fsdp=2,context=2", 0, False),  # the same tokens on both sides of a product
    ],
)
def test_the_partitioner_is_told_about_tokens_where_it_takes_fsdp_for_context(mesh, zero, needed):
    assert needs_whole_tokens(MeshSpec.parse(mesh).sizes, zero, True) is needed
    assert not needs_whole_tokens(MeshSpec.parse(mesh).sizes, zero, False)


@pytest.mark.parametrize(
    ("family", "mesh", "zero"),
    [
        ("llama", "fsdp=2,context=2,model=2", 0),
        pytest.param("gpt", "fsdp=2,context=2,model=2", 0, marks=pytest.mark.slow),
        pytest.param("llama", "data=2,context=2,model=2", 3, marks=pytest.mark.slow),
    ],
)
def test_no_product_sends_matrices_or_tokens_around_a_ring(family, mesh, zero):
    """Wrong, XLA permutes matrices from fsdp to context, and gathers tokens over context."""
    step = step_on(MeshSpec.parse(mesh), family, zero=zero, micro_batch=4, remat="full")
    text = step.update.lower(step.state, step.batch).compile().as_text()
    names = re.findall(r' collective-permute(?:-start)?\(.*op_name="([^"]*)"', text)
    assert any("ppermute" in name for name in names)
    assert [name for name in names if "dot_general" in name] == []
