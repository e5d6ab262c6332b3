"""BERTScore recall (Zhang et al., arXiv 1904.09675, eq. 1) on any encoder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError


class BertScore:
    """layer: which hidden state is compared, counted from the embeddings (0); the published package takes 40 for
    microsoft/deberta-xlarge-mnli and 17 for roberta-large. None: the last."""

    def __init__(self, model: str, layer: int | None, longest: int = 512) -> None:
        self.name, self.layer, self.longest = model, layer, longest

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError for what is no encoder, and for a layer that it does not have."""
        import transformers

        from prefkit.models.load.pipeline import silence_bars
        from prefkit.models.precision import dtype_of

        silence_bars()
        found = Path(self.name).expanduser()
        source = str(found) if found.exists() else self.name
        tokenizers: Any = transformers.AutoTokenizer
        try:
            self.tokenizer = tokenizers.from_pretrained(source)
            self.model: Any = transformers.AutoModel.from_pretrained(
                source, dtype=dtype_of(dtype), use_safetensors=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"{self.name} could not be loaded as a text encoder: {text}") from error
        layers = self.model.config.num_hidden_layers
        if self.layer is not None and not 0 <= self.layer <= layers:
            raise UsageError(f"{self.name} has hidden states 0 to {layers}, not {self.layer}.")
        self.model.to(device).eval()
        self.device = device

    def recall(self, references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Per pair the mean, over the reference's tokens, of the best cosine with a token of the candidate.

        As published without idf: the marks at both ends are no tokens of the reference, but can be matched.
        """
        import torch

        texts = [*references, *candidates]
        inputs = self.tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_special_tokens_mask=True,
        ).to(self.device)
        special = inputs.pop("special_tokens_mask").bool()
        there = inputs["attention_mask"].bool()
        with torch.inference_mode():
            states = self.model(**inputs, output_hidden_states=True).hidden_states[
                -1 if self.layer is None else self.layer
            ]
            unit = torch.nn.functional.normalize(states.float(), dim=-1)
            n = len(references)
            cosines = unit[:n] @ unit[n:].transpose(1, 2)  # [N, reference tokens, candidate tokens]
            best = cosines.masked_fill(~there[n:, None, :], -1).amax(-1)
            counts = (there & ~special)[:n].double()
            return ((best.double() * counts).sum(-1) / counts.sum(-1)).tolist()
