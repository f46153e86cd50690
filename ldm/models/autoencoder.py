"""First-stage autoencoders: pictures in [−1, 1] ↔ latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import load_state_dict, load_weights
from ldm.models import strips
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.vqvae.quantize import VectorQuantizer

_AT_ONCE = 512 * 512  # pixels: more of them at once are no faster, and take more memory


class _Autoencoder(nn.Module):
    """What the autoencoders share. Attribute names are frozen by the released checkpoints' keys.

    Without gradients a batch is taken as many pictures at a time as have 512 × 512 pixels together, but at least one.
    """

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, moments: int) -> None:
        """`moments`: how many numbers the encoder gives for each of a latent's, 2 for a mean and a log-variance."""
        super().__init__()
        self.embed_dim = embed_dim
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(moments * z_channels, moments * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self._strip_rows: int | None = None

    @property
    def strip_rows(self) -> int | None:
        """How many rows of a layer to compute at a time, 1 or more; None for all. Fewer take less memory and more time,
        and give the same pictures (`ldm.models.strips`); 32 is a good choice. Of no effect where gradients are on."""
        return self._strip_rows

    @strip_rows.setter
    def strip_rows(self, rows: int | None) -> None:
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise ValueError(
                f"strip_rows={rows!r}: give a number of rows, 1 or more, such as 32, or None for all at once"
            )
        self._strip_rows = rows

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in outside autocast."""
        return self.quant_conv.weight.dtype

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load a file's weights; those whose keys begin with one of `ignore_keys` stay as they are."""
        ignored = tuple(ignore_keys)
        weights = {k: v for k, v in load_state_dict(path).items() if not k.startswith(ignored)}
        kept = {k: v for k, v in self.state_dict().items() if k.startswith(ignored)}
        load_weights(self, {**weights, **kept}, path)

    def _encode(self, x: Tensor) -> Tensor:
        self.encoder.check(x)
        network = self._network(self.encoder, strips.encode)
        return self._sliced(lambda some: self.quant_conv(network(some.to(self.dtype))), x, factor=1)

    def decode(self, z: Tensor) -> Tensor:
        """`z`: (B, embed_dim, h, w); returns (B, 3, f·h, f·w), about in [−1, 1] and not clipped."""
        if z.ndim != 4 or z.shape[1] != self.embed_dim:
            raise ValueError(f"a latent has shape (B, {self.embed_dim}, h, w) here, got {tuple(z.shape)}")
        network = self._network(self.decoder, strips.decode)
        return self._sliced(lambda some: network(self.post_quant_conv(some.to(self.dtype))), z, self.encoder.factor)

    def _network(self, network: nn.Module, in_strips: Callable[[nn.Module, Tensor, int], Tensor]) -> Callable:
        """The encoder or decoder, whole or in strips."""
        if self._strip_rows is None or torch.is_grad_enabled():
            return network
        return lambda x: in_strips(network, x, self._strip_rows)

    def _sliced(self, run: Callable[[Tensor], Tensor], x: Tensor, factor: int) -> Tensor:
        """`run`, some of the batch at a time; `factor`: how many pixels of a picture a side of one in x is."""
        pixels = x.shape[2] * x.shape[3] * factor**2
        at_once = 1 if self._strip_rows else max(1, _AT_ONCE // max(1, pixels))
        if torch.is_grad_enabled() or len(x) <= at_once:
            return run(x)
        return torch.cat([run(some) for some in x.split(at_once)])


class AutoencoderKL(_Autoencoder):
    """The autoencoder whose latent is a Gaussian held near N(0, 1) (Rombach et al. 2022, section 3.1).

    `ddconfig` goes to `Encoder` and `Decoder`; latents have `embed_dim` channels and 1/f of the picture's size, f =
    2**(len(ch_mult) − 1). `ckpt_path` loads weights, but for keys that begin with one of `ignore_keys`. What
    comes after, and `lossconfig`, belongs to the original's training: accepted, and no loss is built.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any] | None = None,
        embed_dim: int | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        ema_decay: float | None = None,
        learn_logvar: bool = False,
    ) -> None:
        _require(embed_dim=embed_dim)
        if not ddconfig.get("double_z", True):
            raise ValueError("double_z=False: the encoder must give a mean and a log-variance; set double_z: true")
        super().__init__(ddconfig, embed_dim, moments=2)
        self.image_key = image_key
        self.monitor = monitor
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """`x`: (B, 3, H, W) in [−1, 1], H and W divisible by f; the Gaussian is of shape (B, embed_dim, H/f, W/f)."""
        return DiagonalGaussianDistribution(self._encode(x))

    def forward(self, x: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """The reconstruction of `x` from a sample of its latent, or from the mean; and the latent's Gaussian."""
        posterior = self.encode(x)
        z = posterior.sample() if sample_posterior else posterior.mode()
        return self.decode(z), posterior


class VQModel(_Autoencoder):
    """The autoencoder whose latent is made of the `n_embed` codes of a codebook (Esser et al. 2021).

    `ddconfig`, `embed_dim`, `ckpt_path` and `ignore_keys` are as in `AutoencoderKL`, `sane_index_shape` and `remap`
    as in `VectorQuantizer`. The others belong to CompVis' training: accepted, and no loss and no average is made.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any] | None = None,
        n_embed: int | None = None,
        embed_dim: int | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        batch_resize_range: Sequence[int] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        remap: str | None = None,
        sane_index_shape: bool = False,
        use_ema: bool = False,
    ) -> None:
        _require(n_embed=n_embed, embed_dim=embed_dim)
        if ddconfig.get("double_z", True):
            raise ValueError("double_z=True: a code has no variance; set double_z: false")
        super().__init__(ddconfig, embed_dim, moments=1)
        self.n_embed = n_embed
        self.image_key = image_key
        self.monitor = monitor
        self.quantize = VectorQuantizer(n_embed, embed_dim, beta=0.25, remap=remap, sane_index_shape=sane_index_shape)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """`x`: (B, 3, H, W) in [−1, 1], H and W divisible by f; what `VectorQuantizer` says of its latent."""
        return self.quantize(self._encode(x))

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """`x` as in `encode`; its latent before it is quantised, (B, embed_dim, H/f, W/f)."""
        return self._encode(x)

    def decode_code(self, indices: Tensor) -> Tensor:
        """The pictures of these codes, (B, h, w)."""
        return super().decode(self.quantize.get_codebook_entry(indices, (*indices.shape, self.embed_dim)))

    def forward(self, x: Tensor, return_pred_indices: bool = False) -> tuple[Tensor, ...]:
        """The reconstruction of `x` and the quantiser's loss; and, if asked for, the codes' indices."""
        quantized, loss, (_, _, indices) = self.quantize(self._encode(x))
        reconstruction = super().decode(quantized)
        return (reconstruction, loss, indices) if return_pred_indices else (reconstruction, loss)


class VQModelInterface(VQModel):
    """A VQModel as the first stage of a diffusion model: the latent is the one before quantisation, which moves into
    `decode`. So a sampled latent lands on the codes, and the diffusion is spared their jumps."""

    def encode(self, x: Tensor) -> Tensor:
        """`x`: (B, 3, H, W) in [−1, 1]; returns (B, embed_dim, H/f, W/f), not quantised."""
        return self.encode_to_prequant(x)

    def decode(self, h: Tensor, force_not_quantize: bool = False) -> Tensor:
        """`h`: (B, embed_dim, h, w), quantised unless told otherwise; returns (B, 3, f·h, f·w)."""
        return super().decode(h if force_not_quantize else self.quantize(h)[0])


def _require(**sizes: int | None) -> None:
    """The original has them behind `lossconfig`, which is optional here."""
    if missing := [name for name, size in sizes.items() if size is None]:
        raise TypeError(f"give {' and '.join(missing)}: embed_dim is the latent's channels, n_embed the codes' number")


class IdentityFirstStage(nn.Module):
    """For diffusion on the pictures themselves; `vq_interface` makes `quantize` answer as a vector quantiser does."""

    def __init__(self, *args, vq_interface: bool = False, **kwargs) -> None:
        super().__init__()
        self.vq_interface = vq_interface

    def encode(self, x: Tensor, *args, **kwargs) -> Tensor:
        return x

    def decode(self, x: Tensor, *args, **kwargs) -> Tensor:
        return x

    def quantize(self, x: Tensor, *args, **kwargs):
        return (x, None, (None, None, None)) if self.vq_interface else x

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return x
