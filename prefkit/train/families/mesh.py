"""Family for human meshes: diffusion of pose and shape given keypoints (ADHMR); heads "pose" and "shape"."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefkit.errors import UsageError
from prefkit.models.capture.wiring import Wiring
from prefkit.models.precision import dtype_of
from prefkit.train.data.draws import drawn
from prefkit.types import Candidate, Draw, Request

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LEAST, MOST = 0.3, 3.0  # bounds of the signal-to-noise ratio, which weights squared errors of x0 prediction


class MeshFamily:
    """A mesh model (mesh/diffusion/network.py). Latents are standardised states [130]: 20 6D rotations, then 10 betas.

    A request's `pose_mask` and `shape_mask` set the errors of entries with unknown labels to 0. A head's error is the
    mean over all entries, masked ones included, as in ADHMR (arXiv 2505.10250). For x0 prediction, the squared error is
    weighted by the signal-to-noise ratio, clamped to [0.3, 3].
    """

    from_payload = True  # latents come from the payload, regardless of which generator made the candidate

    def __init__(self, time_sampling: str | None = None, call: Mapping[str, Any] | None = None) -> None:
        self.time_sampling = time_sampling

    def load(
        self, model: Mapping[str, Any], parts: Collection[str] | None = None, wiring: Wiring | None = None
    ) -> None:
        """Load the network from the mesh model folder model["base"], with model["adapters"]. Raises UsageError."""
        from prefkit.mesh.diffusion.network import load_model
        from prefkit.models.schedule import Schedule

        self.net, self.scheduler = load_model(
            model["base"], model.get("adapters"), model["device"], dtype_of(model["dtype"])
        )
        prediction = self.scheduler.config.prediction_type
        self.schedule = Schedule.of(self.scheduler, prediction)
        steps = self.scheduler.config.num_train_timesteps
        same = dict.fromkeys(("state", "input", "output", "clock", "layout", "affine"), "same")
        self.wiring = Wiring(
            "MeshPipeline", "denoiser", "sample", "timestep", **same, downscale=1, prediction=prediction,
            train_steps=steps, no_guidance={}, batch={"condition": 0, "mask": 0},
        )  # fmt: skip

    def latents(self, candidates: Sequence[Candidate]) -> list[Tensor]:
        """Return each candidate's standardised state [130], float32, CPU. Raises UsageError for a missing mesh."""
        from prefkit.mesh.diffusion.state import state_of
        from prefkit.mesh.payload import Mesh

        mean, std = self.net.mean.float().cpu(), self.net.std.float().cpu()
        states = []
        for candidate in candidates:
            try:
                if candidate.payload is None:
                    raise ValueError("it has no payload; the pairs must be made from candidates of this run")
                states.append((state_of(Mesh.unpack(candidate.payload)) - mean) / std)
            except ValueError as error:
                raise UsageError(f"candidate {candidate.id} cannot be trained on: {error}.") from error
        return states

    def conditions(self, requests: Sequence[Request], size: tuple[int, int]) -> list[dict[str, Tensor]]:
        """Return each request's keypoints and masks: {"condition": [C], "mask": [130]}. Raises UsageError."""
        from prefkit.mesh.diffusion.condition import condition_of, mask_of

        conditions = []
        for request in requests:
            try:
                own = {"condition": condition_of(request.extra, self.net.config.keypoints)}
                conditions.append(own | {"mask": mask_of(request.extra)})
            except ValueError as error:
                raise UsageError(f"request {request.request_id} cannot be trained on: {error}.") from error
        return conditions

    def collate(self, conditions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack the samples' conditions into the condition of a batch."""
        import torch

        return {key: torch.stack([each[key] for each in conditions]) for key in conditions[0]}

    def signature(self, condition: Mapping[str, Tensor]) -> str:
        """Return "mesh": all conditions of a model have the same shape."""
        return "mesh"

    def draw(self, group: str, visit: int, like: Tensor) -> Draw:
        """Draw time [1] and noise [1, 130], float32, CPU, as a function of (group, visit) alone."""
        return drawn(self.schedule, group, visit, like, self.time_sampling)

    def residuals(self, net: Any, latents: Tensor, draw: Draw, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return (prediction - target) in float32, masked: {"pose": [B, 120], "shape": [B, 10]}.

        If the network predicts the sample, the difference is also multiplied by the square root of the signal-to-noise
        ratio, clamped to LEAST..MOST.
        """
        from prefkit.mesh.diffusion.network import POSE

        x_t = self.schedule.add_noise(latents, draw.noise, draw.time)
        target = self.schedule.target(latents, draw.noise, draw.time)
        dtype = next(net.parameters()).dtype
        predicted = net(x_t.to(dtype), draw.time.to(x_t.device), condition["condition"].to(dtype)).float()
        residual = (predicted - target) * condition["mask"]
        if self.schedule.prediction == "sample":
            signal, noise = self.schedule.coefficients(draw.time, latents)
            residual = residual * (signal / noise).square().clamp(LEAST, MOST).sqrt()
        return {"pose": residual[:, :POSE], "shape": residual[:, POSE:]}

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> list[Image]:
        """Render standardised states [B, 130] as square images of side max(height, width), or 256 without `size`."""
        from prefkit.mesh.diffusion.generator import SIZE, picture
        from prefkit.mesh.diffusion.state import meshes_of

        states = latents.float().cpu() * self.net.std.float().cpu() + self.net.mean.float().cpu()
        meshes = meshes_of(states, [None] * len(states), vertices=True)
        return [picture(mesh, None, max(size) if size else SIZE) for mesh in meshes]


plugin = MeshFamily
