"""Bulk sampling on a real Ray cluster of several raylets: the pictures are the local run's, whatever dies."""

import hashlib
import os
import re
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

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # as ldm.bulk.cluster says before it imports Ray
os.environ.setdefault("RAY_worker_niceness", "0")  # else what is at work beside the tests holds its workers up for ever
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


def processes(word):
    """Those of ours that have this in their command line: others may use Ray here, too."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if word in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return [pid for pid in found if os.getpid() in ancestors(pid, parents)]


def ancestors(pid, parents):
    while pid := parents.get(pid, 0):
        yield pid


def workers():
    """The processes of Ray's actors."""
    return processes(b"ray::MapWorker")


def connected():
    """The processes that are connected to Ray for somebody else."""
    return processes(b"from ldm.bulk.apart import main")


def is_there(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


def wait_for(holds, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)


def command(cluster, file, outdir):
    flags = ["--engine", "ray", "--workers", "2", "--address", cluster.address, "--batch_size", "2"]
    flags += ["--from-file", file, "--outdir", outdir, "--precision", "full"]
    return list(map(str, [sys.executable, SCRIPT, *flags]))


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
    run = command(cluster, file, tmp_path)
    driver = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: len(files(tmp_path)[0]) >= 6 or driver.poll() is not None)
    (beside,), drawing = connected(), workers()
    for pid in drawing:
        os.kill(pid, signal.SIGSTOP)  # so that what was asked for cannot be done
    driver.kill()
    said = driver.communicate()[1].decode()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)[0]}
    assert 6 <= len(before) < COUNT, said
    wait_for(lambda: not any(map(is_there, [beside, *drawing])), 60)
    assert drawing and not any(map(is_there, [beside, *drawing]))
    done = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT - len(before)} pictures drawn, {len(before)} there before" in done.stdout
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}  # none was drawn again
    check(tmp_path, expected)


def test_a_driver_that_is_interrupted_ends_in_good_order(file, cluster, tmp_path):
    run = command(cluster, file, tmp_path)
    driver = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: len(files(tmp_path)[0]) >= 6 or driver.poll() is not None)
    assert [os.getsid(pid) == driver.pid for pid in connected()] == [False]  # Ctrl-C in a terminal does not reach it
    os.killpg(driver.pid, signal.SIGINT)
    told, said = driver.communicate(timeout=60)
    there, parts = files(tmp_path)
    assert driver.returncode == 130 and "Ray gave up" not in said and "Traceback" not in said, said
    assert f"{len(there)} pictures drawn" in told and f"{COUNT - len(there)} left" in told
    assert 6 <= len(there) < COUNT and not parts and there == {r["file"] for r in manifest(tmp_path).values()}
    assert not connected()


def test_another_process_goes_on_where_ray_ends_the_one_that_it_is_in(file, expected, cluster, tmp_path, caplog):
    killed = []

    def kill():
        killed.extend(connected())
        os.kill(*killed, signal.SIGKILL)

    engine = disturbed(Ray(2, address=cluster.address), kill, after=2)
    assert job(tmp_path, file, engine=engine, batch_size=2).drawn == COUNT
    assert len(killed) == 1 and "its process ended with status -9" in caplog.text
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


def own_process(cluster, paths):
    """(its last line, what it says) of a process that has connected by itself, with actors that look for modules in
    `paths`. The tests' own might end with Ray."""
    code = (
        "import os, ray, test_bulk_ray as tests\n"
        f"env = {{'env_vars': {{'PYTHONPATH': {paths!r}}}}}\n"
        f"ray.init(address={cluster.address!r}, log_to_driver=False, runtime_env=env)\n"
        "found = tests.Ray(address='127.0.0.1:1')(tests.Counted, [[tests.Row(k, k)] for k in range(3)])\n"
        "try: print(sorted(r.png for results in found for r in results), len(tests.connected()), flush=True)\n"
        "except tests.ModelError as error: print(error, flush=True)\n"
        "os._exit(0)\n"
    )
    own = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=own, check=False)
    return done.stdout.rstrip("\n").split("\n")[-1], done.stderr


def test_who_has_connected_to_ray_before_has_chosen(cluster):
    found, said = own_process(cluster, os.pathsep.join(path for path in sys.path if path))
    assert found == "[b'0', b'1', b'2'] 0", said


def test_nodes_that_lack_what_the_job_needs_are_named(cluster):
    """Ray itself would begin such actors again and again, and say nothing."""
    found, said = own_process(cluster, "/nowhere")
    assert re.fullmatch(r"the Ray node [\d.]+ lacks what the job needs: ModuleNotFoundError: .*'\w+'", found), said


def test_nothing_starts_ray_by_itself():
    code = (
        "from ldm.bulk import cluster\n"
        "ray = cluster.load()\n"
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
