"""export: write pairs in the layout of another trainer, or an adapter in the layout of another program."""

from __future__ import annotations

import argparse

from prefkit import output, registry
from prefkit.errors import UsageError

POSITIONAL = (
    "PAIRS",
    "RUN (RUN/NAME if RUN has several pair sets) or a folder of pairs; for diffusers, kohya and comfyui RUN/train/NAME",
)
ADAPTERS = ("diffusers", "kohya", "comfyui")


def arguments(parser: argparse.ArgumentParser) -> None:
    from prefkit.cli.help import describe_layouts

    parser.add_argument("out", nargs="?", metavar="OUT", help="output folder, created only when it is complete")
    parser.add_argument("--as", dest="layout", metavar="LAYOUT", help="the layout to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an earlier export")
    describe_layouts(parser, "exporter", "prefkit export runs/x/main out/ --as folders")


def act(known: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    from prefkit.hub.export_run import run_export

    layouts = [*sorted({*registry.builtin("exporter"), *registry.offered("exporter")}), *ADAPTERS]
    if known.layout and ":" not in known.layout and known.layout not in layouts:
        close = registry.nearest(known.layout, layouts)
        raise UsageError(f"export: unknown layout {known.layout!r}.{close} Choose one of {', '.join(layouts)}.")
    if not known.run_folder or not known.out or not known.layout or known.recipe:
        raise UsageError(
            "export needs PAIRS, OUT and a layout, but no recipe: prefkit export PAIRS OUT --as LAYOUT, one of "
            f"{', '.join(layouts)}."
        )
    if known.layout in ADAPTERS:
        from prefkit.models.lora.files import export_as

        if flags:
            raise UsageError(
                f"export --as {known.layout} has no option --{flags[0][0]}. Name the training by its folder: prefkit export "
                f"RUN/train/NAME OUT --as {known.layout}."
            )
        result = export_as(known.run_folder, known.out, known.layout, known.overwrite)
    else:
        result = run_export(
            known.run_folder, known.out, layout=known.layout, flags=dict(flags), overwrite=known.overwrite
        )
    output.emit(result, known.json, [result])
    return 0
