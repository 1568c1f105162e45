"""What JAX, Flax, Orbax and XLA do not promise is used in one file each, which says what it is."""

import ast

import pytest

from tests.test_rooms import MODULES

UNPROMISED = ("jax._src", "jax.experimental", "jax.extend", "jax.interpreters", "jaxlib")
UNPROMISED += ("flax.linen", "orbax")

FILES = {
    "job.coordination": {"jax._src.distributed", "jax.experimental.multihost_utils"},
    "job.jax_cache": {
        "jax._src.compilation_cache",
        "jax._src.compilation_cache_interface.CacheInterface",
        "jax.experimental.compilation_cache.compilation_cache",
    },
    "job.xla_flags": {"jaxlib._jax"},
    "models.fp8": {"flax.linen.fp8_ops"},
    "program.cudnn": {"jax._src.cudnn.fused_attention_stablehlo"},
    "program.described_devices": {"jax.experimental.topologies"},
    "spmd.jaxprs": {
        "jax.extend.core.ClosedJaxpr",
        "jax.extend.core.Jaxpr",
        "jax.extend.core.JaxprEqn",
        "jax.extend.core.Literal",
        "jax.interpreters.partial_eval.dce_jaxpr",
    },
    "train.checkpoint.orbax_arrays": {"orbax.checkpoint"},
}
"""Modules of exajax by what they import that is not promised."""

TEXTS = {
    '"DEADLINE_EXCEEDED" in': "job.coordination",
    "compile_requests_use_cache": "job.jax_cache",
    "pjrt_ifrt": "job.collective_order",
    "rematted_computation": "program.op_names",
    "xla_dump_": "program.dumps",
    "preallocated-temp": "program.dumps",
    "gpu_device_info": "program.described_devices",
    'process_"': "train.checkpoint.orbax_arrays",
    "num_consts": "spmd.jaxprs",
}
"""Module of exajax by a text of theirs that it alone knows."""


def unpromised(path):
    """Yields what a file imports of others that they do not promise."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (
            name for name in names if f"{name}.".startswith(tuple(f"{u}." for u in UNPROMISED))
        )


def test_each_unpromised_interface_has_one_file():
    found = {module: set(unpromised(path)) for module, path in MODULES.items()}
    assert {module: names for module, names in found.items() if names} == FILES


@pytest.mark.parametrize("text", TEXTS)
def test_each_unpromised_text_has_one_file(text):
    assert [module for module, path in MODULES.items() if text in path.read_text()] == [TEXTS[text]]


@pytest.mark.parametrize("module", sorted({*FILES, *TEXTS.values()}))
def test_the_file_says_on_which_releases_it_relies_and_which_test_holds_it(module):
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    assert "elied on" in docstring, "say what is relied on, in which releases"
    assert "tests/" in docstring, "name the test that fails when it moves"
