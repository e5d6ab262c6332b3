"""Clumsy, hostile and unlucky users: one clear paragraph, the right code, nothing lost, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit.store import Store
from prefkit.store.litter import temporary_beside


def edit(recipe, old, new):
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def one_paragraph(err):
    last = err.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "Traceback" not in err and "PREFKIT_DEBUG" not in err
    return last


def stages(cli, recipe, *verbs):
    for verb in verbs:
        code, _, err = cli(verb, "-r", recipe, "-q")
        assert code == 0, err


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} if folder.exists() else set()


# -- the recipe and its flags -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("guidance: 3.0", "guidance: nan", ":6: generate.own.guidance: must be a finite number, not nan."),
        ("guidance: 3.0", "seed: ", ":6: generate.own.seed: must be a whole number."),
        ("  own: {", "  own/x: {", ":6: generate.own/x: 'own/x' cannot be a name"),
        ("use: jpeg}", "use: jpeg, direction: up}", "must be one of compress, expand."),
        ("  own: {", "  ? [a]\n  : {", ":6: a key must be a name, not a list or a mapping."),
        ("use: jpeg}", "use: ':f'}", "scorer :f is incomplete"),
    ],
)
def test_a_wrong_recipe_names_the_line_and_leaves_nothing(recipe, cli, old, new, message):
    edit(recipe, old, new)
    code, out, err = cli("generate" if "generate" in message or "key" in message else "score", "-r", recipe)
    assert code == 2 and out == "" and message in one_paragraph(err) and ".." not in err.rstrip(".")
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pair", "--k", "two"], "Error: --pair.main.k: must be a whole number, not two."),
        (["pair", "--k", ""], "Error: --pair.main.k: must be a whole number, not an empty string."),
        (["pair", "--k", "{"], "Error: --pair.main.k: '{' is not valid YAML."),
        (["pair", "--kk", "2"], "Error: --pair.main.kk: unknown key."),
        (["pair", "--", "2"], "Error: '--' is not a flag."),
        (["plugins"], "Error: plugins takes a kind of plug-in"),
    ],
)
def test_a_wrong_flag_is_called_a_flag(recipe, cli, arguments, message):
    code, _, err = cli(arguments[0], "-r", recipe, *arguments[1:])
    assert code == 2 and one_paragraph(err).startswith(message)


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("generate", ["--height", "0"], "generate.own.height is 0: it must be at least 1."),
        ("generate", ["--format", "jpg"], "generate.own.format: 'jpg' is not known; choose png or webp."),
        ("generate", ["--requests.test_share", "3"], "requests.test_share is 3: it must be between 0 and 1."),
        ("generate", ["--splits", "[trian]"], "the requests are in test, train."),
        ("generate", ["--device", "tpu"], "unknown device 'tpu'; choose cpu, cuda or mps."),
        ("score", ["--size.batch_size", "0"], "score.size.batch_size is 0"),
        ("pair", ["--generators", "[nope]"], "no candidates from nope; generators with candidates: own."),
        ("pair", ["--tie", "-1"], "pair.main.tie is -1: it must be at least 0"),
        ("train", ["--pairs", "''"], "train.pairs is not set"),
        ("train", ["--steps", "0"], "train.dpo.steps is 0: it must be at least 1."),
        ("train", ["--learning_rate", "-1"], "train.dpo.learning_rate is -1: it must be above 0."),
        ("train", ["--validate_every", "0"], "train.dpo.validate_every is 0"),
        ("train", ["--watch_every", "0"], "--train.dpo.watch_every is 0: it must be at least 1."),
        ("train", ["--train.dpo.lora.dropout", "2"], "train.dpo.lora.dropout is 2"),
        ("train", ["--train.dpo.objective.beta", "-1"], "train.dpo.objective.beta is -1: it must be at least 0."),
        (
            "train",
            ["--report_to", "comet"],
            "train.dpo.report_to: 'comet' is unknown; choose none, tensorboard, wandb, trackio.",
        ),
        ("eval", ["--seeds", "0"], "eval.held_out.seeds is 0: it must be at least 1."),
        ("eval", ["--bootstrap", "0"], "eval.held_out.bootstrap is 0"),
        ("eval", ["--base_steps", "[0]"], "eval.held_out.base_steps"),
        ("eval", ["--models", "[base]"], "`base` is the untrained model"),
    ],
)
def test_numbers_and_names_that_make_no_sense(drawn, cli, verb, flags, message):
    if verb == "generate" and "--device" in flags:
        edit(drawn, f"use: '{drawn.parent}/draw.py:draw', ", "")
    if verb in ("score", "pair"):
        stages(cli, drawn, *(["generate"] if verb == "score" else ["generate", "score"]))
    code, _, err = cli(verb, "-r", drawn, *flags)
    assert code == 2 and message in one_paragraph(err)


def test_a_first_command_that_fails_leaves_no_run_but_what_was_there(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    for arguments in (["score", "typo", "--use", "jpeg"], ["pair", "typo"], ["train", "typo"]):
        assert cli(*arguments)[0] == 2 and not (tmp_path / "typo").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/recipe.yaml").write_text("# mine\n")
    (tmp_path / "mine/notes.txt").write_text("x")
    assert cli("score", "mine", "--use", "jpeg")[0] == 2
    assert files(tmp_path / "mine") == {"recipe.yaml", "notes.txt"}
    assert (tmp_path / "mine/recipe.yaml").read_text() == "# mine\n"
    code, _, err = cli("generate", "mine/notes.txt")
    assert code == 2 and "is a file, not a run folder" in one_paragraph(err)


# -- prompts ------------------------------------------------------------------------------------------------------
NASTY = [
    'he said "<b>hi</b>"',
    "line\nbreak",
    "<script>alert(1)</script>",
    "🎩 emoji 👩‍👩‍👧",
    "'single' & {b} %s",
    "x" * 10_000,
    "\u202ertl",
]


def test_nasty_prompts_go_all_the_way(drawn, cli):
    rows = [json.dumps({"prompt": prompt}) for prompt in [*NASTY, "   ", NASTY[0]]]
    (drawn.parent / "prompts.jsonl").write_text("\n".join(rows))
    edit(drawn, "prompts.txt, test_share: 0.25", "prompts.jsonl, test_share: 0")
    code, _, err = cli("generate", "-r", drawn)
    assert code == 0 and "1 empty prompt left out" in err and "1 duplicate request left out" in err
    stages(cli, drawn, "score", "pair", "report")
    run = drawn.parent / "run"
    assert [r.prompt for r in Store(run).requests()] == NASTY
    table = pq.read_table(next((run / "pairs/main/train").glob("*.parquet")), columns=["caption"])
    assert set(table.column("caption").to_pylist()) <= set(NASTY)
    assert "<script>alert" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "  \n\t\n", "contains no prompt"),
        ("p.jsonl", '{"prompt": 3}\n', "the prompt 3 is an int, not text. Put it in quotes"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', "is not valid Unicode"),
        ("p.jsonl", '{"prompt": "a\\u0000b"}\n', "contains a NUL character"),
        ("p.jsonl", '{"prompt": "a", "s": "../x"}\n', "'../x' cannot name a split"),
    ],
)
def test_prompts_that_cannot_be(drawn, cli, name, text, message):
    (drawn.parent / name).write_text(text)
    column = ", split_column: s" if '"s"' in text else ""
    edit(drawn, "prompts.txt, test_share: 0.25", f"{name}, test_share: 0{column}")
    code, _, err = cli("generate", "-r", drawn)
    assert code == 2 and message in one_paragraph(err) and not (drawn.parent / "run").exists()


def test_prompts_of_digits_and_missing_splits_in_a_csv(drawn, cli):
    (drawn.parent / "p.csv").write_text("prompt,request_id,s\n007,007,train\n7,7,\n")
    edit(drawn, "prompts.txt, test_share: 0.25", "p.csv, test_share: 0, split_column: s")
    stages(cli, drawn, "generate")
    found = [(r.request_id, r.prompt, r.split) for r in Store(drawn.parent / "run").requests()]
    assert found == [("007", "007", "train"), ("7", "7", "train")]


# -- generators and scorers that misbehave ------------------------------------------------------------------------
def test_a_mended_plugin_may_start_again_under_its_name(drawn, cli):
    for name, message in (("fails", "ValueError: boom and more"), ("texts", "returned a str where a PIL image")):
        edit(drawn, "draw.py:draw", f"draw.py:{name}")
        code, _, err = cli("generate", "-r", drawn)
        assert code == 1 and message in one_paragraph(err)
        edit(drawn, f"draw.py:{name}", "draw.py:draw")
    stages(cli, drawn, "generate")
    taste = drawn.parent / "taste.py"
    good = taste.read_text()
    for body, message in (
        ("return bug", "every candidate failed, the first with: NameError"),
        ("return 1.0", "returned a float; it must return a list with one number per image"),
        ("raise SystemExit(3)", "muted tried to end the program: SystemExit: 3"),
        ("return [float('nan')] * len(images)", "the scorer returned nan"),
    ):
        taste.write_text(f"def muted(images, prompts):\n    {body}\n")
        code, _, err = cli("score", "-r", drawn, "--name", "taste")
        assert code == 1 and message in one_paragraph(err)
    taste.write_text("muted = 3\n")
    code, _, err = cli("score", "-r", drawn, "--name", "taste")
    assert code == 1 and "is not a scorer. A scorer is a function (images, prompts)" in one_paragraph(err)
    taste.write_text(good)
    stages(cli, drawn, "score")
    frame = Store(drawn.parent / "run").scores("taste").frame()
    assert frame.value.notna().all()
    taste.write_text(good + "# another meaning\n")
    code, _, err = cli("score", "-r", drawn)
    assert code == 1 and "was made with other settings (version" in one_paragraph(err)


def test_too_many_failures_still_give_the_result(drawn, cli):
    edit(drawn, "draw.py:draw", "draw.py:not_a_hat")
    for verb in ("generate", "run"):
        code, out, err = cli(verb, "-r", drawn, "--json")
        found = json.loads(out)
        counts = found["generate"]["own"] if verb == "run" else found["own"]
        assert code == 3 and counts["failed"] > 0 and "more items failed than max_failed" in one_paragraph(err)
    assert not (drawn.parent / "run/scores").exists()


# -- damage -------------------------------------------------------------------------------------------------------
def flip(path, marker):
    """Turn one byte over, in the middle of the bytes after `marker`."""
    data = bytearray(path.read_bytes())
    place = data.index(marker) + len(marker) + 40
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def test_one_wrong_byte_in_an_image_is_found_and_redone(drawn, cli):
    stages(cli, drawn, "generate")
    table = Store(drawn.parent / "run").candidates("own")
    before = table.frame(["id", "sha256"]).set_index("id").sha256.to_dict()
    flip(table.parts()[0], b"IDAT")
    code, _, err = cli("score", "-r", drawn)  # the only part: once it is renamed, there is nothing to score
    assert code == 2 and "is damaged" in err and "`prefkit generate` again" in err
    stages(cli, drawn, "generate", "score", "pair")
    assert table.frame(["id", "sha256"]).set_index("id").sha256.to_dict() == before
    flip(table.parts()[0], b"IDAT")
    (drawn.parent / "run/pairs/main/spec.json").unlink()
    code, _, err = cli("pair", "-r", drawn)
    assert code == 1 and "is damaged and was renamed to" in one_paragraph(err)
    assert "Run `prefkit generate`" in one_paragraph(err)
    code, _, err = cli("pair", "-r", drawn)
    assert code == 2 and "No candidate has an image: run `prefkit generate`" in one_paragraph(err)


def test_damaged_pairs_are_named_and_made_again(drawn, cli):
    stages(cli, drawn, "generate", "score", "pair")
    path = next((drawn.parent / "run/pairs/main/train").glob("*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    for verb in ("train", "report"):
        code, _, err = cli(verb, "-r", drawn)
        assert code == (2 if verb == "train" else 1) and str(path) in one_paragraph(err)
    stages(cli, drawn, "pair")
    assert path.read_bytes() == whole


def test_what_a_kill_in_the_middle_of_pair_leaves_disturbs_nobody(drawn, cli):
    stages(cli, drawn, "generate", "score", "pair")
    folder = drawn.parent / "run/pairs"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    names = [temporary_beside(folder / "main").name.replace(f"-{os.getpid()}-", f"-{process.pid}-") for _ in range(2)]
    (folder / "main").rename(folder / names[0])
    (folder / names[1]).mkdir()
    stages(cli, drawn, "report", "pair", "report")
    assert [p.name for p in folder.iterdir()] == ["main"]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "x"}', "\x00"])
def test_a_run_json_that_is_none(drawn, cli, text):
    stages(cli, drawn, "generate")
    (drawn.parent / "run/run.json").write_text(text)
    for verb in ("score", "report"):
        code, _, err = cli(verb, "-r", drawn)
        assert code == 1 and "run.json" in one_paragraph(err)


def test_decisions_with_a_comma_too_many(drawn, cli):
    stages(cli, drawn, "generate", "score")
    path = drawn.parent / "run/decisions.csv"
    path.write_text("id,verdict,reason,by\na,keep,,\nb,reject,too dark, blurred,me\n")
    code, _, err = cli("pair", "-r", drawn)
    assert code == 1 and "decisions.csv row 2 (line 3) has 5 fields, but the first line names 4" in one_paragraph(err)
    path.write_text("\ufeffid,verdict\nb,keep\n", encoding="utf-8")
    stages(cli, drawn, "pair")


# -- training -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("jpg_0", "x.png", "row 0: jpg_0 and jpg_1 must hold encoded images (bytes"),
        ("p", 7.0, "row 0: `p` is 7.0; it must be a probability"),
        ("jpg_0", b"xx", "row 0: an image cannot be decoded (not an image format that Pillow knows)"),
    ],
)
def test_foreign_pairs_that_cannot_be(recipe, cli, column, value, message):
    given = {"jpg_0": b"x", "jpg_1": b"y", "label_0": 1.0, "label_1": 0.0, "caption": "a hat"} | {column: value}
    folder = recipe.parent / "foreign"
    folder.mkdir()
    pq.write_table(pa.table({key: [item] for key, item in given.items()}), folder / "a.parquet")
    code, _, err = cli("train", "-r", recipe, "--pairs", folder)
    assert code == 2 and message in one_paragraph(err)


def test_a_loss_that_turns_nan_keeps_the_checkpoint_and_the_name_where_there_is_none(recipe, cli):
    stages(cli, recipe, "generate", "score", "pair")
    wild = ["--learning_rate", "1e30", "--warmup", "0"]
    code, _, err = cli("train", "-r", recipe, *wild)
    assert code == 1 and "is not finite" in err and "No checkpoint exists yet" in one_paragraph(err)
    code, _, err = cli("train", "-r", recipe, *wild, "--checkpoint_every", "1")
    assert code == 1 and "The checkpoint of step 1 is kept" in one_paragraph(err)
    folder = recipe.parent / "run/train/dpo"
    assert (folder / "checkpoints/step-00000001/weights.safetensors").exists() and not (folder / "final").exists()
    code, _, err = cli("train", "-r", recipe)
    assert code == 1 and "was made with other settings" in one_paragraph(err)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation" in line and line["step"] == 0 for line in lines) == 1  # a second start begins a new log


def test_a_full_disk_under_the_optimizers_state(tmp_path, monkeypatch):
    import torch

    from prefkit.errors import StoreError
    from prefkit.train import checkpoint

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")

    checkpoint.save(tmp_path, 1, {"a": torch.ones(2)}, {}, {})
    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(StoreError, match=r"is the disk full\?"):
        checkpoint.save(tmp_path, 2, {"a": torch.ones(2)}, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


# -- interruptions ------------------------------------------------------------------------------------------------
def test_scores_killed_and_interrupted_end_as_if_nothing_had_happened(drawn, cli, forks):
    stages(cli, drawn, "generate")
    edit(drawn, 'taste.py:muted"', 'slow.py:muted", batch_size: 4')
    (drawn.parent / "slow.py").write_text(
        "import time\ndef muted(images, prompts):\n    time.sleep(0.2)\n    return [i.getpixel((0, 0))[0] for i in images]\n"
    )
    code = "import prefkit.score.passes as s; s.FLUSH_ROWS = 4\nfrom prefkit.cli.main import main; main()"
    table = Store(drawn.parent / "run").scores("taste")
    for how in (signal.SIGKILL, signal.SIGINT):
        there = len(table.parts())
        process = forks.start("score", "-r", drawn, "--name", "taste", code=code)
        end = time.monotonic() + 60
        while len(table.parts()) < there + 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if how == signal.SIGKILL else 130) and "Traceback" not in err
    stages(cli, drawn, "score")
    frame = table.frame(["id", "value"]).set_index("id").value
    elsewhere = drawn.parent / "other"
    for verb in ("generate", "score"):
        assert cli(verb, elsewhere, "-r", drawn, "-q")[0] == 0
    other = Store(elsewhere).scores("taste").frame(["id", "value"]).set_index("id").value
    assert frame.sort_index().equals(other.sort_index()) and len(frame) > 8
    assert not list((drawn.parent / "run/scores").rglob("*.tmp"))
