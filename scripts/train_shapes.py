"""Train the bundled model from nothing: the autoencoder, the caption encoder, then the latent diffusion.

    python scripts/train_shapes.py --out runs/shapes      # about two hours on two CPU cores
    python scripts/train_shapes.py --out runs/shapes      # the same line again goes on where it was stopped

When it is through, OUT/shapes.safetensors is the model; scripts/score_shapes.py measures it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import _cli
import _config
import _machine
import numpy as np
import torch
import torch.nn.functional as F
from _training import Stage, log
from torch import Tensor, nn
from tqdm import tqdm

from ldm.data.shapes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, Shapes
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.encoders.caption import CaptionEncoder
from ldm.util import instantiate_from_config


def pictures(scenes: list) -> Tensor:
    """[(picture, description)] → (B, 3, H, W) in [-1, 1]. Contiguous: twice as fast on a CPU as channels last."""
    array = np.stack([picture for picture, _ in scenes])
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def train_autoencoder(autoencoder: nn.Module, args: argparse.Namespace) -> None:
    """L1 on colours and on edges, and a little KL (Rombach et al. 2022, appendix G). Edges stand in for the adversary:
    what makes a star a star is a few pixels of outline, which L1 on the colours alone hardly feels."""
    scenes = Shapes(seed=1)
    autoencoder.to(args.device).train().requires_grad_(True)
    stage = Stage(args.out / "autoencoder.pt", autoencoder, args.ae_steps, 1e-3, ema=0.998)

    def loss(step: int) -> Tensor:
        x = pictures([scenes[step * 32 + k] for k in range(32)]).to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            posterior = autoencoder.encode(x)
            seen = autoencoder.decode(posterior.sample())
        error = seen.float() - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges + 2e-4 * kl

    stage.run(loss)


QUESTIONS = [  # about a description: its answers, and the index of the right one
    *(
        question
        for k in range(3)
        for question in (
            (len(COLOURS) + 1, lambda d, k=k: _index([t.colour for t in d.things], k, COLOURS)),
            (len(SHAPES) + 1, lambda d, k=k: _index([t.shape for t in d.things], k, SHAPES)),
            (len(RADII) + 1, lambda d, k=k: _index([t.size for t in d.things], k, RADII)),
        )
    ),
    (3, lambda d: ("single", "row", "column").index(d.layout)),
    (len(PLACES) + 1, lambda d: _index([d.place], 0, PLACES)),
    (len(BACKGROUNDS) + 1, lambda d: _index([d.background], 0, BACKGROUNDS)),
]


def _index(values: list, k: int, choices) -> int:
    """The number of value k among the choices; one more than they are where there is none."""
    return list(choices).index(values[k]) if k < len(values) and values[k] is not None else len(choices)


class Reader(nn.Module):
    """Answers QUESTIONS from a caption's encoding with one attention layer; trained, then thrown away."""

    def __init__(self, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), width) * 0.1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, answers) for answers, _ in QUESTIONS)

    def forward(self, context: Tensor) -> list[Tensor]:
        read, _ = self.attention(self.queries.expand(len(context), -1, -1), context, context, need_weights=False)
        return [head(read[:, k]) for k, head in enumerate(self.heads)]


def train_caption_encoder(encoder: nn.Module, args: argparse.Namespace) -> None:
    """Teaches the encoder to read before it is asked to help painting: from its output alone, a reader must tell
    which things a caption names, in which order. The diffusion then learns what the words look like, not grammar."""
    scenes = Shapes(seed=2)
    both = nn.ModuleDict({"encoder": encoder, "reader": Reader(encoder.position_embedding.shape[1])}).to(args.device)
    both.train().requires_grad_(True)
    stage = Stage(args.out / "captions.pt", both, args.caption_steps, 1e-3, ema=0.99)

    def loss(step: int) -> Tensor:
        descriptions = [scenes.describe(step * 128 + k) for k in range(128)]
        answers = both["reader"](encoder([d.caption for d in descriptions]))
        right = torch.tensor([[answer(d) for _, answer in QUESTIONS] for d in descriptions], device=args.device)
        return sum(F.cross_entropy(logits, right[:, k]) for k, logits in enumerate(answers))

    stage.run(loss)


@torch.no_grad()
def latents_of_scenes(model: nn.Module, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The training set: latents (N, C, h, w), not scaled, and caption tokens (N, L). Kept in OUT/latents-N.pt."""
    path = args.out / f"latents-{args.scenes}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        return kept["latents"], kept["tokens"]
    scenes, latents, tokens = Shapes(seed=3), [], []
    for start in tqdm(range(0, args.scenes, 64), desc="encoding scenes", mininterval=10):
        batch = [scenes[k] for k in range(start, min(start + 64, args.scenes))]
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            latents.append(model.encode_first_stage(pictures(batch).to(args.device)).mode().half().cpu())
        tokens.append(model.cond_stage_model.tokenize([d.caption for _, d in batch]).to(torch.uint8).cpu())
    kept = {"latents": torch.cat(latents), "tokens": torch.cat(tokens)}
    torch.save(kept, path.with_suffix(".tmp"))  # renamed when whole, so that an interruption leaves no half of it
    path.with_suffix(".tmp").replace(path)
    return kept["latents"], kept["tokens"]


def train_diffusion(model: nn.Module, args: argparse.Namespace) -> None:
    """The denoiser and the caption encoder together; one caption in ten is dropped for classifier-free guidance."""
    latents, tokens = latents_of_scenes(model, args)
    model.scale_factor.copy_(1 / latents[:4096].float().std())
    log.info("latents: %s, scale factor %.4f", tuple(latents.shape), model.scale_factor.item())
    model.to(args.device).train()
    parts = nn.ModuleDict({"denoiser": model.model, "captions": model.cond_stage_model}).requires_grad_(True)
    stage = Stage(args.out / "diffusion.pt", parts, args.steps, args.rate, ema=0.999)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(latents), (args.batch,))
        z = latents[rows].to(args.device).float() * model.scale_factor
        words = tokens[rows].to(args.device).long() * (torch.rand(args.batch, 1) >= 0.1).to(args.device)
        spread = (torch.arange(args.batch) + torch.rand(args.batch)) / args.batch  # timesteps evenly over the schedule
        t = (spread * model.num_timesteps).long().to(args.device)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            return model.p_losses(z, model.get_learned_conditioning(words), t)[0]

    stage.run(loss)


def export(model: nn.Module, path: Path) -> None:
    """One safetensors file in CompVis' layout; the networks' weights in half precision, the schedule in single."""
    from ldm.checkpoint import save_checkpoint

    save_checkpoint(model, path, dtype=torch.float16, overwrite=True)
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def check(model: nn.Module) -> None:
    """ValueError for a config's model that the stages below could not train to the end."""
    for name, kind in {"first_stage_model": AutoencoderKL, "cond_stage_model": CaptionEncoder}.items():
        part = getattr(model, name, None)
        if not isinstance(part, kind):
            raise ValueError(f"the config's {name} is {type(part).__name__}; what is trained here is {kind.__name__}")
    if not isinstance(model.scale_factor, Tensor):
        raise ValueError("the latents' scale is measured here: set model.params.scale_by_std to true in the config")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("train_shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = _cli.number(int, 1)
    parser.add_argument("--config", type=_cli.a_path, help="(default: configs/shapes.yaml)")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="where the training's state lives")
    parser.add_argument("--ae_steps", type=count, default=3400, help="of the autoencoder (default: %(default)s)")
    parser.add_argument("--caption_steps", type=count, default=800, help="of the encoder (default: %(default)s)")
    parser.add_argument("--steps", type=count, default=9000, help="of the diffusion (default: %(default)s)")
    parser.add_argument("--batch", type=count, default=48, help="of the diffusion (default: %(default)s)")
    parser.add_argument("--rate", type=_cli.number(float, 0), default=7e-4, help="the diffusion's peak learning rate")
    parser.add_argument("--scenes", type=count, default=60_000, help="in the diffusion's training set")
    parser.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda …")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    args.device = str(_machine.pick_device(args.device))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    model = instantiate_from_config(_config.load_config(args.config).model)
    check(model)
    args.out.mkdir(parents=True, exist_ok=True)
    train_autoencoder(model.first_stage_model, args)
    model.first_stage_model.requires_grad_(False)
    train_caption_encoder(model.cond_stage_model, args)
    train_diffusion(model, args)
    export(model, args.out / "shapes.safetensors")


if __name__ == "__main__":
    _cli.run(main, "train_shapes")
