"""Exporters: plug-ins that write pairs in other trainers' layouts, one file each.

    class Mine:
        Options = MyOptions                                  # frozen dataclass whose fields are flags
        def __init__(self, options: MyOptions) -> None: ...
        def write(self, pairs: Pairs, out: Path) -> dict[str, int]: ...   # into an empty folder; counts, with 'pairs'

    plugin = Mine

`pairs.rows()` (prefkit/hub/pair_reader.py) streams the pairs with their images; an exporter holds only a few in memory.
The core (prefkit/hub/export_run.py) moves the folder to its place after a complete export.
"""
