"""The tokenizer of the embedded models: one token per word of the wardrobe's captions, letters for other words."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from transformers import CLIPTokenizer

from prefkit.tiny.captions import VOCABULARY

LENGTH = 24  # the longest caption takes 19 tokens with start and end; the rest is room for longer outfits
START, END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer(words: Sequence[str] = VOCABULARY) -> CLIPTokenizer:
    """Build a CLIPTokenizer with a token per word. The end token has the highest id, as open_clip expects."""
    letters = [*string.ascii_lowercase, "-"]
    merges = word_merges(words)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def word_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges (Sennrich et al., arXiv 1508.07909), commonest first, until every word is one token."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in split for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(word, best) for word in split]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return parts
