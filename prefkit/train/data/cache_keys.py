"""What each cache of a training hangs on; with anything else changed, all that was made is found again.

wiring      how the pipeline is wired: base, family, dtype, inputs, and call arguments but for guidance
latents     of images: base, family, dtype, rules for pixels. Adapters, guidance, prompts and quantization change no image's latents
conditions  of prompts: base, family, dtype, inputs, and the call arguments that reach the denoiser. Classifier-free
            guidance is switched off for training, so its value is none of them; an embedded guidance (FLUX) is
reference   the frozen start's errors: all of these, adapters, quantization, precision and train.seed

The base is meant whole (a commit, or the hash of its files), because candidates of that very base bring latents of their
own. Minor releases of diffusers and transformers count where their code makes what is kept: one may change a VAE or a
tokenizer, and a cache half from each would be of two models. SCHEME counts for prefkit's own code in the same way: raise
it with any change to what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from prefkit.models.capture.wiring import Wiring
from prefkit.types import digest

SCHEME = {"wiring": 1, "latents": 1, "conditions": 1, "reference": 1}
GUIDANCE = ("guidance_scale", "true_cfg_scale")


def wiring_key(common: Any, inputs: Any, call: Mapping[str, Any]) -> str:
    """common: base, family, dtype, and the rules by which images are read."""
    kept = {name: value for name, value in call.items() if name not in GUIDANCE}
    return digest("wiring", SCHEME["wiring"], common, inputs, kept, _minor("diffusers"))


def latents_key(common: Any) -> str:
    return digest("latents", SCHEME["latents"], common, _minor("diffusers"))


def conditions_key(common: Any, inputs: Any, call: Mapping[str, Any], wiring: Wiring | None) -> str:
    """wiring: None where the pipeline was not looked at yet, and nothing is cached under this key."""
    off = GUIDANCE if wiring is None else wiring.no_guidance
    kept = {name: value for name, value in call.items() if name not in off}
    libraries = [_minor("diffusers"), _minor("transformers")]
    return digest("conditions", SCHEME["conditions"], common, inputs, kept, wiring is None, libraries)


def reference_key(latents: str, conditions: str, revision: Any, precision: str, seed: int) -> str:
    """revision: of base, adapters, inputs and quantization."""
    return digest("reference", SCHEME["reference"], latents, conditions, revision, precision, seed)


def libraries() -> dict[str, str]:
    """Minor versions of the libraries whose code makes what is kept."""
    return {name: _minor(name) for name in ("diffusers", "transformers")}


def _minor(library: str) -> str:
    return ".".join(version(library).split(".")[:2])
