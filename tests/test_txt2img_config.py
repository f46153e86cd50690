"""Where scripts/txt2img.py takes its settings from: flags before overrides, overrides before the config."""

import _config
import _session
import pytest
import txt2img
from _txt2img import CONFIG, difference, draw
from omegaconf import OmegaConf


def test_a_flag_goes_before_an_override_and_an_override_before_the_config(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    by_config, by_override, by_flag, by_both = (
        draw(run, *one, *flags, out=f"{k}")[0]
        for k, flags in enumerate(
            ([], ["sampler.params.S=2"], ["--ddim_steps", 2], ["sampler.params.S=7", "--ddim_steps", 2])
        )
    )
    assert [x[1]["steps"] for x in (by_config, by_override, by_flag, by_both)] == [4, 2, 2, 2]
    assert difference(by_override, by_flag) == difference(by_both, by_flag) == 0 < difference(by_config, by_flag)


def test_any_option_of_the_sampler_can_be_set_in_the_config(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    plain = draw(run, *one, out="a")[0]
    other = draw(run, "sampler.params.ddim_discretize=quad", *one, "sampler.params.eta=1", out="b")[0]
    assert difference(plain, other) > 0 and other[1]["ddim_discretize"] == "quad" and other[1]["eta"] == 1


def test_the_precision_can_be_overridden_in_every_config(run, tiny, tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "precision"}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "plain.yaml")
    model = ["--config", str(tmp_path / "plain.yaml"), *tiny[2:]]
    drawn = draw(lambda *flags: run(*flags, model=model), "precision=bf16", "--n_samples", 1, "--n_iter", 1)
    assert drawn[0][1]["precision"] == "bfloat16"
    assert _config.load_config(tmp_path / "plain.yaml").precision == "auto"


def test_a_config_can_be_named_as_the_script_prints_it():
    from ldm.checkpoint import config_path

    name = "stable-diffusion/v1-inference"
    assert _config.load_config(name) == _config.load_config(config_path(name))


def test_the_bundled_config_by_its_name_needs_no_ckpt(run):
    status, _, said = run("--ddim_steps", 2, "--n_samples", 1, "--n_iter", 1, model=("--config", "shapes"))
    assert status == 0, said


def test_what_a_training_wrote_beside_the_model_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    others = {
        "data": {"params": {"root": "${oc.env:SECRET}", "size": 8}, "n": "${.params.size}"},
        "lightning": "${x:y}",
    }
    OmegaConf.save(OmegaConf.create({**CONFIG, **others}), tmp_path / "a.yaml")
    assert "data" not in _config.load_config(tmp_path / "a.yaml")
    others["data"]["params"]["root"] = "here"
    params = {**CONFIG["model"]["params"], "a": "${data.n}", "b": "${...data.params.root}"}
    OmegaConf.save(
        OmegaConf.create({**CONFIG, **others, "model": {**CONFIG["model"], "params": params}}), tmp_path / "b.yaml"
    )
    read = _config.load_config(tmp_path / "b.yaml", ["data.params.size=9"]).model.params
    assert (read.a, read.b) == (9, "here")


def test_a_resolver_in_a_section_that_the_model_refers_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    config = OmegaConf.create({**CONFIG, "data": "${other.root}", "other": {"root": "${oc.env:SECRET}"}})
    config.sampler.params.note = "${data}"
    OmegaConf.save(config, tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="oc.env:SECRET"):
        _config.load_config(tmp_path / "a.yaml")


def test_a_config_without_a_sampler_gets_compvis_defaults():
    config = OmegaConf.create({"sampler": {"params": {}}})
    from ldm.sampling import DDIMSampler

    _, options = _config.sampler_options(config, DDIMSampler, txt2img.parse([]))
    assert options == {"S": 50, "eta": 0.0, "unconditional_guidance_scale": 7.5}


def test_a_reference_to_another_value_of_the_config_is_followed(run):
    settings = draw(run, "sampler.params.log_every_t=${sampler.params.S}", "--n_samples", 1, "--n_iter", 1)[0][1]
    assert settings["log_every_t"] == 4


@pytest.mark.parametrize(
    "text",
    ["${oc.env:SECRET}", "a ${ oc.env:SECRET }", "${oc.decode:${oc.env:SECRET}}", "${sampler.${oc.env:SECRET}}"],
)
@pytest.mark.parametrize("where", ["file", "override"])
def test_nothing_of_the_environment_can_be_read_by_a_config(text, where, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "params")
    config = OmegaConf.create(CONFIG)
    if where == "file":
        config.sampler.params.note = text
    OmegaConf.save(config, tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="(?s)\\$\\{.*SECRET.* could read your environment.*write the value"):
        _config.load_config(str(tmp_path / "a.yaml"), [f"sampler.params.note={text}"] * (where == "override"))


def test_nor_by_one_that_is_put_together_from_parts_or_written_with_escapes(tmp_path):
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "a.yaml")
    for overrides in (
        ["sampler.params.a='$'", "sampler.params.b='${sampler.params.a}{oc.env:HOME}'"],
        ['sampler.params.b="\\x24{oc.env:HOME}"'],
    ):
        with pytest.raises(ValueError, match="oc.env:HOME"):
            _config.load_config(str(tmp_path / "a.yaml"), overrides)


def test_an_annotation_says_which_values_an_option_takes():
    class Sampler:
        def __init__(self, model, a: int | None = None, b: "Unknown" = None): ...  # noqa: F821
        def sample(self, S: int, eta: float, unconditional_guidance_scale, c: tuple[int, ...], d=1, *, e: dict): ...

    def options(**params):
        return _config.sampler_options(OmegaConf.create({"sampler": {"params": params}}), Sampler, txt2img.parse([]))

    built, called = options(a=None, b="x", c=[1, 2, 3], d={"any": 1}, e=["any"], eta=1)
    assert built == {"a": None, "b": "x"} and called["c"] == [1, 2, 3] and called["eta"] == 1
    for params, said in (({"c": 5}, r"\[an integer, …\]"), ({"S": True}, "an integer"), ({"eta": "1"}, "a number")):
        with pytest.raises(ValueError, match=f"sampler.params.{[*params][0]} is .*; give {said}"):
            options(**params)


def test_the_negative_prompt_takes_part_only_with_guidance(run):
    one = ["--n_samples", 1, "--n_iter", 1]
    negative = [*one, "--negative_prompt", "a blue square above a green square"]
    assert difference(draw(run, *one, out="a")[0], draw(run, *negative, out="b")[0]) > 0
    status, _, said = run(*negative, "--scale", 1, "--outdir", "c")
    assert status == 0 and any("warning: --negative_prompt has no effect with --scale 1" in line for line in said)


def test_fixed_code_uses_n_samples_seeds_in_every_iteration_wherever_batches_begin(capsys):
    opt = txt2img.parse(["--fixed_code", "--n_samples", "2", "--n_iter", "2", "--seed", "7"])
    assert [seed for _, seed in _session.plan("abcde", opt)] == [7, 8, 7, 8, 7] * 2
    with pytest.raises(SystemExit):
        txt2img.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "picture k (from 0) of each iteration has the seed SEED + k % n_samples" in told


def test_flags_of_compvis_mean_what_they_meant():
    opt = txt2img.parse("--outdir o --skip_grid --skip_save --ddim_steps 20 --fixed_code --ddim_eta 0.5 "
                        "--n_iter 3 --H 64 --W 64 --C 4 --f 8 --n_samples 5 --n_rows 6 --scale 3 --from-file p "
                        "--config c --ckpt k --seed 1 --precision full".split())  # fmt: skip
    assert (opt.ddim_steps, opt.ddim_eta, opt.scale, opt.n_iter, opt.n_samples) == (20, 0.5, 3.0, 3, 5)
    opt = txt2img.parse([])
    assert (opt.n_iter, opt.n_samples, opt.seed, opt.n_rows) == (2, 3, 42, 0)
    assert opt.outdir == "outputs/txt2img-samples"
