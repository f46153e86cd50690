"""A local job that is killed, interrupted or started twice: nothing is missing, doubled or half-written in the end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import _bulk_process
import pytest
from _bulk_jobs import files

ROOT = Path(__file__).resolve().parents[1]
KILLS, COUNT = 30, 300


def start(outdir, format="png", count=COUNT, seconds=0.002):
    command = [sys.executable, _bulk_process.__file__, str(outdir), format, str(count), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(outdir, *options):
    """(summary, stderr) of a run to its end."""
    process = start(outdir, *options)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return json.loads(out), said


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition(), process.communicate()[1]


def content(outdir):
    """Everything that is there, by its name."""
    return {str(path.relative_to(outdir)): path.read_bytes() for path in Path(outdir).rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["png", "tar"])
def test_killed_at_thirty_moments_it_ends_as_if_undisturbed(format, tmp_path):
    chance = random.Random(7)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    began = time.monotonic()
    finish(undisturbed, format)
    longest = (time.monotonic() - began) / 2
    kills, progress = 0, [0]
    while kills < KILLS:
        process = start(disturbed, format)
        time.sleep(chance.uniform(0.05, longest))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        progress.append(len(files(disturbed)[0]))
        if progress[-1] == progress[-2]:  # on a machine that is busier now, later kills
            longest *= 1.1
        if process.returncode == 0:  # it came to its end: once more from the beginning
            shutil.rmtree(disturbed)
    assert len(set(progress)) > 5  # it was killed at work, not always before
    summary, _ = finish(disturbed, format)
    assert summary["there"] + summary["drawn"] == COUNT and summary["left"] == summary["failed"] == 0
    ignored = {"checksums.jsonl", ".lock"}  # a line for each time that something was drawn; the process' number
    one, other = ({k: v for k, v in content(place).items() if k not in ignored} for place in (disturbed, undisturbed))
    assert one == other


def test_ctrl_c_finishes_the_batch_and_the_next_run_goes_on(tmp_path):
    process = start(tmp_path, "png", 100, 0.1)
    wait_for(lambda: len(files(tmp_path)[0]) >= 5, process)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    summary = json.loads(out)
    assert process.returncode == 0 and "finishes the batch" in said
    assert 5 <= summary["drawn"] < 100 and summary["drawn"] % 5 == 0 and summary["drawn"] + summary["left"] == 100
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == summary["drawn"]
    again, _ = finish(tmp_path, "png", 100, 0)
    assert (again["there"], again["drawn"]) == (summary["drawn"], 100 - summary["drawn"])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process = start(tmp_path, "png", 20, 200)  # a batch takes a quarter of an hour
    assert process.stderr.readline() == "drawing\n"
    process.send_signal(signal.SIGINT)
    assert "finishes the batch" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt: at once; what was finished is there" in process.communicate(timeout=60)[1]
    assert files(tmp_path) == (set(), [])


def test_two_runs_do_not_share_a_folder(tmp_path):
    process = start(tmp_path, "png", 100, 0.2)
    wait_for(lambda: files(tmp_path)[0], process)
    other = start(tmp_path, "png", 100, 0)
    said = other.communicate(timeout=60)[1]
    assert f"{tmp_path} is in use by another run (process {process.pid} on " in said and other.returncode == 1
    process.kill()
    process.wait()
    assert finish(tmp_path, "png", 100, 0)[0]["left"] == 0  # the lock of a killed process holds nobody up
