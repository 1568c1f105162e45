"""A run's end as a folder that others read: whole, with its tokenizer, and for whom umask says."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from exajax.train.checkpoint import checksums
from tests.conftest import command

pytest.importorskip("safetensors")

MODEL = 'family = "llama"\nlayers = 1\nwidth = 16\nheads = 2\nffn = 24\nvocab = 300\nseq = 32\n'


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a run on text that it tokenised, and its export, all under umask 0027."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<pad>", "<unk>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(folder / "their.json"))
    (folder / "m.toml").write_text(MODEL)
    masked(folder, "tokenise", "--data", text, "--tokenizer", "their.json", "--seq", 32)
    masked(folder, "train", "--data", "out", "--mesh", "1x1", "--model", "m.toml", "--steps", 1)
    (folder / "their.json").rename(folder / "moved.json")
    shutil.rmtree(folder / "out")
    masked(folder, "export")
    return folder


def masked(folder: Path, name: str, *flags: object) -> None:
    """Runs a command under umask 0027; tokenise and export write the folder `out`."""
    given = [*map(str, flags)]
    given += ["--out", "out"] if name != "train" else ["--metrics-port", "0"]
    given += ["--run-dir", "run"] if name != "tokenise" else []
    line = [sys.executable, "-m", "exajax", name, *given]
    done = subprocess.run(line, cwd=folder, umask=0o027, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (folder / "out").rglob("*"):
        assert mode(path) == (0o750 if path.is_dir() else 0o640), path
    assert mode(folder / "out") == 0o750


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_that_a_run_wrote_is_for_whom_umask_says(run):
    for path in (run / "run").rglob("*"):
        assert mode(path) == (0o750 if path.is_dir() else 0o640), path


def test_the_tokenizer_and_its_end_go_along(run):
    out = run / "out"
    assert (out / "tokenizer.json").read_bytes() == (run / "moved.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    named = json.loads((out / "tokenizer_config.json").read_text())
    assert (named["eos_token"], named["tokenizer_class"]) == ("</s>", "PreTrainedTokenizerFast")


def test_a_run_that_keeps_no_tokenizer_asks_for_it_and_takes_no_other(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").unlink()
    flags = ["--run-dir", tmp_path / "run", "--out", tmp_path / "out"]
    for more, says in (([], "give it with --tokenizer"), (["--tokenizer", "bytes"], "was trained")):
        done = command("export", *flags, *more)
        assert done.returncode == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
    done = command("export", *flags, "--tokenizer", run / "moved.json", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_model_that_the_arrays_are_not_of_is_refused_before_they_are_read(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    about = json.loads((checkpoint / "about.json").read_text())
    about["recipe"]["model"] |= {"width": 32, "ffn": 48}
    del about["recipe"]["interleave"]  # the manifest has it
    (checkpoint / "about.json").write_text(json.dumps(about))
    checksums.write(checkpoint, checksums.sums_of(checkpoint, checksums.files_in(checkpoint)))
    done = command("export", "--run-dir", tmp_path / "run", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "is of another model than it says: params." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
