"""What goes with what: outfits -> compatibility of an item with the others, for the scorer outfit_compat.

`outfits` is a table of outfit, image, category and perhaps item and split; image paths start at the table's folder. The head
(FashionDPO's, arXiv 2504.12900, section 4.2) is fitted on the embeddings of one frozen encoder, and the folder names that
encoder. Each epoch blanks one existing item of every outfit and sets it against an item of the same category
that is not in the outfit, both drawn anew. Outfits of fewer than two items are left out and counted.

Reported on test outfits, with 95 % bootstrap intervals over outfits: `fitb`, how often the blank's own item scores above
`choices` - 1 others of its category (chance 1 / `choices`), and `auc` against up to 100 of them. Items may be in outfits of
several splits, outfits are not. The scorer's docstring lists the five defects of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prefkit.errors import UsageError


@dataclass(frozen=True)
class OutfitCompatFit:
    #: .csv, .jsonl or .parquet with the columns outfit, image, category and perhaps item, split
    outfits: str = ""
    #: open_clip architecture, local-dir:FOLDER, hf-hub:owner/name, or tiny; transformers: folder or Hub id
    encoder: str = ""
    #: open_clip tag or path of a checkpoint, where the encoder is an architecture
    pretrained: str | None = None
    #: open_clip | transformers
    library: Literal["open_clip", "transformers"] = "open_clip"
    #: embeddings (h of the others' mean, as published) | heads (mean of the others' h)
    pool: Literal["embeddings", "heads"] = "heads"
    hidden: int = 128
    width: int = 64
    learning_rate: float = 0.003
    weight_decay: float = 0.0001
    batch_size: int = 64
    #: at most
    epochs: int = 200
    #: epochs without a better validation AUC before it stops
    patience: int = 20
    #: of fill-in-the-blank, the truth among them
    choices: int = 4
    #: share of outfits held out for validation, where the table has no column split
    validation_share: float = 0.1
    #: share of outfits held out for testing
    test_share: float = 0.1
    seed: int = 0
    #: folder to write; empty = fitted/outfit_compat
    out: str = ""

    def __post_init__(self) -> None:
        if (
            min(self.hidden, self.width, self.batch_size, self.epochs, self.patience) < 1
            or not 2 <= self.choices <= 101
        ):
            raise UsageError(
                "outfit_compat: hidden, width, batch_size, epochs, patience from 1; choices from 2 to 101."
            )
        if min(self.validation_share, self.test_share) <= 0 or self.validation_share + self.test_share >= 1:
            raise UsageError("outfit_compat: validation_share and test_share must be above 0, together below 1.")


class OutfitCompatFitter:
    Options = OutfitCompatFit

    def __init__(self, options: OutfitCompatFit) -> None:
        if not options.encoder:
            raise UsageError(
                "outfit_compat: which encoder shall look at the images? Set --encoder (with --pretrained), or tiny."
            )
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it is there. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.outfits import read_outfits
        from prefkit.fit.tables import files_digest, frame_digest, named_files, read_table
        from prefkit.score.embed.encoder import Encoder
        from prefkit.score.fitted import describe

        o = self.options
        table = read_table(
            "outfit_compat.outfits",
            o.outfits,
            ("outfit", "image", "category"),
            ids=("outfit", "category", "item"),
            optional=("split",),
        )
        catalogue, splits, short = read_outfits(table, (o.validation_share, o.test_share))
        files = named_files("outfit_compat.outfits", o.outfits, catalogue.files)
        encoder = Encoder(o.encoder, o.pretrained, library=o.library)
        made = {"outfits": frame_digest(table), "images": files_digest(files)}
        folder = FitFolder("outfit_compat", o.out, o, made, describe(encoder))
        present = folder.present()
        if present is not None:
            return present
        return self._fit(folder, catalogue, splits, short, files, encoder)

    def _fit(self, folder: Any, catalogue: Any, splits: Any, short: int, files: Any, encoder: Any) -> dict[str, Any]:
        import torch

        from prefkit.distributed import device_of
        from prefkit.fit.estimate import estimate
        from prefkit.fit.folder import save_tensors
        from prefkit.fit.outfits import measure, train
        from prefkit.fit.tables import embed
        from prefkit.score.embed.outfit_head import OutfitHead

        o = self.options
        features = embed(encoder, files, device_of(None), normalize=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(o.seed)
            head = OutfitHead(features.shape[1], o.hidden, o.width, o.pool)
        head, course = train(head, features, catalogue, splits, o)
        auc, hit = measure(head, features, catalogue, splits["test"], o.choices, o.seed)
        seen, _ = measure(head, features, catalogue, splits["validation"], o.choices, o.seed)
        found = {
            "head": {"pool": o.pool, "hidden": o.hidden, "width": o.width},
            "counts": {"items": len(files), "categories": len(catalogue.of), "left_out": short}
            | {f"{split}_outfits": len(rows) for split, rows in splits.items()},
            "training": course,
            "validation": {
                "auc_validation": estimate(seen),
                "auc": estimate(auc),
                "fitb": estimate(hit),
                "fitb_chance": 1 / o.choices,
            },
        }
        return folder.write(found, lambda hidden: save_tensors(hidden, head.state_dict()))


plugin = OutfitCompatFitter
