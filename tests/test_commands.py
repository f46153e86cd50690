"""Every command line in README.md, SECURITY.md and docs/ is run: Python's in small, with files that stand in for the
reader's; pip's beside what is installed here; make's by .ci/run, whose lines are looked up."""

import contextlib
import importlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest
import txt2img
from _script_models import of_classes, of_depth, of_upscaling, unconditional, written
from omegaconf import OmegaConf
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
COMMAND = r"(?:\w+=\S+ )*(?:python|pip|make) .*"


def commands_of(page):
    """The lines of its indented blocks, and what stands between backticks, that python, pip or make begins."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    said = re.findall(rf"^ {{4}}({COMMAND})", text, re.M)
    said += [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    return [shlex.join(shlex.split(line, comments=True)) for line in said if re.fullmatch(COMMAND, line)]


COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands_of(page)))
OUT = {"sample_diffusion": "-l", "train_shapes": "--out", "compare": "--out", "interpolate": "--out"}  # else --outdir
NEEDS = {"benchmark": ("diffusers", "transformers"), "ray": ("ray.data",), "parquet": ("pyarrow",)}  # script or word
NO_OUT = {"fuzz", "score_inpainting", "score_shapes", "show_info"}
# What makes a command quick; the last flag of a name counts.
PROMPTS = {
    ".jsonl": '{"prompt": "a red circle"}\n{"prompt": "a blue star", "steps": 2}\n',
    ".csv": "prompt,steps\na red circle,2\n",
}
DRAW = "--ddim_steps 3 --device cpu"
DRAWING = "txt2img img2img inpaint invert interpolate depth2img upscale compare sample_diffusion sample_bulk".split()
QUICK = dict.fromkeys(DRAWING, DRAW) | {
    "compare": "--device cpu",
    "sample_diffusion": f"-n 2 {DRAW}",
    "sample_bulk": f"--workers 1 --num_gpus 0 {DRAW}",
    "score_shapes": f"--n 3 --n_held_out 2 {DRAW}",
    "score_inpainting": f"--n 3 {DRAW}",
    "train_shapes": "--ae_steps 1 --caption_steps 1 --steps 1 --batch 2 --scenes 4 --device cpu",
    "evaluate": "--n 40 --batch 40 --steps 2 --scales 1 --points 300",
    "fuzz": "--seconds 2",
    "measure_approximations": f"--n 2 --batch 2 --rounds 1 {DRAW}",
    "measure_bulk": "--pictures 10",
    "measure_inversion": "--n 1 --steps 3 --refine 0 1 --device cpu",
    "measure_samplers": "--n 1 --steps 3 --device cpu",
    "show_info": "",
    "benchmark": "--size tiny --rounds 1 --threads 1 --no-compile --device cpu",
}
MODELS = {
    "sd-v1-4": (lambda params: None, "LatentDiffusion"),
    "celeba": (unconditional, "LatentDiffusion"),
    "cin256": (of_classes, "LatentDiffusion"),
    "512-depth-ema": (of_depth, "LatentDepth2ImageDiffusion"),
    "x4-upscaler-ema": (of_upscaling, "LatentUpscaleDiffusion"),
}


def words_of(line):
    """(script, flags) of a command that runs one of scripts/, or None."""
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    if words[:2] == ["make", "bench"]:
        return "benchmark", shlex.split(words[2].partition("=")[2]) if words[2:] else []
    if words[0] == "python" and words[1].startswith("scripts/"):
        return words[1].removeprefix("scripts/").removesuffix(".py"), words[2:]
    return None


def stand_in(word, folder):
    """The path of a file in the folder for one that is the reader's, or the word itself."""
    path = folder / word
    if word.startswith("prompts."):
        path.write_text(PROMPTS[path.suffix], encoding="utf-8")
    elif word in ("photo.jpg", "depth.png"):
        Image.linear_gradient("L").resize((64, 48)).convert("RGB" if word == "photo.jpg" else "L").save(path)
    elif word == "PNG":
        flags = ["--prompt", "a red circle", "--n_samples", "1", "--n_iter", "1", "--outdir", str(folder)]
        txt2img.main([*flags, *DRAW.split()])
        (path,) = folder.glob("samples/*.png")
    else:
        return word
    return str(path)


def quickly(name, flags, folder):
    """The flags of a short run that writes into the folder."""
    quick = QUICK[name].split()
    if "--help" in flags:
        return flags
    if "--ckpt" in flags:
        kind = flags[flags.index("--ckpt") + 1].removesuffix(".ckpt")
        change, target = MODELS[kind]
        quick += written(folder, change, kind, target)
    quick += ["-n", "3"] if "-n" in flags else []
    quick += ["--kills", "1"] if "--kills" in flags else []
    quick += ["--stable_diffusion", "8"] if "--stable_diffusion" in flags else []
    if name.startswith("measure") or name in NO_OUT:
        out = []
    else:
        out = [OUT.get(name, "--outdir"), str(folder / ("out.png" if name in ("compare", "interpolate") else "out"))]
    return [*(stand_in(word, folder) for word in flags), *out, *quick]


def in_small(name, flags, monkeypatch, folder):
    """What no flag makes small."""
    if name == "evaluate":
        monkeypatch.setattr("evaluation.scenes.FRESH", 80)
        monkeypatch.setattr("evaluation.scenes.REAL", 1)
    if name == "benchmark":
        monkeypatch.setattr("bench.bulk.SETTINGS", {"one process": 0})  # tests/test_bulk_ray.py begins clusters
    if "--stable_diffusion" in flags:
        network = OmegaConf.load(ROOT / "configs/stable-diffusion/v1-inference.yaml")
        network.model.params.unet_config.params.model_channels = 32
        OmegaConf.save(network, folder / "narrow.yaml")
        monkeypatch.setattr("_config.find", lambda name: folder / "narrow.yaml")


def told(line):
    """Of a command, what QUICK does not say for every run."""
    name, flags = words_of(line)
    return name, re.sub(r" --(?:size|rounds|threads) \w+| --no-compile", "", " " + shlex.join(flags)).strip()


OF_SCRIPTS = [line for line in COMMANDS if words_of(line)]
ELSEWHERE = [("web", ""), ("benchmark", "")]  # below, and in tests/test_benchmark.py
SCRIPTS = list({told(line): line for line in OF_SCRIPTS if told(line) not in ELSEWHERE}.values())
OTHERS = [line for line in COMMANDS if not words_of(line)]


def test_the_pages_tell_every_script_that_a_reader_runs():
    assert {words_of(line)[0] for line in OF_SCRIPTS} == {path.stem for path in ROOT.glob("scripts/[a-z]*.py")}


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_command_runs(line, tmp_path, monkeypatch, capfd):
    name, flags = words_of(line)
    for needed in (module for word in (name, *flags) for module in NEEDS.get(word, ())):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(ROOT)
    in_small(name, flags, monkeypatch, tmp_path)
    flags = quickly(name, flags, tmp_path)
    capfd.readouterr()
    with pytest.raises(SystemExit, match="^0$") if "--help" in flags else contextlib.nullcontext():
        importlib.import_module(name).main(flags)
    said = capfd.readouterr()
    assert said.out or list(tmp_path.glob("out/*.safetensors"))
    assert "Traceback" not in said.err and "warning" not in said.err
    if name in DRAWING and "--help" not in flags:
        assert "error" not in said.err and "picture" in said.out.splitlines()[-1]
        assert [path for path in tmp_path.rglob("out*/**/*") if path.suffix in (".png", ".tar")] or (
            tmp_path / "out.png"
        ).is_file()


def test_the_page_opens_and_ends_by_ctrl_c(tmp_path):
    """tests/test_web.py uses it."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    (line,) = [line for line in OF_SCRIPTS if words_of(line)[0] == "web"]
    flags = [*words_of(line)[1], "--port", "0", "--device", "cpu", "--outdir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-u", "scripts/web.py", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        said = ""
        while "http://127.0.0.1:" not in said:
            said += (line := process.stdout.readline())
            assert line, said
        address = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        assert b"gradio" in urllib.request.urlopen(address, timeout=60).read()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert "Traceback" not in said + rest


# --------------------------------------------------------------------------------------------------- pip, make, tests


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy to build in, so that nothing is left in this folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("ldm", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.parametrize("line", [line for line in OTHERS if line.startswith("pip ")])
def test_pip_installs_it_with_the_extras_that_are_asked_for(line, checkout, tmp_path):
    """Into a new environment that sees the packages of this one: nothing is downloaded."""
    venv.create(tmp_path / "new", with_pip=False)
    python = tmp_path / "new" / "bin" / "python"
    (site,) = (tmp_path / "new").glob("lib/python*/site-packages")
    (site / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    offline = ["--no-build-isolation", "--no-index", "--no-deps", "--ignore-installed"]
    done = subprocess.run(
        [str(python), "-m", *shlex.split(line), *offline], cwd=checkout, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metadata = next(site.glob("latent_diffusion_sampler-*.dist-info/METADATA")).read_text(encoding="utf-8")
    asked = re.search(r"\[(.*)\]", line)
    for extra in asked[1].split(",") if asked else ():
        assert f"Provides-Extra: {extra}\n" in metadata
    code = "import ldm.sampling, ldm.checkpoint; print(ldm.sampling.__file__)"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert Path(done.stdout.strip()).is_relative_to(site), done.stderr


def test_what_is_left_is_run_by_ci_or_by_the_tests():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for line in OTHERS:
        if line.startswith("make "):
            assert re.search(rf"^{line}\b", ci, re.M), line
        elif not line.startswith("pip "):
            assert line == "PYTHONPATH=. python tests/_step_rule.py"  # tests/test_docs_options.py has its numbers
