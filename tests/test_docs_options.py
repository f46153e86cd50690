"""docs/options.md against the code: every name that it gives exists, and no option is left out."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from _step_rule import row

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.sampling import DDIMSampler, NoiseSchedule, make_beta_schedule, make_timesteps
from ldm.sampling.arguments import Options, names_of
from ldm.sampling.model import PARAMETERIZATIONS
from ldm.sampling.timesteps import SPACINGS

PAGE = (Path(__file__).parent.parent / "docs" / "options.md").read_text(encoding="utf-8")
FACES = ("CompVis", "diffusers", "Bumblebee", "DDIMSampler", "DDIMScheduler")
BUMBLEBEE = """num_train_steps beta_schedule beta_start beta_end prediction_type alpha_clip_strategy timesteps_offset
    clip_denoised_sample rederive_noise eta""".split()

needs_scheduler = pytest.mark.skipif(
    importlib.util.find_spec("ldm.sampling.scheduler") is None, reason="there is no DDIMScheduler"
)


def rows(section):
    """The table below a heading ("" is the top), row by row, as lists of cells."""
    text = PAGE.split(f"## {section}\n")[1] if section else PAGE
    _, *lines = re.search(r"^\|.*?\n\n", text, re.S | re.M)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def code(face, section=""):
    """What the face's column has in backticks."""
    return [name for cells in rows(section) for name in re.findall(r"`([^`]+)`", cells[1 + FACES.index(face)])]


def arguments(*functions, positional=False):
    kinds = ("POSITIONAL_OR_KEYWORD",) if positional else ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")
    parameters = (p for f in functions for p in inspect.signature(f).parameters.values())
    return {p.name for p in parameters if p.kind.name in kinds} - {"self"}


def of_model():
    return arguments(*(cls.__init__ for cls in LatentDiffusion.__mro__[:-1]))


def test_the_table_has_a_column_for_each_face():
    (head,) = [line for line in PAGE.splitlines() if line.startswith("| | CompVis")][:1]
    assert [cell.strip(" `") for cell in head.strip("|").split("|")][1:] == list(FACES)
    assert all(len(cells) == 6 for cells in rows(""))


def test_every_option_of_the_sampler_is_there_and_every_name_is_one():
    takes = arguments(DDIMSampler.sample, DDIMSampler.p_sample_ddim, DDIMSampler.encode)
    said = code("DDIMSampler")
    assert set(said) <= takes and len(said) == len(set(said))
    assert set(names_of(Options)) - set(said) == set()
    left_out = arguments(DDIMSampler.sample) - set(said)
    assert left_out == {"batch_size", "shape", "conditioning"}


def test_the_names_of_compvis_are_those_that_its_callers_pass_here():
    takes = of_model() | arguments(DDIMSampler.sample, DDIMSampler.p_sample_ddim, positional=True)
    takes |= arguments(DDIMSampler.make_schedule, positional=True)
    assert set(code("CompVis")) <= takes


@needs_scheduler
def test_every_option_of_the_scheduler_is_there_and_every_name_is_one():
    from ldm.sampling.scheduler import DDIMScheduler

    built = arguments(DDIMScheduler.__init__)
    takes = built | arguments(DDIMScheduler.step, DDIMScheduler.set_timesteps)
    assert set(code("DDIMScheduler")) <= takes and built <= set(code("DDIMScheduler"))


def test_every_option_of_diffusers_is_there_and_every_name_is_one():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    theirs = diffusers.DDIMScheduler
    built = arguments(theirs.__init__)
    assert set(code("diffusers")) <= built | arguments(theirs.step, theirs.set_timesteps)
    assert built <= set(code("diffusers"))


def test_every_option_of_bumblebee_is_there_and_every_name_is_one():
    assert set(code("Bumblebee")) == set(BUMBLEBEE)


@needs_scheduler
def test_the_values_are_the_translations_that_the_scheduler_makes():
    from ldm.sampling.scheduler import DDIMScheduler

    options = ["beta_schedule"] * 3 + ["prediction_type"] * 3 + ["set_alpha_to_one"] * 2
    theirs = {  # the name under which a column's words are said, where that is not the scheduler's
        ("CompVis", "prediction_type"): "parameterization",
        ("Bumblebee", "set_alpha_to_one"): "alpha_clip_strategy",
    }
    for option, cells in zip(options, rows("Values"), strict=True):
        words = dict(zip(FACES, ([plain(word) for word in re.findall(r"`([^`]+)`", cell)] for cell in cells[1:])))
        (ours,) = words.pop("DDIMScheduler")
        for word in words.pop("DDIMSampler"):
            assert word in (*PARAMETERIZATIONS, "one", "first")
        for face, (word, *_) in ((face, words) for face, words in words.items() if words):
            config = {theirs.get((face, option), option): word}
            vocabulary = {"vocabulary": "compvis"} if face == "CompVis" else {}
            assert DDIMScheduler.from_config(config, **vocabulary).config[option] == ours, (face, word)


def plain(word):
    return {"True": True, "False": False}.get(word, word)


def test_the_examples_of_spacings_are_what_comes_out():
    text = PAGE.split("Spacings, for S = 4")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")][1:]
    assert [name.strip(" `") for name, *_ in lines] == list(SPACINGS)
    for name, offset, four, three, _ in lines:
        name, offset = name.strip(" `"), int(offset) if offset.strip() else None
        for s, cell in ((4, four), (3, three)):
            if "refused" not in cell:
                steps = [int(t) for t in cell.split(",")]
                assert make_timesteps(name, s, 1000).tolist() == steps == make_timesteps(name, s, 1000, offset).tolist()


def test_the_example_of_levels_is_what_comes_out():
    (said,) = re.findall(r"of Stable Diffusion's 1000, for S = 4, (.*)\.", PAGE)
    bar = NoiseSchedule.from_betas(make_beta_schedule("linear", 1000, 0.00085, 0.012)).alpha_bar
    assert make_timesteps("logsnr", 4, 1000, alpha_bar=bar).tolist() == [int(t) for t in said.split(",")]


def test_the_example_config_is_one_that_the_scripts_take():
    import _config
    from _cli import Parser
    from omegaconf import OmegaConf

    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    config = OmegaConf.create(text)
    _, options = _config.sampler_options(config, _config.sampler_class(config), Parser("test").parse_args([]))
    assert options["zero_terminal_snr"] is True and options["S"] == 30


@pytest.mark.parametrize("s", [13, 70, 300])
def test_the_measured_table_is_what_its_command_prints(s):
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {s} |")]
    ours, theirs = ([float(cell) for cell in text.strip("| ").split("|")] for text in (row(s), line))
    assert ours == pytest.approx(theirs, abs=1.01e-4)
