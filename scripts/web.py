"""A page in the browser to draw with: text to picture, picture to picture, and a brush to fill holes.

    python scripts/web.py                                  # the bundled model, at http://127.0.0.1:7860
    python scripts/web.py --ckpt sd-v1-4.ckpt --max_side 768
    python scripts/web.py --host 0.0.0.0 --port 8000       # for others, who can then draw here, too

One picture at a time: who comes meanwhile waits. Pictures are saved with their settings in --outdir. Nothing is asked
of other hosts, and nothing is told to any.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence

import _cli

OUTDIR = "outputs/web"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser("web", doc=__doc__)
    group = parser.add_argument_group("the page")
    group.add_argument(
        "--host", default="127.0.0.1", help="whom to listen to (default: %(default)s, this machine alone)"
    )
    group.add_argument("--port", type=_cli.number(int, 0, 65535), default=7860, help="0: any (default: %(default)s)")
    group.add_argument("--max_side", type=_cli.number(int, 1, 4096), default=1024, metavar="PIXELS",
                       help="the largest width and height that may be asked for (default: %(default)s)")  # fmt: skip
    group.add_argument("--max_steps", type=_cli.number(int, 1, 1000), default=250, metavar="N",
                       help="the most steps that may be asked for (default: %(default)s)")  # fmt: skip
    group.add_argument("--max_queue", type=_cli.number(int, 1, 1000), default=8, metavar="N",
                       help="how many may wait (default: %(default)s)")  # fmt: skip
    group = parser.add_argument_group("sampling, to begin with")
    _cli.add_steps_flags(group)
    _cli.add_scale_flag(group, 7.5)
    _cli.add_model_flags(parser)
    _cli.add_output_flags(parser, OUTDIR, grid=False)
    parser.set_defaults(n_iter=1, n_samples=1, fixed_code=False, from_file=None, prompt=None, negative_prompt="",
                        ddim_eta=None, sampler=None, seed=0, embedding_path=[])  # fmt: skip
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(argv)
    from webui import page

    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError(f"the page needs gradio ({error}): pip install '.[web]'") from error
    from _gallery import Gallery
    from _session import Session
    from webui.line import Line
    from webui.studio import Limits, Studio

    if opt.port:
        check_port(opt.host, opt.port)
    gallery = Gallery(opt.outdir, grid=False, folder="", twins=opt.save_json)
    session = Session(opt)
    with session.loaded():
        studio = Studio(session, Limits(opt.max_side, opt.max_steps))
        model = session.settings([("", 0)])[0]["model"]
        line = Line(opt.max_queue)
        page.launch(gr, page.build(studio, line, gallery, model), line, opt.host, opt.port)


def check_port(host: str, port: int) -> None:
    """OSError where another program has it, before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"--host {host} --port {port}: {why}; choose another port, or 0 for any") from error


if __name__ == "__main__":
    _cli.run(main, "web")
