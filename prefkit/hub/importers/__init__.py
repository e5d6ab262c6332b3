"""Importers: plug-ins that read other tools' layouts, one file each.

    @dataclass(frozen=True)
    class MyOptions: ...              # fields are the flags of `prefkit import --as NAME`, `#:` lines their help

    class Mine:
        Options = MyOptions
        def __init__(self, options: MyOptions) -> None: ...
        @staticmethod
        def sniff(source: Path) -> str | None: ...  # the evidence that an existing path has this layout, or None
        def read(self, source: str, work: Workplace) -> Iterator[Item]: ...

    plugin = Mine

`read` opens `source` (a path, or a datasets id if the importer supports one) and yields one `Item` per row, always in
the same order, holding only a few rows in memory. A row that cannot be used is an Item with an `error`; a source that
cannot be used at all raises UsageError. The core (prefkit/hub/importing/run.py) numbers the items, checks and hashes
the images, makes ids, writes batches, skips stored rows, resumes, and counts failures. An importer writes nothing;
`work` (prefkit/hub/importing/records.py) unpacks archives for it.

Verdicts on candidates that the run already has (votes) are Items with only `comparisons`, whose id_a and id_b are
candidate ids: `Item(where="votes.json vote 3", comparisons=(Comparison("3f..", "a0..", "a", "salted-name"),))`.
"""
