"""Files of textual-inversion words: every layout is read, nothing in them is run, and what is wrong is named."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from _networks import randn
from fuzzing.pickle_files import legacy_file, zip_file
from safetensors.torch import load_file, save_file
from test_conditioning import build
from torch import nn

from ldm.checkpoint import CheckpointError, load_embeddings, load_model
from ldm.checkpoint.errors import RefusedError
from ldm.modules.embedding_manager import EmbeddingManager, add_embeddings

ONE, TWO = randn(1, 8, seed=1), randn(2, 8, seed=2)


def original(words):
    """What the textual-inversion repository saves: a module of parameters."""
    parameters = nn.ParameterDict({word: nn.Parameter(vectors) for word, vectors in words.items()})
    return {"string_to_token": {word: torch.tensor(265) for word in words}, "string_to_param": parameters}


def web_ui(vectors):
    tensors = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}}
    return {**tensors, "name": "my-style", "step": 100, "sd_checkpoint": "abc", "sd_checkpoint_name": None}


LAYOUTS = {  # the file's name, what is in it, and the words that are found
    "original": ("embeddings.pt", original({"*": ONE}), {"*": ONE}),
    "original, several": ("embeddings.pt", original({"*": ONE, "sks": TWO}), {"*": ONE, "sks": TWO}),
    "web ui": ("x.pt", web_ui(TWO), {"my-style": TWO}),
    "web ui, safetensors": ("style-v1.5.safetensors", {"emb_params": TWO}, {"style-v1.5": TWO}),
    "diffusers": ("learned_embeds.bin", {"<cat-toy>": TWO}, {"<cat-toy>": TWO}),
    "diffusers, one vector": ("learned_embeds.bin", {"<cat-toy>": ONE[0]}, {"<cat-toy>": ONE}),
    "diffusers, safetensors": ("learned_embeds.safetensors", {"<cat-toy>": ONE[0].half()}, {"<cat-toy>": ONE.half()}),
    "a parameter": ("learned_embeds.bin", {"<cat-toy>": nn.Parameter(ONE)}, {"<cat-toy>": ONE}),
}


def written(folder, name, content, **how):
    path = folder / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path, **how)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_layout_is_read(layout, zipped, tmp_path):
    name, content, words = LAYOUTS[layout]
    found = load_embeddings(written(tmp_path, name, content, _use_new_zipfile_serialization=zipped))
    assert list(found) == list(words)
    for word, vectors in words.items():
        assert torch.equal(found[word], vectors.float()) and found[word].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_what_is_saved_is_loaded(suffix, tmp_path):
    encoder, path = build().cond_stage_model, tmp_path / f"a{suffix}"
    manager = EmbeddingManager(encoder, ["<cat-toy>", "star"], num_vectors_per_token=2)
    manager.save(path)
    other = EmbeddingManager(build().cond_stage_model, ["star"])
    manager.save(path)  # over the first
    assert sorted(other.load(path)) == ["<cat-toy>", "star"]
    assert other.string_to_param_dict.keys() == manager.string_to_param_dict.keys()
    for word, vectors in manager.string_to_param_dict.items():
        assert torch.equal(other.string_to_param_dict[word], vectors) and other.string_to_param_dict[word].requires_grad


def test_what_is_saved_has_the_layout_of_its_tool(tmp_path):
    manager = EmbeddingManager(build().cond_stage_model, ["star"])
    vectors = manager.vectors[0].detach()
    manager.save(tmp_path / "a.pt")
    told = torch.load(tmp_path / "a.pt", weights_only=True)
    assert told["string_to_token"]["star"] == 3 and torch.equal(told["string_to_param"]["star"], vectors)
    manager.save(tmp_path / "a.bin")
    assert torch.equal(torch.load(tmp_path / "a.bin", weights_only=True)["star"], vectors)
    manager.save(tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["star"], vectors)
    with pytest.raises(ValueError, match="'.ckpt'"):
        manager.save(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match="make the folder"):
        manager.save(tmp_path / "none" / "a.pt")


class Harm:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("form", [zip_file, legacy_file])
@pytest.mark.parametrize("where", ["string_to_param", "<toy>", "inside"])
def test_a_hostile_file_is_refused_and_nothing_of_it_is_run(form, where, tmp_path):
    harm = Harm(tmp_path / "canary")
    inner = nn.ParameterDict()
    inner.__dict__["_parameters"]["*"] = harm
    pickled = pickle.dumps({"string_to_param": inner} if where == "inside" else {where: harm})
    path = form(tmp_path / "embeddings.pt", pickled)
    with pytest.raises(RefusedError, match="embeddings.pt' was refused: .*os.mkdir"):
        add_embeddings(build(), [path])
    assert not harm.canary.exists()
    pickle.loads(pickled)
    assert harm.canary.exists()


WRONG = {  # what is in the file, and what is said of it
    "a model": ({"model.diffusion_model.out.0.weight": randn(4)}, "holds no textual-inversion embedding: it has model"),
    "a checkpoint": ({"state_dict": {"model.a": randn(4)}}, "it has model.a: a tensor"),
    "a LoRA": ({"lora_unet_down.lora_up.weight": randn(2, 8)}, "it looks like a LoRA"),
    "a layer": ({"weight": randn(2, 8)}, "it has weight: a tensor"),
    "an SDXL embedding": ({"clip_l": randn(1, 8), "clip_g": randn(1, 12)}, "it is one for SDXL"),
    "whole numbers": ({"<toy>": torch.ones(1, 8, dtype=torch.long)}, "it has <toy>: a tensor"),
    "a picture": ({"<toy>": randn(1, 3, 8)}, "it has <toy>: a tensor"),
    "no vector": ({"<toy>": randn(0, 8)}, "it has <toy>: a tensor"),
    "nothing": ({}, "it is empty"),
    "a list": ([1], "it is a list"),
    "no words": ({"string_to_param": {}}, "it has string_to_param: a dict"),
    "a text": ({"string_to_param": "x"}, "it has string_to_param: a str"),
    "not finite": ({"<toy>": ONE / 0}, "the vectors of '<toy>' are not finite"),
    "of another model": (
        {"<toy>": randn(1, 768)},
        r"'<toy>' have the shape \(1, 768\) \(Stable Diffusion 1\), and the",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_no_use_is_named_with_the_reason_and_nothing_is_attached(case, tmp_path):
    content, message = WRONG[case]
    good = written(tmp_path, "good.bin", {"<good>": ONE})
    model = build()
    with pytest.raises(CheckpointError, match=f"wrong.bin'.* {message}"):
        add_embeddings(model, [good, written(tmp_path, "wrong.bin", content)])
    assert model.embedding_manager is None
    assert all(p.requires_grad for p in model.model.parameters())


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    with pytest.raises(CheckpointError, match="a.png' is not a checkpoint"):
        add_embeddings(build(), [tmp_path / "a.png"])
    with pytest.raises(FileNotFoundError, match="b.pt' does not exist"):
        add_embeddings(build(), [tmp_path / "b.pt"])
    with pytest.raises(ValueError, match="an unconditional model reads no words"):
        add_embeddings(build(cond_stage="__is_unconditional__", conditioning_key=None), [])


def test_several_files_are_attached_to_a_model_and_prompts_use_their_words(tmp_path):
    model = build()
    toy = written(tmp_path, "toy.bin", {"<toy>": TWO})
    style = written(tmp_path, "style.safetensors", {"emb_params": ONE})
    assert add_embeddings(model, [toy, style]) == ["<toy>", "style"]
    words = model.cond_stage_model.token_embedding.weight
    with torch.no_grad():  # what the words' vectors would do if they stood in the vocabulary
        words[2:] = torch.cat([TWO[:1], TWO[1:]])
    expected = model.cond_stage_model(["a star"])
    torch.testing.assert_close(model.get_learned_conditioning(["<toy>"]), expected)
    assert add_embeddings(model, {"<other>": toy}) == ["<other>"]
    torch.testing.assert_close(model.get_learned_conditioning(["<OTHER>"]), expected)
    assert list(model.embedding_manager.string_to_token_dict) == ["<toy>", "style", "<other>"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_single_file_is_one_file_and_not_its_letters(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "a.pt", original({"<toy>": ONE}))
    model = build()
    assert add_embeddings(model, kind("a.pt")) == ["<toy>"] == list(model.embedding_manager.string_to_token_dict)


def test_two_files_for_one_word_need_names(tmp_path):
    one, two = (written(tmp_path, name, original({"*": ONE})) for name in ("one.pt", "two.pt"))
    with pytest.raises(ValueError, match="one.pt' and '.*two.pt' are both for '\\*': say which word"):
        add_embeddings(build(), [one, two])
    assert add_embeddings(build(), {"<one>": one, "<two>": two}) == ["<one>", "<two>"]
    several = written(tmp_path, "several.pt", original({"*": ONE, "sks": ONE}))
    with pytest.raises(ValueError, match="several.pt' holds 2 words, \\*, sks: it cannot be for '<x>'"):
        add_embeddings(build(), {"<x>": several})


def test_the_bundled_model_learns_words_too():
    from omegaconf import OmegaConf

    from ldm.checkpoint import config_path

    model = load_model(OmegaConf.to_container(OmegaConf.load(config_path("shapes"))))
    manager = EmbeddingManager(model.cond_stage_model, ["<thing>"], ["star"])
    model.embedding_manager = manager
    torch.testing.assert_close(
        model.get_learned_conditioning(["a red <thing>"]), model.get_learned_conditioning(["a red star"])
    )
