"""YAML that is no honest config: tags that call, bombs, resolvers, targets that are not ours, numbers without end.

What `load_config` takes is then built as a model would be, as far as the names go: each target is looked up.
"""

from __future__ import annotations

import argparse
import os
import random
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import _config

from fuzzing.cases import Case
from fuzzing.mutate import changed
from ldm.checkpoint.errors import CheckpointError
from ldm.sampling import DDIMSampler, DPMSolverSampler, PLMSSampler
from ldm.util import get_obj_from_str

_SECRET = "what only the environment says"
_WORDS = [b"&a ", b"*a", b"<<: *a\n", b"${", b"}", b"${model}", b"!!python/", b"!!int ", b"!!bool ", b"!!timestamp ",
          b"- ", b": ", b"\n", b"\t", b"? ", b"| ", b"{", b"[", b"\0", b"\xff", b"9" * 5000, b"0x" + b"f" * 5000,
          b".nan", b".inf", b"2001-13-45", b"1:" * 3000 + b"1", b"\xef\xbb\xbf", b"---\n", b"%YAML 9.9\n", b"~",
          b"<<: [*a, *a]", b"=", b"!!binary x", b"!!set {a}", b"!!omap [a: 1]", b"!!float x", b"!!null x"]  # fmt: skip
_TAGS = """
!!python/object/apply:os.system ["touch canary"]
!!python/object/new:os.system ["touch canary"]
!!python/object/apply:subprocess.check_output [["touch", "canary"]]
!!python/object:os.system {}
!!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec }], listitems: "touch canary"}
!!python/name:os.system ""
!!python/module:os ""
!!python/module:canary ""
!!python/tuple [1, 2]
!!python/long 1
!!python/str a
!!python/complex 1j
!!python/object/apply:builtins.eval ["__import__('os').system('touch canary')"]
!python/object/apply:os.system ["touch canary"]
!<tag:yaml.org,2002:python/object/apply:os.system> ["touch canary"]
!!js/function "a"
!ruby/object:Gem::Installer {}
!!java.net.URL ["http://127.0.0.1/"]
""".strip().splitlines()
_RESOLVERS = """
${oc.env:SECRET} ${oc.env:SECRET,none} ${oc.decode:${oc.env:SECRET}} ${oc.create:{a:1}} ${oc.select:a}
${oc.dict.keys:model} ${oc.deprecated:model} ${env:SECRET} ${now:%Y} ${hydra:runtime.cwd} ${eval:"1+1"} ${shell:id}
${oc.env $${oc.env:SECRET} ${model.${oc.env:SECRET}} ${a.${b}}
${.} ${..} ${...target} ${model} ${model.params} ${model.target}
""".split()
_TARGETS = """
os.system subprocess.Popen builtins.eval builtins.exec torch.load torch.hub.load pickle.loads ldm ldm. .ldm ldm..util
ldm.util.importlib ldm.util.importlib.import_module ldm.util.inspect ldm.util.get_obj_from_str torch.nn torch.nn.
torch.nn.Module.__init__ torch.nn.modules.module.sys ldm.sampling.__builtins__ torch.nn.functional.F torch.nn.os
torch.nnos.system ldmx.evil torch.nn.modules.torch.load ldm.checkpoint.files.io.BytesIO ldm.checkpoint.load_model
ldm.bulk.store.shutil.rmtree ldm.bulk.lock.os.system canary canary.Class ldm.canary.Class __main__.x
ldm.\\x00 ldm.\\ud800 torch.nn.utils.parametrize.Tensor ldm.util.nn.Module ldm.bulk.places.tarfile.TarFile
ldm.bulk.store.Path
""".split()


@cache
def _bundled() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((_config.ROOT / "configs").rglob("*.yaml")))


def _laughs(chance: random.Random) -> str:
    """Each level has the one before many times."""
    levels, width = chance.randint(2, 40), chance.randint(2, 12)
    how = chance.choice(["list", "merge", "mapping"])
    lines = ["a0: &a0 {x: lol}"]
    for k in range(1, levels):
        last = ", ".join([f"*a{k - 1}"] * width)
        if how == "list":
            lines.append(f"a{k}: &a{k} [{last}]")
        elif how == "merge":
            lines.append(f"a{k}: &a{k} {{<<: [{last}], k{k}: 1}}")
        else:
            lines.append(f"a{k}: &a{k} {{" + ", ".join(f"b{n}: *a{k - 1}" for n in range(width)) + "}")
    return "\n".join([*lines, f"model: {{target: ldm.util, params: {{x: *a{levels - 1}}}}}"])


def _references(chance: random.Random) -> str:
    """The same with OmegaConf's, as text or as mappings; or in a ring."""
    levels, width = chance.randint(2, 40), chance.randint(2, 12)
    text, ring, last = chance.random() < 0.5, chance.random() < 0.2, "${b" + str(levels - 1) + "}"
    lines = [f"model: {{target: ldm.util, params: {{x: '{last}'}}}}"]
    lines.append(f"b0: '{last}'" if ring else "b0: lol" if text else "b0: {x: lol}")
    for k in range(1, levels):
        refer = "${b" + str(k - 1) + "}"
        lines.append(f"b{k}: '{refer * width}'" if text
                     else f"b{k}: {{" + ", ".join(f"c{n}: '{refer}'" for n in range(width)) + "}")  # fmt: skip
    return "\n".join(lines)


def _deep(chance: random.Random) -> str:
    depth = chance.choice([50, 150, 300, 900, 2000, 50_000])
    opening, closing = chance.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
    return "model: " + opening * depth + "1" + closing * depth


def _alone(chance: random.Random) -> str:
    """A whole file of one odd thing."""
    odd = chance.choice(["", "a", "1", "[]", "[model]", "model:", "model: 1", "model: []", "model: {}", "null",
                         "---\n---", "? model", "model: {params: 1}", "model: {target: [os, system]}",
                         "1: 2\nmodel: {target: a}", "model: {1: {2: 3}}", "model: {target: a}\nmodel: {target: b}",
                         "model: {null: 1, true: 2, 1.5: 3}", "model: {target: a, params: {? [a] : 1}}",
                         "model: {target: '???'}", "model: {target: a}\nsampler: 1", "model: {target: a}\nsampler:",
                         "model: {target: a}\nprecision: {a: b}", "model: {target: a}\nsampler: {params: '${model}'}",
                         "model: {target: a, params: {x: 2001-01-01}}", "model: {target: '${precision}'}"])  # fmt: skip
    return odd


def _with(value: str) -> str:
    return f"model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    x: {value}\n"


def _hostile(chance: random.Random) -> str:
    match chance.randrange(8):
        case 0:
            return _with(chance.choice(_TAGS))
        case 1:
            return f"{chance.choice(_TAGS)}\n"
        case 2:
            return _with(f"'{chance.choice(_RESOLVERS)}'")
        case 3:
            target = chance.choice(_TARGETS)
            return f'model: {{target: "{target}", params: {{}}}}\nsampler: {{target: "{chance.choice(_TARGETS)}"}}'
        case 4:
            return _laughs(chance)
        case 5:
            return _references(chance)
        case 6:
            return _deep(chance)
    return _alone(chance)


_VALUES = """
null true 0 -1 1 2 3 7 1000000 -1000000 99999999999999999999
1.5 -0.0 .nan .inf 1e300 "" a [] [0] [1] [-1] [1,2] [a] {} {"a":1}
[[1]] [1,[2]] "1" ${model.target} ${model.params} ${..x} os.system torch.nn.Module ldm.sampling.PLMSSampler
[null] [.nan]
""".split()


def _another_value(chance: random.Random) -> bytes:
    """A bundled config in which some lines have another value."""
    lines = chance.choice(_bundled()).decode().splitlines()
    places = [k for k, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")]
    for k in chance.sample(places, min(len(places), chance.randint(1, 3))):
        lines[k] = f"{lines[k].partition(':')[0]}: {chance.choice(_VALUES)}"
    sampler = [
        f"  params: {{{name}: {chance.choice(_VALUES)}}}" for name in ("S", "eta", "timesteps") if chance.random() < 0.1
    ]
    return "\n".join([*lines, *(["sampler:", sampler[0]] if sampler else [])]).encode()


def case(chance: random.Random, folder: Path) -> Case:
    path = folder / chance.choice(["a.yaml", "a.yml", "a.ckpt", "a"])
    if chance.random() < 0.5:
        content = _hostile(chance).encode("utf-8", "surrogatepass")
        if chance.random() < 0.3:
            content = changed(content, chance, _WORDS)
    elif chance.random() < 0.5:
        content = changed(chance.choice(_bundled()), chance, _WORDS)
    else:
        content = _another_value(chance)
    path.write_bytes(content)
    # What is said of a section names the section; what of the file, its path.
    return Case(path, lambda: _read(path), (ValueError, CheckpointError, TypeError, FileNotFoundError), "", _wrong)


def _read(path: Path) -> Any:
    """What a script does with a config before a model is built."""
    try:
        config = _config.load_config(path)
        _config.timesteps(config)
        _config.latent_shape(config, None, None, None, None)
    except ValueError as error:
        if not any(said in str(error) for said in (str(path), "config", "model", "sampler", "precision")):
            raise RuntimeError(f"names neither the file nor a section: {error}") from error
        raise
    for target in (config.model.get("target"), config.sampler.get("target", _config.SAMPLER)):
        if target is not None:
            _looked_up(target)
    _config.sampler_options(config, _config.sampler_class(config), argparse.Namespace())
    return config


def _looked_up(target: str) -> None:
    try:
        get_obj_from_str(target)
    except ValueError as error:
        if repr(target) not in str(error):
            raise RuntimeError(f"does not name the target {target!r}: {error}") from error
        raise


def _wrong(config: Any) -> str | None:
    return "it tells what is in the environment" if _SECRET in repr(config) else None


def warm(folder: Path) -> None:
    os.environ["SECRET"] = _SECRET
    _config._options_of = cache(_config._options_of)  # which has Python compile our own annotations
    for sampler in (DDIMSampler, PLMSSampler, DPMSolverSampler):
        _config.sampler_options(_config.load_config(None), sampler, argparse.Namespace())
    for k, content in enumerate(
        (*_bundled(), b"model: {target: ldm.util}\na: '${b'", b"model: {a: '${.b}', b: '${a'}")
    ):
        path = folder / f"{k}.yaml"
        path.write_bytes(content)
        with suppress(ValueError):
            _read(path)
    for target in ("ldm.util.nn.Module", "torch.nn.Linear", "ldm.bulk.Store", "ldm.checkpoint.load_model"):
        with suppress(ValueError):
            get_obj_from_str(target)
