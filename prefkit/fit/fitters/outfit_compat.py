"""Outfit compatibility learned from a table of outfits, for the scorer outfit_compat.

`outfits` is a table with the columns outfit, image, category and optionally item and split; image paths are relative
to the table's folder. The head (FashionDPO's, arXiv 2504.12900, section 4.2) is trained on embeddings of a frozen
encoder. Each epoch blanks a random item of every outfit and compares it with a random item of the same category that
is not in the outfit. Outfits with fewer than two items are left out and counted.

Metrics on test outfits, with 95 % bootstrap intervals over outfits: `fitb` (fill in the blank) is the fraction of
outfits whose blanked item scores above `choices` - 1 other items of its category (chance: 1 / `choices`). `auc` uses
up to 100 such items. Each outfit is in one split; an item may be in outfits of several splits. The docstring
of the scorer outfit_compat lists the five defects of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prefkit.errors import UsageError
from prefkit.fit.options import check_fractions, check_positive


@dataclass(frozen=True)
class OutfitCompatFit:
    #: .csv, .jsonl or .parquet with the columns outfit, image, category and optionally item, split
    outfits: str = ""
    #: encoder; open_clip: architecture, local-dir:FOLDER, hf-hub:owner/name, or `tiny`; transformers: folder or Hub id;
    #: torchvision:NAME or timm:NAME: an image classifier, used up to its last layer
    encoder: str = ""
    #: weights of the encoder: a file for torchvision:NAME and timm:NAME, a tag or a file for an open_clip architecture
    pretrained: str | None = None
    #: library that loads the encoder: open_clip | transformers
    library: Literal["open_clip", "transformers"] = "open_clip"
    #: pooling of an outfit's other items: embeddings (mean, then the layers h, as published) | heads (h, then mean)
    pool: Literal["embeddings", "heads"] = "heads"
    hidden: int = 128
    width: int = 64
    learning_rate: float = 0.003
    weight_decay: float = 0.0001
    batch_size: int = 64
    #: maximum number of epochs
    epochs: int = 200
    #: epochs without a better validation AUC before training stops
    patience: int = 20
    #: number of choices in fill-in-the-blank, including the true item
    choices: int = 4
    #: fraction of outfits for validation, if the table has no column split
    validation_share: float = 0.1
    #: fraction of outfits for testing, if the table has no column split
    test_share: float = 0.1
    seed: int = 0
    #: folder to write; empty = fitted/outfit_compat
    out: str = ""

    def __post_init__(self) -> None:
        check_positive("outfit_compat", self, "hidden", "width", "batch_size", "epochs", "patience")
        check_fractions("outfit_compat", self)
        if not 2 <= self.choices <= 101:
            raise UsageError("outfit_compat: choices must be from 2 to 101.")


class OutfitCompatFitter:
    Options = OutfitCompatFit

    def __init__(self, options: OutfitCompatFit) -> None:
        if not options.encoder:
            raise UsageError(
                "outfit_compat: --encoder is not set. Give an open_clip architecture with --pretrained, "
                "local-dir:FOLDER, hf-hub:owner/name or `tiny` (the embedded one); torchvision:NAME or timm:NAME with "
                "--pretrained FILE; with --library transformers, a folder or Hub id."
            )
        self.options = options

    def run(self) -> dict[str, Any]:
        """Fit and write the folder, unless it already exists. Returns its spec."""
        from prefkit.fit.folder import FitFolder
        from prefkit.fit.outfits import read_outfits
        from prefkit.fit.tables import files_digest, frame_digest, named_files, read_table
        from prefkit.score.embed.encoder import Encoder
        from prefkit.score.fitted import describe

        o = self.options
        columns, ids = ("outfit", "image", "category"), ("outfit", "category", "item")
        table = read_table("outfit_compat.outfits", o.outfits, columns, ids, optional=("split",))
        catalogue, splits, short = read_outfits(table, (o.validation_share, o.test_share))
        files = named_files("outfit_compat.outfits", o.outfits, catalogue.files)
        encoder = Encoder(o.encoder, o.pretrained, library=o.library, needs_text=False)
        data = {"outfits": frame_digest(table), "images": files_digest(files)}
        folder = FitFolder("outfit_compat", o.out, o, data, describe(encoder))
        present = folder.present()
        return present if present is not None else self._fit(folder, catalogue, splits, short, files, encoder)

    def _fit(self, folder: Any, catalogue: Any, splits: Any, short: int, files: Any, encoder: Any) -> dict[str, Any]:
        import torch

        from prefkit.distributed import device_of
        from prefkit.fit.folder import save_tensors
        from prefkit.fit.outfits import measure, train
        from prefkit.fit.statistics import estimate
        from prefkit.fit.tables import embed
        from prefkit.score.embed.outfit_head import OutfitHead

        o = self.options
        features = embed(encoder, files, device_of(None), normalize=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(o.seed)
            head = OutfitHead(features.shape[1], o.hidden, o.width, o.pool)
        head, course = train(head, features, catalogue, splits, o)
        auc, hit = measure(head, features, catalogue, splits["test"], o.choices, o.seed)
        auc_validation, _ = measure(head, features, catalogue, splits["validation"], o.choices, o.seed)
        results = {
            "head": {"pool": o.pool, "hidden": o.hidden, "width": o.width},
            "counts": {"items": len(files), "categories": len(catalogue.of), "left_out": short}
            | {f"{split}_outfits": len(rows) for split, rows in splits.items()},
            "training": course,
            "validation": {
                "auc_validation": estimate(auc_validation),
                "auc": estimate(auc),
                "fitb": estimate(hit),
                "fitb_chance": 1 / o.choices,
            },
        }
        return folder.write(results, lambda temporary: save_tensors(temporary, head.state_dict()))


plugin = OutfitCompatFitter
