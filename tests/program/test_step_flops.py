"""FLOPs of real steps of every family and mesh axis, compiled for described GPUs."""

import pytest

from exajax.machine import cluster
from exajax.simulate.formulas.xla.hardware_flops import hardware_flops
from tests.program.steps import compiled

FAMILIES = ("gpt-tiny", "llama-tiny", "mixtral-tiny", "vit-tiny")


def check(step):
    """The closed form of the analytic engine's HFU is what the program has; a model needs less."""
    recipe, performed = step.recipe, step.flops * step.recipe.mesh.devices
    closed = hardware_flops(recipe, flash=recipe.flash("cuda"))
    assert performed == pytest.approx(closed, rel=0.01)
    assert recipe.flops <= min(performed, closed)


@pytest.mark.parametrize("model", FAMILIES)
def test_flops_of_every_family_are_those_of_the_closed_form(model):
    check(compiled(model, "fsdp=8"))


@pytest.mark.parametrize(
    ("model", "mesh", "options"),
    [
        ("llama-tiny", "data=8", {"zero": 0}),
        ("llama-tiny", "data=8", {"zero": 1}),
        ("llama-tiny", "data=8", {"zero": 2}),
        ("llama-tiny", "model=8", {}),
        ("llama-tiny", "context=4", {}),
        ("llama-tiny", "pipe=4", {}),
        ("mixtral-tiny", "expert=8", {}),
        ("mixtral-tiny", "expert=8", {"moe": "dropless"}),
        ("mixtral-tiny", "expert=8", {"capacity_factor": 0.5, "remat": "none"}),
        ("llama-tiny", "fsdp=8", {"remat": "none"}),
        ("gpt-tiny", "data=8", {"remat": "none", "attention": "unfused"}),
        ("vit-tiny", "data=8", {"remat": "none", "attention": "unfused"}),
        ("llama-tiny", "fsdp=2,model=4", {"remat": "offload"}),
    ],
)
def test_flops_of_every_axis_are_those_of_the_closed_form(model, mesh, options):
    check(compiled(model, mesh, **options))


@pytest.mark.parametrize(
    ("model", "mesh", "options"),
    [
        # XLA ran every forward pass twice here, to gather a micro-batch's stream a trip early.
        ("llama-tiny", "data=2,model=4", {"zero": 0, "micro_batch": 1}),
        *(
            pytest.param(model, mesh, options, marks=pytest.mark.slow)
            for model, mesh, options in [
                ("llama-tiny", "data=2,model=4", {"zero": 2, "micro_batch": 1}),
                ("gpt-tiny", "data=2,fsdp=2,model=2", {"zero": 1, "micro_batch": 1}),
                ("mixtral-tiny", "data=4,expert=2", {"zero": 2, "micro_batch": 1}),
                ("llama-tiny", "data=4,context=2", {"zero": 2, "micro_batch": 1}),
                ("llama-tiny", "data=8", {"zero": 0, "micro_batch": 1, "remat": "full"}),
                ("llama-tiny", "fsdp=2,model=4", {"micro_batch": 1}),
            ]
        ),
    ],
)
def test_micro_batches_run_every_pass_once(model, mesh, options):
    step = compiled(model, mesh, **options)
    assert step.recipe.micro_batches > 1
    check(step)


def described_clusters():
    """One machine of every chip that CUDA programs are compiled for; H100 and A100 in every run."""
    found = {}
    for name in cluster.cluster_names():
        machine = cluster.load_cluster(name)
        if machine.chip.platform == "cuda":
            found.setdefault(machine.chip.name, name)
    return [
        pytest.param(name, marks=[] if name in ("dgx-a100", "dgx-h100") else pytest.mark.slow)
        for name in found.values()
    ]


@pytest.mark.parametrize("machine", described_clusters())
def test_the_program_of_every_chip_is_read_in_full(machine):
    step = compiled("llama-tiny", "fsdp=8", machine)
    check(step)
    assert not step.unknown_loops
    assert {op.kind for op, _ in step.operations} == {
        "matmul",
        "attention",
        "memory",
        "collective-start",
        "collective-done",
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("data=8", {"zero": 3, "remat": "full"}),
        ("fsdp=8", {"remat": "none"}),
        ("fsdp=8", {"precision": "fp32"}),
        ("fsdp=8", {"attention": "unfused"}),
        ("fsdp=8", {"micro_batch": 1}),
        ("model=8", {}),
        ("model=8", {"sequence_parallel": False}),
        ("context=4", {}),
        ("pipe=4", {"schedule": "gpipe"}),
        ("pipe=4", {"schedule": "interleaved", "interleave": 2}),
        ("data=2,fsdp=2,context=2", {}),
        ("pipe=2,model=4", {}),
        ("pipe=2,fsdp=4", {}),
        ("fsdp=4,model=4", {}),
    ],
)
def test_flops_of_pairs_and_options_are_those_of_the_closed_form(model, mesh, options):
    check(compiled(model, mesh, **options))


@pytest.mark.slow
def test_experts_over_two_axes_have_the_flops_of_the_closed_form():
    check(compiled("mixtral-tiny", "expert=4,model=2"))


@pytest.mark.slow
def test_fp8_has_the_flops_of_bf16():
    check(compiled("llama-tiny", "fsdp=8", precision="fp8"))
