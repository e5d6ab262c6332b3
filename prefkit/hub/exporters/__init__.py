"""Layouts of other trainers, a file each.

    class Mine:
        Options = MyOptions                                  # frozen dataclass, its fields are flags
        def __init__(self, options: MyOptions) -> None: ...
        def write(self, pairs: Pairs, out: Path) -> dict[str, int]: ...   # into an empty folder; counts, with 'pairs'

    plugin = Mine

`pairs.rows()` (prefkit/hub/pair_reader.py) streams the pairs with their images; an exporter holds a few at a time. The core
(prefkit/hub/export_run.py) moves the folder into place once it is whole.
"""
