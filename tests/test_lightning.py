"""A training through Lightning's Trainer: a class of one's own with the mixin behind it."""

import sys
import warnings

import pytest
import torch
from _networks import randn
from _trained import BATCHES, SETTINGS, build, fixed_loss
from torch import nn

from ldm.checkpoint import load_model, load_state_dict
from ldm.models.diffusion.ddpm import LatentDiffusion

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and log intervals


def classes():
    from ldm.models.diffusion.lightning import LightningMixin

    class ControlLDM(LatentDiffusion, LightningMixin):
        """As a repository has it: a network of its own beside the locked one, and get_input and apply_model its own."""

        def __init__(self, control_key="hint", *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.control_key = control_key
            self.control_model = nn.Conv2d(3, 3, 3, padding=1)

        @torch.no_grad()
        def get_input(self, batch, k, bs=None, *args, **kwargs):
            x, c, *rest = super().get_input(batch, self.first_stage_key, *args, bs=bs, **kwargs)
            control = batch[self.control_key][:bs].to(self.device).movedim(-1, 1).float()
            return [x, {"c_crossattn": [c], "c_concat": [control]}, *rest]

        def apply_model(self, x_noisy, t, cond, *args, **kwargs):
            eps = self.model.diffusion_model(x=x_noisy, timesteps=t, context=torch.cat(cond["c_crossattn"], 1))
            return eps + self.control_model(torch.cat(cond["c_concat"], 1))

        def trained_parts(self):
            yield self.control_model

    class Plain(LatentDiffusion, LightningMixin):
        pass

    return ControlLDM, Plain


CONTROLLED = [{**batch, "hint": batch["jpg"].flip(1)} for batch in BATCHES]


@pytest.fixture
def trainer(tmp_path):
    """A function that makes a Trainer on the CPU, quiet, for so many steps."""
    torch.set_num_threads(1)

    def trainer(steps, **options):
        settings = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **options}
        return lightning.Trainer(
            max_steps=steps, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, **settings,
        )  # fmt: skip

    return trainer


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_the_trainer_lowers_the_loss_and_calls_the_hooks(trainer):
    _, plain = classes()
    model = build(plain, scale_by_std=True)
    model.learning_rate = 2e-3
    keys, first = set(model.state_dict()), fixed_loss(model)
    assert keys == set(build(scale_by_std=True).state_dict())
    run = trainer(60)
    run.fit(model, loader(BATCHES))
    assert run.global_step == 60 == model.model_ema.num_updates
    assert set(model.state_dict()) == keys
    assert model.scale_factor.item() == pytest.approx(1 / BATCHES[0]["jpg"].std().item(), rel=1e-5)
    model.scale_factor.fill_(1)  # the loss of the same latents
    assert fixed_loss(model) < 0.9 * first
    with model.ema_scope():
        assert fixed_loss(model) < 0.95 * first
    assert {"train/loss", "train/loss_simple"} <= set(run.callback_metrics)
    assert model.device.type == "cpu" and model.training


def test_a_subclass_with_a_network_of_its_own_trains_that_and_draws(trainer):
    control, _ = classes()
    model = build(control, control_key="hint")
    model.learning_rate = 2e-3
    locked = [p.detach().clone() for p in model.model.parameters()]
    z, c = model.get_input(CONTROLLED[0], "jpg")

    def loss():
        with torch.no_grad():
            return model.p_losses(z, c, torch.tensor([5, 30, 60, 95]), randn(4, 3, 4, 4, seed=9))[0].item()

    before = loss()
    trainer(40).fit(model, loader(CONTROLLED))
    assert loss() < before
    assert all(torch.equal(p, q) for p, q in zip(locked, model.model.parameters()))
    samples, _ = model.sample_log(c, 4, ddim=True, ddim_steps=3, eta=0.0)
    assert samples.shape == (4, 3, 4, 4) and samples.isfinite().all()


def test_the_losses_of_a_validation_are_logged(trainer):
    _, plain = classes()
    model = build(plain)
    model.learning_rate = 1e-4
    run = trainer(3, limit_val_batches=2)
    run.fit(model, loader(BATCHES), loader(BATCHES))
    names = {f"val/{name}{ema}" for name in ("loss", "loss_simple") for ema in ("", "_ema")}
    assert names <= set(run.callback_metrics)


def test_a_checkpoint_of_the_trainer_is_one_of_the_model_and_a_training_goes_on_from_it(trainer, tmp_path):
    _, plain = classes()
    params = {"warm_up_steps": [4], "cycle_lengths": [10**9], "f_start": [0.1], "f_max": [1.0], "f_min": [1.0]}
    schedule = {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": params}

    def fresh():
        model = build(plain, scale_by_std=True, scheduler_config=schedule)
        model.learning_rate = 1e-3
        return model

    torch.manual_seed(1)
    model, run = fresh(), trainer(4)
    run.fit(model, loader(BATCHES))
    run.save_checkpoint(tmp_path / "a.ckpt")
    found = load_state_dict(tmp_path / "a.ckpt")
    assert set(found) == set(build(scale_by_std=True).state_dict())
    config = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {**SETTINGS, "scale_by_std": True}}
    read = load_model({"model": config}, tmp_path / "a.ckpt").state_dict()
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())

    resumed, again = fresh(), trainer(6)
    again.fit(resumed, loader(BATCHES), ckpt_path=tmp_path / "a.ckpt")
    assert again.global_step == 6 == resumed.model_ema.num_updates
    assert resumed.scale_factor.item() == model.scale_factor.item()
    assert again.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    assert again.lr_scheduler_configs[0].scheduler.last_epoch == 6


def test_steps_may_be_taken_without_a_trainer():
    _, plain = classes()
    model = build(plain).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning warns where it is to log, and there is no trainer
        model.training_step(BATCHES[0], 0).backward()
        assert set(model.eval().validation_step(BATCHES[0], 0)) > {"val/loss_ema"}
    copied = build(plain)
    copied.load_state_dict(model.half().state_dict())
    assert copied.alphas_cumprod.dtype == torch.float32 == model.alphas_cumprod.dtype


def test_textual_inversion_goes_through_the_trainer(trainer):
    from ldm.modules.embedding_manager import EmbeddingManager

    _, plain = classes()
    model = build(plain)
    model.embedding_manager = EmbeddingManager(model.cond_stage_model, ["<toy>"], ["star"])
    for p in model.model.parameters():
        p.data = randn(*p.shape, seed=p.numel()) * 0.1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.learning_rate = 1e-2
    trainer(3).fit(model, loader([{**batch, "txt": ["a <toy>"] * 4} for batch in BATCHES]))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"embedding_manager.vectors.0"}


def test_a_mixin_before_the_model_is_an_error_that_says_the_order():
    from ldm.models.diffusion.lightning import LightningMixin

    class Mine(LightningMixin):  # which may be before other classes, and be put behind a model
        pass

    class Good(LatentDiffusion, Mine):
        pass

    class Better(Good):
        pass

    assert isinstance(build(Better), lightning.LightningModule)
    for mixin in (LightningMixin, Mine):
        with pytest.raises(TypeError) as error:
            type("Mixed", (mixin, LatentDiffusion), {})
        assert str(error.value) == (
            f"class Mixed({mixin.__name__}, LatentDiffusion): LightningMixin goes behind the model, as in "
            f"class Mixed(LatentDiffusion, {mixin.__name__})"
        )


def test_the_package_that_is_in_use_is_taken(monkeypatch):
    """Both names are there, as those who install `lightning` have both; a Trainer takes its own package's modules."""
    from ldm.models.diffusion.lightning import _lightning_module

    assert _lightning_module() is lightning.LightningModule
    other = pytest.importorskip("pytorch_lightning")
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert _lightning_module() is other.LightningModule
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)  # not installed
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert _lightning_module().__module__.startswith("pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'latent-diffusion-sampler\[train\]'"):
        _lightning_module()
