import pytest

from exajax import InputError, MeshSpec, Recipe
from exajax.cli import flags
from exajax.models.presets import PRESETS, lookup, small_model_of
from exajax.spmd.mesh import AXES


def recipe(**options):
    return Recipe.of(lookup("llama2-70b"), MeshSpec(data=128, model=8), **options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"global_batch": 100}, "global_batch"),
        ({"seq": 9000}, "seq"),
        ({"seq": 4095}, "seq"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"zero": 4}, "zero"),
        ({"precision": "bf61"}, "precision"),
        ({"remat": "some"}, "remat"),
        ({"attention": "slow"}, "attention"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"micro_batch": 3}, "micro_batch"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"schedule": "2f2b"}, "schedule"),
        ({"interleave": 2}, "interleave"),
        ({"schedule": "interleaved"}, "interleave"),
        ({"schedule": "interleaved", "interleave": 2}, "interleave"),
        ({"moe": "some"}, "moe"),
        ({"capacity_factor": 0.0}, "capacity_factor"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"lr_schedule": "cosin"}, "lr_schedule"),
        ({"schedule_steps": 0}, "schedule_steps"),
        ({"z_loss": float("inf")}, "z_loss"),
        ({"z_loss": -1e-4}, "z_loss"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_an_impossible_option_is_named(options, field):
    with pytest.raises(InputError) as caught:
        recipe(**options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("model", "mesh", "options", "says"),
    [
        ("llama2-70b", "pipe=3", {}, "pipe=3 does not divide the 80 layers"),
        ("alphaexa-250b", "pipe=8", {}, "pipe=8 does not divide the 20 groups of 6 layers"),
        ("llama2-70b", "expert=2", {}, "leave expert out"),
        ("mixtral-8x7b", "expert=16", {}, "expert=16 does not divide the 8 experts"),
        ("llama2-7b", "context=4", {"seq": 4092}, "give a multiple of 8"),
        ("llama2-7b", "pipe=4", {"schedule": "interleaved", "interleave": 3}, "a divisor of 32"),
        ("vit-b", "data=4", {"packed": True}, "reads no documents"),
        (
            "llama2-7b",
            "pipe=4",
            {"schedule": "interleaved", "interleave": 2, "global_batch": 6},
            "do not divide over 4 stages",
        ),
    ],
)
def test_a_mesh_that_does_not_go_with_the_model_is_refused(model, mesh, options, says):
    with pytest.raises(InputError) as caught:
        Recipe.of(lookup(model), MeshSpec.parse(mesh), **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("ways", [3, 16, 128])
def test_a_model_axis_that_does_not_divide_the_model_is_refused(ways):
    with pytest.raises(InputError, match=f"model={ways} does not divide"):
        Recipe.of(lookup("llama2-70b"), MeshSpec(model=ways))


def test_flash_is_refused_where_it_does_not_work_and_left_out_where_it_is_not_asked_for():
    with pytest.raises(InputError, match="attention"):
        recipe(attention="flash").flash("cpu")
    assert recipe().flash("cuda")
    assert not recipe().flash("cpu")
    assert not recipe(attention="unfused").flash("cuda")
    assert not recipe(precision="fp32").flash("cuda")


def test_a_recipe_survives_its_own_flags(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'family = "gpt"\nlayers = 2\nwidth = 64\nheads = 4\nffn = 128\nvocab = 256\nseq = 32\n'
    )
    parser = flags.Parser()
    flags.add_recipe_flags(parser)
    for model in ("llama2-7b", str(path)):
        mesh = MeshSpec(data=2, fsdp=2, model=2)
        before = Recipe.of(
            lookup(model),
            mesh,
            precision="fp32",
            zero=1,
            seed=3,
            optimizer="muon",
            lr_schedule="wsd",
            schedule_steps=70,
            z_loss=1e-4,
        )
        argv = flags.recipe_argv(before, model)
        assert flags.recipe_of(parser.parse_args(argv)) == before


def test_the_digest_is_the_programs_and_steps_may_grow():
    assert recipe(steps=100).digest == recipe(steps=200).digest
    assert recipe(remat="none").digest != recipe().digest
    for change in (
        {"seed": 1},
        {"optimizer": "lion"},
        {"lr_schedule": "constant"},
        {"z_loss": 1e-4},
    ):
        assert recipe(**change).digest != recipe().digest
        assert recipe(**change).job != recipe().job


def test_a_job_is_the_same_on_any_mesh():
    llama = lookup("llama-tiny")
    one = Recipe.of(llama, MeshSpec(), global_batch=16)
    other = Recipe.of(
        llama,
        MeshSpec(pipe=2, model=2),
        global_batch=16,
        micro_batch=2,
        remat="none",
        zero=1,
        attention="unfused",
        schedule="interleaved",
        interleave=2,
        sequence_parallel=False,
        steps=7,
    )
    assert one.job == other.job
    assert one.digest != other.digest
    assert one.job != Recipe.of(llama, MeshSpec(), global_batch=32).job


@pytest.mark.parametrize("name", PRESETS)
def test_every_twin_is_of_the_family_and_every_mesh_of_eight_divides_it(name):
    twin = small_model_of(PRESETS[name])
    assert twin.family == PRESETS[name].family
    for axis in set(AXES) - ({"expert"} if not twin.experts else set()):
        Recipe.of(twin, MeshSpec(**{axis: 8}))
        Recipe.of(twin, MeshSpec(data=2, fsdp=2, model=2))
