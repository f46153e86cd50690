"""scripts/sample_bulk.py: its flags, rows and exit statuses; and that a row's picture is what txt2img draws for it."""

import json
from pathlib import Path

import _bulk
import _config
import numpy as np
import pytest
import sample_bulk
from _bulk_jobs import manifest, pictures
from _script_models import of_as_many_classes_as_imagenet, of_classes, unconditional, written
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.bulk import Summary
from ldm.image import read_settings

ROWS = """\
{"prompt": "a red circle", "seed": 5}
{"prompt": "a blue square", "seed": 6, "steps": 3, "negative_prompt": "a circle", "id": "b"}
{"prompt": "a green star", "seed": 7, "scale": 1}
{"prompt": null}
{"prompt": "a pink heart", "seed": 8, "width": 24}
{"prompt": "a pink heart", "seed": 8, "width": 23}
{"prompt": "a pink heart", "seed": 8, "steps": 999}
"""
FEW = ("--ddim_steps", 2, "--device", "cpu")


@pytest.fixture
def bulk(run, tmp_path):
    """Run it on a text of rows, or without; (exit status, stdout's last line, what it says)."""

    def bulk(*flags, rows=None, name="rows.jsonl", **more):
        if rows is not None:
            (tmp_path / name).write_text(rows)
            flags = ("--from-file", name, *flags)
        status, out, said = run(*FEW, "--outdir", "out", *flags, script=sample_bulk, **more)
        return status, out[-1] if out else "", said

    return bulk


def test_bad_rows_are_listed_good_ones_drawn_and_the_counts_add_up(bulk):
    status, said, _ = bulk(rows=ROWS)
    assert status == 1
    assert said == "7 rows: 4 pictures drawn, 0 there before, 3 failed: out/manifest.jsonl; out/errors.jsonl says why"
    reasons = {e["row"]: e["reason"] for e in map(json.loads, Path("out/errors.jsonl").read_text().splitlines())}
    assert reasons[3] == "prompt is null" and "multiples of" in reasons[5] and sorted(reasons) == [3, 5, 6]
    assert reasons[6].startswith("steps = 999: choose a number of steps from 1 to 100")
    assert {k: r["id"] for k, r in manifest("out").items() if "id" in r} == {1: "b"}
    assert bulk(rows=ROWS)[:2] == (1, said.replace("4 pictures drawn, 0 there", "0 pictures drawn, 4 there"))


def test_each_rows_own_settings_are_in_its_picture_and_in_the_manifest(bulk):
    bulk(rows=ROWS)
    for row, record in manifest("out").items():
        told = read_settings(Path("out", record["file"]))
        for name in ("prompt", "negative_prompt", "seed", "steps", "scale", "width", "height", "sampler", "model"):
            assert told[name] == record[name], (row, name)
    assert [manifest("out")[1][k] for k in ("steps", "negative_prompt")] == [3, "a circle"]
    assert [manifest("out")[2]["scale"], manifest("out")[4]["width"]] == [1, 24]


def test_a_rows_picture_is_what_txt2img_draws_for_it(bulk, run):
    bulk(rows=ROWS)
    for row in (0, 1, 2, 4):
        r = manifest("out")[row]
        flags = ["--prompt", r["prompt"], "--seed", r["seed"], "--ddim_steps", r["steps"], "--scale", r["scale"]]
        flags += ["--negative_prompt", r["negative_prompt"], "--W", r["width"], "--device", "cpu", "--n_samples", 1]
        status, _, said = run(*flags, "--n_iter", 1, "--outdir", f"one-{row}")
        assert status == 0, said
        drawn = np.asarray(Image.open(f"one-{row}/samples/00000.png")).astype(int)
        assert np.abs(drawn - pictures("out")[row]).max() <= 1


def test_neither_batch_size_nor_order_is_seen_in_the_pictures(bulk):
    lines = "".join(f'{{"prompt": "a red circle", "id": {k}}}\n' for k in range(6))
    bulk("--batch_size", 1, rows=lines)
    one = pictures("out")
    bulk("--batch_size", 4, "--overwrite", rows=lines)
    assert len({a.tobytes() for a in one.values()}) == 6  # each has noise of its own
    assert max(np.abs(one[k] - other).max() for k, other in pictures("out").items()) <= 1


@pytest.mark.parametrize(
    ("change", "flags", "count", "prompts"),
    [(unconditional, (), 16, {""}), (of_classes, ("-n", 5, "--classes", 7, 9), 5, {"7", "9"})],
)
def test_models_without_words_are_drawn_from(change, flags, count, prompts, bulk, tmp_path):
    model = written(tmp_path, change)
    assert bulk(*flags, model=model)[0] == 0
    assert len(manifest("out")) == count and {r["prompt"] for r in manifest("out").values()} == prompts


def test_a_prompt_is_drawn_n_times_from_seeds_of_the_base(bulk):
    bulk("--prompt", "a red circle", "-n", 3, "--seed", 1)
    one = [r["seed"] for r in manifest("out").values()]
    bulk("--prompt", "a red circle", "-n", 3, "--seed", 2, "--overwrite")
    assert len({*one, *(r["seed"] for r in manifest("out").values())}) == 6


def test_a_model_that_is_told_nothing_says_so_and_its_manifest_tells_no_guidance(bulk, tmp_path):
    model = written(tmp_path, unconditional)
    _, _, said = bulk(
        rows='{"prompt": "a cat", "scale": 3, "negative_prompt": "a dog"}\n{"prompt": "b"}\n', model=model
    )
    assert any("told nothing: prompts and --scale have no effect" in line for line in said)
    for record in manifest("out").values():
        told = read_settings(Path("out", record["file"]))
        assert record["scale"] == told["scale"] == 1 and record["negative_prompt"] == told["negative_prompt"] == ""


def test_a_prompt_that_no_row_could_draw_is_an_error_at_once(bulk, no_model, tmp_path):
    status, _, said = bulk("--prompt", "cat", "-n", 9, model=written(tmp_path, of_classes))
    assert status == 2 and "give a class number" in said[-1] and not Path("out").exists()


def test_flags_without_effect_are_warnings_that_name_them(bulk):
    said = bulk("-n", 1, "--scale", 1, "--negative_prompt", "x", "--shard_size", 3)[2]
    assert [next(f for f in ("--negative_prompt", "--shard_size") if f in line) for line in said] == [
        "--shard_size",
        "--negative_prompt",
    ]


def test_the_prompts_are_not_deleted_with_the_job(bulk):
    bulk(rows=ROWS)
    for prompts in ("out/errors.jsonl", "out/pictures/../errors.jsonl"):  # to draw what is left
        status, _, said = bulk("--overwrite", "--from-file", prompts)
        assert status == 2 and "--overwrite would delete --from-file" in said[-1]
    assert len(manifest("out")) == 4


def test_what_goes_on_after_an_interruption_does_not_begin_anew(capsys):
    for flags, again in (((), "the same command goes on"), (("--overwrite",), "the same command without --overwrite")):
        with pytest.raises(SystemExit, match="130"):
            sample_bulk.tell(Summary(10, 2, 3, 1, Path("out/manifest.jsonl")), sample_bulk.parse(flags))
        assert again in capsys.readouterr().out


def test_the_help_is_this_scripts(capsys):
    with pytest.raises(SystemExit):
        sample_bulk.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "SEED + i" not in told and "each iteration" not in told and ".parquet once" in told


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--workers", 2), "--engine ray; add it"),
        (("--num_cpus", 2), "--engine ray; add it"),
        (("--outdir", ""), "--outdir is empty; give a folder"),
        (("--from-file", "a.txt", "-n", 3), "-n 3: the rows of --from-file are drawn, each once"),
        (("--from-file", "a.txt", "--classes", 3, 4), "--classes 3 4: the rows of --from-file"),
        (("--prompt", 3, "--classes", 3), "--prompt 3 and --classes both say what to draw"),
        (("--from-file", "none.csv"), "none.csv"),
        (("--from-file", "none.doc"), "prompts are read from .txt"),
        (("--classes", 3), "this model is told text, not classes"),
        (("--H", 21), "multiples of"),
        (("--batch_size", 0), "from 1 to 1024"),
        (("--shard_size", 0), "from 1 to"),
        (("--manifest", "csv"), "invalid choice"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(flags, why, bulk, no_model):
    status, _, said = bulk(*flags)
    assert status == 2 and why in said[-1] and len(said) == 1


def test_what_no_row_could_draw_is_said_before_a_model_is_loaded(bulk, no_model, tmp_path):
    model = written(tmp_path, of_as_many_classes_as_imagenet)  # of which none stands for no class
    status, _, said = bulk("--scale", 2, model=model)
    assert status == 2 and "--negative_prompt, or draw without guidance" in said[-1]
    assert not Path("out").exists()


def test_another_job_in_the_folder_is_an_error_that_says_what_differs(bulk):
    bulk(rows=ROWS)
    status, _, said = bulk("--scale", 3, rows=ROWS)
    assert status == 2 and "another job: scale was 2.0, and is 3.0 now" in said[-1] and "--overwrite" in said[-1]


def test_other_rows_and_another_model_of_the_same_name_are_other_jobs(bulk, tmp_path):
    model = written(tmp_path, lambda params: None)
    assert bulk(rows=ROWS, model=model)[0] == 1
    assert "4 there before" in bulk(rows=ROWS, model=model)[1]
    assert "has another job: other rows; take" in bulk(rows=ROWS.replace("circle", "star"), model=model)[2][-1]
    written(tmp_path, lambda params: params.update(scale_factor=0.5))
    assert "has another job: another model; take" in bulk(rows=ROWS, model=model)[2][-1]
    written(tmp_path, lambda params: None)
    weights = load_file(tmp_path / "other.safetensors")
    weights["model.diffusion_model.out.2.bias"] += 1e-3
    save_file(weights, tmp_path / "other.safetensors")
    assert "has another job: another model; take" in bulk(rows=ROWS, model=model)[2][-1]


def test_a_job_that_did_not_note_its_model_says_so(bulk):
    bulk(rows=ROWS)
    job = json.loads(Path("out/job.json").read_text())
    del job["model_sha256"]
    Path("out/job.json").write_text(json.dumps(job))
    said = bulk(rows=ROWS)[2][-1]
    assert "has another job: its model was not noted by the version that began it; take another folder" in said


def test_a_worker_that_finds_another_model_than_the_job_began_with_stops_it(bulk, monkeypatch, tmp_path):
    """Training may write over the file while the job is at work."""
    model = written(tmp_path, lambda params: None)
    begun = _bulk.Drawing.__init__

    def trained_on(self, *given):
        begun(self, *given)
        written(tmp_path, lambda params: params.update(scale_factor=0.5))

    monkeypatch.setattr(_bulk.Drawing, "__init__", trained_on)
    status, _, said = bulk(rows=ROWS, model=model)
    assert status == 2 and "the model cannot be loaded: ValueError: it is another one than at the beginning" in said[-1]
    assert not pictures("out")


def test_what_spreads_the_work_is_no_other_job(bulk):
    bulk(rows=ROWS)
    assert "4 there before" in bulk("--batch_size", 2, "--low_mem", rows=ROWS)[1]


def test_little_memory_draws_the_same_pictures(bulk):
    bulk(rows=ROWS)
    one = pictures("out")
    assert bulk("--low_mem", "--overwrite", rows=ROWS)[0] == 1
    assert max(np.abs(one[k] - other).max() for k, other in pictures("out").items()) <= 1


@pytest.mark.skipif(not _config.BUNDLED_CKPT.exists(), reason="the bundled weights are not in this checkout")
def test_the_bundled_model_draws_what_is_asked_for(bulk):
    assert bulk(rows="a big red circle\n", name="rows.txt", model=())[0] == 0
    assert pictures("out")[0].shape == (64, 64, 3)
