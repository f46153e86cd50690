"""A worker process: reads requests from stdin, one JSON object a line, and answers each with one line.

    {"do": "call", "task": "machine:describe", "options": {…}}             → {"value": …}
    {"do": "setup", "key": "a", "task": "ours:unet", "options": {…}}       → {"seconds": …}
    {"do": "run", "key": "a", "params": {…}, "save": "FILE.npy"}           → {"times": […], "peak": bytes, …}
    {"do": "drop", "key": "a"}                                             → {}

A task is a function of a module of this package: called with its options it returns a function to run, which returns
{"times": seconds of each unit, "output": a tensor or nothing, …}. What fails is answered with {"error": its last line}
and printed to stderr; the worker goes on. Whatever libraries print goes to stderr, so that answers stay answers.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bench import memory


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    runs: dict[str, Callable] = {}
    for line in sys.stdin:
        try:
            answer = respond(runs, **json.loads(line))
        except Exception as error:
            traceback.print_exc()
            said = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {said}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def respond(runs: dict[str, Callable], do: str, **request: Any) -> dict[str, Any]:
    if do == "call":
        return {"value": find(request["task"])(**request["options"])}
    if do == "setup":
        began = time.perf_counter()
        runs[request["key"]] = find(request["task"])(**request["options"])
        return {"seconds": time.perf_counter() - began}
    if do == "drop":
        runs.pop(request["key"], None)
        gc.collect()
        return {}
    return run(runs[request["key"]], request["params"], request.get("save"))


def find(task: str) -> Callable:
    """ "module:function" of this package."""
    module, _, name = task.partition(":")
    return getattr(importlib.import_module(f"bench.{module}"), name)


def run(task: Callable, params: dict[str, Any], save: str | None) -> dict[str, Any]:
    """One round. `peak` is that of this round where it can be reset, else the process' so far (`peak_of`)."""
    gc.collect(1)  # what the last round left; all of it would take as long as a small round
    reset = memory.reset_peak()
    reset_device_peak()
    answer = dict(task(**params))
    answer |= {"peak": memory.bytes_of("VmHWM"), "peak_of": "round" if reset else "process"}
    if (device := device_peak()) is not None:
        answer |= {"peak": device, "peak_of": "device"}
    output = answer.pop("output", None)
    if save and output is not None:
        import numpy as np

        np.save(save, output.detach().float().cpu().numpy())
        answer["output"] = save
    return answer


def _cuda():
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def reset_device_peak() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def device_peak() -> int | None:
    """The most that tensors took on a CUDA device, where one is in use."""
    cuda = _cuda()
    return cuda.max_memory_allocated() if cuda else None


if __name__ == "__main__":
    main()
