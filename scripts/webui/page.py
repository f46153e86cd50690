"""What one sees: what to draw from, the picture as it forms, the settings, and the pictures that there are."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

from webui import wiring
from webui.line import Line
from webui.studio import SAMPLERS, Studio

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would tell others of the visit
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ICON = Path(__file__).with_name("icon.svg")
HOUR = 3600
PATIENCE = 3.0  # seconds, for a step
THREADS = 40  # beside those that wait
CSS = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: auto; }
footer { display: none !important; }
#main { display: grid; grid-template: auto 1fr / minmax(0, 5fr) minmax(0, 6fr); gap: var(--spacing-xxl); }
#see { grid-area: 1 / 2 / span 2; }
#prompt textarea { min-height: 4em; }
#preview { height: min(60vh, 640px) !important; }
#preview img, #picture img { width: 100%; height: 100%; object-fit: contain; }
#status { min-height: 1.6em; }
#tabs, #preview, #status { scroll-margin: 1em; }
#status .html-container { padding: 0; }
#status progress + span { white-space: nowrap; }
#status [role="alert"] { color: #b91c1c; }
.dark #status [role="alert"] { color: #fca5a5; }
#status .prose { display: flex; align-items: center; gap: 0.8em; }
#status progress { appearance: none; flex: 0 100 14em; min-width: 3em; height: 0.6em; border: 0; overflow: hidden;
  border-radius: 0.3em; background: var(--border-color-primary); }
#status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#status progress::-webkit-progress-value { background: var(--color-accent); }
#status progress::-moz-progress-bar { background: var(--color-accent); }
#editor [aria-label="Color"], #restore .icon-wrap, #upload .icon-wrap { display: none; }
#restore .wrap, #upload .wrap { padding-top: 1.5em; line-height: 1.4; }
#gallery .grid-wrap { max-height: 75vh; padding: 0; }
#gallery .grid-container { align-items: start; }
#gallery .thumbnail-lg { display: flex; flex-direction: column; aspect-ratio: auto; height: auto; }
#gallery .thumbnail-lg img { aspect-ratio: 1; height: auto; }
#gallery .caption-label { position: static; max-width: none; white-space: normal; text-align: left; border: 0;
  background: none; color: var(--body-text-color); opacity: 1 !important; }
@media (max-width: 700px) {
  #main { display: flex; flex-direction: column; }
  #tabs .tab-container button { padding: 0 0.6em; }
  #see { display: contents; }
  #how { order: 1; }
  #past { order: 2; }
  #preview { height: auto !important; aspect-ratio: 1; }
  #gallery .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
}
"""


def launch(gr, page, line: Line, host: str, port: int) -> None:
    """Serve `page` until it is interrupted, and say where. What is being drawn then ends with its step."""
    theme = gr.themes.Default(  # its own fonts would be fetched, and its greys are too pale to read
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
    )  # fmt: skip
    page.queue(max_size=None, api_open=False).launch(  # who waits to draw stands in a `Line`
        server_name=host, server_port=port or None, share=False, quiet=True, show_error=True, css=CSS,
        theme=theme, footer_links=[], favicon_path=str(ICON),
        max_file_size="64mb", ssr_mode=False, enable_monitoring=False, prevent_thread_lock=True,
        max_threads=THREADS + line.most,
    )  # fmt: skip
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    idle = line.close(PATIENCE)
    page.close(verbose=False)
    if not idle:  # a step is at work that takes long: Python would end with it half done, and abort
        sys.stdout.flush()
        os._exit(0)


def build(studio: Studio, line: Line, gallery: Any, model: str):
    """gr.Blocks; who draws stands in the `line`, and the `gallery`, a `_gallery.Gallery`, saves the pictures."""
    import gradio as gr

    title = f"Draw with the model {model}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR, 12 * HOUR)) as page:
        p = {
            "kept": gr.State([]),  # [(path, caption)], the newest first
            "chosen": gr.State(0),  # which of them is seen
            "tab": gr.Textbox(visible=False),  # which one is seen, as the browser says when it draws
            "base": gr.State(None),  # the path of the picture to fill
        }
        gr.Markdown(f"# {title}")
        with gr.Column(elem_id="main"):
            with gr.Column(elem_id="ask"):
                _ask(gr, studio, p)
            with gr.Column(elem_id="see"):
                _see(gr, p)
            with gr.Column(elem_id="how"):
                _how(gr, studio, p)
        wiring.wire(gr, studio, line, gallery, model, p)
    return page


def _ask(gr, studio: Studio, p: dict[str, Any]) -> None:
    kind = studio.session.kind
    label = {"text": "Prompt", "class": "Number of the class", "nothing": "This model is told nothing"}[kind]
    such = {"text": "such as: a red circle above a blue square", "class": "such as: 207", "nothing": ""}[kind]
    p["prompt"] = gr.Textbox(label=label, placeholder=such, elem_id="prompt", max_lines=12, max_length=5000,
                             interactive=kind != "nothing")  # fmt: skip
    p["negative"] = gr.Textbox(label="Negative prompt", placeholder="what the picture should not show", max_lines=6,
                               elem_id="negative", max_length=5000, visible=kind == "text")  # fmt: skip
    with gr.Tabs(elem_id="tabs") as p["tabs"]:
        with gr.Tab("From text", id="text", elem_id="tab_text"), gr.Row():
            h, w = (side * studio.factor for side in studio.shape[1:])
            p["width"] = gr.Number(label="Width (pixels)", value=w, precision=0, **_small("width"))
            p["height"] = gr.Number(label="Height (pixels)", value=h, precision=0, **_small("height"))
        with gr.Tab("From a picture", id="picture", elem_id="tab_picture"):
            p["picture"] = gr.Image(label="Begin from", type="filepath", elem_id="picture", height=300, format="png",
                                    sources=["upload", "clipboard"], buttons=[])  # fmt: skip
            p["strength"] = gr.Slider(0.05, 1, 0.75, step=0.05, label="How much is drawn anew", buttons=[],
                                      info="0.1: it stays nearly as it is; 1: little of it is left")  # fmt: skip
        with gr.Tab("Fill a hole", id="hole", elem_id="tab_hole"):
            p["upload"] = gr.File(label="A picture to paint a hole in", file_types=["image"], height=110,
                                  elem_id="upload")  # fmt: skip
            p["editor"] = gr.ImageEditor(
                label="Paint over what is to be drawn anew", show_label=False, elem_id="editor", type="numpy",
                sources=(), layers=False, transforms=(), height=380, buttons=[],
                brush=gr.Brush(default_size=32, colors=["#ff2bd6"], color_mode="fixed"),
                visible=False,  # until there is a picture
            )  # fmt: skip
            p["hole_strength"] = gr.Slider(0.05, 1, 1, step=0.05, label="How much is drawn anew, in the hole",
                                           buttons=[])  # fmt: skip
    with gr.Row():
        p["draw"] = gr.Button("Draw", variant="primary", **_small("draw"))
        p["cancel"] = gr.Button("Cancel", interactive=False, **_small("cancel"))
    p["status"] = gr.HTML("", elem_id="status")


def _see(gr, p: dict[str, Any]) -> None:
    p["preview"] = gr.Image(label="Picture", show_label=False, elem_id="preview", interactive=False, type="pil",
                            format="png", buttons=["download", "fullscreen"])  # fmt: skip
    with gr.Row(visible=False) as p["sends"]:
        p["to_picture"] = gr.Button("Begin from it", elem_id="to_picture", **_narrow())
        p["to_hole"] = gr.Button("Fill a hole in it", elem_id="to_hole", **_narrow())
        p["reuse"] = gr.Button("Its settings", elem_id="reuse", **_narrow())
    with gr.Column(visible=False, elem_id="past") as p["past"]:
        gr.Markdown("### Drawn so far")
        p["shown"] = gr.Gallery(
            label="Drawn so far", show_label=False, elem_id="gallery", columns=4, object_fit="contain", format="png",
            fit_columns=False, height="auto", allow_preview=False, buttons=[], interactive=False, container=False,
        )  # fmt: skip


def _how(gr, studio: Studio, p: dict[str, Any]) -> None:
    options, limits = studio.session.options, studio.limits
    with gr.Row():
        p["steps"] = gr.Number(label="Steps", info="more: finer, and slower", value=min(options["S"], limits.steps),
                               precision=0, **_small("steps"))  # fmt: skip
        p["scale"] = gr.Number(label="Scale", info="how closely to follow the prompt",
                               value=options["unconditional_guidance_scale"], **_small("scale"))  # fmt: skip
    with gr.Row():
        p["sampler"] = gr.Dropdown(list(SAMPLERS), value="DDIM", label="Sampler", info="the way from noise to picture",
                                   filterable=False, **_small("sampler"))  # fmt: skip
        p["eta"] = gr.Number(label="Eta", info="new noise at each step, 0 to 1", value=0, **_small("eta"))
    with gr.Row():
        same = "the same one draws the same picture"
        p["seed"] = gr.Number(label="Seed", info=same, value=0, precision=0, **_small("seed"))
        p["fresh"] = gr.Radio([("random", "random"), ("again", "again")], value="random", label="Next seed",
                              info="another one, or this one again", **_small("fresh"))  # fmt: skip
    p["restore"] = gr.File(label="Settings from a PNG that was drawn here", file_types=[".png"],
                           height=120, elem_id="restore")  # fmt: skip


def _small(name: str) -> dict[str, Any]:
    return {"elem_id": name, "min_width": 120}


def _narrow() -> dict[str, Any]:
    return {"size": "sm", "min_width": 80}
