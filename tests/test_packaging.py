"""The wheel holds exajax and nothing else, and works where no checkout is."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, or what an earlier build left would be packed too
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_nothing_generic_lands_in_site_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"exajax"}
    for needed in (
        "exajax/models/llama.py",
        "exajax/models/huggingface/tensor_mapping.py",
        "exajax/meshes/dgx-h100.toml",
        "exajax/meshes/chips/h100.toml",
        "exajax/meshes/programs/xla.toml",
        "exajax/meshes/software/megatron-2021.toml",
        "exajax/meshes/published/megatron_sc21.csv",
        "exajax/launch/multihost.py",
        "exajax/launch/monitoring/grafana-dashboard.json",
        "exajax/launch/polaris.pbs",
        "exajax/launch/frontier.sbatch",
        "exajax/launch/kubernetes.yaml",
        "exajax/report/page.html.j2",
    ):
        assert needed in names


def test_the_installed_wheel_works_away_from_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True)
    code = (
        f"import exajax; assert exajax.__file__.startswith({str(target)!r}), exajax.__file__; "
        "print(exajax.load_cluster('dgx-h100').devices, exajax.MeshSpec.parse('128x8').devices)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["16384", "1024"], result.stderr
