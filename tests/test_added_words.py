"""Words that are added to a vocabulary: each is one token, and nothing else is."""

import pytest

from ldm.modules.encoders.bert_tokenizer import WordPieceTokenizer
from ldm.modules.encoders.caption import ClosedVocabulary
from ldm.modules.encoders.clip_tokenizer import CLIPTokenizer

TOKENIZERS = {
    "clip": CLIPTokenizer,
    "bert": WordPieceTokenizer,
    "caption": lambda: ClosedVocabulary(["a", "photo", "like", "mystyles", "amystyle"]),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def test_a_word_is_found_as_a_whole_only(tokenizer):
    mine, toy = tokenizer.add_word("mystyle"), tokenizer.add_word("<cat-toy>")
    assert tokenizer.encode("MyStyle, mystyle-like") == [mine, *tokenizer.encode(","), mine, *tokenizer.encode("-like")]
    assert mine not in tokenizer.encode("mystyles amystyle")
    assert tokenizer.encode("a<cat-toy><CAT-TOY>b").count(toy) == 2
    text = "a <cat-toy> photo mystyle mystyle"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.add_word("<Cat-Toy>") == toy


def test_the_longer_of_two_words_goes_first(tokenizer):
    tokenizer.add_word("<cat>")
    longer = tokenizer.add_word("<cat><dog>")
    assert tokenizer.encode("<cat><dog>") == [longer]


def test_a_vocabulary_without_added_words_is_as_it_was(tokenizer):
    before = tokenizer.encode("a photo <cat-toy>")
    tokenizer.add_word("<other>")
    assert tokenizer.encode("a photo <cat-toy>") == before
    assert tokenizer.decode([]) == ""
