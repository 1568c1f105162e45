import pytest

from exajax import InputError
from exajax.calibrate import measure
from exajax.machine import cluster
from exajax.machine.chip_file import chip_of_device

RATES = {"all-reduce": 2e8, "other": 4e8}


@pytest.mark.parametrize("name", cluster.cluster_names())
def test_every_machine_loads_with_a_source_for_every_figure(name):
    machine = cluster.load_cluster(name)
    assert machine.devices == machine.nodes * machine.devices_per_node
    assert machine.chip.peak_flops["bf16"] > 1e14
    for figure in ("link.bandwidth", "network.bandwidth", "nodes", "variability.network"):
        assert len(machine.sources[figure]) > 10
    assert 0 < machine.variability.compute < 0.1
    assert 0 < machine.variability.network < 0.5
    for figure in ("peak.bf16", "memory.bandwidth", "matmul.tiles.source", "kernel.launch"):
        assert len(machine.chip.sources[figure]) > 10


def test_the_default_machine_is_128_nodes_of_8_and_more():
    machine = cluster.load_cluster("dgx-h100")
    assert machine.devices_per_node == 8
    assert machine.nodes >= 128


@pytest.mark.parametrize(
    ("name", "devices_per_node", "node_bandwidth", "topology"),
    [
        ("polaris", 4, 50e9, "dragonfly"),
        ("aurora", 12, 200e9, "dragonfly"),
        ("frontier", 8, 100e9, "dragonfly"),
        ("perlmutter", 4, 100e9, "dragonfly"),
        ("alps", 4, 100e9, "dragonfly"),
        ("selene", 8, 200e9, "fat-tree"),
        ("dgx-h100", 8, 400e9, "fat-tree"),
        ("dgx-b200", 8, 400e9, "fat-tree"),
        ("jean-zay", 8, 50e9, "fat-tree"),
        ("gb200-nvl72", 64, 3200e9, "fat-tree"),
        ("tpu-v5p", 4, 90e9, "torus-3d"),
        ("tpu-v6e", 8, 90e9, "torus-3d"),
    ],
)
def test_the_machines_are_those_of_their_sites(name, devices_per_node, node_bandwidth, topology):
    machine = cluster.load_cluster(name)
    assert machine.devices_per_node == devices_per_node
    assert machine.network.bandwidth == node_bandwidth
    assert machine.network.topology == topology
    assert all(size > 0 for size in machine.network.sides)


def test_links_that_join_a_rack_make_it_the_node_of_a_row():
    # A tray of 4 has 400 GB/s of network; 16 of them are a node.
    machine = cluster.machine_with("gb200", 4, 400e9)
    assert (machine.chip.name, machine.devices_per_node) == ("gb200", 64)
    assert machine.network.bandwidth == pytest.approx(16 * 400e9)
    ordinary = cluster.machine_with("b200", 8, 400e9)
    assert (ordinary.devices_per_node, ordinary.network.bandwidth) == (8, 400e9)
    assert cluster.machine_with("tpu-v6e", 8, None) == cluster.load_cluster("tpu-v6e")


def test_an_alias_is_the_same_machine_and_stands_in_the_list():
    assert "selene" in cluster.cluster_names()
    assert cluster.load_cluster("selene") == cluster.load_cluster("dgx-a100")
    with pytest.raises(InputError, match="perlmutter, polaris, selene"):
        cluster.load_cluster("selena")


def test_a_fabric_brings_its_figures_and_those_beside_it_go_first(tmp_path):
    text = (cluster.MESHES / "polaris.toml").read_text()
    shared = cluster.load_cluster("polaris").network
    own = text.replace(
        "[variability]", '[network.latency]\nother = ["9 us", "measured by me"]\n[variability]'
    )
    (tmp_path / "mine.toml").write_text(own)
    network = cluster.load_cluster(str(tmp_path / "mine.toml")).network
    assert network.latency_s == shared.latency_s | {"other": pytest.approx(9e-6)}
    assert network.tree == shared.tree


def test_a_network_of_pods_says_how_much_leaves_them(tmp_path):
    text = (cluster.MESHES / "dgx-h100.toml").read_text()
    pods = '[network.pod]\nnodes = [384, "arXiv:2407.21783"]\nuplink = [0.143, "1:7, the same"]\n'
    (tmp_path / "mine.toml").write_text(text.replace("[variability]", pods + "[variability]"))
    pod = cluster.load_cluster(str(tmp_path / "mine.toml")).network.pod
    assert (pod.nodes, pod.uplink) == (384, 0.143)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('bandwidth = ["400 GB/s"', 'bandwidth = ["400 GB"', "network.bandwidth"),
        ("devices_per_node = [8,", "devices_per_node = [0,", "devices_per_node"),
        ("[network]", "[netwerk]", "netwerk is unknown; did you mean 'network'"),
        ("compute = [0.021,", "compuet = [0.021,", "variability.compuet is unknown; did you mean"),
        ('bandwidth = ["400', 'bandwith = ["400', "network.bandwith is unknown; did you mean"),
        ("[variability]", "[variable]", "variable is unknown; did you mean 'variability'"),
        (
            "compute = [0.021,",
            "compute = [21,",
            "variability.compute is 21; give a number from 0 to 1",
        ),
        ('"fat-tree"', '"fat-three"', "did you mean 'fat-tree'"),
        ('"fat-tree"', '"torus-3d"', "network.sides is missing"),
        ('"nvswitch-h100"', '"nvswitch-h10"', "did you mean 'nvswitch-h100'"),
        ('fabric = "infiniband"', "", "network.efficiency.other is missing"),
        (
            "[variability]",
            "[network.tree]\nfill = [5]\n[variability]",
            "network.tree.fill [5] has no source",
        ),
        (
            "[variability]",
            '[link.microseconds.all-gather]\n8 = [[[8, 9.0], [9, 8.0]], "mine"]\n[variability]',
            "link.microseconds.all-gather.8 has a time that falls",
        ),
        ('chip = "h100"', 'chip = "h1000"', "did you mean 'h100'"),
        (
            "[variability]",
            '[network.efficiency]\nother = [1.97, "mine"]\n[variability]',
            "network.efficiency.other is 1.97",
        ),
        ('title = "DGX', "title = DGX", "is not TOML"),
    ],
)
def test_a_broken_description_is_refused_and_the_field_named(tmp_path, old, new, says):
    text = (cluster.MESHES / "dgx-h100.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        cluster.load_cluster(str(tmp_path / "mine.toml"))
    assert says in str(caught.value)


def test_a_figure_without_a_source_is_refused(tmp_path):
    text = (cluster.MESHES / "dgx-h100.toml").read_text()
    lines = [
        'bandwidth = "400 GB/s"' if line.startswith('bandwidth = ["400 GB/s"') else line
        for line in text.splitlines()
    ]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="has no source"):
        cluster.load_cluster(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("devices", "precision", "says"),
    [
        (12, "bf16", "12 devices are not whole nodes of 8"),
        (16_392, "bf16", "more than the 16384"),
        (16, "fp4", "h100 has no peak for fp4"),
    ],
)
def test_what_cannot_be_compiled_for_is_known_before_any_work(devices, precision, says):
    with pytest.raises(InputError, match=says):
        cluster.load_cluster("dgx-h100").check(devices, precision)


def test_what_parameters_are_kept_in_does_not_change_the_peak():
    chip = cluster.load_cluster("dgx-h100").chip
    assert chip.peak("pure-bf16") == chip.peak("bf16")


def test_a_chip_without_what_the_compiler_needs_is_refused_by_field(tmp_path):
    chip = (cluster.MESHES / "chips" / "h100.toml").read_text().replace("core_count", "cores")
    tables = chip.replace("\n[", "\n[chip.").replace("[peak]", "[chip.peak]")
    machine = (cluster.MESHES / "dgx-h100.toml").read_text().replace('chip = "h100"\n', "")
    (tmp_path / "mine.toml").write_text(machine + "\n[chip]\n" + tables)
    with pytest.raises(
        InputError, match=r"chip.xla_target.cores is unknown; choose one of .*core_count"
    ):
        cluster.load_cluster(str(tmp_path / "mine.toml"))


def test_what_calibrate_writes_is_a_machine_that_loads(tmp_path):
    inside = measure.Measured({"all-reduce": 2e-3, "further-array": 1e-4, "other": 1e-3}, RATES)
    between = measure.Measured({"all-reduce": 4e-3, "other": 3e-3}, RATES)
    text = measure._toml(2, 4, 1e11, [(1e6, 0.4), (1e9, 1.0)], 1e-6, 3e10, inside, between)
    (tmp_path / "local.toml").write_text(text)
    machine = cluster.load_cluster(str(tmp_path / "local.toml"))
    assert (machine.devices, machine.chip.platform) == (8, "cpu")
    assert machine.link.rate("all-reduce") == pytest.approx(2e8)
    assert machine.link.latency("all-reduce", arrays=3) == pytest.approx(2.2e-3)
    assert machine.network.latency("all-gather") == pytest.approx(3e-3)


def test_the_digest_follows_the_figures(tmp_path):
    text = (cluster.MESHES / "dgx-h100.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)
    same = cluster.load_cluster(str(tmp_path / "mine.toml"))
    assert same.digest == cluster.load_cluster("dgx-h100").digest
    (tmp_path / "mine.toml").write_text(text.replace('["400 GB/s"', '["401 GB/s"'))
    assert cluster.load_cluster(str(tmp_path / "mine.toml")).digest != same.digest


def test_an_attached_device_is_recognised_by_its_kind():
    chip = chip_of_device("NVIDIA H100 80GB HBM3")
    assert chip is not None
    assert chip.name == "h100"
    assert chip_of_device("abacus") is None


def test_local_is_the_machine_that_was_calibrated_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run exajax calibrate"):
        cluster.load_cluster("local")
    described = (cluster.MESHES / "dgx-a100.toml").read_text().replace('["selene"]', "[]")
    (tmp_path / "local.toml").write_text(described)
    assert cluster.load_cluster("local").devices_per_node == 8


def test_a_machine_that_was_written_before_software_was_its_word_is_read_alike(tmp_path):
    aurora = (cluster.MESHES / "aurora.toml").read_text()
    (tmp_path / "older.toml").write_text(aurora.replace("[software]", "[stack]"))
    (tmp_path / "both.toml").write_text('stack = "pax-2024"\n' + aurora)
    older = cluster.load_cluster(str(tmp_path / "older.toml"))
    assert older.software == cluster.load_cluster("aurora").software
    with pytest.raises(InputError, match="stack is given under two names; leave one out"):
        cluster.load_cluster(str(tmp_path / "both.toml"))
