"""BERTScore recall (Zhang et al., arXiv 1904.09675, eq. 1) with any text encoder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError


class BertScore:
    """BERTScore on the encoder's hidden state number `layer`: 0 is the embeddings, None the last state.

    The published package uses layer 40 of microsoft/deberta-xlarge-mnli and layer 17 of roberta-large. For RoBERTa and
    GPT-2 with transformers 4, the published package puts a space before each text; this class never does.
    """

    def __init__(self, model: str, layer: int | None, longest: int = 512) -> None:
        self.name, self.layer, self.longest = model, layer, longest

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the model is not a text encoder or has no such layer."""
        import transformers

        from prefkit.models.load.pipeline import silence_bars
        from prefkit.models.precision import dtype_of

        silence_bars()
        path = Path(self.name).expanduser()
        source = str(path) if path.exists() else self.name
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
            raise UsageError(f"{self.name} has hidden states 0 to {layers}, not {self.layer}. Change `layer`.")
        self.model.to(device).eval()
        self.device = device

    def recall(self, references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Return one recall per pair: the mean, over the reference's tokens, of the best cosine with a candidate token.

        As in the published variant without idf, special tokens are left out of the reference, but not of the candidate.
        Spaces around a text are removed. The value is 0 if one of the two texts is empty.
        """
        import torch

        texts = [text.strip() for text in (*references, *candidates)]
        inputs = self.tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_special_tokens_mask=True,
        ).to(self.device)
        special = inputs.pop("special_tokens_mask").bool()
        mask = inputs["attention_mask"].bool()
        with torch.inference_mode():
            states = self.model(**inputs, output_hidden_states=True).hidden_states[
                -1 if self.layer is None else self.layer
            ]
            unit = torch.nn.functional.normalize(states.float(), dim=-1)
            n = len(references)
            cosines = unit[:n] @ unit[n:].transpose(1, 2)  # [N, reference tokens, candidate tokens]
            best = cosines.masked_fill(~mask[n:, None, :], -1).amax(-1)
            words = (mask & ~special).double()
            empty = (words[:n].sum(-1) == 0) | (words[n:].sum(-1) == 0)
            recall = (best.double() * words[:n]).sum(-1) / words[:n].sum(-1)
            return recall.masked_fill(empty, 0.0).tolist()
