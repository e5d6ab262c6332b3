"""The section on evaluation: outcome, table with intervals, missing controls, correlation of the judges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefkit.report import aspects, grids, html, plot
from prefkit.store.files import read_json

if TYPE_CHECKING:
    from prefkit.store import Store

SIGNS = {"better": "▲", "worse": "▼", "no difference shown": "○", "nothing changed": "="}
HEAD = ["Model", "Judge", "", "Verdict", "Base", "Tuned", "Win rate", "", "95 % interval", "Ties", "Requests"]
FURTHER = ["Detectable", "Best of N"]
DISTANCES = {
    "diversity_base": "Diversity of base",
    "diversity_tuned": "of model",
    "moved": "Moved at equal seed",
    "seed_distance": "Seeds of base apart",
}
#: by used_for_pairs: what stands behind a judge's name, and its tag; None = nobody knows
BEHIND = {True: "", False: " (held-out judge)", None: " (unknown whether it was the training signal)"}
TAGS = {
    True: '<span class="tag">training signal</span>',
    False: '<span class="tag held">held out</span>',
    None: '<span class="tag">training signal: unknown</span>',
}
#: images of at most this many sets are shown; the tables hold all
GRIDS = 2


def results(store: Store) -> dict[str, dict[str, Any]]:
    """result.json by the evaluation's name."""
    paths = {name: store.eval(name) / "result.json" for name in store.names("eval")}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def outcome(found: dict[str, dict[str, Any]]) -> str:
    """One line per trained model for the top of the page: what each judge found."""
    lines = []
    for name, result in found.items():
        for set_name, models in result.get("sets", {}).items():
            for model, scorers in models.items():
                if not grids.is_variant(model) and scorers:
                    words = "; ".join(_finding(alias, row) for alias, row in scorers.items())
                    where = html.text(f"{name}, {set_name}", 80)
                    lines.append(
                        f'<li><b>{html.text(model, 60)}</b> <span class="quiet">({where})</span>: {words}</li>'
                    )
    return f'<ul class="outcome">{"".join(lines)}</ul>' if lines else ""


def _finding(alias: str, row: dict[str, Any]) -> str:
    judge = BEHIND[row.get("used_for_pairs")]
    rate = "" if row["win_rate"] is None else f", wins {row['win_rate']:.0%} of the time"
    return f"{_verdict(row['verdict'])} by {html.text(alias, 40)}{judge}{rate}"


def _verdict(word: str) -> str:
    return f'<span class="verdict {html.text(word.split()[0])}">{SIGNS.get(word, "")} {html.text(word)}</span>'


def evaluation(store: Store, found: dict[str, dict[str, Any]]) -> str:
    if not found:
        return html.section("evaluation", "Evaluation", html.missing("Nothing has been evaluated yet."))
    parts, shown = [], 0
    for name, result in found.items():
        parts.append(f"<h3>{html.text(name, 60)}</h3>{_caveats(result)}")
        for set_name, models in result.get("sets", {}).items():
            parts.append(f"<h3>{html.text(name, 60)} on {html.text(set_name, 60)}</h3>")
            parts.append(_table(models) if any(models.values()) else html.missing("No model was compared."))
            if shown < GRIDS:
                parts.append(grids.both(store.eval(name) / set_name, result, models))
            else:
                parts.append(html.missing("Images of this set are in the run folder."))
            shown += 1
    return html.section(
        "evaluation",
        "Evaluation",
        "".join(parts),
        "Base and tuned draw the same requests at the same seeds. The win rate is per request the mean over seeds, ties "
        "half; its interval is a bootstrap over requests. A judge that chose the pairs or was the reward is the training signal, "
        "so only a held-out judge counts as evidence; where pairs came from elsewhere and do not say what chose them, it is "
        "unknown which a judge is. Best of N: how many base samples one would have to draw and choose from.",
    )


def _table(models: dict[str, dict[str, Any]]) -> str:
    ordered = sorted(models, key=grids.is_variant)
    rows = [_row(model, alias, row) for model in ordered for alias, row in models[model].items()]
    return html.table([*HEAD, *FURTHER], rows, left=4) + _distances(models) + aspects.table(models)


def _row(model: str, alias: str, row: dict[str, Any]) -> list[str]:
    known = row["win_rate"] is not None
    reach = f"{row['ci_low']:.2f} to {row['ci_high']:.2f}" if known else "–"
    drawn = plot.interval(row["ci_low"], row["win_rate"], row["ci_high"]) if known else ""
    left_out = row.get("requests_left_out")
    missed = f'<br><span class="warn">{left_out:,} without</span>' if left_out else ""
    detectable = row["minimum_detectable"]
    resting = row.get("best_of_requests", row["n_requests"])
    partly = f'<br><span class="warn">of {resting:,} requests</span>' if resting < row["n_requests"] else ""
    return [
        f'<span class="name">{html.text(model, 40)}</span>',
        html.text(alias, 40),
        TAGS[row.get("used_for_pairs")],
        _verdict(row["verdict"]),
        html.number(row["base"]),
        html.number(row["tuned"]),
        f"{row['win_rate']:.2f}" if known else "–",
        drawn,
        reach,
        f"{row['tie_share']:.0%}" if known else "–",
        html.number(row["n_requests"]) + missed,
        "–" if detectable is None else f"±{detectable:.2f}",
        html.number(row["best_of_n"]) + partly,
    ]


def _distances(models: dict[str, dict[str, Any]]) -> str:
    """Diversity within the request beside the scores: one row per model, from any of its judges."""
    rows = []
    for model in sorted(models, key=grids.is_variant):
        row: dict[str, Any] = next(iter(models[model].values()), {})
        rows.append([html.text(model, 60), *(html.number(row.get(key)) for key in DISTANCES)])
    caption = "How much the images vary: root mean square over pixels of 32 x 32 versions, 0 to 1"
    return html.table(["Model", *DISTANCES.values()], rows, caption)


def _caveats(result: dict[str, Any]) -> str:
    """What the reader must know beside the table: missing controls, training prompts, correlated judges."""
    parts = []
    absent = result.get("controls", {}).get("missing", [])
    if absent:
        items = "".join(f"<li>{html.text(item)}</li>" for item in absent)
        parts.append(f'<div class="missing"><b>Controls that are missing</b><ul>{items}</ul></div>')
    for name, count in result.get("settings", {}).get("in_training", {}).items():
        if count:
            parts.append(f'<p class="warn">Prompts of {html.text(name, 60)} that are training prompts: {count:,}.</p>')
    if silent := result.get("settings", {}).get("training_unknown"):
        trained = html.text(", ".join(silent), 200)
        parts.append(
            f'<p class="warn">No record of what {trained} was trained on: further prompts may be training ones.</p>'
        )
    for alias, reason in result.get("left_out", {}).items():
        parts.append(f"<p>{html.text(alias, 40)} is left out: {html.text(reason)}.</p>")
    found = result.get("correlations", {})
    if len(found) > 1:
        names = list(found)
        parts.append(
            '<p class="quiet">Rank correlation of the judges on base images. A judge that follows the reward closely says little of its own.</p>'
        )
        parts.append(plot.matrix(names, [[found[a].get(b) for b in names] for a in names]))
    return "".join(parts)
