"""Encodes the prompts of a batch with text encoders that are being trained (train.NAME.lora.text_encoder).

The pipeline's own call encodes each prompt, as it did when the cached conditions were computed, but records gradients.
Clip skip, long prompts and pooled embeddings are therefore those of the pipeline. As in generation, text encoders run
in the dtype of their weights, without autocast. If the initial model's text encoders have no adapter, its conditions
are the cached ones, and only the policy's prompts are encoded in a step.
"""

from __future__ import annotations

from typing import Any

import torch

from prefkit.errors import CaptureError
from prefkit.models.trees import Tree, leaves, to_device
from prefkit.train.data.batches import Batch, PairData


def encoded(family: Any, data: PairData, batch: Batch) -> Tree:
    """Return the batch's condition, encoded by the family's text encoders with their active adapters.

    Gradients are recorded unless torch.no_grad is active. Raises CaptureError if the pipeline's call stops them.
    """
    requests = [data.request(group) for group in batch.members]
    first = {request.prompt: request for request in requests}  # a prompt may occur several times
    trees = family.conditions(list(first.values()), data.size(batch.members[0]), gradients=True)
    by_prompt = dict(zip(first, trees, strict=True))
    images = len(batch.latents) // len(requests)
    condition = family.collate([by_prompt[request.prompt] for request in requests] * images)
    tensors = [leaf for _, leaf in leaves(condition) if isinstance(leaf, torch.Tensor)]
    if torch.is_grad_enabled() and not any(tensor.requires_grad for tensor in tensors):
        raise CaptureError(
            f"{type(family.pipe).__name__} detaches its prompt embeddings from the text encoders, so these cannot be "
            "trained. Remove lora.text_encoder."
        )
    return to_device(condition, batch.latents.device)
