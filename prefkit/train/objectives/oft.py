"""OFT: D3PO for flow models inside a box of the image; Science-T2I's online fine-tuning, Li et al., arXiv 2504.13129.

    loss as in d3po, but log p covers only the elements inside a box around the prompt's subject

over: area       divide the sum over the box by the box's number of elements, so that small subjects count equally
      published  divide the sum over the box by the number of all elements

`online.mask` names a score of a detector, whose aspects box_left, box_top, box_right and box_bottom are fractions of
the image. If an image has no box, the full image counts.

Mistakes in the published code that are corrected here:
- Its loss is the mean of a 2 x 2 table in which only one entry depends on the policy. This divides the gradient by 4,
  and the logged loss cannot fall below 0.551.
- The drift of its SDE has -x instead of the +x of the marginal-preserving form (`sde` in online/noise.py).
- Its optimizer steps at every timestep unless a run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.train.online.noise import Step


@dataclass(frozen=True)
class OFTOptions:
    beta: float = 10.0
    #: ratios are clamped to 1 - clamp .. 1 + clamp
    clamp: float = 0.1
    #: area | published: divide the sum over the box by the number of elements in the box, or of all elements
    over: Literal["area", "published"] = "area"


class OFT:
    """OFT loss [G] for steps of winner and loser at one time; log 2 where policy = reference (which is frozen)."""

    Options = OFTOptions
    shape = "step_pair"
    reference = "frozen"
    group_relative = False

    def __init__(self, options: OFTOptions) -> None:
        self.options = options

    def loss(self, new: Step, old: Step, reference: Step | None, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss [G] and metrics [G]. new, reference: 2 G steps, winners first; unused: old, advantage."""
        from prefkit.train.objectives.d3po import preferred

        assert reference is not None
        change = new.density() - reference.density()
        if new.mask is None:
            log_ratio = change.flatten(1).mean(1)
        else:
            area = new.mask.flatten(1).sum(1) if self.options.over == "area" else new.mask[0].numel()
            log_ratio = (change * new.mask).flatten(1).sum(1) / area
        return preferred(log_ratio, self.options.beta, self.options.clamp)


plugin = OFT
