"""The first text-to-image model's encoder: BERT's tokenizer and a transformer of its own."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from _networks import GOLDEN, golden_weights
from _prompts import random_prompts

from ldm.modules.encoders.bert_tokenizer import WordPieceTokenizer
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer, TransformerEmbedder

VOCABULARY = Path(__file__).parent.parent / "ldm" / "assets" / "bert_base_uncased_vocab.txt.gz"
# bert_embedder.npz: what CompVis' BERTEmbedder returns for these parameters
SMALL = {"n_embed": 64, "n_layer": 3, "vocab_size": 100, "max_seq_len": 12}
IDS = [1037, 6302, 1997, 2019, 19748, 5559, 1037, 3586, 2006, 7733]


@pytest.fixture(scope="module")
def peer():
    transformers = pytest.importorskip("transformers", minversion="5.0")
    words = gzip.open(VOCABULARY).read().decode().split("\n")[:-1]
    peer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    return lambda text: peer(text, verbose=False).input_ids[1:-1]


def test_the_vocabulary_is_the_published_one():
    digest = hashlib.sha256(gzip.open(VOCABULARY).read()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_a_prompt_becomes_berts_numbers():
    tokens = WordPieceTokenizer()(["a photo of an astronaut riding a horse on mars", ""])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[101, *IDS, 102] + [0] * 65, [101, 102] + [0] * 75]


def test_thousands_of_prompts_have_the_peers_numbers(peer):
    ours = WordPieceTokenizer()
    for text in random_prompts(6000, ["[SEP]", "[CLS]", "[MASK]", "[UNK]", "[PAD]", "[cls]"]):
        assert ours.encode(text) == peer(text), ascii(text)


@pytest.mark.parametrize("text", ["a" * 100, "a" * 101, "unaffable" * 12, "e" + "\u0301\u0316" * 1500, "x, " * 500])
def test_long_words_and_prompts_have_the_peers_numbers(peer, text):
    assert WordPieceTokenizer().encode(text) == peer(text)


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("Unaffable", ["una", "##ffa", "##ble"]),
        ("Café!", ["cafe", "!"]),
        ("日本", ["日", "本"]),
        ("horse" * 21, ["[UNK]"]),
        ("\U00013000", ["[UNK]"]),
    ],
)
def test_words_are_cut_into_pieces(text, pieces):
    words = gzip.open(VOCABULARY).read().decode().split("\n")
    assert [words[i] for i in WordPieceTokenizer().encode(text)] == pieces


def test_decoding_gives_the_words_back():
    tokenizer = WordPieceTokenizer()
    assert tokenizer.decode(tokenizer("An unaffable HORSE, café")[0]) == "an unaffable horse , cafe"


def test_what_is_cut_of_a_long_prompt_is_shown():
    with pytest.warns(UserWarning, match=r"has 77 tokens and 75 are read: 'on mars' was cut"):
        tokens = WordPieceTokenizer()("horse " * 75 + "on Mars")
    assert tokens.tolist() == [[101] + [3586] * 75 + [102]]


def test_the_transformer_returns_the_originals_numbers():
    data = np.load(GOLDEN / "bert_embedder.npz")
    embedder = BERTEmbedder(**SMALL)
    golden_weights(embedder.transformer)
    tokens, expected = (torch.from_numpy(data[k]) for k in ("in_tokens", "out_embedding"))
    torch.testing.assert_close(embedder(tokens), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(embedder.transformer(tokens, return_embeddings=True), expected, rtol=0, atol=1e-4)


def test_the_keys_are_the_originals():
    """Those of latent diffusion's text2img-large, at a smaller size."""
    attention = {"to_q.weight": (512, 64), "to_k.weight": (512, 64), "to_v.weight": (512, 64)}
    attention |= {"to_out.weight": (64, 512), "to_out.bias": (64,)}
    mlp = {"net.0.0.weight": (256, 64), "net.0.0.bias": (256,), "net.2.weight": (64, 256), "net.2.bias": (64,)}
    expected = {"token_emb.weight": (100, 64), "pos_emb.emb.weight": (12, 64)}
    for i in range(6):
        expected |= {f"attn_layers.layers.{i}.0.weight": (64,), f"attn_layers.layers.{i}.0.bias": (64,)}
        expected |= {f"attn_layers.layers.{i}.1.{k}": shape for k, shape in (mlp if i % 2 else attention).items()}
    expected |= {"norm.weight": (64,), "norm.bias": (64,), "to_logits.weight": (100, 64), "to_logits.bias": (100,)}
    with torch.device("meta"):
        weights = BERTEmbedder(**SMALL).state_dict()
    assert {k: tuple(v.shape) for k, v in weights.items()} == {f"transformer.{k}": v for k, v in expected.items()}


def test_prompts_and_their_tokens_are_encoded_alike():
    torch.manual_seed(0)
    embedder = BERTEmbedder(n_embed=16, n_layer=1).eval()
    out = embedder.encode(["a horse", ""])
    assert out.shape == (2, 77, 16)
    torch.testing.assert_close(embedder(WordPieceTokenizer()(["a horse", ""])), out)
    torch.testing.assert_close(embedder("a horse"), out[:1], rtol=1e-5, atol=1e-6)


def test_the_logits_are_over_the_vocabulary():
    embedder = TransformerEmbedder(n_embed=16, n_layer=1, vocab_size=50, max_seq_len=9)
    tokens = torch.arange(18).reshape(2, 9)
    assert embedder(tokens).shape == (2, 9, 16) and embedder.transformer(tokens).shape == (2, 9, 50)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="10 tokens are more than max_seq_len=9"):
        TransformerEmbedder(n_embed=16, n_layer=1, vocab_size=50, max_seq_len=9)(torch.zeros(1, 10, dtype=torch.long))


def test_prompts_are_refused_where_there_is_no_tokenizer_for_them():
    with pytest.raises(TypeError, match="no tokenizer.*not str"):
        BERTEmbedder(**SMALL, use_tokenizer=False)("a horse")
    with pytest.raises(ValueError, match="100 tokens and its tokenizer 30522"):
        BERTEmbedder(**SMALL)("a horse")


def test_the_tokenizer_has_a_first_stages_interface():
    tokens = WordPieceTokenizer()(["a horse"])
    assert BERTTokenizer(vq_interface=False).encode(["a horse"]).equal(tokens)
    nothing, loss, (_, _, indices) = BERTTokenizer().encode(["a horse"])
    assert nothing is None and loss is None and indices.equal(tokens)
    assert BERTTokenizer().decode("a horse") == "a horse"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gives_low_precision(dtype):
    torch.manual_seed(0)
    embedder = TransformerEmbedder(n_embed=32, n_layer=2, vocab_size=50).eval()
    tokens = torch.arange(20)[None]
    wide = embedder(tokens)
    narrow = embedder.to(dtype)(tokens)
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), wide, rtol=0, atol=0.1)
