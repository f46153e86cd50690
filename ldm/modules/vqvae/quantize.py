"""The vector quantiser of the VQ autoencoders (van den Oord et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MOST_DISTANCES = 2**24  # held at a time, 64 MiB: all of 64×64 latents to 8192 codes would be 128 MiB for each picture


class VectorQuantizer(nn.Module):
    """Replaces each vector of a feature map by the nearest of `n_e` codes, each of length `e_dim`.

    The parameters are CompVis', and so is `legacy`: the weight `beta` of the commitment loss (the encoder's pull
    towards the codes) stands, since the first release, at the codebook's loss instead, and the released models were
    trained so. `legacy=False` puts it where the paper has it. `sane_index_shape` gives the indices as (B, h, w), not
    in one row. `remap` renumbers a part of the codes for models of index sequences; it is refused.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: str | None = None,
        unknown_index: str = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        if remap is not None:
            raise ValueError(f"remap={remap!r}: renumbered codebooks are not supported; leave remap out")
        self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
        self.sane_index_shape = sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """`z`: (B, e_dim, h, w) → z on the codes, the loss, and (None, None, the codes' indices, (B·h·w,)).

        Gradients pass the quantised z as if it were z (straight-through). The two None stand where CompVis' first
        quantiser had a perplexity and one-hot encodings.
        """
        if z.ndim != 4 or z.shape[1] != self.e_dim:
            raise ValueError(f"latents to quantise have shape (B, {self.e_dim}, h, w) here, got {tuple(z.shape)}")
        rows = z.movedim(1, -1)
        indices = self.nearest(rows.reshape(-1, self.e_dim))
        z_q = self.get_codebook_entry(indices, rows.shape)
        commitment = (z_q.detach() - z).square().mean()
        codebook = (z_q - z.detach()).square().mean()
        loss = commitment + self.beta * codebook if self.legacy else self.beta * commitment + codebook
        z_q = z_q.detach() + (z - z.detach())  # in this order the value is exactly the code's
        if self.sane_index_shape:
            indices = indices.view(rows.shape[:-1])
        return z_q, loss, (None, None, indices)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """`z`: (N, e_dim) → (N,): which code e has the least ‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖²; ‖z‖² decides nothing.

        In float32 whatever the precision around, for in half precision most codes of a large codebook are equally
        near; and a few rows at a time, for the matrix of all distances is larger than the autoencoder.
        """
        codes = self.embedding.weight.float()
        norms = codes.square().sum(1)
        device = z.device.type
        autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
            parts = z.float().split(max(1, _MOST_DISTANCES // self.n_e))
            return torch.cat([torch.addmm(norms, part, codes.T, alpha=-2).argmin(1) for part in parts])

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The codes of these indices: (…, e_dim), or with `shape` = (B, h, w, e_dim) a feature map (B, e_dim, h, w)."""
        z_q = self.embedding(indices)
        return z_q if shape is None else z_q.view(*shape).movedim(-1, 1).contiguous()
