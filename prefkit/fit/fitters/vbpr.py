"""Whose taste is what: users' interactions with items -> user x item compatibility, for the scorer vbpr.

Bayesian personalised ranking of VBPR (He & McAuley, AAAI 2016) on `interactions`, a table of user, item and perhaps
time, and each item's visual features: embedded from `images` (FOLDER/ITEM.png, or the column `image` of the table `items`,
paths from that table's folder) by an encoder, or given as `features` that this encoder has made. Each user's last item is held
out for testing and the one before for validation (without `time`, two by chance), of users with three items or more.
Negatives are uniform over what is not among the user's training positives, drawn anew each epoch.

Reported: AUC (the mean over users of the share of items outside the user's sets that score below the held-out one; ties
count against) on all held-out test items and on cold ones (at most `cold` training interactions), with 95 % bootstrap
intervals over users; and `visual`, the same by the visual terms alone, which is what a generated image is scored by.
The loss is summed a triple, as it should be: cornac's broadcasts to B x B at any batch size above 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefkit.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from prefkit.fit.interactions import Interactions


@dataclass(frozen=True)
class VbprFit:
    #: table (.csv, .jsonl, .parquet) with the columns user, item and perhaps time (numbers or ISO dates)
    interactions: str = ""
    #: folder of images called ITEM.png (.jpg, .webp)
    images: str = ""
    #: or: table with the columns item and image
    items: str = ""
    #: or: features as .npy or .safetensors ([N, D]; ids in a file of the same name ending in .txt, an id a line), or .parquet
    #: with the columns item and features
    features: str = ""
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny; transformers: folder or Hub id. Needed for images
    encoder: str = ""
    #: open_clip tag or path of a checkpoint, where the encoder is an architecture
    pretrained: str | None = None
    #: open_clip | transformers
    library: Literal["open_clip", "transformers"] = "open_clip"
    #: max (divided by the largest, as the paper's program does) | unit | standard (minus the mean, divided by the deviation) | none
    scaling: Literal["max", "unit", "standard", "none"] = "max"
    #: latent factors
    k: int = 10
    #: visual factors
    k2: int = 10
    learning_rate: float = 0.005
    batch_size: int = 256
    #: at most
    epochs: int = 100
    #: epochs without a better validation AUC before it stops
    patience: int = 10
    #: adam | sgd (the paper's, with a batch size of 1)
    optimizer: Literal["adam", "sgd"] = "adam"
    #: lambda of gamma and theta
    reg_factors: float = 0.01
    #: lambda of beta_i
    reg_bias: float = 0.01
    #: lambda of E and beta', once a batch
    reg_visual: float = 0.0
    #: share of reg_factors that a negative's gamma_j bears (0.1 in the paper's program)
    negative_factors: float = 1.0
    #: share of reg_bias that a negative's beta_j bears (0.1 in cornac)
    negative_bias: float = 1.0
    #: items with at most so many training interactions are cold
    cold: int = 5
    #: users on whom each epoch is validated, at most
    validation_users: int = 2000
    seed: int = 0
    #: folder to write; empty = fitted/vbpr
    out: str = ""

    def __post_init__(self) -> None:
        if min(self.k, self.k2, self.batch_size, self.epochs, self.patience) < 1:
            raise UsageError("vbpr: k, k2, batch_size, epochs and patience must be at least 1.")


class VbprFitter:
    Options = VbprFit

    def __init__(self, options: VbprFit) -> None:
        given = [name for name in ("images", "items", "features") if getattr(options, name)]
        if len(given) != 1:
            raise UsageError(
                f"vbpr: give one of --images, --items and --features, not {' and '.join(given) or 'none'}."
            )
        if not options.encoder and not options.features:
            raise UsageError(
                "vbpr: which encoder shall look at the images? Set --encoder (with --pretrained), or tiny."
            )
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it is there. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.interactions import split
        from prefkit.fit.item_features import Source
        from prefkit.fit.tables import frame_digest, read_table
        from prefkit.score.embed.encoder import Encoder
        from prefkit.score.fitted import describe

        o = self.options
        needed = ("user", "item")
        table = read_table("vbpr.interactions", o.interactions, needed, ids=needed, optional=("time",))
        source = Source.find(o, table)
        encoder = Encoder(o.encoder, o.pretrained, library=o.library) if o.encoder else None
        made = {"interactions": frame_digest(table), "features": source.digest()}
        folder = FitFolder("vbpr", o.out, o, made, describe(encoder) if encoder else None)
        present = folder.present()
        if present is not None:
            return present
        data = split(table, source.items, o.seed)
        return self._fit(folder, data, table, source, encoder)

    def _fit(self, folder: Any, data: Interactions, table: pd.DataFrame, source: Any, encoder: Any) -> dict[str, Any]:
        import time

        from prefkit.fit.folder import save_tensors
        from prefkit.fit.vbpr_train import Regularisers, start, train

        o = self.options
        scaling, features = source.scaled(encoder, o.scaling)
        reg = Regularisers(o.reg_factors, o.reg_bias, o.reg_visual, o.negative_factors, o.negative_bias)
        net = start(len(data.users), len(data.items), features.shape[1], o.k, o.k2, o.seed)
        begun = time.monotonic()
        best, course = train(net, features, data, reg, o)
        course["seconds_per_epoch"] = round((time.monotonic() - begun) / course["epochs"], 3)
        found = {
            "features": {"unit": scaling.unit, "factor": scaling.factor, "width": features.shape[1]},
            "counts": {
                "users": len(data.users),
                "items": len(data.items),
                "interactions": len(data.train) + len(data.validation) + len(data.test),
                "train": len(data.train),
            },
            "training": course,
            "validation": measured(best, features, data, o.cold),
        }

        def save(hidden: Path) -> None:
            import json

            save_tensors(hidden, best.tensors() | {"feature_shift": scaling.shift})
            (hidden / "users.json").write_text(json.dumps(data.users, ensure_ascii=False), encoding="utf-8")
            (hidden / "items.json").write_text(json.dumps(data.items, ensure_ascii=False), encoding="utf-8")

        return folder.write(found, save)


def measured(net: Any, features: Any, data: Interactions, cold: int) -> dict[str, Any]:
    """AUC on the test items, all and cold, of the whole model and of its visual terms alone."""
    import numpy as np

    from prefkit.fit.estimate import estimate
    from prefkit.fit.vbpr_train import auc

    often = np.bincount(data.train[:, 1], minlength=len(data.items))
    rare = often[data.test[:, 1]] <= cold
    full, visual = auc(net, features, data, data.test), auc(net, features, data, data.test, new=True)
    return {
        "auc_validation": estimate(auc(net, features, data, data.validation)),
        "auc": estimate(full),
        "auc_cold": estimate(full[rare]),
        "auc_visual": estimate(visual),
        "auc_visual_cold": estimate(visual[rare]),
    }


plugin = VbprFitter
