"""Bulk sampling on a real Ray cluster of several raylets: the pictures are the local run's, whatever dies."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import _config
import numpy as np
import pytest
from _bulk_jobs import files, job, manifest, picture_bytes, pictures, prompts

from ldm.bulk import ModelError, Ray, Row, local

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # as ldm.bulk says before it imports Ray
ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.data", reason="Ray Data is not installed")
pytestmark = [
    pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout"),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="workers are found through /proc"),
]
COUNT = 64
SCRIPT = Path(_config.ROOT, "scripts", "sample_bulk.py")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return prompts(tmp_path_factory.mktemp("rows") / "prompts.jsonl", COUNT)


@pytest.fixture(scope="module")
def expected(file, tmp_path_factory):
    """The local run's output."""
    outdir = tmp_path_factory.mktemp("local")
    assert job(outdir, file, engine=local).drawn == COUNT
    return pictures(outdir)


@pytest.fixture(scope="module")
def cluster():
    """A head that only leads, and two nodes for two workers each."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    made.nodes = [made.add_node(num_cpus=2, **memory) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


def check(outdir, expected):
    """Nothing is missing, doubled or half-written, and all is as in the local run, to one grey level."""
    found, told = pictures(outdir), manifest(outdir)
    there, parts = files(outdir)
    assert sorted(found) == sorted(expected) and not parts
    assert there == {record["file"] for record in told.values()}
    for row, record in told.items():
        assert hashlib.sha256(picture_bytes(outdir, record)).hexdigest() == record["sha256"]
        assert found[row].shape == expected[row].shape
        assert np.abs(found[row] - expected[row]).max() <= 1


def disturbed(engine, act, after):
    """`engine`, with `act` called when so many batches have come."""

    def disturb(make_drawer, batches):
        for k, results in enumerate(engine(make_drawer, batches)):
            yield results
            if k == after:
                act()

    return disturb


def workers():
    """The processes of Ray's actors."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


class Counted:
    """Draws the number of a row."""

    def __call__(self, batch):
        return [str(row.index).encode() for row in batch]


class Broken:
    def __call__(self, batch):
        raise RuntimeError("lost")


class Unloadable:
    def __init__(self):
        raise OSError("no such file")


@pytest.mark.parametrize(("count", "batch_size"), [(1, 16), (2, 3), (4, 8)])
def test_the_pictures_are_the_local_ones_with_any_workers_and_batches(
    count, batch_size, file, expected, cluster, tmp_path
):
    summary = job(tmp_path, file, engine=Ray(count, address=cluster.address), batch_size=batch_size)
    assert (summary.drawn, summary.failed, summary.left) == (COUNT, 0, 0)
    check(tmp_path, expected)


def test_other_batches_locally_and_shards_hold_the_same_pictures(file, expected, tmp_path):
    assert job(tmp_path, file, "--format", "tar", "--shard_size", "10", engine=local, batch_size=5).drawn == COUNT
    check(tmp_path, expected)


def test_a_killed_worker_costs_nothing_but_time(file, expected, cluster, tmp_path):
    killed = []

    def kill():
        killed.extend(workers()[:1])
        os.kill(killed[0], signal.SIGKILL)

    engine = disturbed(Ray(2, address=cluster.address), kill, after=2)
    assert job(tmp_path, file, engine=engine, batch_size=2).drawn == COUNT
    assert killed
    check(tmp_path, expected)


def test_a_killed_driver_can_be_started_again(file, expected, cluster, tmp_path):
    flags = ["--engine", "ray", "--workers", "2", "--address", cluster.address, "--batch_size", "2"]
    flags += ["--from-file", file, "--outdir", tmp_path, "--precision", "full"]
    command = list(map(str, [sys.executable, SCRIPT, *flags]))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(files(tmp_path)[0]) < 6 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    said = driver.communicate()[1].decode()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)[0]}
    assert 6 <= len(before) < COUNT, said
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT - len(before)} pictures drawn, {len(before)} there before" in done.stdout
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}  # none was drawn again
    check(tmp_path, expected)


def test_more_workers_than_there_is_room_for_are_a_warning_and_no_room_at_all_is_an_error(cluster):
    engine = Ray(9, num_cpus=1, address=cluster.address)
    with pytest.warns(UserWarning, match="room for 4 of 9 workers"):
        found = sorted(result.png for results in engine(Counted, [[Row(k, k)] for k in range(3)]) for result in results)
    assert found == [b"0", b"1", b"2"]
    with pytest.raises(ValueError, match="no node of the Ray cluster has 1 CPU and 1 GPU"):
        list(Ray(1, num_gpus=1, address=cluster.address)(Counted, [[Row(0, 0)]]))


def test_a_cluster_that_is_not_there_is_said_at_once():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and listens to nobody
        port = unheard.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            list(Ray(address=f"127.0.0.1:{port}")(Counted, [[Row(0, 0)]]))


def test_a_model_that_fails_in_an_actor_is_one_error_here(cluster):
    for broken, why in (
        (Unloadable, "cannot be loaded: OSError: no such file"),
        (Broken, "the model failed: RuntimeError: lost"),
    ):
        with pytest.raises(ModelError, match=why):
            list(Ray(2, address=cluster.address)(broken, [[Row(k, k)] for k in range(4)]))


def test_nothing_starts_ray_by_itself():
    code = (
        "from ldm.bulk import engines\n"
        "ray = engines._ray()\n"
        "try: ray.put(1)\n"
        "except ray.exceptions.RaySystemError: pass\n"
        "print('started' if ray.is_initialized() else 'not started')\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=clean)
    assert done.stdout.split("\n")[-2] == "not started", done.stderr


# The last one: the cluster is smaller after it.
def test_a_node_that_goes_costs_nothing_but_time(file, expected, cluster, tmp_path):
    def remove():
        cluster.remove_node(cluster.nodes[1], allow_graceful=False)

    engine = disturbed(Ray(4, address=cluster.address), remove, after=2)
    assert job(tmp_path, file, engine=engine, batch_size=2).drawn == COUNT
    check(tmp_path, expected)
