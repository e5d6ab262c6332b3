"""A judge loaded here: any image-text-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    def close(self) -> None:
        """Nothing is ever under way elsewhere."""

    def about(self) -> dict[str, Any]:
        from prefkit.models.load.revision import weights_revision

        return {
            "weights": self.options.model if not Path(self.options.model).exists() else Path(self.options.model).name,
            "revision": weights_revision(Path(self.options.model).expanduser())
            if Path(self.options.model).expanduser().exists()
            else weights_revision(self.options.model, self.options.revision),
            "preprocessing": "RGB; the model's own processor (Pillow) and chat template",
        }

    def load(self, device: str, dtype: str) -> None:
        """Raises UsageError where this is no image-text-to-text model, or it has no chat template."""
        import transformers

        from prefkit.models.load.pipeline import silence_bars
        from prefkit.models.precision import dtype_of

        silence_bars()
        o = self.options
        found = Path(o.model).expanduser()
        source = str(found) if found.exists() else o.model
        given: dict[str, Any] = {"revision": o.revision, "trust_remote_code": o.trust_remote_code}
        auto: Any = transformers.AutoProcessor
        try:
            self.processor: Any = auto.from_pretrained(source, **given)
            # asked of the whole processor, backend would also be asked of its part for videos, which has torchvision only
            self.processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                source, backend="pil", **given
            )
            models: Any = transformers.AutoModelForImageTextToText
            self.model: Any = models.from_pretrained(source, dtype=dtype_of(dtype), use_safetensors=True, **given)
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(f"{o.model} could not be loaded as an image-text-to-text model: {text}") from error
        tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or tokenizer.chat_template):
            raise UsageError(f"{o.model} has no chat template; a judge is a model that can be asked.")
        tokenizer.padding_side = "left"  # the next token must be the last position of every row
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model.to(device).eval()
        self.device = device

    def masses(self, questions: Sequence[Question], labels: Sequence[str]) -> list[Reply]:
        """Raises UsageError for a label that is no single token of the model."""
        import torch

        ids = self._label_ids(tuple(labels))
        with torch.inference_mode():
            logits = self.model(**self._inputs(questions), logits_to_keep=1).logits[:, -1]
            shares = logits.float().log_softmax(-1).double().exp()
            rows = torch.stack([shares[:, own].sum(-1) for own in ids], dim=1).tolist()
        return [Reply(masses=tuple(row)) for row in rows]

    def texts(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """Sampled one by one with a seed of the question, so that an answer does not depend on its batch."""
        if schema is not None:
            raise UsageError(
                "a model loaded here cannot be held to a JSON schema; set `answer: text`, or use a server."
            )
        if temperature == 0:
            return [Reply(text) for text in self._generate(questions, max_tokens, do_sample=False)]
        import torch

        replies = []
        for question in questions:
            shown = [part if isinstance(part, str) else part.id for part in question.parts]
            devices = [self.device] if self.device.startswith("cuda") else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(int(digest(shown, question.attempt, length=12), 16))
                sampled = self._generate([question], max_tokens, do_sample=True, temperature=temperature, top_k=0)
            replies.append(Reply(sampled[0]))
        return replies

    def _generate(self, questions: Sequence[Question], max_tokens: int, **how: Any) -> list[str]:
        import torch

        inputs = self._inputs(questions)
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, max_new_tokens=max_tokens, pad_token_id=self.processor.tokenizer.pad_token_id, **how
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.tokenizer.batch_decode(new, skip_special_tokens=True))

    def _inputs(self, questions: Sequence[Question]) -> Any:
        talks = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": part}
                        if isinstance(part, str)
                        else {"type": "image", "image": part.pil()}
                        for part in question.parts
                    ],
                }
            ]
            for question in questions
        ]
        inputs = self.processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        return inputs.to(self.device, self.model.dtype)

    def _label_ids(self, labels: tuple[str, ...]) -> list[torch.Tensor]:
        """Per label the ids of all tokens that read as it."""
        import torch

        if labels not in self.ids:
            tokenizer = self.processor.tokenizer
            words = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
            found = [[i for i, word in enumerate(words) if reads_as(word, label)] for label in labels]
            lacking = [label for label, ids in zip(labels, found) if not ids]
            if lacking:
                raise UsageError(
                    f"{', '.join(lacking)} is no single token of {self.options.model}: use levels of one token each "
                    "(digits, or short words), or `answer: text`."
                )
            self.ids[labels] = [torch.tensor(ids, device=self.device) for ids in found]
        return self.ids[labels]
