"""A training in plain PyTorch: what each step does, and that the loss falls."""

import pytest
import torch
from _networks import randn
from _trained import BATCHES, UNET, build, fixed_loss

from ldm.models.diffusion.ddpm import DDPM, disabled_train
from ldm.sampling import DDIMSampler

BATCH = BATCHES[0]


def train(model, epochs=20, rate=2e-3):
    model.train()
    model.learning_rate = rate
    optimizer = model.configure_optimizers()
    for number, batch in enumerate(BATCHES * epochs):
        model.on_train_batch_start(batch, number)
        model.training_step(batch, number).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.on_train_batch_end()


@pytest.mark.parametrize("settings", [{}, {"cond_stage_trainable": True, "parameterization": "v"}])
def test_the_loss_falls_and_the_average_follows(settings):
    model = build(**settings)
    encoder = [p.clone() for p in model.cond_stage_model.parameters()]
    before = fixed_loss(model)
    train(model)
    assert fixed_loss(model) < 0.9 * before
    with model.ema_scope():
        assert fixed_loss(model) < 0.95 * before
    assert model.model_ema.num_updates == 60
    moved = [not torch.equal(p, q) for p, q in zip(encoder, model.cond_stage_model.parameters())]
    assert any(moved) == bool(settings)


def test_a_model_of_pictures_themselves_is_trained_and_sampled_from():
    torch.manual_seed(0)
    unet = {**UNET, "params": {**UNET["params"], "use_spatial_transformer": False, "context_dim": None}}
    model = DDPM(unet, 100, "linear", "l1", first_stage_key="jpg", image_size=4)
    z, (t, noise) = model.get_input(BATCH, "jpg"), (torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4))
    assert torch.equal(z, BATCH["jpg"].permute(0, 3, 1, 2))
    before = model.p_losses(z, t, noise)[0].item()
    train(model)
    assert model.p_losses(z, t, noise)[0].item() < 0.9 * before
    samples, _ = DDIMSampler(model).sample(5, 2, (3, 4, 4), verbose=False)
    assert samples.isfinite().all()


def test_a_step_gives_the_loss_of_its_batch_and_what_to_log():
    model = build().train()
    loss, losses = model.shared_step(BATCH, noise=torch.zeros(4, 3, 4, 4))
    assert set(losses) == {"train/loss", "train/loss_simple"} and losses["train/loss"] == loss
    assert loss == 0, "the network begins by answering with zeros, and the noise was given"
    assert set(model.eval().shared_step(BATCH)[1]) == {"val/loss", "val/loss_simple"}
    loss = model.train().training_step(BATCH, 0)
    assert loss.requires_grad and loss > 0.1


def test_p_losses_may_be_overridden_in_the_originals_words():
    """A loss as repositories copy it: with the bound's weights and a logvar that is not learned."""

    class Weighted(type(build())):
        def p_losses(self, x_start, cond, t, noise=None):
            noise = torch.randn_like(x_start) if noise is None else noise
            output = self.apply_model(self.q_sample(x_start=x_start, t=t, noise=noise), t, cond)
            simple = self.get_loss(output, noise, mean=False).mean([1, 2, 3])
            logvar = self.logvar[t].to(self.device)
            loss = self.l_simple_weight * (simple / torch.exp(logvar) + logvar).mean()
            bound = (self.lvlb_weights[t] * self.get_loss(output, noise, mean=False).mean(dim=(1, 2, 3))).mean()
            return loss + self.original_elbo_weight * bound, {"train/loss_simple": simple.mean()}

    z, c = build().get_input(BATCH, "jpg")
    arguments = z, c, torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4)
    torch.testing.assert_close(build(Weighted).p_losses(*arguments)[0], build().p_losses(*arguments)[0])
    assert build(Weighted).training_step(BATCH).isfinite()


def test_a_validation_says_what_the_averaged_weights_lose():
    model = build().eval()
    train(model, epochs=3, rate=1e-2)
    model.eval()
    torch.manual_seed(1)
    losses = model.validation_step(BATCH, 0)
    torch.manual_seed(1)
    plain = model.shared_step(BATCH)[1]["val/loss"]
    with model.ema_scope():
        averaged = model.shared_step(BATCH)[1]["val/loss"]
    assert losses["val/loss"] == plain and losses["val/loss_ema"] == averaged != plain
    assert set(losses) == {"val/loss", "val/loss_simple", "val/loss_ema", "val/loss_simple_ema"}
    assert not any(value.requires_grad for value in losses.values())


def test_gradients_are_the_same_with_checkpointing():
    """Non-zero weights, as the network begins at zero; the text encoder is trained, so that the context counts."""
    gradients = []
    for flag in (True, False):
        unet = {**UNET, "params": {**UNET["params"], "use_checkpoint": flag}}
        model = build(unet_config=unet, cond_stage_trainable=True).train()
        assert model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].checkpoint is flag
        for k, p in enumerate(model.model.parameters()):
            p.data = randn(*p.shape, seed=k) * 0.1
        torch.manual_seed(0)
        model.training_step(BATCH, 0).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 or "token_embedding" in name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8, msg=name)


# --- the latents' scale


def test_the_scale_is_measured_on_the_first_batch_and_never_again(tmp_path):
    model = build(scale_by_std=True).train()
    buffer = model.scale_factor
    small, large = ({**BATCH, "jpg": BATCH["jpg"] * factor} for factor in (0.1, 7.0))
    model.on_train_batch_start(small, 0)
    assert model.scale_factor is buffer
    z = model.get_input(small, "jpg")[0]
    assert z.std().item() == pytest.approx(1, rel=1e-5)
    measured = model.scale_factor.item()
    model.on_train_batch_start(large, 0)
    assert model.scale_factor.item() == measured
    resumed = build(scale_by_std=True)
    resumed.load_state_dict(model.state_dict())
    resumed.on_train_batch_start(large, 0)
    assert resumed.scale_factor.item() == measured


def test_a_scale_that_was_said_stays():
    model = build(scale_factor=0.5)
    model.on_train_batch_start(BATCH, 0)
    assert model.scale_factor == 0.5
    model = build(scale_by_std=True)
    with pytest.raises(ValueError, match="no spread to measure: their std is 0"):
        model.on_train_batch_start({**BATCH, "jpg": torch.ones(4, 4, 4, 3)}, 0)


# --- optimizers


def names_of(model, optimizer):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)].split(".")[0] for group in optimizer.param_groups for p in group["params"]}


def test_the_optimizer_has_what_is_trained():
    model = build()
    model.learning_rate = 3e-4
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["lr"] == 3e-4
    assert names_of(model, optimizer) == {"model"} and not model.use_scheduler
    model = build(cond_stage_trainable=True)
    model.learning_rate = 1e-4
    model.model.diffusion_model.input_blocks.requires_grad_(False)
    optimizer = model.configure_optimizers()
    assert names_of(model, optimizer) == {"model", "cond_stage_model"}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in model.parameters())


def test_a_training_without_a_rate_or_without_weights_is_named():
    with pytest.raises(ValueError, match="no learning rate: set model.learning_rate"):
        build().configure_optimizers()
    model = build()
    model.learning_rate = 1e-4
    model.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of this LatentDiffusion can be trained"):
        model.configure_optimizers()


def test_a_scheduler_multiplies_the_rate_step_by_step():
    params = {"warm_up_steps": [4], "cycle_lengths": [10**9], "f_start": [0.0], "f_max": [1.0], "f_min": [1.0]}
    model = build(scheduler_config={"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params})
    model.learning_rate = 8.0
    (optimizer,), (schedule,) = model.configure_optimizers()
    assert schedule["interval"] == "step" and schedule["frequency"] == 1 and model.use_scheduler
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([0, 2, 4, 6, 8, 8])


def test_what_trainers_and_callbacks_read_is_there():
    model = build(monitor="val/loss_simple_ema", log_every_t=25, ucg_training=None)
    assert model.monitor == "val/loss_simple_ema" and model.log_every_t == 25 and model.use_ema
    assert build().monitor == "val/loss" and build().log_every_t == 100
    part = torch.nn.Dropout()
    part.train = disabled_train.__get__(part)
    assert part.eval() is part and part.training


# --- classifier-free guidance's training


@pytest.fixture
def seen(monkeypatch):
    """What `get_input` gets of the batches."""
    kept = []
    original = type(build()).get_input

    def watched(self, batch, *args, **kwargs):
        kept.append(batch)
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(type(build()), "get_input", watched)
    return kept


def test_captions_are_dropped_with_their_probability_and_the_callers_batch_stays(seen):
    model = build(ucg_training={"txt": {"p": 0.25, "val": "star"}}).train()
    batch = {"jpg": randn(400, 4, 4, 3), "txt": ["a"] * 400}
    model.training_step(batch)
    assert batch["txt"] == ["a"] * 400
    assert 60 < seen[0]["txt"].count("star") < 140 and set(seen[0]["txt"]) == {"a", "star"}
    model.eval().validation_step(batch)
    assert set(seen[1]["txt"]) == {"a"}


@pytest.mark.parametrize("val", [None, ""])
def test_the_empty_caption_is_what_is_said_unless_told_otherwise(val, seen):
    build(ucg_training={"txt": {"p": 1, "val": val}}).training_step(BATCH)
    assert seen[0]["txt"] == [""] * 4
    build(ucg_training={"txt": {"p": 0.0, "val": val}}).training_step(BATCH)
    assert seen[1]["txt"] == BATCH["txt"]


@pytest.mark.parametrize("numpy", [False, True])
def test_pictures_and_labels_are_replaced_by_a_number(numpy, seen):
    batch = {**BATCH, "jpg": BATCH["jpg"].numpy() if numpy else BATCH["jpg"]}
    build(ucg_training={"jpg": {"p": 1.0, "val": 0.5}}).training_step(batch)
    assert (seen[0]["jpg"] == 0.5).all() and seen[0]["jpg"].shape == (4, 4, 4, 3)
    assert not (batch["jpg"] == 0.5).any()


@pytest.mark.parametrize("rule", [{"p": 1.5}, {"val": ""}, {"p": 0.1, "value": ""}, 0.1])
def test_a_rule_that_cannot_be_followed_is_named_at_once(rule):
    with pytest.raises(ValueError, match="ucg_training has .* for 'txt'; give p, a probability"):
        build(ucg_training={"txt": rule})


def test_a_rule_that_does_not_fit_the_batch_is_named():
    with pytest.raises(KeyError, match="replace 'caption' in batches that have only jpg, txt"):
        build(ucg_training={"caption": {"p": 0.1}}).training_step(BATCH)
    with pytest.raises(ValueError, match="no val for an entry of numbers"):
        build(ucg_training={"jpg": {"p": 0.1}}).training_step(BATCH)
