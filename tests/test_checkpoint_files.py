"""Each format arrives whole and unread; each file that is none, or lies, says so in its own words."""

import os
import sys
import zipfile

import pytest
import torch
from fuzzing.pickle_files import bare_file, mapping, safetensors_file, storage, tensor, whole, zip_file
from safetensors.torch import save_file

from ldm.checkpoint.errors import CheckpointError, RefusedError
from ldm.checkpoint.files import describe, load_checkpoint, load_state_dict

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]
if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):  # before, torch.save does not know them itself
    DTYPES += [torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def every_kind():
    made = torch.Generator().manual_seed(0)
    weights = {str(dtype): (torch.randn(3, 4, generator=made) * 9).to(dtype) for dtype in DTYPES}
    return {**weights, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "no dimension": torch.tensor(True)}


def same(found, weights):
    """Bit by bit; float8 has no equality of its own."""
    return found.keys() == weights.keys() and all(
        found[key].dtype == weights[key].dtype
        and found[key].shape == weights[key].shape
        and torch.equal(*(t[key].contiguous().reshape(-1).view(torch.uint8) for t in (found, weights)))
        for key in weights
    )


def write(path, weights, form):
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "torch")
    return path


@pytest.mark.parametrize("form", ["safetensors", "torch", "torch-legacy"])
def test_every_kind_of_tensor_arrives_and_the_format_is_seen_in_the_content(form, tmp_path):
    found = load_checkpoint(write(tmp_path / "weights.dat", every_kind(), form))
    assert same(found.weights, every_kind()) and found.format == form and found.global_step is None


@pytest.mark.parametrize("form", ["torch", "torch-legacy"])
def test_views_keep_their_place_and_tied_weights_stay_tied(form, tmp_path):
    base = torch.arange(24.0)
    weights = {"turned": base.view(4, 6).t(), "part": base[5:9], "strided": base[1::5], "same": base[5:9]}
    found = load_state_dict(write(tmp_path / "a.ckpt", weights, form))
    assert same(found, weights)
    found["part"][0] = 100
    assert found["same"][0] == 100 and found["turned"][5, 0] == 100


@pytest.mark.parametrize("step, expected", [(470000, 470000), (True, None), ("7", None), (None, None)])
def test_the_step_of_training_is_told_where_it_is_a_number(step, expected, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "global_step": step}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt").global_step == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc shows what is mapped")
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_tensors_are_mapped_from_the_file_and_writing_to_them_leaves_it_alone(form, tmp_path):
    path = write(tmp_path / "a.ckpt", {"a": torch.zeros(3000), "b": torch.ones(5)}, form)
    content = path.read_bytes()
    found = load_state_dict(path)
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith(str(path))]
    for key in found:
        assert any(int(start, 16) <= found[key].data_ptr() < int(end, 16) for start, end in spans)
        assert found[key].untyped_storage().nbytes() == found[key].nbytes  # a slice: to save one does not save them all
        found[key].fill_(7)
    assert path.read_bytes() == content


def test_tensors_that_lie_askew_are_copied_to_where_the_processor_wants_them(tmp_path):
    """Only safetensors files that were put together by hand, and the older torch format."""
    weights = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.arange(4.0)}
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [3, 19]},
    }
    safetensors = safetensors_file(tmp_path / "a.st", header, b"\1\1\1" + weights["b"].numpy().tobytes())
    for path in (safetensors, write(tmp_path / "b.ckpt", weights, "torch-legacy")):
        found = load_state_dict(path)
        assert same(found, weights) and found["b"].data_ptr() % 4 == 0


def test_an_archive_that_was_zipped_again_can_be_read_but_not_a_bomb(tmp_path):
    numbers = torch.randn(600, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    pickled = whole(mapping(weight=tensor(storage(numel=600), shape=(20, 30), stride=(30, 1))))
    path = zip_file(tmp_path / "a.ckpt", pickled, {"0": numbers}, zipfile.ZIP_DEFLATED)
    assert load_state_dict(path)["weight"].numpy().tobytes() == numbers
    count = 2**26 // 4 + 1
    pickled = whole(mapping(weight=tensor(storage(numel=count), shape=(count,), stride=(1,))))
    zip_file(path, pickled, {"0": bytes(4 * count)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="sixteenfold"):
        load_state_dict(path)


# ---------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (bytes(5000), "nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"# How to get the model\n", "is text, which begins with '# How to get the model'"),
        ("Schöne Grüße".encode(), "is text"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"archive/data" + bytes(245) + b"ustar\0", "tar archive"),
        (b"\x01\x02\x03", r"starts with b'\\x01\\x02\\x03'"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content, said, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.ckpt' is not a checkpoint: it .*{said}"):
        load_state_dict(tmp_path / "a.ckpt")


def test_other_archives_and_programs_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("model.ckpt", b"x")
    with pytest.raises(CheckpointError, match="not one that torch wrote .it holds model.ckpt.: unpack it"):
        load_state_dict(tmp_path / "a.ckpt")
    zip_file(tmp_path / "d.ckpt", whole(b"}"), compression=zipfile.ZIP_BZIP2)
    with pytest.raises(CheckpointError, match="uncommon way"):
        load_state_dict(tmp_path / "d.ckpt")
    zip_file(tmp_path / "b.ckpt", whole(b"}"), more={"constants.pkl": b"", "code/model.py": b""})
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_state_dict(tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="is a pickle of a dict, not a file that torch wrote"):
        load_state_dict(bare_file(tmp_path / "c.ckpt", whole(b"}")))


@pytest.mark.parametrize(
    "content, said",
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "holds nothing"),
        ({"state_dict": {}}, "holds nothing"),
        ({"epoch": 3, "weight": torch.ones(1)}, "epoch: an int"),
        ({1: torch.ones(1)}, "an int: a tensor"),
        ({"string_to_param": {"*": torch.ones(1, 768)}}, "textual-inversion"),
        (torch.ones(1), "holds a tensor"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(content, said, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=f"a.ckpt' .*{said}"):
        load_state_dict(tmp_path / "a.ckpt")


def test_a_file_that_is_missing_a_folder_or_forbidden_is_told_apart(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt' does not exist"):
        load_state_dict(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="folder without a model_index.json.*give the path"):
        load_state_dict(tmp_path)
    (tmp_path / "v1-5.ckpt").touch()
    with pytest.raises(FileNotFoundError, match="in it is v1-5.ckpt: name that"):
        load_state_dict(tmp_path)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)  # a real one would not stop an administrator
    with pytest.raises(PermissionError, match="v1-5.ckpt' may not be read"):
        load_state_dict(tmp_path / "v1-5.ckpt")


def test_a_refusal_is_a_checkpoint_error_and_that_a_value_error():
    assert issubclass(RefusedError, CheckpointError) and issubclass(CheckpointError, ValueError)


# --------------------------------------------------------------------------------------------- what the names tell


@pytest.mark.parametrize(
    "key, said",
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "a LoRA"),
        ("unet.mid_block.attentions.0.processor.to_q_lora.down.weight", "a LoRA"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("emb_params", "a textual-inversion"),
        ("conditioner.embedders.1.model.positional_embedding", "an SDXL model"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "a Flux or SD 3"),
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Flux or SD 3"),
        ("transformer_blocks.0.attn.add_k_proj.weight", "a Flux or SD 3"),
        ("decoder.up.0.block.0.conv1.weight", "an autoencoder"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "an autoencoder"),
        ("down_blocks.0.resnets.0.conv1.weight", "a diffusers UNet"),
        ("input_blocks.0.0.weight", "a UNet alone"),
        ("text_model.embeddings.token_embedding.weight", "a text encoder"),
        ("model.diffusion_model.input_blocks.0.0.weight", None),
        ("first_stage_model.decoder.up.0.block.0.conv1.weight", None),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", None),
    ],
)
def test_other_files_are_recognised_by_their_names(key, said):
    found = describe({"some.weight": None, key: torch.ones(1)})
    assert found is None if said is None else found.startswith(said)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' names are all text")
def test_a_path_that_is_not_utf_8_is_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"n\xff\xfe")
    folder.mkdir()
    for form in ("safetensors", "torch"):
        path = folder / f"{form}.ckpt"
        path.write_bytes(write(tmp_path / "a.ckpt", {"a": torch.ones(3)}, form).read_bytes())
        assert load_state_dict(path)["a"].tolist() == [1, 1, 1]


def test_the_device_is_obeyed(tmp_path):
    assert load_state_dict(write(tmp_path / "a.ckpt", {"a": torch.ones(3)}, "torch"), device="meta")["a"].is_meta
