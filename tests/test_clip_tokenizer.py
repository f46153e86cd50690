"""CLIP's tokenizer: the published numbers, transformers' on thousands of prompts, and what does not fit or belong."""

import copy
import gzip
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from _prompts import random_prompts

from ldm.modules.encoders.clip_tokenizer import CLIPTokenizer

VOCABULARY = Path(__file__).parent.parent / "ldm" / "assets" / "bpe_simple_vocab_16e6.txt.gz"
PROMPT = "a photo of an astronaut riding a horse on mars"
IDS = [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496]


@pytest.fixture(scope="module")
def peer():
    """transformers' tokenizer, which makes a vocab.json's numbers and the merges of the same file."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    merges = [tuple(line.split()) for line in gzip.open(VOCABULARY, "rt", encoding="utf-8").readlines()[1:48895]]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in shown] + [chr(256 + k) for k in range(256 - len(shown))]
    tokens = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    peer = transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    return lambda text: peer(text, verbose=False).input_ids[1:-1]


def test_a_prompt_becomes_the_published_numbers():
    tokens = CLIPTokenizer()(PROMPT)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[49406, *IDS, 49407] + [49407] * 65]


def test_open_clip_pads_with_zeros():
    assert CLIPTokenizer(pad=0)([PROMPT, ""]).tolist() == [
        [49406, *IDS, 49407] + [0] * 65,
        [49406, 49407] + [0] * 75,
    ]


def test_thousands_of_prompts_have_the_peers_numbers(peer):
    ours, marks = CLIPTokenizer(), ["<|endoftext|>", "<|startoftext|>", "<|STARTOFTEXT|>", "<|endoftext"]
    for text in random_prompts(6000, marks):
        assert ours.encode(text) == peer(text), ascii(text)


@pytest.mark.parametrize(
    "text",
    ["a" * 3000, "ab " * 1000, "e" + "\u0301\u0316" * 1500, "Σ" * 2000, "'s" * 1000, "½Ⅷ" * 900, "abcdefghij" * 300],
)
def test_long_words_and_prompts_have_the_peers_numbers(peer, text):
    assert CLIPTokenizer().encode(text) == peer(text)


def test_a_word_of_a_hundred_thousand_letters_is_read():
    """A pair at a time over the whole word, as the original merges, takes very long."""
    text = "abcdefghij" * 10_000
    tokenizer = CLIPTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "one, other",
    [
        ("A Photo", "a photo"),
        ("  a\t photo\n", "a photo"),
        ("Cafe\u0301", "café"),
        ("ΟΔΟΣ", "οδοσ"),  # not the ς that str.lower gives at the end of a word
        ("a photo!", "a photo !"),
        ("THEY'RE", "they 're"),
        ("42", "4 2"),
    ],
)
def test_spellings_that_do_not_matter(one, other):
    assert CLIPTokenizer().encode(one) == CLIPTokenizer().encode(other)


def test_marks_stand_for_themselves():
    assert CLIPTokenizer().encode("a<|endoftext|>photo <|startoftext|>") == [320, 49407, 1125, 49406]


@pytest.mark.parametrize("text", [PROMPT, "naïve 日本語 👩‍👩‍👧‍👦 ½ !", "", "it 's 1 2"])
def test_decoding_gives_the_text_back(text):
    tokenizer = CLIPTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer(text)[0]) == text


def test_half_a_character_decodes_to_a_replacement():
    tokenizer = CLIPTokenizer()
    first, *_ = tokenizer.encode("漢")
    assert tokenizer.decode([first]) == "\ufffd"


def test_what_is_cut_of_a_long_prompt_is_shown():
    with pytest.warns(UserWarning, match=r"has 77 tokens and 75 are read: 'on mars' was cut"):
        tokens = CLIPTokenizer()("horse " * 75 + "on Mars")
    assert tokens.tolist() == [[49406] + [4558] * 75 + [49407]]


def test_a_prompt_that_just_fits_is_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CLIPTokenizer()("horse " * 75)[0, -1] == 49407


def test_the_warning_about_a_huge_prompt_is_short():
    with pytest.warns(UserWarning, match="characters") as caught:
        CLIPTokenizer()("horse " * 20_000)
    assert len(str(caught[0].message)) < 600


def test_the_length_can_be_chosen():
    assert CLIPTokenizer(max_length=5)("a photo").tolist() == [[49406, 320, 1125, 49407, 49407]]
    with pytest.raises(ValueError, match="max_length=1"):
        CLIPTokenizer(max_length=1)


def test_no_prompts_are_no_rows():
    assert CLIPTokenizer()([]).shape == (0, 77)


@pytest.mark.parametrize("texts, named", [(None, "None"), (b"a cat", "b'a cat'"), (3, "3"), ({"a": 1}, "{'a': 1}")])
def test_what_is_not_a_prompt_is_refused(texts, named):
    with pytest.raises(TypeError, match=f"{named} is neither"):
        CLIPTokenizer()(texts)


@pytest.mark.parametrize("item", [None, b"a cat", 3.5, ["a cat"]])
def test_a_list_with_something_else_in_it_is_refused(item):
    with pytest.raises(TypeError, match="prompt 1 of 2 is"):
        CLIPTokenizer()(["a cat", item])


def test_half_a_surrogate_pair_does_not_stop_the_prompt():
    """A shell with another encoding passes on such strings."""
    tokenizer = CLIPTokenizer()
    assert tokenizer.decode(tokenizer.encode("a \udce9 photo")) == "a ? photo"


def test_a_tokenizer_can_be_copied_and_sent_to_a_worker():
    tokenizer = CLIPTokenizer(max_length=8, pad=0)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other("a photo").equal(tokenizer("a photo"))


def test_tokens_are_real_where_a_model_is_built_empty():
    with torch.device("meta"):
        assert CLIPTokenizer()(PROMPT)[0, 1] == 320
