"""Pipeline folders: what is written is read, in today's and the first layout, and what cannot be read is named."""

import json
import sys
import types

import pytest
import torch
from _ddpm_pipeline import BETAS, generators, quiet, small_pipeline
from safetensors.torch import load_file, save_file

from ldm.checkpoint import CheckpointError
from ldm.modules.diffusionmodules.model import Model
from ldm.pipeline import DDIMPipeline
from ldm.sampling import DDIMScheduler

RUN = {"batch_size": 2, "num_inference_steps": 5, "output_type": "pt"}
WEIGHTS = "diffusion_pytorch_model"
LATER = (  # options that the first configs do not have
    "mid_block_type", "downsample_type", "upsample_type", "dropout", "attn_norm_num_groups", "resnet_time_scale_shift",
    "add_attention", "class_embed_type", "num_class_embeds",
)  # fmt: skip


def draw(pipe):
    return quiet(pipe)(generator=generators(1, 2), **RUN).images


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline(DDIMScheduler(**BETAS, set_alpha_to_one=False, steps_offset=1))


@pytest.fixture
def folder(pipe, tmp_path, monkeypatch):
    for peer in ("diffusers", "transformers", "accelerate"):
        monkeypatch.setitem(sys.modules, peer, None)  # importing it is an error
    pipe.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def edit(path, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def to_the_first_layout(folder):
    """All files side by side, the attention's old names, a pickle, DDPM's scheduler, and only the options of then."""
    weights = load_file(folder / "unet" / f"{WEIGHTS}.safetensors")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    torch.save(weights, folder / f"{WEIGHTS}.bin")
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    (folder / "unet" / "config.json").rename(folder / "config.json")
    (folder / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    (folder / "unet").rmdir(), (folder / "scheduler").rmdir()
    edit(folder / "config.json", **dict.fromkeys(LATER, ...))
    ddpm = {"_class_name": "DDPMScheduler", **BETAS, "clip_sample": True, "variance_type": "fixed_small"}
    (folder / "scheduler_config.json").write_text(json.dumps(ddpm | {"trained_betas": None}))
    edit(folder / "model_index.json", _class_name="DDPMPipeline", scheduler=["diffusers", "DDPMScheduler"])


def test_what_is_saved_draws_the_same_when_it_is_loaded(pipe, folder):
    loaded = DDIMPipeline.from_pretrained(folder)
    assert isinstance(loaded.unet, Model) and not loaded.unet.training
    assert torch.equal(draw(loaded), draw(pipe))
    loaded.save_pretrained(folder)  # over the files that its tensors are mapped from
    assert torch.equal(draw(DDIMPipeline.from_pretrained(str(folder))), draw(pipe))


def test_the_first_folders_are_read(pipe, folder):
    expected = draw(DDIMPipeline(pipe.unet, DDIMScheduler(**BETAS)))
    to_the_first_layout(folder)
    loaded = DDIMPipeline.from_pretrained(folder)
    assert isinstance(loaded.scheduler, DDIMScheduler)
    assert torch.equal(draw(loaded), expected)


def test_a_network_is_loaded_and_saved_in_another_precision(folder, tmp_path):
    half = DDIMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    saved = load_file(tmp_path / "half" / "unet" / f"{WEIGHTS}.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.bfloat16}
    back = DDIMPipeline.from_pretrained(tmp_path / "half")
    assert back.dtype == torch.float32
    assert (draw(back) - draw(DDIMPipeline.from_pretrained(folder))).abs().mean() < 0.03


def test_parts_that_are_given_are_taken_instead_of_the_folders(pipe, folder):
    scheduler = DDIMScheduler(**BETAS)
    (folder / "unet" / "config.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    loaded = DDIMPipeline.from_pretrained(folder, unet=pipe.unet, scheduler=scheduler)
    assert loaded.unet is pipe.unet and loaded.scheduler is scheduler


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"num_res_blocks": 2, "ch_mult": (1, 2, 2), "resolution": 12}])
def test_a_network_keeps_its_shape(tmp_path, options):
    pipe = small_pipeline(**options)
    pipe.save_pretrained(tmp_path)
    loaded = DDIMPipeline.from_pretrained(tmp_path).unet
    found, expected = loaded.state_dict(), pipe.unet.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    assert loaded.resolution == options.get("resolution", 8)
    assert loaded.mid.block_1.dropout.p == options.get("dropout", 0)


@pytest.mark.parametrize(
    "options, part",
    [
        ({"attn_type": "linear"}, "attn.0.k"),
        ({"resamp_with_conv": False}, "downsample"),
        ({"use_timestep": False}, "temb"),
    ],
)
def test_a_network_that_diffusers_does_not_have_is_not_saved(tmp_path, options, part):
    with pytest.raises(ValueError, match=f"cannot be saved as a UNet2DModel, .*{part}.* would differ"):
        small_pipeline(**options).save_pretrained(tmp_path)
    assert not (tmp_path / "model_index.json").exists()


# ------------------------------------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("norm_eps", 1e-5, "norm_eps=1e-05 cannot be loaded here; it can be only 1e-06, .* let diffusers load another"),
        ("norm_eps", ..., "norm_eps=1e-05 .* only 1e-06"),
        ("freq_shift", 0, "freq_shift=0 .* only 1,"),
        ("flip_sin_to_cos", True, "flip_sin_to_cos=True .* only False"),
        ("downsample_padding", 1, "downsample_padding=1 .* only 0"),
        ("time_embedding_type", "fourier", "time_embedding_type='fourier' .* only 'positional'"),
        ("time_embedding_dim", 64, "time_embedding_dim=64 .* only 128"),
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift='scale_shift' .* only 'default'"),
        ("attn_norm_num_groups", 8, "attn_norm_num_groups=8 .* only 32"),
        ("num_class_embeds", 10, "num_class_embeds=10 .* only None"),
        ("add_attention", False, "add_attention=False .* only True"),
        ("attention_head_dim", 8, "attention_head_dim=8 .* null"),
        ("attention_head_dim", ..., "attention_head_dim=8 .* null"),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"], "one of DownBlock2D, AttnDownBlock2D"),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"], "the mirror of down_block_types"),
        ("block_out_channels", [32, 48], r"block_out_channels=\[32, 48\] .* multiples of 32 and of the first"),
        ("block_out_channels", [], "a list of positive integers"),
        ("sample_size", 9, "sample_size=9 .* a multiple of 2"),
        ("sample_size", [8, 16], "a positive integer"),
        ("sample_size", None, "does not say sample_size"),
        ("upcast", True, "options that are not known here: upcast=True"),
        ("_class_name", "UNet2DConditionModel", "only UNet2DModel"),
        ("layers_per_block", 2, "does not fit .* missing: .*block.1"),
        ("out_channels", 6, "of another shape: conv_out.weight"),
    ],
)  # fmt: skip
def test_an_option_that_the_network_does_not_have_is_named(folder, option, value, message):
    edit(folder / "unet" / "config.json", **{option: value})
    with pytest.raises(CheckpointError, match=message):
        DDIMPipeline.from_pretrained(folder)


def test_heads_may_be_as_wide_as_the_layer(pipe, folder):
    edit(folder / "unet" / "config.json", attention_head_dim=64)  # which is all that attends here
    assert torch.equal(draw(DDIMPipeline.from_pretrained(folder)), draw(pipe))


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}.safetensors"]
)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match="holds no weights" if WEIGHTS in file else f"{file}' is missing"):
        DDIMPipeline.from_pretrained(folder)


def test_weights_from_elsewhere_are_named(folder):
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    save_file({**load_file(file), "encoder.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="no place in the U-Net .* encoder.weight"):
        DDIMPipeline.from_pretrained(folder)


def test_other_pipelines_are_sent_elsewhere(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(CheckpointError, match="is a StableDiffusionPipeline.*ldm.checkpoint.load_model or scripts"):
        DDIMPipeline.from_pretrained(folder)


def test_a_scheduler_without_betas_is_named(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "KarrasVeScheduler"}')
    with pytest.raises(CheckpointError, match="scheduler_config.json' is KarrasVeScheduler, without betas"):
        DDIMPipeline.from_pretrained(folder)


def test_what_is_no_folder_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in (folder / "nothing", "unet/config.json"):
        with pytest.raises(FileNotFoundError, match="is no folder; give that of a pipeline"):
            DDIMPipeline.from_pretrained(path)


# ------------------------------------------------------------------------------------------------------------ the hub


def test_without_the_hubs_package_its_names_cannot_be_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="'google/ddpm-cifar10-32' is no folder here; .* install huggingface_hub"):
        DDIMPipeline.from_pretrained("google/ddpm-cifar10-32")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_name_on_the_hub_is_downloaded_without_what_is_not_needed(pipe, folder, monkeypatch, suffix):
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    if suffix == "bin":
        file = folder / "unet" / f"{WEIGHTS}.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    loaded = DDIMPipeline.from_pretrained("google/ddpm-cifar10-32", revision="main", token=None)
    assert torch.equal(draw(loaded), draw(pipe))
    names, options = zip(*calls)
    assert set(names) == {"google/ddpm-cifar10-32"}
    weights = [f"{WEIGHTS}.{kind}" for kind in ("safetensors", "bin")]
    patterns = [["*.json"], *(["*.json", f"unet/{file}", file] for file in weights)]
    assert [o.pop("allow_patterns") for o in options] == patterns[: len(calls)]
    assert len(calls) == (3 if suffix == "bin" else 2)
    assert all(o == {"revision": "main", "token": None} for o in options)


def test_options_for_downloads_are_said_to_change_nothing_in_a_folder(folder):
    with pytest.warns(UserWarning, match="use_safetensors, revision has no effect"):
        DDIMPipeline.from_pretrained(folder, use_safetensors=True, revision="main")
    with pytest.raises(TypeError, match="from_pretrained has no argument torch_type"):
        DDIMPipeline.from_pretrained(folder, torch_type=torch.float16)


def test_no_weights_are_downloaded_of_another_kind_of_pipeline_and_a_path_is_never_downloaded(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    asked = []

    def snapshot_download(name, allow_patterns, **options):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(CheckpointError, match="StableDiffusionPipeline"):
        DDIMPipeline.from_pretrained("somebody/stable-diffusion")
    assert asked == [["*.json"]]
    for path in (tmp_path / "missing", ""):
        with pytest.raises(FileNotFoundError):
            DDIMPipeline.from_pretrained(path)
    assert len(asked) == 1
