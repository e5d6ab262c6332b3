"""Bad values over all keys and flags: draw number i of a published seed is always the same command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import typing
from typing import Any, NamedTuple

import yaml

from prefkit import config, registry
from prefkit.cli import main as cli

SEED = 20261129
STAGES = ("generate", "score", "pair", "train", "eval")
RECIPE = """
run: run
model: {base: tiny}
requests: {source: p.txt, test_share: 0.25}
generate:
  own: {use: "draw.py:draw", n: 3}
  sd: {n: 1, steps: 1}
score:
  size: {use: jpeg}
  taste: {use: "taste.py:muted"}
pair:
  main: {use: topk_bottomk, k: 1, weights: {taste: 1.0}, generators: [own]}
train:
  dpo: {pairs: main, lora: {rank: 2}, steps: 2, validation: 0, batch_size: 2}
eval:
  held_out: {models: [dpo], scorers: [size], generator: sd, seeds: 1, bootstrap: 20, max_requests: 1}
"""
#: entries that commands are about, so that a draw costs little
ENTRY = {"generate": "own", "score": "size", "pair": "main", "train": "dpo", "eval": "held_out"}
PREFIX = {"model": "model", "requests": "requests"}


class Draw(NamedTuple):
    """recipe: the text of r.yaml; argv: the command; dry: the command as a dry run, where the verb has one."""

    recipe: str
    argv: list[str]
    dry: list[str] | None


def numbers(rng: random.Random) -> str:
    fixed = (
        "0 -1 1 2 -0.0 0.5 1.5 nan -inf inf .nan .inf 1e308 -1e308 1e-320 1e999 0x10 0o7 1_000 1__0 ² ٣ 1.0e 007 +5 --1"
    )
    large = [10**k for k in (4, 6, 9, 12, 18, 19, 22, 30, 400)]
    return rng.choice([*fixed.split(), *(str(sign * n) for n in large for sign in (1, -1))])


def texts(rng: random.Random) -> str:
    return rng.choice(
        [
            "", " ", "~", "null", "none", "yes", "no", "on", "true", "false", "x", "..", "../x", "/", ".", "CON", "a/b", "-", "--",
            "~nouser/x", "tiny", "main", "base", "diffusers", "file.py:x", "draw.py:none", "none.py:f", "../../etc/passwd:f",
            "a.b.c:D", ":f", "f:", "http://[::1", "http://127.0.0.1:1", "exec:", "exec:false", "owner/name", "a" * 300, "é" * 100,
            "x" * 20_000, "a b", "日本語", "\u202eabc\u202c", "a\x1b[31mred", "a\x1b]0;title\x07", "a\rb", "\x07", "a\nb", "\t",
            "\x00", "a\x00b", "\udc80", "\U0001f600", "%s %d {}", "{0.__class__}", "$(true)", "`true`", "'", '"', "\\", "*", "&a x",
            "*a", "!!python/object:os.system x", "!!binary aGk=", "[", "{", "]", "a: b: c", "- x", "# c", "@x", "`x", "|", ">", "?",
            "/dev/zero", "/dev/null", "/dev/full", "fifo", "folder", "empty", "p.txt", "r.yaml", "p.txt/x", "run", "/proc/self/mem",
            "size", "taste", "clip", "jpge", "topk_botomk", "dpoo", "cuda", "cuda:99", "cpu", "mps", "meta", "float32", "float99",
            "DDIMScheduler", "Tensor", "adamw", "torch.optim:SGD", "os:system", "json:loads", "builtins:print", "sys:exit",
        ]
    )  # fmt: skip


def nested(rng: random.Random) -> str:
    depth = rng.choice([1, 3, 30, 500, 5000])
    bomb = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
        f", &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]" for a, b in zip("abcdefgh", "bcdefghi")
    )
    return rng.choice(
        [
            "[" * depth + "1" + "]" * depth,
            "{a: " * depth + "1" + "}" * depth,
            "&a [*a]",
            "&a {b: *a}",
            bomb + "]",
            "[1, 2, 3]",
            "[]",
            "{}",
            "{a: 1}",
            "{use: jpeg}",
            "[null]",
            "{null: null}",
            "{? [a] : b}",
            "{a: 1, a: 2}",
            "[" + ",".join(["x"] * 60_000) + "]",
            "{" + ",".join(f"k{i}: {i}" for i in range(3000)) + "}",
        ]
    )


def value(rng: random.Random) -> str:
    return rng.choice([numbers, numbers, texts, texts, nested])(rng)


def keys_of(kind: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a dataclass, with those of the dataclasses inside it."""
    found: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        if name == "options":
            continue
        found.append(prefix + name)
        inner = [k for k in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(k)]
        if inner and prefix.count(".") < 2 and typing.get_origin(hint) is not dict:
            found += keys_of(inner[0], f"{prefix}{name}.")
    return found


def plugin_keys(kind: str, name: str) -> list[str]:
    options = getattr(registry.load(kind, name), "Options", None)
    return [] if options is None else [f.name for f in dataclasses.fields(options)]


def near_miss(rng: random.Random, key: str) -> str:
    at = rng.randrange(len(key))
    return rng.choice(
        [key[:at] + key[at + 1 :] or "x", key[:at] + "x" + key[at:], key.upper(), key + ".x", key.replace("_", "-")]
    )


def flags_of(rng: random.Random, verb: str) -> list[tuple[str, str]]:
    """Recipe keys of a stage as (flag, value): a key of its entry, of a plug-in of its own, of the model or the requests."""
    found: list[tuple[str, str]] = []
    where = rng.random()
    if where < 0.15:
        section = rng.choice(["model", "requests"])
        key = f"{section}.{rng.choice(keys_of(getattr(config, section.capitalize())))}"
    elif where < 0.45 and verb in ("score", "pair", "train"):
        kind = {"score": "scorer", "pair": "strategy", "train": "objective"}[verb]
        names = [
            n
            for n in registry.builtin(kind)
            if kind != "scorer" or n in ("jpeg", "clip", "personalization", "ocr", "mllm")
        ]
        plugin = rng.choice(names)
        prefix = f"{ENTRY[verb]}.objective." if verb == "train" else f"{ENTRY[verb]}."
        found.append((f"{prefix}use", plugin))
        key = prefix + rng.choice(plugin_keys(kind, plugin) or ["none"])
    else:
        key = f"{ENTRY[verb]}.{rng.choice(keys_of(getattr(config, verb.capitalize())))}"
    if rng.random() < 0.08:
        key = near_miss(rng, key)
    return [*found, (key, value(rng))]


def own_flags(rng: random.Random, verb: str) -> list[str]:
    """Flags of the verb's own parser, with bad values."""
    actions = [a for a in cli.parser_of(verb)._actions if a.option_strings and a.dest != "help"]
    found: list[str] = []
    for action in rng.sample(actions, min(len(actions), rng.randint(1, 2))):
        found.append(rng.choice(action.option_strings))
        takes = not isinstance(action, argparse._StoreTrueAction)
        if takes and rng.random() < 0.95:
            found.append(value(rng))
    return found


def in_recipe(rng: random.Random, flags: list[tuple[str, str]], verb: str) -> str:
    """The recipe with the keys written into it, as text that need not be YAML."""
    tree = yaml.safe_load(RECIPE)
    marks: dict[str, str] = {}
    for number, (key, text) in enumerate(flags):
        path = key.split(".") if key.split(".")[0] in ("model", "requests") else [verb, *key.split(".")]
        inner: Any = tree
        for name in path[:-1]:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[path[-1]] = f"MARK{number}"
        quoted = json.dumps(text) if rng.random() < 0.3 else text
        marks[f"MARK{number}"] = quoted
    found = yaml.safe_dump(tree, sort_keys=False, default_flow_style=rng.random() < 0.3)
    for mark, text in marks.items():
        found = found.replace(mark, text)
    return found


def whole(rng: random.Random) -> str:
    """A file that is no recipe, or hardly one."""
    part = rng.choice(["run", "model", "generate", "score", "pair", "train", "eval", "fast", "about", "compare"])
    return rng.choice(
        [
            value(rng),
            f"{part}: {value(rng)}",
            RECIPE + f"\n{part}: {value(rng)}\n",
            RECIPE.replace("own", rng.choice(["CON", "a" * 101, "..", "x.", "1", "~", "\x1b", "&a own", "sd"])),
            RECIPE.replace("run: run", f"run: {value(rng)}"),
            RECIPE + f"\nfast: {{{part}: {value(rng)}}}\n",
            RECIPE[: rng.randrange(len(RECIPE))],
            RECIPE.replace(":", rng.choice(["", ": ", " :", ":\t"]), rng.randint(1, 5)),
        ]
    )


def draw(number: int) -> Draw:
    rng = random.Random(f"{SEED}:{number}")
    verb = rng.choices(STAGES, [4, 4, 4, 1, 1])[0]
    how = rng.random()
    common = ["-q", *(["--json"] if rng.random() < 0.2 else [])]
    recipe, argv = RECIPE, ["-r", "r.yaml", "--name", ENTRY[verb], *common]
    if how < 0.4:
        argv += [part for key, text in flags_of(rng, verb) for part in (f"--{key}", text)]
    elif how < 0.65:
        recipe = in_recipe(rng, flags_of(rng, verb), verb)
    elif how < 0.75:
        recipe, verb = whole(rng), rng.choice([verb, verb, "run", "report"])
        argv = ["-r", "r.yaml", *common]
    else:
        verb = rng.choice(list(cli.VERBS))
        argv = [text for text in [rng.choice(["run", "run", value(rng)])] if rng.random() < 0.85]
        argv += own_flags(rng, verb)
    dry = has_dry_run(verb) and "--dry-run" not in argv
    cheap = ["--limit", "1"] if verb in ("generate", "score", "train", "eval", "run") and "--limit" not in argv else []
    return Draw(recipe, [verb, *argv, *cheap], [verb, *argv, *cheap, "--dry-run"] if dry else None)


def has_dry_run(verb: str) -> bool:
    return any("--dry-run" in action.option_strings for action in cli.parser_of(verb)._actions)
