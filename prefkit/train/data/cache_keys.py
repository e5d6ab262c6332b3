"""Keys of the training caches. A key is a hash of exactly those inputs on which the cached entries depend:

wiring      base, family, dtype, inputs, and call arguments except guidance
latents     base, family, dtype, and the rules for reading images; not adapters, guidance, prompts or quantization
conditions  base, family, dtype, inputs, and the call arguments that reach the denoiser. These include an embedded
            guidance (FLUX), but not the scale of classifier-free guidance, which is switched off in training
reference   the keys of latents and conditions, adapters, quantization, precision and train.seed; the entries are the
            errors of the frozen initial model

The base model is identified exactly (by commit or file hash), because stored latents may be used only with the base
that made them. Keys include the minor releases of diffusers and transformers where their code computes the entries,
because a release may change a VAE or a tokenizer. SCHEME is the version of prefkit's own code: increase it with every
change to what is cached.
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
    """Return the key of a pipeline's wiring. common: base, family, dtype, and the rules for reading images."""
    arguments = {name: value for name, value in call.items() if name not in GUIDANCE}
    return digest("wiring", SCHEME["wiring"], common, inputs, arguments, _minor("diffusers"))


def latents_key(common: Any) -> str:
    return digest("latents", SCHEME["latents"], common, _minor("diffusers"))


def conditions_key(common: Any, inputs: Any, call: Mapping[str, Any], wiring: Wiring | None) -> str:
    """Return the key of conditions. wiring: None if not recorded yet; nothing is cached under the resulting key."""
    off = GUIDANCE if wiring is None else wiring.no_guidance
    arguments = {name: value for name, value in call.items() if name not in off}
    versions = [_minor("diffusers"), _minor("transformers")]
    return digest("conditions", SCHEME["conditions"], common, inputs, arguments, wiring is None, versions)


def reference_key(latents: str, conditions: str, revision: Any, precision: str, seed: int) -> str:
    """Return the key of reference errors. revision: identifies base, adapters, inputs and quantization."""
    return digest("reference", SCHEME["reference"], latents, conditions, revision, precision, seed)


def libraries() -> dict[str, str]:
    """Return the minor versions of the libraries whose code computes cached entries."""
    return {name: _minor(name) for name in ("diffusers", "transformers")}


def _minor(library: str) -> str:
    return ".".join(version(library).split(".")[:2])
