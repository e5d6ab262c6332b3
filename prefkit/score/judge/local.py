"""Judge back end for a local image-text-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit import tiny
from prefkit.errors import UsageError
from prefkit.score.judge.question import JudgeOptions, Question, Reply, reads_as
from prefkit.types import digest

if TYPE_CHECKING:
    import torch


class LocalBackend:
    retries = False
    concurrency = 1
    batch: int | None = None

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self.ids: dict[tuple[str, ...], list[torch.Tensor]] = {}
        path = tiny.JUDGE if options.model == tiny.NAME else Path(options.model).expanduser()
        self.folder = path if path.exists() else None  # None for a Hub id

    def close(self) -> None:
        """Do nothing: a local model has no pending requests."""

    def about(self) -> dict[str, Any]:
        from prefkit.models.load.revision import weights_revision

        o, path = self.options, self.folder
        return {
            "weights": path.name if path and o.model != tiny.NAME else o.model,
            "revision": weights_revision(path) if path else weights_revision(o.model, o.revision),
            "preprocessing": "RGB; the model's own processor (Pillow) and chat template",
        }

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError if the model is not an image-text-to-text model or has no chat template."""
        import transformers

        from prefkit.models.load.pipeline import silence_bars
        from prefkit.models.precision import dtype_of

        silence_bars()
        o = self.options
        source = str(self.folder or o.model)
        options: dict[str, Any] = {"revision": o.revision, "trust_remote_code": o.trust_remote_code}
        processors: Any = transformers.AutoProcessor
        models: Any = transformers.AutoModelForImageTextToText
        try:
            self.processor: Any = processors.from_pretrained(source, **options)
            # `backend` for the whole processor would also apply to its video processor, which needs torchvision
            self.processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                source, backend="pil", **options
            )
            self.model: Any = models.from_pretrained(source, dtype=dtype_of(dtype), use_safetensors=True, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"{o.model} could not be loaded as an image-text-to-text model: {text}") from error
        tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or tokenizer.chat_template):
            raise UsageError(f"{o.model} has no chat template; a judge needs a chat model.")
        tokenizer.padding_side = "left"  # the next token must be the last position of every row
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model.to(device).eval()
        self.device = device

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        """Raises UsageError if a label is not a single token of the model."""
        import torch

        ids = self._label_ids(tuple(labels))
        with torch.inference_mode():
            logits = self.model(**self._inputs(questions), logits_to_keep=1).logits[:, -1]
            probabilities = logits.float().log_softmax(-1).double().exp()
            rows = torch.stack([probabilities[:, tokens].sum(-1) for tokens in ids], dim=1).tolist()
        return [Reply(masses=tuple(row)) for row in rows]

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """Answer the questions. Sampled answers do not depend on the batch: each question has its own seed and call."""
        if schema is not None:
            raise UsageError("a local model cannot follow a JSON schema; set `answer: text`, or use a server.")
        if temperature == 0:
            return [Reply(text) for text in self._generate(questions, max_tokens, do_sample=False)]
        import torch

        replies = []
        for question in questions:
            parts = [part if isinstance(part, str) else part.id for part in question.parts]
            with torch.random.fork_rng([self.device] if self.device.startswith("cuda") else []):
                torch.manual_seed(int(digest(parts, question.attempt, length=12), 16))
                sampled = self._generate([question], max_tokens, do_sample=True, temperature=temperature, top_k=0)
            replies.append(Reply(sampled[0]))
        return replies

    def _generate(self, questions: Sequence[Question], max_tokens: int, **sampling: Any) -> list[str]:
        import torch

        inputs, tokenizer = self._inputs(questions), self.processor.tokenizer
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(new, skip_special_tokens=True))

    def _inputs(self, questions: Sequence[Question]) -> Any:
        def content(part: Any) -> dict[str, Any]:
            return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.pil()}

        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": [content(part) for part in question.parts]}] for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        return inputs.to(self.device, self.model.dtype)

    def _label_ids(self, labels: tuple[str, ...]) -> list[torch.Tensor]:
        """Return, for each label, the ids of all tokens that spell it (`reads_as`)."""
        import torch

        if labels not in self.ids:
            tokenizer = self.processor.tokenizer
            words = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
            ids = [[i for i, word in enumerate(words) if reads_as(word, label)] for label in labels]
            missing = [label for label, tokens in zip(labels, ids) if not tokens]
            if missing:
                raise UsageError(
                    f"{', '.join(missing)} is not a single token of {self.options.model}: use levels of one token each "
                    "(digits, or short words), or `answer: text`."
                )
            self.ids[labels] = [torch.tensor(tokens, device=self.device) for tokens in ids]
        return self.ids[labels]
