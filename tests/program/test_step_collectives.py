"""What real steps communicate, by mesh axis, against what each kind of parallelism must.

Bytes are those of whole arrays, as `Collective.bytes` counts them. Compute is in bf16, 2 bytes.
Vectors (scales of norms, biases) are within the tolerance: their gradients are reduced in fp32, and
their recomputation gathers them once more. Sums of single numbers (loss, norm of the gradients)
are below `SCALARS`.
"""

import pytest

from tests.program.steps import compiled

BF16, FP32, SCALARS = 2, 4, 128
FAMILIES = ("gpt-tiny", "llama-tiny", "mixtral-tiny", "vit-tiny")


def near(expected):
    return pytest.approx(expected, rel=0.005)


def stream(step, ways=1):
    """Bytes of the residual stream of a device's samples, or of its part of the sequence."""
    recipe = step.recipe
    samples = recipe.global_batch // recipe.mesh.batch_shards
    return BF16 * samples * recipe.seq * recipe.model.width // ways


def check_sharded_parameters(step, axis):
    """Gathered for the forward pass, those of blocks for the backward pass too; reduced once."""
    times = step.recipe.micro_batches
    moved = step.moved[axis]
    assert set(step.moved) == {axis}
    assert moved["all-gather"] == near(
        times * BF16 * (2 * step.block_parameters + step.end_parameters)
    )
    assert moved["reduce-scatter"] == near(times * BF16 * step.recipe.model.parameters)
    assert moved["all-reduce"] < SCALARS


@pytest.mark.parametrize(
    "model",
    [*FAMILIES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[2:])],
)
def test_fsdp_gathers_parameters_for_each_pass_and_scatters_gradients_once(model):
    check_sharded_parameters(compiled(model, "fsdp=8"), "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_recomputation_gathers_no_parameters_once_more(remat):
    check_sharded_parameters(compiled("llama-tiny", "fsdp=8", remat=remat), "fsdp")


@pytest.mark.slow
def test_every_micro_batch_gathers_the_parameters_and_scatters_its_gradients():
    step = compiled("llama-tiny", "fsdp=8", micro_batch=1)
    assert step.recipe.micro_batches == 4
    check_sharded_parameters(step, "fsdp")


@pytest.mark.slow
def test_zero_3_shards_over_data_as_fsdp_does():
    check_sharded_parameters(compiled("llama-tiny", "data=8", zero=3), "data")


def test_data_parallel_replicas_sum_their_gradients_once():
    step = compiled("llama-tiny", "data=8", zero=0)
    assert set(step.moved) == {"data"}
    assert set(step.moved["data"]) == {"all-reduce"}
    assert step.moved["data"]["all-reduce"] == near(BF16 * step.recipe.model.parameters)


@pytest.mark.parametrize(
    ("zero", "reduction"),
    # Where only the optimizer is sharded the compiler sums whole gradients and takes its part.
    [(1, "all-reduce"), (2, "reduce-scatter")],
)
def test_zero_1_and_2_reduce_gradients_and_gather_the_new_parameters(zero, reduction):
    step = compiled("llama-tiny", "data=8", zero=zero)
    moved = step.moved["data"]
    assert moved[reduction] == near(BF16 * step.recipe.model.parameters)
    # The masters are what is updated, so they are gathered, in fp32.
    assert moved["all-gather"] == FP32 * step.recipe.model.parameters
    assert set(moved) <= {reduction, "all-gather", "all-reduce"}


def check_tensor(step, axis, ways):
    """Of a part of the model: [B, T, D] gathered and scattered around every sublayer."""
    recipe = step.recipe
    one, layers = stream(step), recipe.model.layers
    moved = step.moved[axis]
    # Forward one of each around both sublayers; backward as many scatters, and the gathers of the
    # inputs, kept in parts, and of the gradients (arXiv:2205.05198, section 4.2.2). At the ends
    # the embedding (a scatter forward, a gather backward) and the logits (a gather forward, a
    # scatter backward).
    assert moved["all-gather"] == near((6 * layers + 2) * one)
    assert moved["reduce-scatter"] == (4 * layers + 2) * one
    # The gradient of the embedding's rows, which every device has whole, is averaged over them.
    # Of the loss: the largest, the sum and the target's logit of every token, fp32.
    tokens = one // (BF16 * recipe.model.width)
    norms = recipe.model.parameters - recipe.model.matmul_parameters
    norms -= recipe.model.padded_vocab * recipe.model.width
    loss_and_norms = FP32 * (3 * tokens + norms)
    rest = sum(kinds.get("all-reduce", 0) for axes, kinds in step.moved.items() if axis in axes)
    assert rest == pytest.approx(one + loss_and_norms, abs=SCALARS)


def test_tensor_parallelism_gathers_and_scatters_the_stream_around_every_sublayer():
    check_tensor(compiled("llama-tiny", "model=8"), "model", 8)


def test_axes_do_not_mix_fsdp_moves_parameters_and_model_moves_the_stream():
    step = compiled("llama-tiny", "fsdp=2,model=4", remat="offload")
    assert set(step.moved) == {"fsdp", "model", "fsdp+model"}
    check_tensor(step, "model", 4)
    moved = step.moved["fsdp"]
    # Of the quarter that a model shard has. Norms are whole on all of them.
    assert moved["all-gather"] == pytest.approx(
        BF16 * (2 * step.block_parameters + step.end_parameters) / 4, rel=0.02
    )
    assert moved["reduce-scatter"] == pytest.approx(
        BF16 * step.recipe.model.parameters / 4, rel=0.02
    )


@pytest.mark.slow
def test_without_sequence_parallelism_the_stream_is_summed_instead():
    step = compiled("llama-tiny", "model=8", sequence_parallel=False)
    layers = step.recipe.model.layers
    # Two sublayers forward and two backward; at the ends both directions of the embedding, and
    # the logits backward.
    expected = (4 * layers + 3) * stream(step)
    assert step.moved["model"] == {"all-reduce": near(expected)}


@pytest.mark.parametrize(
    ("mesh", "ways"), [("context=4", 4), pytest.param("context=2", 2, marks=pytest.mark.slow)]
)
def test_keys_and_values_go_round_the_ring_three_times_and_bring_gradients_home(mesh, ways):
    step = compiled("llama-tiny", mesh)
    recipe, model = step.recipe, step.recipe.model
    tokens = recipe.global_batch * recipe.seq // ways
    keys_and_values = BF16 * tokens * 2 * model.kv_heads * model.head_dim
    # Forward, recomputed and backward they visit all other devices; the first hop of the last two
    # is the same, and the compiler makes it once.
    visits = 3 * (ways - 1) - 1
    # Their gradients travel in fp32, and the last hop, which takes them home, in bf16.
    home = 2 * (ways - 1) + 1
    moved = step.moved["context"]
    assert moved["collective-permute"] == model.layers * keys_and_values * (visits + home)
    assert moved["all-reduce"] == near(BF16 * model.parameters)
    assert set(step.moved) == {"context"}


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "1f1b"},
        pytest.param({"schedule": "gpipe"}, marks=pytest.mark.slow),
        pytest.param({"schedule": "interleaved", "interleave": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_pipeline_passes_the_stream_on_every_turn_in_both_directions(options):
    step = compiled("llama-tiny", "pipe=4", **options)
    recipe = step.recipe
    turns = recipe.micro_batches * recipe.interleave + recipe.mesh.pipe - 1
    hop = stream(step) // recipe.micro_batches
    moved = step.moved["pipe"]
    # Where all go forward first, nobody takes what the last turn forward passes on.
    unused = recipe.schedule == "gpipe"
    assert moved["collective-permute"] == (2 * turns - unused) * hop
    # What is outside the blocks is sharded over the stages, which all need it; its gradients are
    # summed in fp32.
    assert moved["all-gather"] == BF16 * step.end_parameters
    assert moved["all-reduce"] == pytest.approx(FP32 * step.end_parameters, abs=SCALARS)
    assert set(step.moved) == {"pipe"}


def shared_parameters(step):
    """Parameters that are gathered, and of which gradients are scattered: all but the experts."""
    model = step.recipe.model
    experts = model.mixture_layers * model.experts * 3 * model.width * model.ffn
    return step.block_parameters - experts, step.end_parameters


@pytest.mark.parametrize(
    ("remat", "times"), [("selective", 6), pytest.param("none", 4, marks=pytest.mark.slow)]
)
def test_experts_exchange_their_slots_twice_a_pass(remat, times):
    step = compiled("mixtral-tiny", "expert=8", remat=remat)
    recipe, model = step.recipe, step.recipe.model
    # 1.25 x an even share: 40 slots in each of 8 experts for a sequence of 128 tokens.
    slots = recipe.global_batch // recipe.mesh.batch_shards * model.experts * 40
    moved = step.moved["expert"]
    # To the experts and back: forward, backward, and recomputed.
    assert moved["all-to-all"] == times * model.layers * BF16 * slots * model.width
    blocks, ends = shared_parameters(step)
    assert moved["all-gather"] == near(BF16 * (2 * blocks + ends))
    assert moved["reduce-scatter"] == near(BF16 * (blocks + ends))
    assert set(step.moved) == {"expert"}


@pytest.mark.slow
def test_dropless_experts_gather_the_tokens_and_scatter_what_they_make():
    step = compiled("mixtral-tiny", "expert=8", moe="dropless")
    recipe, model = step.recipe, step.recipe.model
    tokens = stream(step) * recipe.mesh.expert
    # Which expert, and with what weight, of every choice: int32 and fp32.
    choices = FP32 * recipe.tokens * model.top_k
    blocks, ends = shared_parameters(step)
    moved = step.moved["expert"]
    # Tokens forward, recomputed, and their gradients backward; choices and weights forward and
    # recomputed.
    gathered = model.layers * (3 * tokens + 4 * choices)
    assert moved["all-gather"] == near(gathered + BF16 * (2 * blocks + ends))
    # Results forward; gradients of tokens and of weights backward.
    scattered = model.layers * (2 * tokens + choices)
    assert moved["reduce-scatter"] == near(scattered + BF16 * (blocks + ends))


EVERYTHING = [
    *[(model, "fsdp=8", {}) for model in FAMILIES],
    ("llama-tiny", "data=8", {"zero": 0}),
    ("llama-tiny", "model=8", {}),
    ("llama-tiny", "context=4", {}),
    ("llama-tiny", "pipe=4", {"schedule": "1f1b"}),
    ("mixtral-tiny", "expert=8", {"moe": "dropless"}),
    ("llama-tiny", "fsdp=2,model=4", {"remat": "offload"}),
]


@pytest.mark.parametrize(("model", "mesh", "options"), EVERYTHING)
def test_every_part_of_a_step_is_known_and_every_collective_has_an_axis(model, mesh, options):
    step = compiled(model, mesh, **options)
    axes = {part.split("=")[0] for part in mesh.split(",")}
    assert not [op.name for op, _ in step.operations if op.kind == "unpriced"]
    assert not step.unknown_loops
    for moved in step.moved:
        assert set(moved.split("+")) <= axes
