"""Words that textual inversion has learned, in the prompts of scripts/txt2img.py."""

from pathlib import Path

import pytest
import torch
from _txt2img import difference, draw
from safetensors.torch import save_file

WIDTH = 16  # of the tiny model's text encoder


@pytest.fixture
def learned(tmp_path):
    """A file of one word, <toy>, with two vectors; and one for another kind of model."""
    generator = torch.Generator().manual_seed(0)
    save_file({"<toy>": torch.randn(2, WIDTH, generator=generator) * 3}, tmp_path / "toy.safetensors")
    save_file({"<cat>": torch.randn(1, 768)}, tmp_path / "cat.safetensors")
    return tmp_path / "toy.safetensors"


def test_a_learned_word_changes_the_pictures_that_say_it_and_no_others(run, learned):
    flags = ["--n_samples", 1, "--n_iter", 1]
    word = ["--embedding_path", learned]
    Path("prompts.txt").write_text("a red <toy>\na red circle\n")
    (with_word, plain), (again, as_before) = (
        draw(run, "--from-file", "prompts.txt", *flags, *more, out=out) for more, out in ((word, "a"), (word, "b"))
    )
    assert difference(with_word, again) == difference(plain, as_before) == 0
    (without,) = draw(run, *flags, "--prompt", "a red circle", "--seed", 43, out="c")
    assert difference(plain, without) == 0
    assert difference(with_word, plain) > 2
    assert with_word[1]["embeddings"] == ["toy.safetensors"] and "embeddings" not in without[1]


@pytest.mark.parametrize(
    "name, said",
    [
        ("nowhere.pt", "nowhere.pt"),
        ("text.pt", "text.pt"),
        ("cat.safetensors", "an embedding is only for the kind of model it was made with"),
    ],
)
def test_what_is_no_word_for_this_model_is_one_line(run, learned, name, said):
    Path("text.pt").write_text("not a file of vectors")
    status, _, err = run("--prompt", "a red circle", "--embedding_path", name)
    assert status == 2 and len(err) == 1 and said in err[0]


def test_a_file_that_cannot_be_read_shows_before_the_model_is_loaded(run, learned, no_model):
    status, _, err = run("--prompt", "a red circle", "--embedding_path", "nowhere.pt")
    assert status == 2 and "nowhere.pt" in err[0]
