"""A run folder without a pipeline: random images, scores with holes, prompts that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from prefkit.store import Store
from prefkit.store.files import write_json
from prefkit.types import Candidate, Request

NASTY = [
    '<script>alert("x")</script>',
    '"><img src=x onerror=alert(1)>',
    "two\nlines\r\nand a third",
    "an emoji \N{FOX FACE} and ‮reversed‬ text",
    "   ",
    "word " * 2000,
    "</style></svg><b>bold</b> & &amp; 'quoted' ${x} https://example.org/",
    "a NUL \x00 and a bell \x07",
]


def image_bytes(seed: int, side: int = 48, lift: float = 0.0) -> bytes:
    """A PNG with a soft gradient of its own hue."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, side)
    tint, drift = rng.uniform(0.2, 1, 3), rng.uniform(-0.6, 0.6, 2)
    field = 0.5 + drift[0] * ramp[:, None] + drift[1] * ramp[None, :] + lift
    pixels = np.clip(field[..., None] * tint * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def requests(count: int, split: str = "train", prompts: list[str] | None = None) -> list[Request]:
    texts = prompts or []
    texts = [*texts, *(f"a photograph of thing number {i} on a table" for i in range(count - len(texts)))]
    return [Request(f"{split}{i:04d}", prompt, split) for i, prompt in enumerate(texts[:count])]


def candidates(members: list[Request], n: int, name: str, lift: float = 0.0, failed: int = 0) -> list[Candidate]:
    found = []
    for i, request in enumerate(members):
        for j in range(n):
            key = hashlib.sha256(f"{name}{request.request_id}{j}".encode()).hexdigest()[:20]
            bad = i * n + j < failed
            image = None if bad else image_bytes(1000 * i + j, lift=lift)
            error = "CUDA out of memory <b>at</b> step 3" if bad else None
            found.append(Candidate(key, request.request_id, j, 7000 + 100 * i + j, image=image, error=error))
    return found


def score_rows(members: list[Candidate], seed: int, shift: float = 0.0, failed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, candidate in enumerate(members):
        value = float(rng.normal(shift + candidate.seed % 5, 1.0))
        bad = i < failed or candidate.error is not None
        rows.append(
            {
                "id": candidate.id,
                "value": None if bad else value,
                "aspects": None,
                "text": None,
                "error": "judge said <i>no</i>" if bad else None,
            }
        )
    return rows


def store_rows(store: Store, name: str, members: list[Candidate], part: int = 40) -> None:
    from prefkit.store.table import candidate_row

    for start in range(0, len(members), part):
        store.candidates(name).append([candidate_row(c) for c in members[start : start + part]])


def write_pairs(
    store: Store, name: str, members: list[Candidate], prompts: dict[str, str], with_bytes: bool = True
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for i in range(0, len(members) - 1, 2):
        a, b = members[i], members[i + 1]
        rows.append(
            {
                "jpg_0": a.image if with_bytes else None,
                "jpg_1": b.image if with_bytes else None,
                "label_0": float(i % 4 == 0),
                "label_1": float(i % 4 != 0),
                "caption": prompts[a.request_id],
                "candidate_0": a.id,
                "candidate_1": b.id,
                "request_id": a.request_id,
                "score_gap": 0.1 + (i * 37 % 101) / 40,
                "score_0_align": 1.5,
                "score_1_align": None,
            }
        )
    schema = pa.schema([("jpg_0", pa.binary()), ("jpg_1", pa.binary())])
    table = pa.Table.from_pylist(rows)
    for field in schema:
        at = table.schema.get_field_index(field.name)
        table = table.set_column(at, field, table.column(at).cast(field.type))
    folder = store.pairs(name) / "train"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet", row_group_size=8)


def write_metrics(folder: Path, steps: int = 60) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "loss": 0.69 - step * 0.003 + float(rng.normal(0, 0.02)),
            "implicit_accuracy": min(1.0, 0.5 + step * 0.005),
            "margin": step * 0.01,
            "win_advantage": step * 0.002,
            "lose_advantage": -step * 0.008,
            "lr": 1e-5,
        }
        lines.append(json.dumps(row))
        if step % 10 == 0:
            bins = [f"{200 * i}-{200 * i + 199}" for i in range(5)]
            found = {"pairs": 16, "bins": bins, "margin": [step * 0.002 * (i + 1) for i in range(5)]}
            lines.append(
                json.dumps({"step": step, "validation": found | {"win_advantage": [0.0, 0.1, None, 0.2, 0.3]}})
            )
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 61, "lo')


def write_eval(store: Store, name: str, members: list[Request], n: int = 4) -> None:
    for model, lift in (("base", 0.0), ("dpo", 0.15), ("base-g5.0", 0.02)):
        folder = Store.create(store.eval(name) / "held_out" / model)
        folder.write_requests(members)
        found = candidates(members, n, model, lift)
        store_rows(folder, "own", found)
        for alias, seed in (("align", 1), ("taste", 2)):
            folder.scores(alias).append(score_rows(found, seed, lift * 4))
            write_json(folder.scores(alias).folder / "spec.json", {"higher_is_better": alias == "align"})
    row = {
        **{"base": 2.0, "tuned": 2.6, "win_rate": 0.68, "ci_low": 0.59, "ci_high": 0.77, "tie_share": 0.02},
        **{"n_requests": len(members), "minimum_detectable": 0.12, "best_of_n": 2.4, "requests_left_out": 1},
        **{"diversity_base": 0.3, "diversity_tuned": 0.25, "moved": 0.1, "seed_distance": 0.3},
        **{"used_for_pairs": True, "evaluation_only": False, "verdict": "better"},
    }
    other = row | {"win_rate": 0.47, "ci_low": 0.4, "ci_high": 0.55, "used_for_pairs": False, "best_of_n": "< 1"}
    other |= {"verdict": "no difference shown", "minimum_detectable": None, "requests_left_out": 0}
    empty = dict.fromkeys(row) | {"n_requests": 0, "used_for_pairs": False, "verdict": "no difference shown"}
    result = {
        "sets": {"held_out": {"dpo": {"align": row, "taste": other}, "base-g5.0": {"align": empty}}},
        "settings": {"generator": "own", "in_training": {"held_out": 2}},
        "controls": {"sft": False, "missing": ["dpo-sft: SFT on the winners", "base with different step counts"]},
        "correlations": {"align": {"align": 1.0, "taste": None}, "taste": {"align": None, "taste": 1.0}},
        "left_out": {"rank": "its values hold within one call only"},
    }
    write_json(store.eval(name) / "result.json", result)


def full_run(folder: Path, count: int = 12) -> Store:
    """Everything a run can hold, small."""
    store = Store.create(folder)
    train, test = requests(count, "train", NASTY), requests(8, "test", NASTY[:3])
    store.write_requests([*train, *test])
    members = candidates(train, 4, "own", failed=2)
    store_rows(store, "own", members)
    write_json(store.candidates("own").folder / "spec.json", {"steps": 20, "guidance": 3.0, "dtype": "float32"})
    for alias, seed, failed in (("align", 1, 3), ("taste", 2, 0), ("broken", 3, 10_000)):
        store.scores(alias).append(score_rows(members, seed, failed=failed))
        write_json(store.scores(alias).folder / "spec.json", {"higher_is_better": alias != "taste"})
    write_pairs(store, "main", members[4:], {r.request_id: r.prompt for r in train})
    write_metrics(store.train("dpo"))
    (store.train("dpo") / "final").mkdir()
    write_eval(store, "held", test)
    (store.folder / "recipe.yaml").write_text(
        "run: x\nscore:\n  judge:\n    api_key: hunter2\n    use: '<b>clip</b>'\n"
    )
    (store.folder / "decisions.csv").write_text(f"id,verdict,reason,by\n{members[5].id},reject,<i>hand</i>,me\n")
    return store
