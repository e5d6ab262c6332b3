"""The report section on evaluations: outcome, images, table with intervals, missing controls, correlation of judges."""

from __future__ import annotations

from typing import Any

from prefkit.report import arena, grids, html, plot
from prefkit.store import Store
from prefkit.store.files import read_json

SYMBOLS = {"better": "▲", "worse": "▼", "no difference shown": "○", "nothing changed": "="}
HEAD = ["Model", "Judge", "", "Verdict", "Base", "Tuned", "Win rate", "", "95 % interval", "Ties", "Requests"]
FURTHER = ["Detectable", "Best of N"]
DISTANCES = {
    "diversity_base": "Diversity of base",
    "diversity_tuned": "Diversity of model",
    "moved": "Base to model, same seed",
    "seed_distance": "Base to base, two seeds",
}
MEASURES = {"frechet": "Fréchet", "cmmd": "CMMD"}
ASPECTS = ["Model", "Judge", "Aspect", "Base", "Tuned", "Two seeds differ, base", "tuned"]
ASPECTS_NOTE = (
    "Mean of each aspect that a judge reports, and the probability that two seeds of one request differ in the aspect. "
    "This probability should be as high for a tuned model as for the base."
)
TIERS = ["Model", "Judge", "Group", "Superficial", "Base", "Model", "Explicit", "RI", "95 % interval", "Requests"]
TIERS_NOTE = (
    "Mean scores against the request's own prompt. Superficial and explicit: the base's images from these prompts, as floor "
    "and ceiling. RI, the relative improvement: (model - base) / (explicit - base)."
)
OUTCOME = ["Model", "Judge", "Verdict", "Base", "Tuned", "Wins", "Ties", "Losses"]
OUTCOME_NOTE = "Tuned against base on held-out requests, at equal seeds. Only a held-out judge is evidence; a control should not win."
#: used_for_pairs (None: unknown) -> the tag next to the judge's name
TAGS = {
    True: '<span class="tag">training signal</span>',
    False: '<span class="tag held">held out</span>',
    None: '<span class="tag">training signal: unknown</span>',
}
NO_VOTES = (
    "Nobody has voted on these images yet. <code>prefkit serve RUN --models base,NAME</code> asks people; then run "
    "<code>prefkit eval RUN</code> again."
)
#: the page shows images of at most this many prompt sets; its tables list all sets
GRIDS = 2
LEAD = (
    "Base and tuned model generate images for the same requests at the same seeds. A judge that chose the pairs or was the "
    "reward is the training signal; only held-out judges count as evidence."
)
WORDS = {
    "better, worse": "the 95 % interval of the win rate is above, or below, 0.5",
    "no difference shown": "the interval contains 0.5",
    "nothing changed": "at equal seeds, images of base and tuned differ by less than 5 % of the distance between two seeds "
    "of the base, so the training had hardly any effect, whatever the win rate is",
    "win rate": "fraction of image pairs in which tuned beats base, averaged over the seeds of a request; ties count half. "
    "The interval is a bootstrap over requests",
    "training signal: unknown": "the pairs were imported without a record of what chose them",
    "detectable": "how far from 0.5 a win rate must be to be shown with this number of requests",
    "best of N": "how many base samples per request reach, at their best, the mean score of tuned",
    "control": "a training at the same budget that should not learn the preference: SFT on the winners, DPO on randomly "
    "flipped pairs",
}


def results(store: Store) -> dict[str, dict[str, Any]]:
    """Return {evaluation name: content of its result.json}."""
    paths = {name: store.eval(name) / "result.json" for name in store.names("eval")}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def outcome(evaluations: dict[str, dict[str, Any]]) -> str:
    """Return the table for the top of the page: every judge's verdict on each trained model and its controls."""
    rows = []
    for name, result in evaluations.items():
        sets = result.get("sets", {})
        for set_name, models in sets.items():
            where = f"{name}, {set_name}" if len(evaluations) > 1 or len(sets) > 1 else ""
            for model in sorted(models, key=grids.is_variant):
                if not model.startswith("base-"):
                    rows += [_finding(model, where, alias, row) for alias, row in models[model].items()]
    if not rows:
        return ""
    return f'<div class="outcome"><p class="quiet">{OUTCOME_NOTE}</p>{html.table(OUTCOME, rows, left=3)}</div>'


def _finding(model: str, where: str, alias: str, row: dict[str, Any]) -> list[str]:
    """Return a row of the outcome table. Wins, ties and losses are fractions of the compared pairs of images."""
    kind = ' <span class="tag">control</span>' if model.endswith(grids.CONTROL_SUFFIXES) else ""
    place = f'<br><span class="quiet">{html.text(where, 80)}</span>' if where else ""
    shares = ["–"] * 3
    if row["win_rate"] is not None:
        wins = row["win_rate"] - row["tie_share"] / 2
        shares = [html.value(share, f"{share:.0%}") for share in (wins, row["tie_share"], 1 - wins - row["tie_share"])]
    return [
        f"<b>{html.text(model, 60)}</b>{kind}{place}",
        f"{html.text(alias, 40)} {TAGS[row.get('used_for_pairs')]}",
        _verdict(row["verdict"]),
        html.value(row["base"]),
        html.value(row["tuned"]),
        *shares,
    ]


def _verdict(word: str) -> str:
    return f'<span class="verdict {html.text(word.split()[0])}"><span aria-hidden="true">{SYMBOLS.get(word, "")}</span> {html.text(word)}</span>'


def evaluation(store: Store, evaluations: dict[str, dict[str, Any]]) -> str:
    """Return the section with the tables and images of every evaluation."""
    if not evaluations:
        return html.section("evaluation", "What changed", html.missing("Nothing has been evaluated yet."))
    parts, shown = [], 0
    for name, result in evaluations.items():
        for set_name, models in result.get("sets", {}).items():
            parts.append(f"<h3>{html.text(name if set_name == name else f'{name}, requests {set_name}', 120)}</h3>")
            if shown < GRIDS:
                parts.append(grids.both(store.eval(name) / set_name, result, models))
            else:
                parts.append(html.missing("Images of this set are in the run folder."))
            parts.append(_table(models) if any(models.values()) else html.missing(NO_VOTES))
            parts.append(arena.table(result.get("arena", {}).get(set_name, {})))
            shown += 1
        parts.append(_caveats(result))
    words = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in WORDS.items())
    parts.append(f"<details><summary>What the words mean</summary><dl>{words}</dl></details>")
    return html.section("evaluation", "What changed", "".join(parts), LEAD)


def _table(models: dict[str, dict[str, Any]]) -> str:
    ordered = {model: models[model] for model in sorted(models, key=grids.is_variant)}
    rows = [cells(model, alias, row) for model, scorers in ordered.items() for alias, row in scorers.items()]
    # diversity is the same for all judges of a model
    first: dict[str, dict[str, Any]] = {model: next(iter(scorers.values()), {}) for model, scorers in ordered.items()}
    distances = [
        [html.text(model, 60), *(html.value(row.get(key)) for key in DISTANCES)] for model, row in first.items()
    ]
    caption = "How much the images vary: root mean square over pixels of 32 x 32 versions, 0 to 1"
    embedded = [(model, row["encoder_diversity"]) for model, row in first.items() if row.get("encoder_diversity")]
    real = [(model, row["real_distance"]) for model, row in first.items() if row.get("real_distance")]
    main = html.table([*HEAD, *FURTHER], rows, left=4)
    apart = html.table(["Model", *DISTANCES.values()], distances, caption)
    return main + _tiers(ordered) + apart + _encoded(embedded) + _real(real) + _aspects(ordered)


def _tiers(models: dict[str, dict[str, Any]]) -> str:
    """Return the table of scores by tier of the prompt and by group, with the relative improvement, or ""."""
    rows = [
        [*(html.text(text, 40) for text in (model, alias, group)), *_levels(part), html.value(part["n_requests"])]
        for model, scorers in models.items()
        for alias, row in scorers.items()
        if row.get("tiers")
        for group, part in [("all", row["tiers"]), *(row["tiers"]["by"] or {}).items()]
    ]
    return f'{html.table(TIERS, rows, left=3)}<p class="quiet">{TIERS_NOTE}</p>' if rows else ""


def _levels(part: dict[str, Any]) -> list[str]:
    means = [html.value(part["means"].get(name)) for name in ("superficial", "base", "tuned", "explicit")]
    estimate = part["relative_improvement"] or dict.fromkeys(("value", "low", "high", "reason"))
    value, low, high = (
        "–" if estimate[key] is None else html.value(estimate[key], f"{estimate[key]:.1%}")
        for key in ("value", "low", "high")
    )
    note = f'<br><span class="warn">{html.text(estimate["reason"], 120)}</span>' if estimate["reason"] else ""
    return [*means, value + note, "–" if estimate["low"] is None else f"{low} to {high}"]


def _encoded(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the table of diversities measured with an encoder, or "". rows: (model, its encoder_diversity)."""
    if not rows:
        return ""
    head = ["Model", "Diversity of base", "Diversity of model"]
    encoder = html.text(rows[0][1]["encoder"], 80)
    caption = f"Diversity by {encoder}: mean cosine distance between the images of a request, 0 to 2"
    cells = [[html.text(model, 60), html.value(row["base"]), html.value(row["tuned"])] for model, row in rows]
    return html.table(head, cells, caption)


def _real(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the table of distances to real images, with its caveats, or "". rows: (model, its real_distance)."""
    if not rows:
        return ""
    head = ["Model", "Distance", "Base", "Tuned", "Tuned - base", "95 % interval", "Images", "Real images"]
    cells = [
        [
            *(html.text(model, 60), label),
            *(html.value(row[measure][key]) for key in ("base", "tuned", "difference")),
            " to ".join(html.value(row[measure][key]) for key in ("ci_low", "ci_high")),
            *(html.value(row[key]) for key in ("n", "n_real")),
        ]
        for model, row in rows
        for measure, label in MEASURES.items()
    ]
    caption = f"Distance to real images by {html.text(rows[0][1]['encoder'], 80)}"
    caveats = dict.fromkeys(text for _, row in rows for text in row["caveats"])
    return html.table(head, cells, caption, left=2) + f'<p class="quiet">{html.text(" ".join(caveats), 2000)}</p>'


def cells(model: str, alias: str, row: dict[str, Any]) -> list[str]:
    """Return a row of the table of HEAD and FURTHER."""
    known = row["win_rate"] is not None
    interval = " to ".join(html.value(row[key], f"{row[key]:.2f}") for key in ("ci_low", "ci_high")) if known else "–"
    drawn = plot.interval(row["ci_low"], row["win_rate"], row["ci_high"]) if known else ""
    left_out = row.get("requests_left_out")
    without = f'<br><span class="warn">{left_out:,} without</span>' if left_out else ""
    detectable = row["minimum_detectable"]
    used = row.get("best_of_requests", row["n_requests"])
    partly = f'<br><span class="warn">of {used:,} requests</span>' if used < row["n_requests"] else ""
    return [
        f'<span class="name">{html.text(model, 40)}</span>',
        html.text(alias, 40),
        TAGS[row.get("used_for_pairs")],
        _verdict(row["verdict"]),
        html.value(row["base"]),
        html.value(row["tuned"]),
        html.value(row["win_rate"], f"{row['win_rate']:.2f}") if known else "–",
        drawn,
        interval,
        html.value(row["tie_share"], f"{row['tie_share']:.0%}") if known else "–",
        html.value(row["n_requests"]) + without,
        "–" if detectable is None else f"±{detectable:.2f}",
        html.value(row["best_of_n"]) + partly,
    ]


def _aspects(models: dict[str, dict[str, Any]]) -> str:
    """Return the table of aspects, or "". If several judges report the same aspect, only the first judge's is shown."""
    rows = []
    for model, scorers in models.items():
        seen: set[str] = set()
        for alias, row in scorers.items():
            for name, values in row.get("aspects", {}).items():
                if name not in seen:
                    seen.add(name)
                    names = [html.text(text, 40) for text in (model, alias, name.replace("_", " "))]
                    numbers = [values[key] for key in ("base", "tuned", "differ_base", "differ_tuned")]
                    rows.append(names + ["–" if n is None else html.value(n, f"{n:.2f}") for n in numbers])
    return f'{html.table(ASPECTS, rows, left=3)}<p class="quiet">{ASPECTS_NOTE}</p>' if rows else ""


def _caveats(result: dict[str, Any]) -> str:
    """Return the caveats: missing controls, training prompts in the test set, omitted scores, correlated judges."""
    parts = []
    absent = result.get("controls", {}).get("missing", [])
    if absent:
        items = "".join(f"<li>{html.text(item)}</li>" for item in absent)
        parts.append(f'<div class="missing"><b>Missing controls</b><ul>{items}</ul></div>')
    settings = result.get("settings", {})
    for name, count in settings.get("in_training", {}).items():
        if count:
            parts.append(f'<p class="warn">Prompts in {html.text(name, 60)} that were also trained on: {count:,}.</p>')
    if unknown := settings.get("training_unknown"):
        models = html.text(", ".join(unknown), 200)
        parts.append(
            f'<p class="warn">No record of what {models} was trained on: more prompts may be training prompts.</p>'
        )
    for alias, reason in result.get("left_out", {}).items():
        parts.append(f"<p>{html.text(alias, 40)} is left out: {html.text(reason)}.</p>")
    correlations = result.get("correlations", {})
    if len(correlations) > 1:
        note = "Rank correlation of the judges on base images. A judge that follows the reward closely adds little evidence."
        names = list(correlations)
        matrix = plot.matrix(names, [[correlations[a].get(b) for b in names] for a in names])
        parts.append(f'<p class="quiet">{note}</p>{matrix}')
    return "".join(parts)
