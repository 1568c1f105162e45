"""Single kernels and loops, compiled for a described H100: what the compiler makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax.machine.cluster import load_cluster
from exajax.program import cudnn, described_devices, hlo, operations

pytestmark = pytest.mark.jax_surface

CUBLAS = {"xla_gpu_enable_triton_gemm": False}


@functools.cache
def device():
    described = described_devices.described_devices(load_cluster("dgx-h100"), 8)[:1]
    return NamedSharding(Mesh(np.asarray(described), ("data",)), PartitionSpec())


def array(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=device())


def program_of(function, *arrays, **options):
    jitted = jax.jit(function, in_shardings=device(), out_shardings=device())
    with cudnn.assumed():
        lowered = jitted.lower(*arrays)
    text = lowered.compile(compiler_options=options or None).as_text()
    return operations.read_program(hlo.parse(text), {"data": 1})


def work_of(*arguments, **options):
    """Returns the operations that compute, in order."""
    found = operations.flatten(program_of(*arguments, **options))
    return [op for op, _ in found if op.kind != "memory"]


@pytest.mark.parametrize("options", [CUBLAS, {}])
def test_a_product_is_the_same_by_cublas_and_by_triton(options):
    (op,) = work_of(jnp.matmul, array(512, 256), array(256, 1024), **options)
    assert (op.kind, op.dtype, op.flops) == ("matmul", "bf16", 2 * 512 * 256 * 1024)
    # Both factors and the result, and nothing of the kernel's scratch.
    assert op.bytes == 2 * (512 * 256 + 256 * 1024 + 512 * 1024)


def test_batches_of_products_count_every_one():
    x, y = (array(8, *dims, dtype=jnp.float32) for dims in ((64, 32), (32, 128)))
    (op,) = work_of(jnp.matmul, x, y, **CUBLAS)
    assert (op.dtype, op.flops) == ("f32", 8 * 2 * 64 * 32 * 128)
    assert [product.batch for product in op.products] == [8]


def test_fp8_products_are_recognised_by_their_factors():
    def multiply(x, y):
        x, y = x.astype(jnp.float8_e4m3fn), y.astype(jnp.float8_e4m3fn)
        return jnp.matmul(x, y, preferred_element_type=jnp.bfloat16)

    (op,) = work_of(multiply, array(512, 256), array(256, 1024), **CUBLAS)
    assert (op.kind, op.dtype, op.flops) == ("matmul", "f8e4m3fn", 2 * 512 * 256 * 1024)
    scales = 16
    exact = 512 * 256 + 256 * 1024 + 2 * 512 * 1024
    assert exact <= op.bytes <= exact + scales


B, T, N, H = 2, 256, 8, 64
SCORES = 2.0 * B * N * T * T * H
ARRAY = 2 * B * T * N * H


def test_fused_attention_with_a_bias_reads_it():
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    q = array(B, T, N, H)
    (op,) = work_of(lambda q, k, v, b: attend(q, k, v, bias=b), q, q, q, array(B, N, T, T))
    assert (op.kind, op.flops) == ("attention", 2 * SCORES)
    assert op.bytes == 4 * ARRAY + 2 * B * N * T * T


def test_fused_attention_of_sequences_of_a_length_is_causal_all_the_same():
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    q, length = array(B, T, N, H), array(B, dtype=jnp.int32)
    (op,) = work_of(
        lambda q, k, v, a, b: attend(q, k, v, query_seq_lengths=a, key_value_seq_lengths=b),
        *(q, q, q, length, length),
    )
    assert (op.kind, op.flops) == ("attention", 2 * SCORES / 2)
    assert op.bytes == 4 * ARRAY + 2 * 4 * B


def test_fused_attention_with_dropout_and_its_gradients_are_recognised():
    def loss(q, k, v):
        mixed = dot_product_attention(
            q, k, v, mask_type=MaskType.CAUSAL, dropout_rate=0.1, seed=3, scale=0.1
        )
        return mixed.astype(jnp.float32).sum()

    q = array(B, T, N, H)
    forward, backward = work_of(jax.grad(loss, (0, 1, 2)), q, q, q)
    assert (forward.kind, forward.flops) == ("attention", 2 * SCORES / 2)
    assert (backward.kind, backward.flops) == ("attention", 5 * SCORES / 2)


def test_the_largest_of_a_row_are_a_read_of_all():
    program = program_of(lambda x: jax.lax.top_k(x, 4), array(64, 4096, dtype=jnp.float32))
    assert {op.kind for op, _ in operations.flatten(program)} == {"memory"}
    assert operations.total_bytes(program) == pytest.approx(4 * 64 * 4096, rel=0.01)


def nested(x, w, inner=3, outer=5):
    def once(x, _):
        return jnp.tanh(x @ w), None

    def several(x, _):
        return jnp.sin(jax.lax.scan(once, x, length=inner)[0]), None

    return jax.lax.scan(several, x, length=outer)[0]


@pytest.mark.parametrize("double_buffered", [False, True])
@pytest.mark.parametrize(("inner", "outer"), [(3, 5), (4, 6), (1, 7)])
def test_nested_loops_count_every_trip_however_they_are_unrolled(inner, outer, double_buffered):
    function = functools.partial(nested, inner=inner, outer=outer)
    square = array(128, 128)
    option = {"xla_gpu_enable_while_loop_double_buffering": double_buffered}
    program = program_of(function, square, square, **option)
    assert operations.total_flops(program) == inner * outer * 2 * 128**3
    assert not operations.unknown_loops(program)


def test_a_loop_that_ends_on_its_data_is_listed():
    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.max(x) < 1e3, lambda x: x @ w, x)

    program = program_of(until, array(128, 128), array(128, 128))
    assert len(operations.unknown_loops(program)) == 1
    assert operations.total_flops(program) == 2 * 128**3  # one trip, and it says so


def test_a_conditional_of_a_stage_costs_its_dearer_branch_with_all_that_is_in_it():
    def stage(first, x, w):
        return jax.lax.cond(first > 0, lambda: jnp.tanh(x @ w) @ w, lambda: x @ w)

    program = program_of(stage, array(dtype=jnp.int32), array(128, 128), array(128, 128))
    assert operations.total_flops(program) == 2 * 2 * 128**3


LAYERS, WIDTH = 64, 256
MATRIX = 4 * WIDTH * WIDTH


def test_a_layer_of_a_stack_is_read_and_its_gradient_written_as_one_layer():
    def backward(x, stack):
        def step(x, w):
            return x * w, x + w

        return jax.lax.scan(step, x, stack)

    stack = array(LAYERS, WIDTH, WIDTH, dtype=jnp.float32)
    moved = operations.total_bytes(
        program_of(backward, array(WIDTH, WIDTH, dtype=jnp.float32), stack)
    )
    # Of every layer at least its weights and its stream are read, and both results written.
    assert 4 * LAYERS * MATRIX <= moved <= 8 * LAYERS * MATRIX


def test_rows_of_a_table_are_read_and_their_gradients_added_in_place():
    vocab, tokens = 8192, 64

    def update(table, chosen):
        rows, back = jax.vjp(lambda table: jnp.take(table, chosen, axis=0), table)
        return table.at[chosen].add(rows, mode="drop"), back

    table = array(vocab, WIDTH, dtype=jnp.float32)
    chosen = array(tokens, dtype=jnp.int32)
    program = program_of(lambda t, c: update(t, c)[0], table, chosen)
    whole, rows = 4 * vocab * WIDTH, 4 * tokens * WIDTH
    # The table that was given is kept, so it is copied once; the rest is rows.
    copied = [op for op, _ in operations.flatten(program) if op.bytes >= whole]
    assert [op.bytes for op in copied] == [2 * whole]
    assert operations.total_bytes(program) - 2 * whole < 8 * rows
