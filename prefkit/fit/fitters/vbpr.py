"""Users' tastes learned from their interactions with items, for the scorer vbpr.

Fits VBPR (He & McAuley, AAAI 2016) by Bayesian personalised ranking. The data are `interactions`, a table with the
columns user, item and optionally time, and visual features of each item: precomputed `features`, or an encoder's
embeddings of the folder `images` or of the column `image` (paths relative to the table) of the table `items`. For each
user with three items or more, the last item is held out for testing and the one before it for validation (without
`time`, two random items). Each epoch draws new negatives, uniformly from items outside the user's training items.

Metrics, with 95 % bootstrap intervals over users: `auc` on all test items, `auc_cold` on test items with at most `cold`
training interactions, and `auc_visual` of the visual terms alone, with which the scorer rates a generated image. A
user's AUC is the fraction of the user's unseen items that score below the held-out item; ties count as misses. The loss
sums over triples (user, item, negative); cornac's is broadcast to B x B terms if the batch size is above 1.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefkit.errors import UsageError
from prefkit.fit.options import check_positive

if TYPE_CHECKING:
    from prefkit.fit.interactions import Interactions


@dataclass(frozen=True)
class VbprFit:
    #: table (.csv, .jsonl, .parquet) with the columns user, item and optionally time (numbers or ISO dates)
    interactions: str = ""
    #: folder of images named ITEM.png (or .jpg, .webp)
    images: str = ""
    #: alternative: table with the columns item and image
    items: str = ""
    #: alternative: features, as .npy or .safetensors [N, D] next to a .txt file of the same name with one item id per
    #: line, or as .parquet with the columns item and features
    features: str = ""
    #: image encoder. open_clip: architecture, local-dir:FOLDER, hf-hub:owner/name or `tiny`;
    #: transformers: folder or Hub id. torchvision:NAME or timm:NAME: an image classifier, used up to its last layer.
    #: Required unless `features` is set
    encoder: str = ""
    #: weights of the encoder: a file for torchvision:NAME and timm:NAME, a tag or a file for an open_clip architecture
    pretrained: str | None = None
    #: library that loads the encoder: open_clip | transformers
    library: Literal["open_clip", "transformers"] = "open_clip"
    #: scaling of features: max (divide by the largest absolute value, as the paper's code) | unit (norm 1) | standard
    #: (mean 0, std 1) | none
    scaling: Literal["max", "unit", "standard", "none"] = "max"
    #: number of latent factors
    k: int = 10
    #: number of visual factors
    k2: int = 10
    learning_rate: float = 0.005
    batch_size: int = 256
    #: maximum number of epochs
    epochs: int = 100
    #: epochs without a better validation AUC before training stops
    patience: int = 10
    #: adam | sgd (the paper's, with a batch size of 1)
    optimizer: Literal["adam", "sgd"] = "adam"
    #: regularisation (lambda) of the factors gamma and theta
    reg_factors: float = 0.01
    #: regularisation of the item biases beta_i
    reg_bias: float = 0.01
    #: regularisation of the visual parameters E and beta', counted once per batch
    reg_visual: float = 0.0
    #: factor on reg_factors for a negative's gamma_j (0.1 in the paper's code)
    negative_factors: float = 1.0
    #: factor on reg_bias for a negative's beta_j (0.1 in cornac)
    negative_bias: float = 1.0
    #: maximum number of training interactions of a cold item
    cold: int = 5
    #: maximum number of users in each epoch's validation
    validation_users: int = 2000
    seed: int = 0
    #: folder to write; empty = fitted/vbpr
    out: str = ""

    def __post_init__(self) -> None:
        check_positive("vbpr", self, "k", "k2", "batch_size", "epochs", "patience")


class VbprFitter:
    Options = VbprFit

    def __init__(self, options: VbprFit) -> None:
        sources = [name for name in ("images", "items", "features") if getattr(options, name)]
        if len(sources) != 1:
            raise UsageError(
                f"vbpr: give one of --images, --items and --features, not {' and '.join(sources) or 'none'}."
            )
        if not options.encoder and not options.features:
            raise UsageError(
                "vbpr: --encoder is not set. Give an open_clip architecture with --pretrained, local-dir:FOLDER, "
                "hf-hub:owner/name or `tiny` (the embedded one); torchvision:NAME or timm:NAME with --pretrained FILE; "
                "with --library transformers, a folder or Hub id."
            )
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it already exists. Returns its spec."""
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
        encoder = Encoder(o.encoder, o.pretrained, library=o.library, needs_text=False) if o.encoder else None
        content = {"interactions": frame_digest(table), "features": source.digest()}
        folder = FitFolder("vbpr", o.out, o, content, describe(encoder) if encoder else None)
        present = folder.present()
        if present is not None:
            return present
        return self._fit(folder, split(table, source.items, o.seed), source, encoder)

    def _fit(self, folder: Any, data: Interactions, source: Any, encoder: Any) -> dict[str, Any]:
        from prefkit.fit.folder import save_tensors
        from prefkit.fit.vbpr_train import Regularisers, start, train

        o = self.options
        scaling, features = source.scaled(encoder, o.scaling)
        reg = Regularisers(o.reg_factors, o.reg_bias, o.reg_visual, o.negative_factors, o.negative_bias)
        net = start(len(data.users), len(data.items), features.shape[1], o.k, o.k2, o.seed)
        started = time.monotonic()
        best, course = train(net, features, data, reg, o)
        course["seconds_per_epoch"] = round((time.monotonic() - started) / course["epochs"], 3)
        results = {
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

        def save(temporary: Path) -> None:
            save_tensors(temporary, best.tensors() | {"feature_shift": scaling.shift})
            for name, ids in (("users", data.users), ("items", data.items)):
                (temporary / f"{name}.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")

        return folder.write(results, save)


def measured(net: Any, features: Any, data: Interactions, cold: int) -> dict[str, Any]:
    """Return the AUCs of the model and of its visual terms alone, on all test items and on cold ones."""
    import numpy as np

    from prefkit.fit.statistics import estimate
    from prefkit.fit.vbpr_train import auc

    counts = np.bincount(data.train[:, 1], minlength=len(data.items))
    rare = counts[data.test[:, 1]] <= cold
    full, visual = auc(net, features, data, data.test), auc(net, features, data, data.test, new=True)
    return {
        "auc_validation": estimate(auc(net, features, data, data.validation)),
        "auc": estimate(full),
        "auc_cold": estimate(full[rare]),
        "auc_visual": estimate(visual),
        "auc_visual_cold": estimate(visual[rare]),
    }


plugin = VbprFitter
