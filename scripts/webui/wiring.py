"""What the page does: which function hears what, and where its answers go. `p`: its parts, by name."""

from __future__ import annotations

import random
from typing import Any

from webui import forms
from webui.line import Line
from webui.studio import Look, Studio

MOST_KEPT = 60  # pictures in the gallery
GIVEN = ("prompt", "negative", "tab", "width", "height", "picture", "strength", "base", "editor", "hole_strength",
         "steps", "scale", "eta", "sampler", "seed", "fresh", "kept")  # fmt: skip
QUICK = {"show_progress": "hidden", "api_name": False, "concurrency_limit": None}
# What the browser does by itself, so that a press shows at once. Draw is deaf until a cancelled step has ended: only
# then is it said that it was cancelled.
PRESSED = """(told) => {
  if (told.includes('<progress')) return [told, {__type__: 'update'}]
  window.cancelled = false
  const bar = '<progress aria-label="waiting"></progress>'
  return [`${bar} <span role="status">starting</span>`, {__type__: 'update', interactive: true}]
}"""
CANCELLED = """() => {
  window.cancelled = true
  const bar = '<progress aria-label="waiting"></progress>'
  return [`${bar} <span role="status">cancelling</span>`, {__type__: 'update', interactive: false}]
}"""
ENDED = """(told) => {
  const end = window.cancelled ? '<span role="status">cancelled</span>' : '<span role="alert">nothing is drawn</span>'
  return [told.includes('<progress') ? end : told, {__type__: 'update', interactive: false}]
}"""
SEEN = f"""(...given) => {{
  given[{GIVEN.index("tab")}] = ['text', 'picture', 'hole'].find(
    name => document.querySelector(`#tab_${{name}}`)?.offsetParent)
  return given.slice(0, {len(GIVEN)})
}}"""
SHOW = "() => document.querySelector('%s').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


def wire(gr, studio: Studio, line: Line, gallery, model: str, p: dict[str, Any]) -> None:
    _drawing(gr, studio, line, gallery, p)
    p["seed"].input(None, None, p["fresh"], js="() => 'again'", **QUICK)  # who types a seed wants that one
    _gallery(gr, p)
    _sending(gr, p)
    _restoring(gr, model, p)


def _drawing(gr, studio: Studio, line: Line, gallery, p: dict[str, Any]) -> None:
    pressed = [p["draw"].click, *(p[name].submit for name in ("prompt", "negative", "steps", "scale", "eta", "seed"))]
    told = [p["status"], p["cancel"]]
    gr.on(pressed, None, p["status"], told, js=PRESSED, **QUICK)
    outputs = [p[name] for name in ("preview", "status", "seed", "kept", "chosen", "shown", "past", "sends")]
    inputs, drawn = [p[name] for name in GIVEN], _drawn(gr, studio, line, gallery, p)
    event = gr.on(pressed, drawn, inputs, outputs, trigger_mode="once", js=SEEN, **QUICK)
    event.then(None, p["status"], told, js=ENDED, **QUICK)
    p["cancel"].click(None, None, told, cancels=[event], js=CANCELLED, **QUICK)


def _drawn(gr, studio: Studio, line: Line, gallery, p: dict[str, Any]):
    """What Draw calls: a generator of the page's updates."""

    def drawn(*values):
        given = dict(zip(GIVEN, values, strict=True))
        try:
            seed = random.randrange(2**32) if given["fresh"] == "random" else forms.seed_of(given["seed"])
            task = forms.task_of(given, seed, studio.limits.side)
            studio.check(task)
            with line.place() as mine:
                for ahead in line.before(mine):
                    yield {p["status"]: forms.waiting(ahead)}
                for seen in studio.draw(task):
                    if line.closed:
                        return
                    if isinstance(seen, Look):
                        look = {p["preview"]: seen.picture} if seen.picture is not None else {}
                        yield {p["status"]: forms.progress(seen), **look}
                (path,) = gallery.add([seen.picture], [seen.settings])
        except (ValueError, ArithmeticError, OSError, MemoryError, RuntimeError) as error:
            message = _tell(gr, error)
            yield {p["status"]: forms.note(message, "alert")}
            return
        kept = [(str(path), forms.caption(seen.settings)), *given["kept"]][:MOST_KEPT]
        shown = [(p["shown"].move_resource_to_block_cache(path), told) for path, told in kept]
        yield {
            p["preview"]: shown[0][0], p["status"]: forms.note(forms.done(seen, path.name)), p["seed"]: seed,
            p["kept"]: kept, p["chosen"]: 0, p["shown"]: gr.Gallery(shown, selected_index=0),
            p["past"]: gr.Column(visible=True), p["sends"]: gr.Row(visible=True),
        }  # fmt: skip

    return drawn


def _gallery(gr, p: dict[str, Any]) -> None:
    def choose(kept, event):
        path, told = kept[event.index]
        return event.index, p["preview"].move_resource_to_block_cache(path), forms.note(told)

    choose.__annotations__ = {"event": gr.SelectData}  # by which gradio knows that it wants the event
    chosen = p["shown"].select(choose, p["kept"], [p["chosen"], p["preview"], p["status"]], **QUICK)
    chosen.then(None, None, None, js=SHOW % "#preview", **QUICK)


def _sending(gr, p: dict[str, Any]) -> None:
    inputs = [p["kept"], p["chosen"]]

    def to_fill(path):
        shown = forms.to_fill(path)
        return path, gr.ImageEditor(shown, visible=True)

    def to_picture(kept, chosen):
        return p["picture"].move_resource_to_block_cache(kept[chosen][0]), gr.Tabs(selected="picture")

    def to_hole(kept, chosen):
        return *to_fill(kept[chosen][0]), gr.Tabs(selected="hole")

    sent = [
        p["to_picture"].click(to_picture, inputs, [p["picture"], p["tabs"]], **QUICK),
        p["to_hole"].click(to_hole, inputs, [p["base"], p["editor"], p["tabs"]], **QUICK),
    ]
    for event in sent:
        event.then(None, None, None, js=SHOW % "#tabs", **QUICK)

    def uploaded(path):
        try:
            return *to_fill(path), None
        except ValueError as error:
            _tell(gr, error)
            return gr.skip(), gr.skip(), None

    p["upload"].upload(uploaded, p["upload"], [p["base"], p["editor"], p["upload"]], **QUICK)


def _restoring(gr, model: str, p: dict[str, Any]) -> None:
    names = ("prompt", "negative", "steps", "scale", "eta", "sampler", "seed", "width", "height", "strength",
             "hole_strength")  # fmt: skip

    def restore(path):
        try:
            fields, said = forms.restored(path, model)
        except ValueError as error:
            return {p["status"]: forms.note(_tell(gr, error), "alert"), p["restore"]: None}
        told = {p[name]: fields[name] for name in names if name in fields}
        return {**told, p["fresh"]: "again", p["tabs"]: gr.Tabs(selected=fields["tab"]),
                p["status"]: forms.note(said), p["restore"]: None}  # fmt: skip

    outputs = [*(p[name] for name in names), *(p[name] for name in ("fresh", "tabs", "status", "restore"))]
    back = [
        p["restore"].upload(restore, p["restore"], outputs, **QUICK),
        p["reuse"].click(lambda kept, chosen: restore(kept[chosen][0]), [p["kept"], p["chosen"]], outputs, **QUICK),
    ]
    for event in back:
        event.then(None, None, None, js=SHOW % "#status", **QUICK)


def _tell(gr, error: Exception) -> str:
    """The error as a message in the corner; one of gradio's errors would mark every field."""
    message = forms.explained(error)
    gr.Warning(message, duration=12)
    return message
