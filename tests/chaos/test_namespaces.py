"""Network namespaces of local hosts; every test runs a script in namespaces of its own."""

import json
import os
import subprocess
import sys

import pytest

from exajax.chaos import namespaces
from tests.conftest import REPOSITORY

UNAVAILABLE = namespaces.why_unavailable()
pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=f"no namespaces: {UNAVAILABLE}")

BEGIN = """
import json, shlex, subprocess, sys
from pathlib import Path
from exajax.job.environment import HOST_PREFIX
from exajax.chaos import disk as disks
from exajax.chaos import namespaces
namespaces.enter()
folder = Path(sys.argv[1])
"""


def in_namespaces(script, folder, **environment):
    path = folder / "script.py"
    path.write_text(BEGIN + script)
    done = subprocess.run(
        [sys.executable, path, folder],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REACH = """
def reaches(here, there):
    prefix = network.environment[HOST_PREFIX.name].replace("{host}", str(here))
    ping = f"import socket; socket.create_connection(('{namespaces.address_of(there)}', 7000), 1)"
    return subprocess.run([*shlex.split(prefix), sys.executable, "-c", ping],
                          capture_output=True).returncode == 0

with namespaces.HostNetwork(3, folder / "net") as network:
    prefix = network.environment[HOST_PREFIX.name].replace("{host}", "1")
    listen = "import os, socket; s = socket.create_server((socket.gethostname(), 7000));"
    listen += "assert s.getsockname()[0] == os.environ['EXAJAX_ADDRESS'];"
    listen += "print(flush=True); s.accept(); input()"
    server = subprocess.Popen([*shlex.split(prefix), sys.executable, "-c", listen],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server.stdout.readline()
    reached = [reaches(0, 1), reaches(2, 1)]
    network.cut(0)
    reached += [reaches(0, 1), reaches(2, 1)]
    network.reconnect(0)
    reached += [reaches(0, 1)]
    server.kill()
links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True).stdout)
print(json.dumps({"reached": reached, "links": [link["ifname"] for link in links]}))
"""


def test_a_host_is_cut_off_and_reconnected_while_the_others_stay_connected(tmp_path):
    result = in_namespaces(REACH, tmp_path)
    assert result["reached"] == [True, True, False, True, True]
    assert result["links"] == ["lo"]


SMALL = """
disk = folder / "checkpoints"
disks.mount_tmpfs(disk, 2**20)
(disk / "kept").write_text("whole")
filler = disks.fill(disk)
try:
    (disk / "more").write_text("x")
    (disk / "more").write_text("x" * 8192)
    full = False
except OSError as error:
    full = error.errno == 28
filler.unlink()
(disk / "more").write_text("x" * 8192)
disks.unmount_and_keep(disk)
print(json.dumps({"full": full, "mounted": disk.is_mount()}))
"""


def test_a_small_disk_is_filled_and_its_files_survive_the_unmount(tmp_path):
    result = in_namespaces(SMALL, tmp_path)
    assert result == {"full": True, "mounted": False}
    saved = tmp_path / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["kept", "more"]
    assert (saved / "kept").read_text() == "whole"


def test_mounts_are_invisible_outside(tmp_path):
    script = "disks.mount_tmpfs(folder / 'disk', 2**20)\n"
    script += "(folder / 'disk' / 'file').write_text('x')\nprint('{}')"
    in_namespaces(script, tmp_path)
    assert not list((tmp_path / "disk").iterdir())
