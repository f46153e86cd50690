"""Tensors to pictures: PIL images, captioned grids, and PNG files that say how they were made. Needs Pillow."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

GAP = 4  # pixels round the pictures of a grid
CAPTIONED_GAP = 16  # where there are captions: neighbours' words stay apart, and a caption is nearest to its picture
CAPTIONED_WIDTH = 192  # pixels: small pictures are enlarged to about this width, so that a caption fits below
CAPTION_LINES = 4
SETTINGS_CHUNK = "ldm-settings"  # our JSON, read back exactly; "parameters" is the text that other tools read

# Our names for settings and those in the "parameters" text, in its usual order.
_PARAMETERS = {"steps": "Steps", "sampler": "Sampler", "scale": "CFG scale", "seed": "Seed", "size": "Size",
               "model": "Model", "eta": "Eta"}  # fmt: skip
_PARAMETER = re.compile(r'\s*([\w][\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def to_pil(images: torch.Tensor) -> list[Picture]:
    """(B, 3, H, W) or (B, 1, H, W) in [-1, 1] → B pictures: values beyond are clipped, the nearest grey level taken.

    ValueError for another shape, and for NaN or infinite values, which would come out as plausible black pixels.
    """
    from PIL import Image

    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have the shape {tuple(images.shape)}; (B, 3, H, W) or (B, 1, H, W) can be pictures")
    images = images.detach().float().cpu()
    broken = [k for k, image in enumerate(images) if not image.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(images)} pictures hold NaN or infinite values (the first is number {broken[0]}): "
            "the network overflowed; compute in full precision, or check the checkpoint"
        )
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(level if level.shape[2] == 3 else level[..., 0]) for level in levels]


# ------------------------------------------------------------------------------------------------------------- grids


def grid(pictures: Sequence[Picture], columns: int, captions: Sequence[str] | None = None) -> Picture:
    """Pictures of one size side by side, `columns` in a row; with captions, each has its own below it, centred.

    Captions are wrapped to the picture's width and end after a few lines; small pictures are enlarged (whole factor,
    no smoothing) where there are captions, else nothing is scaled.
    """
    from PIL import Image, ImageDraw

    if not pictures or columns < 1:
        raise ValueError(f"a grid of {len(pictures)} pictures in {columns} columns: both must be at least 1")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures: give one for each")
    width, height = pictures[0].size
    zoom = max(1, round(CAPTIONED_WIDTH / width)) if captions else 1
    width, height = width * zoom, height * zoom
    gap = CAPTIONED_GAP if captions else GAP
    font = _font("".join(captions or []))
    texts = [_wrap(caption, width, font) for caption in captions or [""] * len(pictures)]
    line = sum(font.getmetrics()) + 1
    columns = min(columns, len(pictures))
    lines = [max(map(len, texts[k : k + columns])) for k in range(0, len(pictures), columns)]
    tops = list(accumulate(lines, lambda top, n: top + height + (GAP + n * line if captions else 0) + gap, initial=gap))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for k, picture in enumerate(pictures):
        x, y = gap + k % columns * (width + gap), tops[k // columns]
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST) if zoom > 1 else picture, (x, y))
        for n, text in enumerate(texts[k]):
            at = x + width // 2, y + height + GAP + n * line
            pen.text(at, text, fill="black", font=font, anchor="ma")
    return sheet


def table(pictures: Sequence[Picture], columns: Sequence[str], rows: Sequence[str]) -> Picture:
    """Pictures of one size, row by row, with a label above each column and one to the left of each row.

    Small pictures are enlarged, as in `grid`; a label that is too long for its picture is wrapped.
    """
    from PIL import Image, ImageDraw

    if not pictures or len(pictures) != len(columns) * len(rows):
        raise ValueError(f"{len(pictures)} pictures for {len(columns)} columns and {len(rows)} rows: give one for each")
    zoom = max(1, round(CAPTIONED_WIDTH / 1.5 / pictures[0].width))
    width, height = (side * zoom for side in pictures[0].size)
    font = _font("".join([*columns, *rows]))
    line = sum(font.getmetrics()) + 1
    above, beside = ([_wrap(label, width, font) for label in labels] for labels in (columns, rows))
    left = max([round(font.getlength(text)) for lines in beside for text in lines], default=0)
    left, top = left + 3 * GAP if any(rows) else GAP, max(map(len, above)) * line + 2 * GAP
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, lines in enumerate(above):
        for n, text in enumerate(lines):
            pen.text(
                (left + k * (width + GAP) + width // 2, GAP + n * line), text, fill="black", font=font, anchor="ma"
            )
    for k, lines in enumerate(beside):
        for n, text in enumerate(lines):
            middle = top + k * (height + GAP) + height // 2 + round((n - (len(lines) - 1) / 2) * line)
            pen.text((left - 2 * GAP if any(rows) else 0, middle), text, fill="black", font=font, anchor="rm")
    for k, picture in enumerate(pictures):
        at = left + k % len(columns) * (width + GAP), top + k // len(columns) * (height + GAP)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST) if zoom > 1 else picture, at)
    return sheet


def _font(text: str = ""):
    """Pillow's own font, the same everywhere; it has no letters beyond ASCII, so a common one for those, if there."""
    from PIL import ImageFont

    if not text.isascii():
        with contextlib.suppress(OSError):
            return ImageFont.truetype("DejaVuSans.ttf", size=13)
    return ImageFont.load_default(size=13)


def _wrap(caption: str, width: float, font) -> list[str]:
    """Words → lines of about one length that fit into `width`; an ellipsis stands for words beyond CAPTION_LINES."""
    lines = _lines(caption, width, font)
    for narrower in range(int(width), 0, -4):  # as many lines, no word left alone on the last
        if len(evener := _lines(caption, narrower, font)) > len(lines):
            break
        lines = evener
    if len(lines) > CAPTION_LINES:
        lines = _lines(caption, width, font)[:CAPTION_LINES]
        while " " in lines[-1] and font.getlength(f"{lines[-1]}…") > width:
            lines[-1] = lines[-1].rpartition(" ")[0]
        lines[-1] += "…"
    return [_fit(text, width, font) for text in lines]


def _lines(caption: str, width: float, font) -> list[str]:
    """As many words in each line as fit; a word that is wider has a line of its own."""
    lines = [""]
    for word in caption.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _fit(text: str, width: float, font) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text


# ------------------------------------------------------------------------------------------------ PNG with its settings


def save_png(picture: Picture, path: str | Path, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG that tells its settings (prompt, negative_prompt, seed, steps, … any JSON values).

    FileExistsError instead of writing over a file. The file is encoded first, so that none is left half-written by an
    interruption while encoding.
    """
    encoded = png_bytes(picture, settings)
    with open(path, "xb") as file:
        file.write(encoded)


def png_bytes(picture: Picture, settings: dict[str, Any] | None = None) -> bytes:
    """What `save_png` writes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if settings:
        info.add_text("parameters", parameters_text(settings))
        info.add_text(SETTINGS_CHUNK, json.dumps(settings))
    encoded = io.BytesIO()
    picture.save(encoded, "png", pnginfo=info)
    return encoded.getvalue()


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a PNG: ours exactly; else what another tool's "parameters" text says; {} where there are none.

    FileNotFoundError, IsADirectoryError; ValueError for what is no picture, or one that `read_picture` would refuse,
    and where our settings are damaged.
    """
    from ldm.picture_files import loaded, opened

    name = repr(str(path))
    with opened(path, name) as picture:
        loaded(picture, name)  # text may stand after the pixels
        chunks = dict(getattr(picture, "text", {}))
    if SETTINGS_CHUNK not in chunks:
        return parse_parameters(chunks.get("parameters", ""))
    try:
        settings = json.loads(chunks[SETTINGS_CHUNK])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: its settings are damaged ({error}); take those of another picture") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{name}: its settings are a {type(settings).__name__}, not names and values; it is not ours")
    return settings


def parameters_text(settings: dict[str, Any]) -> str:
    """The text that Stable Diffusion web UIs write and read: prompt, negative prompt, then "Name: value, …"."""
    rest = {k: v for k, v in settings.items() if k not in ("prompt", "negative_prompt", "width", "height")}
    if "width" in settings and "height" in settings:
        rest["size"] = f"{settings['width']}x{settings['height']}"
    known = [(name, rest.pop(key)) for key, name in _PARAMETERS.items() if rest.get(key) is not None]
    others = [(key, value) for key, value in rest.items() if value is not None]
    lines = [settings.get("prompt", "")]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in known + others))
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, Any]:
    """The inverse of `parameters_text`, for any tool's text: our names where we have one, numbers as numbers."""
    if not text.strip():
        return {}
    head, _, last = text.rstrip().rpartition("\n")
    if not re.match(r"\s*Steps: ", last):  # no line of settings: all of it is the prompt
        head, last = text.rstrip(), ""
    prompt, _, negative = f"\n{head}".partition("\nNegative prompt:")
    settings: dict[str, Any] = {"prompt": prompt.removeprefix("\n"), "negative_prompt": negative.strip()}
    ours = {name: key for key, name in _PARAMETERS.items()}
    for name, value in _PARAMETER.findall(last):
        settings[ours.get(name, name)] = _unquoted(value)
    if match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", str(settings.get("size", ""))):
        settings["width"], settings["height"] = map(int, match.groups())
        del settings["size"]
    return settings


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if re.search(r'[,:\n"]', text) else text


def _unquoted(value: str) -> Any:
    value = value.strip()
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
