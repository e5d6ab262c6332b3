"""Parquet for verl-omni's offline DPO: one pair per row, with SD3 latents and prompt embeddings from --model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.hub.importing.image_check import suffix_of
from prefkit.hub.pair_reader import PairOut, Pairs
from prefkit.hub.shards import BySplit
from prefkit.images import rgb
from prefkit.store.parquet import Shards
from prefkit.types import digest

if TYPE_CHECKING:
    import pyarrow as pa

TENSORS = ("img_win_latents", "img_lose_latents", "prompt_embeds", "prompt_embeds_mask", "pooled_prompt_embeds",
           "negative_prompt_embeds", "negative_prompt_embeds_mask", "negative_pooled_prompt_embeds")  # fmt: skip


@dataclass(frozen=True)
class VerlOptions:
    #: folder or Hub id of the Stable Diffusion 3 model whose VAE and text encoders compute the tensors
    model: str = ""
    #: height at which the images are encoded
    height: int = 512
    #: width at which the images are encoded
    width: int = 512
    #: the negative prompt to train with
    negative_prompt: str = " "
    #: maximum number of tokens for the T5 text encoder
    max_sequence_length: int = 256
    #: device that runs the model
    device: str = "cpu"
    #: dtype of the model: float32, bfloat16 or float16
    dtype: str = "float32"
    #: the system message of the chat-style prompt
    system: str = "You are a helpful image generation assistant."


class Verl:
    """Writes Parquet shards, and the images next to them, because verl reads paths relative to the Parquet file."""

    Options = VerlOptions

    def __init__(self, options: VerlOptions) -> None:
        if not options.model:
            raise UsageError("export --as verl needs --model: the folder or Hub id of a Stable Diffusion 3 model.")
        if options.dtype not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"export --as verl: --dtype {options.dtype} is not one of float32, bfloat16, float16.")
        self.options = options

    def write(self, pairs: Pairs, out: Path) -> dict[str, Any]:
        encode = Encoder(self.options)
        schema = _schema()
        writers = BySplit(lambda split: Shards(out, schema, f"{split}-"))
        for pair in pairs.rows():
            names = []
            for side, data in (("win", pair.win), ("lose", pair.lose)):
                path = out / "images" / pair.split / f"{pair.number:07d}_{side}{suffix_of(data)}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                names.append(path.relative_to(out).as_posix())
            writers[pair.split].put(self._row(pair, names) | encode(pair))
        counts = writers.close()
        return {"pairs": sum(counts.values()), **counts}

    def _row(self, pair: PairOut, names: list[str]) -> dict[str, Any]:
        def chat(text: str) -> list[dict[str, str]]:
            return [{"role": "system", "content": self.options.system}, {"role": "user", "content": text}]

        info = {"split": pair.split, "index": pair.number, "raw_prompt": pair.caption}
        return {
            "uid": digest(pair.uid(True), pair.uid(False), pair.caption, pair.number),
            "data_source": "prefkit",
            "prompt": chat(pair.caption),
            "negative_prompt": chat(self.options.negative_prompt),
            "img_win": names[0],
            "img_lose": names[1],
            # verl requires win_score >= lose_score; only their difference has a meaning
            "win_score": float(pair.columns.get("score_gap") or 1.0),
            "lose_score": 0.0,
            "reward_model": {"style": "model", "ground_truth": pair.caption},
            "extra_info": info | {"raw_negative_prompt": self.options.negative_prompt},
        }


class Encoder:
    """Encodes a pair as tensors, serialized by torch.save; verl loads them with weights_only."""

    def __init__(self, options: VerlOptions) -> None:
        import torch
        from diffusers import StableDiffusion3Pipeline

        self.options = options
        try:
            pipe = StableDiffusion3Pipeline.from_pretrained(
                options.model, transformer=None, torch_dtype=getattr(torch, options.dtype)
            )
        except Exception as error:  # diffusers raises its own, the Hub's and the network's errors
            text = " ".join(str(error).split())[:200]
            where = f"export --as verl: {options.model} could not be loaded as Stable Diffusion 3"
            raise UsageError(f"{where}: {text}") from error
        self.pipe = pipe.to(options.device)
        self.prompt = lru_cache(64)(self._prompt)

    def __call__(self, pair: PairOut) -> dict[str, bytes]:
        return {
            "img_win_latents": self._latents(pair.win, f"export: the winner of pair {pair.number}"),
            "img_lose_latents": self._latents(pair.lose, f"export: the loser of pair {pair.number}"),
            **self.prompt(pair.caption),
        }

    def _latents(self, data: bytes, where: str) -> bytes:
        """Return the mode of the VAE's posterior, shifted and scaled as the transformer expects it: [C, h, w]."""
        import torch

        pixels = self.pipe.image_processor.preprocess([rgb(data)], self.options.height, self.options.width)
        vae = self.pipe.vae
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()[0]
        if not latents.isfinite().all():
            raise UsageError(f"{where}: the latents are not finite. Use another --dtype, such as bfloat16 or float32.")
        return _saved((latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor)

    def _prompt(self, text: str) -> dict[str, bytes]:
        import torch

        with torch.no_grad():
            tensors = self.pipe.encode_prompt(
                prompt=[text], prompt_2=None, prompt_3=None, device=self.options.device,
                do_classifier_free_guidance=True, negative_prompt=[self.options.negative_prompt],
                max_sequence_length=self.options.max_sequence_length,
            )  # fmt: skip
        embeds, negative, pooled, negative_pooled = (tensor[0] for tensor in tensors)
        return {
            "prompt_embeds": _saved(embeds), "prompt_embeds_mask": _saved(torch.ones(len(embeds), dtype=torch.int32)),
            "pooled_prompt_embeds": _saved(pooled), "negative_prompt_embeds": _saved(negative),
            "negative_prompt_embeds_mask": _saved(torch.ones(len(negative), dtype=torch.int32)),
            "negative_pooled_prompt_embeds": _saved(negative_pooled),
        }  # fmt: skip


def _saved(tensor: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(tensor.detach().cpu().contiguous().clone(), out)
    return out.getvalue()


def _schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    chat = pa.list_(pa.struct([("role", text), ("content", text)]))
    info = pa.struct([("split", text), ("index", pa.int64()), ("raw_prompt", text), ("raw_negative_prompt", text)])
    scores = [("win_score", pa.float64()), ("lose_score", pa.float64())]
    names = [("uid", text), ("data_source", text), ("prompt", chat), ("negative_prompt", chat), ("img_win", text),
             ("img_lose", text), *scores, ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
             ("extra_info", info)]  # fmt: skip
    return pa.schema([*names, *((name, pa.binary()) for name in TENSORS)])


plugin = Verl
