"""First-stage autoencoders: pictures in [−1, 1] ↔ latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import load_state_dict, load_weights
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class AutoencoderKL(nn.Module):
    """The autoencoder whose latent is a Gaussian held near N(0, 1) (Rombach et al. 2022, section 3.1).

    `ddconfig` goes to `Encoder` and `Decoder`; latents have `embed_dim` channels and 1/f of the picture's size, f =
    2**(len(ch_mult) − 1). `ckpt_path` loads weights, but for keys that begin with one of `ignore_keys`. `lossconfig`,
    `image_key`, `colorize_nlabels` and `monitor` belong to CompVis' training: accepted, and no loss is built.

    Attribute names are frozen by the released checkpoints' keys.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        if not ddconfig.get("double_z", True):
            raise ValueError("double_z=False: the encoder must give a mean and a log-variance; set double_z: true")
        self.image_key = image_key
        self.monitor = monitor
        self.embed_dim = embed_dim
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

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

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """`x`: (B, 3, H, W) in [−1, 1], H and W divisible by f; the Gaussian is of shape (B, embed_dim, H/f, W/f)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x.to(self.dtype))))

    def decode(self, z: Tensor) -> Tensor:
        """`z`: (B, embed_dim, h, w); returns (B, 3, f·h, f·w), about in [−1, 1] and not clipped."""
        if z.ndim != 4 or z.shape[1] != self.embed_dim:
            raise ValueError(f"a latent has shape (B, {self.embed_dim}, h, w) here, got {tuple(z.shape)}")
        return self.decoder(self.post_quant_conv(z.to(self.dtype)))

    def forward(self, x: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """The reconstruction of `x` from a sample of its latent, or from the mean; and the latent's Gaussian."""
        posterior = self.encode(x)
        z = posterior.sample() if sample_posterior else posterior.mode()
        return self.decode(z), posterior


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
