"""What the page's fields say as a task, what a PNG says as fields, and the words that stand on the page."""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import Any

from webui.studio import SAMPLERS, Look, Made, Task

PAINTED = 512  # pixels: about the longer side of a picture in the editor
SEEDS = 2**53  # a browser's numbers are exact below that
CLASSES = {"DDIM": "DDIM", "PLMS": "PLMS", "DPMSolver": "DPM-Solver++"}  # as files name them: as the page does


def task_of(given: dict[str, Any], seed: int, side: int) -> Task:
    """What the page says as a task; ValueError where something is missing. Pictures of more than `side` are shrunk."""
    common = {
        "prompt": given["prompt"] or "", "negative_prompt": given["negative"] or "",
        "steps": whole(given["steps"], "steps"), "scale": real(given["scale"], "scale"),
        "eta": real(given["eta"], "eta"), "seed": seed, "sampler": given["sampler"],
    }  # fmt: skip
    if given["tab"] == "text":
        return Task(**common, width=whole(given["width"], "width"), height=whole(given["height"], "height"))
    if given["tab"] == "picture":
        if not given["picture"]:
            raise ValueError("there is no picture to begin from: drop one into the field, or send one that was drawn")
        return Task(**common, picture=within(read(given["picture"]), side), strength=given["strength"])
    if not given["base"]:
        raise ValueError("there is no picture to fill: choose one, or send one that was drawn")
    picture = within(read(given["base"]), side)
    hole = hole_of(given["editor"], picture.size)
    return Task(**common, picture=picture, hole=hole, strength=given["hole_strength"])


def whole(value: float | None, name: str) -> int:
    """A number field's; ValueError where it is empty."""
    return int(real(value, name))


def real(value: float | None, name: str) -> float:
    if value is None:
        raise ValueError(f"{name}: there is no number")
    return float(value)


def seed_of(value: float | None) -> int:
    """What stands in the field of the seed; ValueError for what a browser's numbers do not hold, or a fraction."""
    value = real(value, "seed")
    if value != int(value) or not 0 <= value < SEEDS:
        raise ValueError(f"seed {value:.15g}: this page takes whole numbers from 0 to {SEEDS - 1}")
    return int(value)


def read(path: str):
    """The picture in a file that was sent; errors name the file alone, as its owner does."""
    from ldm.picture_files import read_picture

    try:
        return read_picture(path)
    except ValueError as error:
        raise ValueError(str(error).replace(repr(str(path)), Path(path).name)) from error


def within(picture, side: int):
    """The picture, shrunk to `side` pixels if either of its own has more."""
    from PIL import Image

    share = min(1, side / max(picture.size))
    return picture.resize([max(1, round(n * share)) for n in picture.size], Image.Resampling.LANCZOS)


def hole_of(edited: dict[str, Any] | None, size: tuple[int, int]):
    """Where the editor's layers are painted: bool (H, W), for a picture of `size`, (W, H)."""
    import numpy as np
    from PIL import Image

    painted = np.zeros(size[::-1], bool)
    for layer in (edited or {}).get("layers", []):
        if layer is not None and layer.ndim == 3 and layer.shape[2] == 4:
            alpha = Image.fromarray(np.ascontiguousarray(layer[..., 3])).resize(size, Image.Resampling.BILINEAR)
            painted |= np.asarray(alpha) > 64
    return painted


def to_fill(path: str):
    """What the editor is to show: of one size whatever the picture's is, so that the brush fits it."""
    from PIL import Image

    picture = read(path)
    zoom = PAINTED / max(picture.size)
    if zoom > 1:
        shown = picture.resize([side * round(zoom) for side in picture.size], Image.Resampling.NEAREST)
    else:
        shown = within(picture, PAINTED)
    return {"background": shown, "layers": [], "composite": None}


def restored(path: str, model: str) -> tuple[dict[str, Any], str]:
    """(the fields that a PNG's settings tell, with their values; what is to be said). ValueError without settings."""
    from ldm.image import read_settings

    name = Path(path).name
    try:
        made = read_settings(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is no PNG that can be read") from error
    if not made:
        raise ValueError(f"{name} does not tell how it was made: only PNGs that were saved here or by the scripts do")
    names = {"negative_prompt": "negative"}
    told = ("prompt", "negative_prompt", "steps", "scale", "eta", "seed", "width", "height")
    fields = {names.get(key, key): made[key] for key in told if made.get(key) is not None}
    if not 0 <= fields.get("seed", 0) < SEEDS:
        raise ValueError(f"{name} was drawn with seed {made['seed']}, which this page cannot hold; txt2img.py can")
    if (sampler := CLASSES.get(made.get("sampler"))) in SAMPLERS:
        fields["sampler"] = sampler
    said = f"the settings of {name} are back"
    fields["tab"] = "text"
    if "init_img" in made:
        hole = "mask" in made
        fields["tab"] = "hole" if hole else "picture"
        if "strength" in made:
            fields["hole_strength" if hole else "strength"] = made["strength"]
        said += "; the picture that it began from is not in it" + (", nor what was painted" if hole else "")
    if made.get("model") not in (None, model):
        said += f"; it was drawn with the model {made['model']}, and here is {model}"
    return fields, said


# ------------------------------------------------------------------------------------------------------------- words


def caption(made: dict[str, Any]) -> str:
    """What stands below a picture."""
    told = (
        f"{made['sampler']}, {made['steps']} steps, scale {made['scale']:g}, eta {made['eta']:g}, seed {made['seed']}"
    )
    return f"{textwrap.shorten(made['prompt'], 90, placeholder=' …') or '(no prompt)'} · {told}"


def done(made: Made, name: str) -> str:
    """What is to be said of a picture that was saved under this name."""
    width, height = made.picture.size
    told = [f"seed {made.settings['seed']}; {width} × {height} pixels; saved as {name}"]
    for message in made.notes:
        for prompt in (made.settings["prompt"], made.settings["negative_prompt"]):
            message = message.replace(repr(prompt), "the prompt")
        message = plain(message.replace("the picture 'given'", "the picture"))
        told.append(textwrap.shorten(message, 200, placeholder=" …"))
    return "; ".join(told)


def explained(error: Exception) -> str:
    """What to tell of an error; it is raised again if it is ours."""
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "the memory does not suffice: ask for a smaller picture"
    if isinstance(error, RuntimeError):
        raise error
    return plain(str(error))


def plain(message: str) -> str:
    """A message of the scripts for who sees no flags."""
    for flag, word in (
        ("--H ", "height "),
        ("--W ", "width "),
        ("S = ", "steps "),
        ("--negative_prompt", "negative prompt"),
    ):
        message = message.replace(flag, word)
    return message


def progress(look: Look) -> str:
    """HTML: how far it is."""
    bar = f'<progress max="{look.total}" value="{look.step}" aria-label="steps"></progress>'
    return f"{bar} <span>step {look.step} of {look.total}, {lasting(look.left)} left</span>"


def waiting(ahead: int) -> str:
    bar = '<progress aria-label="waiting"></progress>'
    return f'{bar} <span role="status">waiting: {"one is" if ahead == 1 else f"{ahead} are"} before you</span>'


def lasting(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def note(message: str, role: str = "status") -> str:
    """HTML: a message, which is also read out."""
    return f'<span role="{role}">{html.escape(message)}</span>'
