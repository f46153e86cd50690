"""What one sees: tabs for text, picture and hole, the settings, the picture as it forms, and those that there are."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from webui.studio import SAMPLERS, Look, Studio, Task

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would tell others of the visit
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MOST_KEPT = 60  # pictures in the gallery
PAINTED = 512  # pixels: about the longer side of a picture in the editor
TABS = ("text", "picture", "hole")
CSS = """
.gradio-container { max-width: 1280px !important; margin: auto; }
#preview img { width: 100%; height: 100%; object-fit: contain; }
#gallery .caption-label { white-space: normal; max-width: 96%; max-height: 4.4em; overflow: hidden; font-size: 0.72em; }
#status { min-height: 1.6em; }
@media (max-width: 600px) { #gallery .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
footer { display: none !important; }
"""


def build(studio: Studio, gallery: Any, title: str):
    """gr.Blocks; `gallery` is a `_gallery.Gallery`, where the pictures are saved."""
    import gradio as gr

    first = studio.session
    words = first.kind == "text"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        kept = gr.State([])  # [(path, caption)], the newest first
        chosen = gr.State(None)  # which of them was clicked
        tab = gr.State("text")
        base = gr.State(None)  # the path of the picture to fill
        gr.Markdown(f"## {title}")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                parts = _inputs(gr, studio, words)
            with gr.Column(scale=4, min_width=320):
                preview = gr.Image(label="picture", elem_id="preview", interactive=False, type="pil", format="png",
                                   height=420, buttons=["download", "fullscreen"])  # fmt: skip
                status = gr.Markdown("", elem_id="status")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                parts["restore"] = gr.File(label="drop a PNG here, and its settings are back", file_types=[".png"],
                                           height=130, elem_id="restore")  # fmt: skip
        shown = gr.Gallery(label="drawn so far", elem_id="gallery", columns=5, object_fit="contain", fit_columns=False,
                           height=320, format="png", buttons=["download", "fullscreen"], interactive=False)  # fmt: skip
        with gr.Row():
            to_picture = gr.Button("Begin from the chosen one", elem_id="to_picture", size="sm")
            to_hole = gr.Button("Fill a hole in the chosen one", elem_id="to_hole", size="sm")
        _wire(gr, page, studio, gallery, {**parts, "kept": kept, "chosen": chosen, "tab": tab, "base": base,
              "preview": preview, "status": status, "draw": draw, "cancel": cancel, "shown": shown,
              "to_picture": to_picture, "to_hole": to_hole})  # fmt: skip
    return page


def _inputs(gr, studio: Studio, words: bool) -> dict[str, Any]:
    options, limits = studio.session.options, studio.limits
    parts: dict[str, Any] = {}
    label = {"text": "prompt", "class": "number of the class", "nothing": "this model is told nothing"}
    kind = studio.session.kind
    parts["prompt"] = gr.Textbox(label=label[kind], elem_id="prompt", lines=2, max_length=5000,
                                 interactive=kind != "nothing")  # fmt: skip
    parts["negative"] = gr.Textbox(label="negative prompt", elem_id="negative", max_length=5000, visible=words)
    with gr.Tabs(elem_id="tabs") as parts["tabs"]:
        with gr.Tab("from text", id="text") as parts["tab_text"], gr.Row():
            h, w = (side * studio.factor for side in studio.shape[1:])
            parts["width"] = gr.Number(label="width", value=w, precision=0, **_small("width"))
            parts["height"] = gr.Number(label="height", value=h, precision=0, **_small("height"))
        with gr.Tab("from a picture", id="picture") as parts["tab_picture"]:
            parts["picture"] = gr.Image(label="begin from", type="filepath", elem_id="picture", height=300,
                                        sources=["upload", "clipboard"], format="png")  # fmt: skip
            parts["strength"] = gr.Slider(0.05, 1, 0.75, step=0.05, label="how much is drawn anew")
        with gr.Tab("fill a hole", id="hole") as parts["tab_hole"]:
            parts["upload"] = gr.UploadButton("Choose a picture", file_types=["image"], elem_id="upload", size="sm")
            parts["editor"] = gr.ImageEditor(
                label="paint over what is to be drawn anew", elem_id="editor", type="numpy", sources=(), layers=False,
                brush=gr.Brush(default_size=24, colors=["#ff2bd6"], color_mode="fixed"), transforms=(), height=380,
            )  # fmt: skip
            parts["hole_strength"] = gr.Slider(0.05, 1, 1, step=0.05, label="how much is drawn anew, in the hole")
    with gr.Row():
        parts["steps"] = gr.Number(label="steps", value=min(options["S"], limits.steps), precision=0, **_small("steps"))
        scale = options["unconditional_guidance_scale"]
        parts["scale"] = gr.Number(label="scale", value=scale, **_small("scale"))
        parts["eta"] = gr.Number(label="eta", value=0, **_small("eta"))
    with gr.Row():
        parts["sampler"] = gr.Dropdown(list(SAMPLERS), value="DDIM", label="sampler", **_small("sampler"))
        seed = random.randrange(2**32)
        parts["seed"] = gr.Number(label="seed", value=seed, precision=0, **_small("seed"))
        parts["fresh"] = gr.Checkbox(label="another each time", value=True, **_small("fresh"))
    with gr.Row():
        parts["again"] = gr.Button("The same seed again", size="sm", **_small("again"))
        parts["dice"] = gr.Button("A random seed", size="sm", **_small("random"))
    return parts


def _small(name: str) -> dict[str, Any]:
    return {"elem_id": name, "min_width": 60}


def _wire(gr, page, studio: Studio, gallery, p: dict[str, Any]) -> None:
    settings = [p[name] for name in ("prompt", "negative", "steps", "scale", "eta", "sampler", "seed")]

    def drawn(tab, picture, strength, base, edited, hole_strength, width, height, fresh, kept, *given):
        """A generator of the page's updates."""
        seed = random.randrange(2**32) if fresh else int(given[-1] or 0)
        try:
            size = {"width": int(width or 0), "height": int(height or 0)} if tab == "text" else {}
            task = task_of(tab, given, seed, size, picture, strength, base, edited, hole_strength)
            for seen in studio.draw(task):
                if isinstance(seen, Look):
                    told = f"step {seen.step} of {seen.total}, {seen.left:.0f} s left"
                    yield {p["status"]: told, **({p["preview"]: seen.picture} if seen.picture is not None else {})}
            (path,) = gallery.add([seen.picture], [seen.settings])
        except (ValueError, ArithmeticError) as error:
            _tell(gr, str(error))
            return
        kept = [(str(path), caption(seen.settings)), *kept][:MOST_KEPT]
        yield {p["preview"]: seen.picture, p["status"]: f"seed {seed}; saved as {path.name}", p["kept"]: kept,
               p["shown"]: kept, p["seed"]: seed, p["chosen"]: 0}  # fmt: skip

    inputs = [p[name] for name in ("tab", "picture", "strength", "base", "editor", "hole_strength", "width", "height",
              "fresh", "kept")]  # fmt: skip
    outputs = [p[name] for name in ("preview", "status", "kept", "shown", "seed", "chosen")]
    event = gr.on([p["draw"].click, p["prompt"].submit], drawn, [*inputs, *settings], outputs, concurrency_limit=1,
                  show_progress="hidden", trigger_mode="once", api_name=False)  # fmt: skip
    quick = {"concurrency_limit": None, "show_progress": "hidden", "api_name": False}
    stopped = p["cancel"].click(None, None, None, cancels=[event], api_name=False)
    stopped.then(lambda: "cancelled", None, p["status"], **quick)
    for name in TABS:
        p[f"tab_{name}"].select(lambda name=name: name, None, p["tab"], **quick)
    p["dice"].click(lambda: (random.randrange(2**32), False), None, [p["seed"], p["fresh"]], **quick)
    p["again"].click(lambda: False, None, p["fresh"], **quick)

    def choose(event):
        return event.index

    choose.__annotations__ = {"event": gr.SelectData}  # by which gradio knows that it wants the event
    p["shown"].select(choose, None, p["chosen"], **quick)

    def path_of(kept, chosen):
        if not kept:
            raise ValueError("there is no picture yet; draw one first")
        return kept[min(chosen or 0, len(kept) - 1)][0]

    p["to_picture"].click(
        _told(gr, lambda *given: (path_of(*given), gr.Tabs(selected="picture"), "picture"), 3),
        [p["kept"], p["chosen"]], [p["picture"], p["tabs"], p["tab"]], **quick,
    )  # fmt: skip
    p["to_hole"].click(
        _told(gr, lambda *given: (*to_fill(path_of(*given)), gr.Tabs(selected="hole"), "hole"), 4),
        [p["kept"], p["chosen"]], [p["base"], p["editor"], p["tabs"], p["tab"]], **quick,
    )  # fmt: skip
    p["upload"].upload(_told(gr, to_fill, 2), p["upload"], [p["base"], p["editor"]], **quick)
    fields = [*settings, p["fresh"], p["width"], p["height"]]
    p["restore"].upload(_told(gr, restored, len(fields)), p["restore"], fields, **quick)


def _tell(gr, message: str) -> None:
    """A message in the corner; an error of gradio's would mark every field."""
    gr.Warning(plain(message), title="Nothing is drawn", duration=12)


def _told(gr, function, count: int):
    """The function, with its ValueErrors as messages of the page, where `count` fields stay as they are."""

    def told(*given):
        try:
            return function(*given)
        except ValueError as error:
            _tell(gr, str(error))
            return [gr.skip()] * count

    return told


def task_of(tab: str, given: Sequence[Any], seed: int, size, picture, strength, base, edited, hole_strength) -> Task:
    """What the page says as a task; ValueError where something is missing."""
    from ldm.picture_files import read_picture

    prompt, negative, steps, scale, eta, sampler, _ = given
    common = {
        "prompt": prompt or "", "negative_prompt": negative or "", "steps": int(steps or 0), "scale": float(scale or 0),
        "eta": float(eta or 0), "seed": seed, "sampler": sampler, **size,
    }  # fmt: skip
    if tab == "text":
        return Task(**common)
    if tab == "picture":
        if not picture:
            raise ValueError("there is no picture to begin from; drop one into the field")
        return Task(**common, picture=read_picture(picture, flag="the picture"), strength=strength)
    if not base:
        raise ValueError("there is no picture to fill; choose one, or send one from the gallery")
    whole = read_picture(base, flag="the picture")
    return Task(**common, picture=whole, hole=hole_of(edited, whole.size), strength=hole_strength)


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
    """(the picture's path, what the editor is to show): small ones enlarged, so that the brush has a fair size."""
    from PIL import Image

    from ldm.picture_files import read_picture

    picture = read_picture(path, flag="the picture")
    zoom = max(1, round(PAINTED / max(picture.size)))
    shown = picture.resize([side * zoom for side in picture.size], Image.Resampling.NEAREST)
    return path, {"background": shown, "layers": [], "composite": None}


def restored(path: str) -> list[Any]:
    """The settings in a PNG, for the page's fields; what it does not say stays as it is."""
    import gradio as gr

    from ldm.image import read_settings

    try:
        made = read_settings(path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{Path(path).name} is no PNG that can be read") from error
    if not made:
        raise ValueError(f"{Path(path).name} does not tell how it was made")
    names = {"DPMSolver": "DPM-Solver++"}
    sampler = names.get(made.get("sampler"), made.get("sampler"))
    found = [made.get(name) for name in ("prompt", "negative_prompt", "steps", "scale", "eta")]
    found += [sampler if sampler in SAMPLERS else None, made.get("seed")]
    size = [made.get(name) for name in ("width", "height")]
    return [gr.skip() if value is None else value for value in (*found, False, *size)]


def caption(made: dict[str, Any]) -> str:
    """What stands below a picture."""
    told = (
        f"{made['sampler']}, {made['steps']} steps, scale {made['scale']:g}, eta {made['eta']:g}, seed {made['seed']}"
    )
    return f"{made['prompt'] or '(nothing)'} · {told}"


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
