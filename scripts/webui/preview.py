"""Latents to a small picture at once: a linear map, fitted to what the model's own decoder makes of latents."""

from __future__ import annotations

import _machine

FINE = 4  # pixels of the preview for each latent, a side: half of what an autoencoder of factor 8 draws
PICTURES = 32  # to begin with
SIDE = 24  # latents: of those pictures


class Projection:
    """From each latent and its eight neighbours to FINE × FINE pixels, by least squares.

    It begins with what the autoencoder makes of `leaves`, and learns from each picture that is drawn.
    """

    def __init__(self, model, shape: tuple[int, int, int]):
        """`shape`: (C, h, w) of the latents that the model was made for."""
        import torch

        size = 9 * shape[0] + 1
        self._a, self._b = torch.zeros(size, size).double(), torch.zeros(size, 3 * FINE**2).double()
        side = min(SIDE, max(shape[1:]))
        with torch.no_grad():
            for images in leaves(PICTURES, side * 8).to(model.device).split(4):
                z = _machine.encode(model, images)
                self.learn(z, model.decode_first_stage(z))

    def learn(self, z, images, weight: float = 1.0) -> None:
        """Take in latents (B, C, h, w) and the pictures (B, 3, H, W) in [-1, 1] that the decoder makes of them."""
        import torch
        import torch.nn.functional as F

        size = z.shape[2] * FINE, z.shape[3] * FINE
        small = F.interpolate(images.detach().float().clamp(-1, 1), size, mode="area")
        a = _neighbours(z).cpu().double()
        b = F.pixel_unshuffle(small, FINE).permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
        self._a += weight * a.T @ a
        self._b += weight * a.T @ b
        ridge = 1e-4 * self._a.diagonal().mean() * torch.eye(len(self._a)).double()
        self._weight = torch.linalg.solve(self._a + ridge, self._b).float()

    def __call__(self, z):
        """(B, C, h, w) → (B, 3, FINE h, FINE w) in [-1, 1]."""
        import torch.nn.functional as F

        b, _, h, w = z.shape
        pixels = (_neighbours(z) @ self._weight.to(z.device)).view(b, h, w, -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(pixels, FINE).clamp(-1, 1)


def _neighbours(z):
    """(B, C, h, w) → (B h w, 9 C + 1): each latent with those round it, and a one."""
    import torch
    import torch.nn.functional as F

    around = F.unfold(F.pad(z.float(), (1, 1, 1, 1), mode="replicate"), 3)  # (B, 9 C, h w)
    rows = around.transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def leaves(n: int, side: int):
    """(n, 3, side, side) in [-1, 1], the same each time: discs and boxes of any colour on top of each other.

    "Dead leaves" (Lee, Mumford and Huang 2001) have edges and sizes as photographs do; every other one is sparse, on a
    pale ground, as drawings are.
    """
    import torch

    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = []
    for k in range(n):
        sparse = k % 2
        picture = (torch.rand(3, 1, 1, generator=g) * (0.5 if sparse else 2) + (0.5 if sparse else -1)).expand(
            3, side, side
        )
        for _ in range(3 if sparse else 40):
            cx, cy, r = (
                torch.rand(3, generator=g) * torch.tensor([side, side, side / 4]) + torch.tensor([0, 0, side / 16])
            ).tolist()
            disc = torch.rand(1, generator=g).item() < 0.5
            inside = (x - cx) ** 2 + (y - cy) ** 2 < r * r if disc else ((x - cx).abs() < r) & ((y - cy).abs() < r)
            picture = torch.where(inside, torch.rand(3, 1, 1, generator=g) * 2 - 1, picture)
        pictures.append(picture)
    return torch.stack(pictures)
