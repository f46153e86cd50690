"""Words that stand for learned vectors: where they go in a prompt, what a training moves, and files of them."""

import copy

import pytest
import torch
from _networks import randn
from _txt2img import CONFIG
from test_conditioning import LABELS, build
from torch import nn

from ldm.checkpoint import load_model, save_checkpoint
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.caption import CaptionEncoder
from ldm.modules.encoders.modules import BERTEmbedder, ClassEmbedder, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.util import instantiate_from_config

CLIP = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OPEN = {"width": 8, "heads": 2, "layers": 1, "embed_dim": 4}
ENCODERS = {
    "clip": lambda: FrozenCLIPEmbedder(text_config=CLIP, max_length=8),
    "open clip": lambda: FrozenOpenCLIPEmbedder(text_config=OPEN, max_length=8),
    "bert": lambda: BERTEmbedder(n_embed=8, n_layer=1, max_seq_len=8).requires_grad_(False),
    "caption": lambda: CaptionEncoder(["a", "photo", "of", "cat"], 8, 1, 2, max_length=8).requires_grad_(False),
}
FIRST = {"clip": 1, "open clip": 1, "bert": 1, "caption": 0}  # where the prompt begins


@pytest.fixture(params=ENCODERS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def with_words(encoder, **vectors):
    """A manager of these words (`_` for what a name cannot hold)."""
    manager = EmbeddingManager(encoder)
    for word, values in vectors.items():
        manager.set_vectors({"star": "*", "new": "<cat-toy>"}.get(word, word), values)
    return manager


def seen(encoder, manager, prompt):
    """The word vectors that go into the transformer, and the tokens, for one prompt."""
    kept = {}

    def watching(tokens, embedded):
        kept["before"] = embedded.clone()
        kept["after"] = manager(tokens, embedded)
        kept["tokens"] = tokens
        return kept["after"]

    encoder.encode([prompt], embedding_manager=watching)
    return kept["before"][0], kept["after"][0].detach(), kept["tokens"][0].tolist()


@pytest.mark.parametrize("placeholder", ["*", "sks", "cat", "<cat-toy>", "v1.5", "keys", "two words"])
def test_a_placeholder_is_one_token_and_its_vector_stands_in_its_place(kind, placeholder):
    encoder, vector = ENCODERS[kind](), randn(1, 8, seed=1)
    manager = with_words(encoder, **{placeholder: vector})
    before, after, _ = seen(encoder, manager, f"a photo of {placeholder.upper()} a photo")
    place = FIRST[kind] + 3
    assert torch.equal(after[place], vector[0])
    others = torch.arange(8) != place
    assert torch.equal(after[others], before[others])
    plain = encoder.token_embedding(encoder.tokenizer.encode("a")[0] * torch.ones(1, dtype=torch.long))
    assert torch.equal(after[place + 1], plain[0]), "what comes behind stays what it is"


def test_several_vectors_push_the_rest_along_in_every_place(kind):
    encoder, first = ENCODERS[kind](), FIRST[kind]
    manager = with_words(encoder, star=randn(2, 8, seed=1), new=randn(1, 8, seed=2))
    word = {k: encoder.token_embedding.weight[encoder.tokenizer.encode(k)[0]] for k in ("a", "photo")}
    _, after, tokens = seen(encoder, manager, "a * <cat-toy> photo")
    star, new = manager.string_to_param_dict["*"], manager.string_to_param_dict["<cat-toy>"]
    expected = torch.stack([word["a"], star[0], star[1], new[0], word["photo"]])
    assert torch.equal(after[first : first + 5], expected)
    numbers = manager.string_to_token_dict
    assert tokens[first + 1 : first + 4] == [numbers["*"], numbers["*"], numbers["<cat-toy>"]]


def test_what_has_no_room_is_cut_and_the_end_mark_stays(kind):
    encoder = ENCODERS[kind]()
    manager = with_words(encoder, new=randn(4, 8, seed=1))
    prompt = " ".join(["a photo <cat-toy> of a cat", "photo of"][: 2 if kind == "caption" else 1])
    with pytest.warns(UserWarning, match="vectors of '<cat-toy>' the prompt is too long: '.*cat.*' was cut"):
        before, after, tokens = seen(encoder, manager, prompt)
    assert len(after) == len(tokens) == 8
    if encoder.tokenizer.end is not None:
        end = encoder.token_embedding.weight[encoder.tokenizer.end]
        assert tokens[-1] == encoder.tokenizer.end and torch.equal(after[-1], end)
    assert torch.equal(after[FIRST[kind] + 2 : FIRST[kind] + 6], manager.vectors[0])


def test_tokens_of_the_caller_stay_as_they_are(kind):
    encoder = ENCODERS[kind]()
    manager = with_words(encoder, cat=randn(2, 8))
    tokenize = getattr(encoder, "tokenize", encoder.tokenizer)
    tokens = tokenize(["a cat photo"])
    before = tokens.clone()
    torch.testing.assert_close(encoder.encode(tokens, manager), encoder.encode(["a cat photo"], manager))
    assert torch.equal(tokens, before)


def test_without_a_manager_nothing_changes_and_a_new_word_is_named(kind):
    encoder = ENCODERS[kind]()
    plain = encoder.encode(["a photo of a cat"])
    manager = with_words(encoder, new=randn(1, 8))
    torch.testing.assert_close(encoder.encode(["a photo of a cat"]), plain)
    torch.testing.assert_close(encoder.encode(["a photo of a cat"], manager), plain)
    with pytest.raises(ValueError, match="'<cat-toy>': the text encoder has no vector.*pass the embedding_manager"):
        encoder.encode(["a <cat-toy>"])


def test_the_vector_of_the_whole_prompt_is_read_where_the_end_went():
    """Three vectors of one word are three words to CLIP's transformer."""
    encoder = FrozenCLIPEmbedder(text_config=CLIP, max_length=8, layer="pooled")
    for p in encoder.parameters():
        p.data.copy_(randn(*p.shape) * 0.3)
    ids = encoder.tokenizer.encode("a photo of")
    manager = with_words(encoder, new=encoder.token_embedding.weight[ids])
    torch.testing.assert_close(encoder.encode(["<cat-toy>"], manager), encoder.encode(["a photo of"]))


def test_a_hidden_layer_sees_the_vectors_too():
    encoder = FrozenCLIPEmbedder(text_config=CLIP, max_length=8, layer="hidden", layer_idx=0)
    manager, place = with_words(encoder, new=randn(1, 8)), encoder.transformer.text_model.embeddings.position_embedding
    torch.testing.assert_close(encoder(["<cat-toy>"], manager)[0, 1], manager.vectors[0][0] + place.weight[1])


def test_a_new_word_does_not_take_the_token_of_one_that_only_looks_alike():
    """To a caption encoder "<cat>" reads as "cat", and to BERT "é" as "e"."""
    caption, bert = CaptionEncoder(["a", "cat"], 8, 1, 2), BERTEmbedder(n_embed=8, n_layer=1)
    for encoder, new, old in ((caption, "<cat>", "cat"), (bert, "é", "e")):
        manager = with_words(encoder, **{new: randn(1, 8)})
        assert manager.string_to_token_dict[new] not in encoder.tokenizer.encode(old)


def test_a_word_begins_at_its_initial_word_and_others_among_the_vocabulary():
    torch.manual_seed(0)
    encoder = FrozenOpenCLIPEmbedder(text_config={**OPEN, "width": 64})
    encoder.model.token_embedding.weight.data += 5
    manager = EmbeddingManager(encoder, ["*", "<toy>"], ["cat"], num_vectors_per_token=3)
    table = encoder.token_embedding.weight
    cat = table[encoder.tokenizer.encode("cat")[0]]
    assert torch.equal(manager.string_to_param_dict["*"], cat.expand(3, -1))
    other = manager.string_to_param_dict["<toy>"]
    assert abs(other.mean() - 5) < 0.02 and abs(other.std() / table.std() - 1) < 0.3
    assert list(manager.embedding_parameters()) == list(manager.vectors) and other.requires_grad


@pytest.mark.parametrize(
    "options, message",
    [
        ({"initializer_words": ["catamaranship"]}, "initializer word 'catamaranship' is not one token"),
        ({"initializer_words": ["cat", "dog"]}, "2 initializer words for 1 placeholders"),
        ({"num_vectors_per_token": 0}, "num_vectors_per_token=0"),
        ({"progressive_words": True}, "progressive_words=True is not supported"),
        ({"per_image_tokens": True}, "per_image_tokens=True is not supported"),
        ({"placeholder_strings": ["<toy>", "<Toy>"]}, "one word to the text encoder: <toy>, <Toy>"),
        ({"placeholder_strings": [" "]}, "' ' cannot stand in a prompt"),
    ],
)
def test_what_cannot_be_a_manager_is_named(options, message):
    encoder = ENCODERS["clip"]()
    with pytest.raises(ValueError, match=message):
        EmbeddingManager(encoder, **{"placeholder_strings": ["*"], **options})


def test_only_text_encoders_learn_words():
    with pytest.raises(ValueError, match="ClassEmbedder reads no words"):
        EmbeddingManager(ClassEmbedder(8))
    with pytest.raises(ValueError, match="BERTEmbedder reads no words"):
        EmbeddingManager(BERTEmbedder(n_embed=8, n_layer=1, use_tokenizer=False))


# --- in a model


class Listener(nn.Module):
    """A network that does what the context says, along one direction of it."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(randn(8, seed=7))

    def forward(self, x, t, context):
        return 0.1 * x + (context @ self.direction).mean(1).view(-1, 1, 1, 1)


def model_with(**settings):
    """A small model whose encoder knows "a" and "star"."""
    model = build(**settings)
    model.model.diffusion_model = Listener()
    model.embedding_manager = EmbeddingManager(model.cond_stage_model, ["<toy>"], ["star"])
    return model


BATCH = {"jpg": randn(4, 4, 4, 3), "txt": ["a <toy>", "<toy>", "a star", "<toy> a"]}


def test_a_model_passes_its_manager_on():
    model = model_with()
    model.embedding_manager.set_vectors("<toy>", randn(1, 8, seed=3))
    c = model.get_learned_conditioning(["a <toy>"])
    torch.testing.assert_close(c, model.cond_stage_model(["a <toy>"], model.embedding_manager))
    assert (c - model.get_learned_conditioning(["a star"])).abs().max() > 1e-3
    assert model.get_unconditional_conditioning(2).shape == (2, 3, 8)
    copied = copy.deepcopy(model)
    copied.embedding_manager.tokenizer.add_word("<other>")
    assert "<other>" not in model.cond_stage_model.tokenizer.added_words.numbers
    torch.testing.assert_close(copied.get_learned_conditioning(["a <toy>"]), c)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_short_training_moves_the_vector_alone_and_lowers_the_loss(trainable):
    model = model_with(cond_stage_trainable=trainable)
    model.train()
    assert not model.cond_stage_model.training and not model.model.training
    frozen = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("embedding_manager.")}
    began = model.embedding_manager.vectors[0].detach().clone()
    z, (t, noise) = randn(4, 3, 4, 4), (torch.full((4,), 50), randn(4, 3, 4, 4, seed=1) + 3)
    model.learning_rate = 0.05
    optimizer, losses = model.configure_optimizers(), []
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(model.embedding_manager.vectors)
    for _ in range(30):
        loss, _ = model.p_losses(z, model.get_learned_conditioning(BATCH["txt"]), t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-4
    assert (model.embedding_manager.vectors[0] - began).abs().max() > 0.1
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in frozen.items())
    assert all(p.grad is None for k, p in model.named_parameters() if not k.startswith("embedding_manager."))


def test_a_step_of_training_reaches_the_vector():
    model = model_with().train()
    model.training_step(BATCH, 0).backward()
    assert model.embedding_manager.vectors[0].grad.abs().max() > 0


PERSONAL = {
    "target": "ldm.modules.embedding_manager.EmbeddingManager",
    "params": {"placeholder_strings": ["*"], "initializer_words": ["star"], "per_image_tokens": False},
}


def test_a_config_builds_the_manager_and_weights_that_come_later_give_its_first_vectors():
    """So does a repository that builds the model, and then loads a checkpoint into it."""
    model = build(personalization_config=PERSONAL, embedding_reg_weight=0.0, unfreeze_model=False, model_lr=0.0)
    trained = build().state_dict()
    trained["cond_stage_model.token_embedding.weight"] = randn(4, 8, seed=9)
    report = model.load_state_dict(trained, strict=False)
    assert report.missing_keys == ["embedding_manager.vectors.0"]
    star = model.cond_stage_model.tokenizer.encode("star")[0]
    assert torch.equal(model.embedding_manager.vectors[0][0], randn(4, 8, seed=9)[star])
    with torch.no_grad():
        model.embedding_manager.vectors[0] += 1
    learned = model.embedding_manager.vectors[0].detach().clone()
    model.load_state_dict(build().state_dict(), strict=False)
    assert torch.equal(model.embedding_manager.vectors[0], learned), "what was learned stays"


def test_a_model_without_text_learns_no_word():
    with pytest.raises(ValueError, match="an unconditional model reads no words"):
        build(cond_stage="__is_unconditional__", conditioning_key=None, personalization_config={**PERSONAL})
    with pytest.raises(ValueError, match="ClassEmbedder reads no words"):
        build(cond_stage=LABELS, cond_stage_key="class_label", personalization_config={**PERSONAL})


def test_a_loaded_model_has_the_words_of_its_config(tmp_path):
    """A file without them: they begin at the words of the file's text encoder. A training's own file: what it has."""
    config = copy.deepcopy(CONFIG)
    trained = instantiate_from_config(CONFIG["model"])
    save_checkpoint(trained, tmp_path / "a.safetensors")
    words = {"placeholder_strings": ["*"], "initializer_words": ["circle"]}
    config["model"]["params"]["personalization_config"] = {**PERSONAL, "params": words}
    model = load_model(config, tmp_path / "a.safetensors")
    circle = trained.cond_stage_model.token_embedding(torch.tensor(trained.cond_stage_model.tokenizer.encode("circle")))
    assert torch.equal(model.embedding_manager.vectors[0], circle)
    with torch.no_grad():
        model.embedding_manager.vectors[0] += 1
    save_checkpoint(model, tmp_path / "b.safetensors")
    again = load_model(config, tmp_path / "b.safetensors")
    assert torch.equal(again.embedding_manager.vectors[0], circle + 1)


def test_a_checkpoint_with_learned_words_loads_with_and_without_a_place_for_them(tmp_path, caplog):
    """As the original saves them, by their names and with where they began; and as they are saved here."""

    def with_words():
        config = copy.deepcopy(CONFIG)
        config["model"]["params"]["personalization_config"] = {
            "target": "ldm.modules.embedding_manager.EmbeddingManager",
            "params": {"placeholder_strings": ["<toy>"], "num_vectors_per_token": 2},
        }
        return config

    model = load_model(with_words())
    vectors = torch.randn(2, 16)
    model.embedding_manager.set_vectors("<toy>", vectors)
    ours = model.state_dict()
    assert "embedding_manager.vectors.0" in ours
    theirs = {k: v for k, v in ours.items() if not k.startswith("embedding_manager.")}
    theirs["embedding_manager.string_to_param_dict.<toy>"] = vectors
    theirs["embedding_manager.initial_embeddings.<toy>"] = vectors * 0
    for name, weights in (("ours.ckpt", ours), ("theirs.ckpt", theirs)):
        torch.save({"state_dict": weights}, tmp_path / name)
        loaded = load_model(with_words(), tmp_path / name)
        assert torch.equal(loaded.embedding_manager.string_to_param_dict["<toy>"], vectors)
        caplog.clear()
        plain = load_model(CONFIG, tmp_path / name)
        assert plain.embedding_manager is None and "holds learned words" in caplog.text
    save_checkpoint(plain, tmp_path / "plain.safetensors")
    load_model(CONFIG, tmp_path / "plain.safetensors")
