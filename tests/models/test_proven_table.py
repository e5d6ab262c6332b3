"""The table of proven pipelines names those that are tested, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from prefkit.testing import TINY_KINDS
from tests.models import editing, kinds
from tests.models.test_capture import CASES as WITH_SCHEDULERS
from tests.models.test_more_pipelines import EXPECTED

PAGE = Path(__file__).parents[2] / "docs/verification.md"
TINY = {"sd": "SD 1.x", "sd-v": "SD 1.x (v)", "sdxl": "SDXL", "sd3": "SD 3", "flux": "FLUX.1"}
REAL_TEXT = {kinds.sd2: "SD 2 (v)", kinds.sd35: "SD 3.5"}
MADE_UP_TEXT = {
    kinds.pixart: "PixArt-Sigma", kinds.z_image: "Z-Image", kinds.lumina2: "Lumina 2", kinds.lumina: "Lumina-Next",
    kinds.qwen_image: "Qwen-Image", kinds.sana: "Sana", kinds.chroma: "Chroma", kinds.aura_flow: "AuraFlow",
    kinds.cogview4: "CogView4", kinds.hunyuan_dit: "Hunyuan-DiT", kinds.kolors: "Kolors", kinds.hidream: "HiDream",
}  # fmt: skip
WITH_IMAGE = {
    editing.inpaint: "SD inpainting (9 channels)", editing.sdxl_inpaint: "SDXL inpainting (9 channels)",
    editing.instruct: "InstructPix2Pix", editing.kontext: "FLUX.1 Kontext", editing.fill: "FLUX.1 Fill",
    editing.control: "FLUX.1 Control", editing.flux2: "FLUX.2 dev", editing.klein: "FLUX.2 klein",
    editing.qwen_edit: "Qwen-Image-Edit", editing.qwen_edit_plus: "Qwen-Image-Edit-Plus",
}  # fmt: skip


def told(start):
    (cell,) = re.findall(rf"^\| {start}[^|]*\| ([^|]*) \|$", PAGE.read_text(), re.M)
    return cell.replace("\\", "").split(", ")


def test_every_tested_kind_has_a_name_here():
    assert TINY.keys() == set(TINY_KINDS)
    assert REAL_TEXT.keys() | MADE_UP_TEXT.keys() == EXPECTED.keys()
    assert WITH_IMAGE.keys() == editing.CASES.keys()


def test_the_page_tells_the_same():
    from_text = [*TINY.values(), *REAL_TEXT.values(), WITH_IMAGE[editing.flux2], WITH_IMAGE[editing.klein]]
    assert sorted(told("proven from text")) == sorted([*from_text, *(f"{name}*" for name in MADE_UP_TEXT.values())])
    assert sorted(told("proven with an image")) == sorted(WITH_IMAGE.values())


def test_the_page_counts_the_schedulers(load):
    used = {scheduler for _, scheduler in WITH_SCHEDULERS if scheduler}
    used |= {type(load(kind).scheduler).__name__ for kind in TINY_KINDS}
    assert f"with {len(used)} schedulers" in PAGE.read_text()
