"""Models by name: published dimensions, and small models that train in seconds on a CPU."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, is_folder, shown
from exajax.models.dimensions import ModelConfig


def _gpt(
    name: str, layers: int, width: int, heads: int, seq: int, ffn: int = 0, source: str = ""
) -> ModelConfig:
    return ModelConfig(
        name, "gpt", layers, width, heads, heads, ffn or 4 * width, 50_257, seq, source=source
    )


@dataclass(frozen=True)
class _LlamaRelease:
    """What the models of one release of Llama have in common."""

    vocab: int
    seq: int
    rope_theta: float
    source: str

    def model(
        self, name: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int
    ) -> ModelConfig:
        return ModelConfig(
            name, "llama", layers, width, heads, kv_heads, ffn, **dataclasses.asdict(self)
        )


@dataclass(frozen=True)
class _Images:
    """Images that a vit classifies: height of an image and of a patch, and colours."""

    image: int
    patch: int
    channels: int


def _vit(
    name: str, layers: int, width: int, heads: int, *, classes: int, images: _Images, source: str
) -> ModelConfig:
    return ModelConfig(
        name=name,
        family="vit",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads,
        ffn=4 * width,
        vocab=classes,
        seq=(images.image // images.patch) ** 2,
        source=source,
        **dataclasses.asdict(images),
    )


_GPT2 = "Radford et al. 2019, table 2"
_GPT3 = "arXiv:2005.14165, table 2.1"
_MIXTRAL = "arXiv:2401.04088, table 1"
_VIT = "arXiv:2010.11929, table 1"

_LLAMA2 = _LlamaRelease(32_000, 4096, 1e4, "arXiv:2307.09288")
_LLAMA3 = _LlamaRelease(128_256, 8192, 5e5, "arXiv:2407.21783, table 3")
_IMAGENET = _Images(image=224, patch=16, channels=3)
_DIGITS = _Images(image=8, patch=2, channels=1)

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        _gpt("gpt2-124m", 12, 768, 12, 1024, source=_GPT2),
        _gpt("gpt2-355m", 24, 1024, 16, 1024, source=_GPT2),
        _gpt("gpt2-774m", 36, 1280, 20, 1024, source=_GPT2),
        _gpt("gpt2-1.5b", 48, 1600, 25, 1024, source=_GPT2),
        _gpt("gpt3-125m", 12, 768, 12, 2048, source=_GPT3),
        _gpt("gpt3-350m", 24, 1024, 16, 2048, source=_GPT3),
        _gpt("gpt3-760m", 24, 1536, 16, 2048, source=_GPT3),
        # The table's 24 heads of 128 do not make 2,048; 16 do, as others train it.
        _gpt("gpt3-1.3b", 24, 2048, 16, 2048, source=_GPT3),
        _gpt("gpt3-2.7b", 32, 2560, 32, 2048, source=_GPT3),
        _gpt("gpt3-6.7b", 32, 4096, 32, 2048, source=_GPT3),
        # The table's width of 5,140 is not 40 heads of 128; 5,120 is.
        _gpt("gpt3-13b", 40, 5120, 40, 2048, source=_GPT3),
        _gpt("gpt3-175b", 96, 12288, 96, 2048, source=_GPT3),
        _LLAMA2.model("llama2-7b", 32, 4096, 32, 32, 11008),
        _LLAMA2.model("llama2-13b", 40, 5120, 40, 40, 13824),
        _LLAMA2.model("llama2-70b", 80, 8192, 64, 8, 28672),
        _LLAMA3.model("llama3-8b", 32, 4096, 32, 8, 14336),
        _LLAMA3.model("llama3-70b", 80, 8192, 64, 8, 28672),
        _LLAMA3.model("llama3-405b", 126, 16384, 128, 8, 53248),
        ModelConfig(
            name="mixtral-8x7b",
            family="mixtral",
            layers=32,
            width=4096,
            heads=32,
            kv_heads=8,
            ffn=14336,
            vocab=32_000,
            seq=32_768,
            rope_theta=1e6,
            source=_MIXTRAL,
            experts=8,
            top_k=2,
            # router_aux_loss_coef 0.02 of mistralai/Mixtral-8x7B-v0.1, by `to_balance`.
            balance=0.02 * 2 / 32,
        ),
        # The feed-forward width is what makes 250 G of the dimensions that the name stands for.
        ModelConfig(
            name="alphaexa-250b",
            family="mixtral",
            layers=120,
            width=16384,
            heads=128,
            kv_heads=16,
            ffn=4864,
            vocab=32_000,
            seq=4096,
            rope_theta=5e5,
            source="ours",
            experts=32,
            top_k=2,
            moe_every=6,
        ),
        _vit("vit-b", 12, 768, 12, classes=1000, images=_IMAGENET, source=_VIT),
        _vit("vit-l", 24, 1024, 16, classes=1000, images=_IMAGENET, source=_VIT),
        # Small models, which every mesh of 8 devices divides.
        ModelConfig("gpt-tiny", "gpt", 8, 128, 16, 16, 512, 256, 128, source="ours"),
        ModelConfig("llama-tiny", "llama", 8, 128, 16, 8, 384, 256, 128, source="ours"),
        ModelConfig(
            name="mixtral-tiny",
            family="mixtral",
            layers=8,
            width=128,
            heads=16,
            kv_heads=8,
            ffn=192,
            vocab=256,
            seq=128,
            source="ours",
            experts=8,
            top_k=2,
        ),
        _vit("vit-tiny", 8, 128, 16, classes=10, images=_DIGITS, source="ours"),
    )
}


def lookup(name: str, field: str = "model") -> ModelConfig:
    """The model of a preset's name, a TOML file, or a Hugging Face folder.

    Args:
        name: a key of `PRESETS`, the path of a TOML file with fields of `ModelConfig`, or of a
            folder with Hugging Face's `config.json`.
        field: field that errors name.

    Raises:
        InputError: there is no such preset or file, or the file does not describe a model.
    """
    from exajax.models import model_file
    from exajax.models.huggingface.config import CONFIG, read_config

    if name.lower() in PRESETS:
        return PRESETS[name.lower()]
    path = Path(name)
    try:
        if name and is_folder(path):
            path, folder = path / CONFIG, path
            return model_file.model_of_table(read_config(folder))
        if name.endswith(".toml"):
            return model_file.read_model(path)
    except Malformed as error:
        raise error.within(field, path) from error
    raise InputError(field, f"unknown model {shown(name)}", nearest(name, PRESETS))


SMALL_MODELS = {
    "gpt": "gpt-tiny",
    "llama": "llama-tiny",
    "mixtral": "mixtral-tiny",
    "vit": "vit-tiny",
}
"""Name of the preset of each family that trains in seconds on a CPU."""


def small_model_of(config: ModelConfig) -> ModelConfig:
    """The small model of the same family: the same code, fewer and narrower layers."""
    return PRESETS[SMALL_MODELS[config.family]]
