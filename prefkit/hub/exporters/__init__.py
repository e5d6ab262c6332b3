"""Exporters: plug-ins that write pairs in the layouts of other training tools, one file per plug-in.

    class Mine:
        Options = MyOptions                                  # frozen dataclass whose fields are flags
        keeps = frozenset({"p"})                             # optional: "p" and "inputs", if the layout holds these
        def __init__(self, options: MyOptions) -> None: ...
        def write(self, pairs: Pairs, out: Path) -> dict[str, int]: ...   # into the empty folder `out`

    plugin = Mine

`write` returns counts, at least {"pairs": N}. `pairs.rows()` (prefkit/hub/pair_reader.py) streams the pairs with their
images; an exporter should hold only a few of them in memory. The core (prefkit/hub/export_run.py) calls `write` with a
temporary folder, and moves the folder to its final place if the export succeeds. An option `root` without a value
becomes the absolute path of that place. The core reports ties, and probabilities (`p`) and input images that the
layout does not keep.
"""
