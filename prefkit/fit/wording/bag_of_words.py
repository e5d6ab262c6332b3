"""A linear bag of words, which sees no image: does the wording alone tell which of two images is right?

Each image is replaced by the prompt that describes it: the explicit prompt for the right one, the superficial prompt for
the wrong one. With the counts of the words i of the request's prompt (and a constant) and of the words j of both descriptions,

    P(the explicit prompt is right) = sigmoid( sum_ij W_ij prompt_i (explicit_j - superficial_j) )

W has an L2 penalty, whose strength is the best of four on the validation rows. Words that the training rows lack are
ignored; a test row without a known word has no preference and counts as half.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, softplus

WORD = re.compile(r"\w+")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
STEPS = 60
Tuple = tuple[str, str, str]  # prompt, explicit prompt, superficial prompt


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in their order."""
    return WORD.findall(text.casefold())


@dataclass(frozen=True)
class Vocabulary:
    """Word -> index, of prompts (from 1; 0 is the constant) and of descriptions (from 0)."""

    prompt: dict[str, int]
    description: dict[str, int]

    @classmethod
    def of(cls, rows: Sequence[Tuple]) -> Vocabulary:
        prompts = sorted({word for row in rows for word in words(row[0])})
        descriptions = sorted({word for row in rows for text in row[1:] for word in words(text)})
        return cls({word: n for n, word in enumerate(prompts, 1)}, {word: n for n, word in enumerate(descriptions)})

    def encode(self, rows: Sequence[Tuple]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prompts' word indices [K] with each row's offset [N], and explicit minus superficial [N, V]."""
        bags = [[0, *(self.prompt[word] for word in words(row[0]) if word in self.prompt)] for row in rows]
        offsets = torch.tensor([0, *map(len, bags)]).cumsum(0)[:-1]
        contrast = torch.zeros(len(rows), len(self.description))
        for n, row in enumerate(rows):
            for text, sign in zip(row[1:], (1.0, -1.0)):
                for word in words(text):
                    if word in self.description:
                        contrast[n, self.description[word]] += sign
        return torch.tensor([index for bag in bags for index in bag]), offsets, contrast


def predictions(train: Sequence[Tuple], validation: Sequence[Tuple], test: Sequence[Tuple]) -> list[float]:
    """Return each test row's result: 1 if the bag of words, fitted on `train`, prefers the explicit prompt, else 0.

    0.5 without a preference. Equal training rows count once.
    """
    if not train or not test:
        return [0.5] * len(test)
    train = list(dict.fromkeys(train))
    vocabulary = Vocabulary.of(train)
    learned, held, final = (vocabulary.encode(rows) for rows in (train, validation or train, test))
    weights = [_fitted(vocabulary, learned, penalty) for penalty in PENALTIES]
    best = min(weights, key=lambda weight: float(softplus(-_logits(weight, held)).mean()))
    return [0.5 if abs(value) < 1e-6 else float(value > 0) for value in _logits(best, final).tolist()]


def _logits(weight: Tensor, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    indices, offsets, contrast = rows
    return (embedding_bag(indices, weight, offsets, mode="sum") * contrast).sum(1)


def _fitted(vocabulary: Vocabulary, rows: tuple[Tensor, Tensor, Tensor], penalty: float) -> Tensor:
    weight = torch.zeros(len(vocabulary.prompt) + 1, max(1, len(vocabulary.description)), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = softplus(-_logits(weight, rows)).mean() + penalty * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return weight.detach()
