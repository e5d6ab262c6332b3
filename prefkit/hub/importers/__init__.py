"""Importers: plug-ins that read the layouts of other tools, one file per plug-in.

    @dataclass(frozen=True)
    class MyOptions: ...              # fields are the flags of `prefkit import --as NAME`, `#:` lines their help

    class Mine:
        Options = MyOptions
        def __init__(self, options: MyOptions) -> None: ...
        @staticmethod
        def sniff(source: Path) -> str | None: ...  # how it recognized the layout of `source`, or None
        def read(self, source: str, work: Workplace) -> Iterator[Item]: ...

    plugin = Mine

`read` opens `source` (a path, or a Hub dataset if the importer supports one) and yields one `Item` per row. It yields
them in the same order at every call and holds only a few in memory. For a row that cannot be used, yield an Item with
an `error`; for a source that cannot be used at all, raise UsageError. The core (prefkit/hub/importing/run.py) numbers
the items, checks and hashes the images, makes ids, writes batches, skips stored rows, resumes, and counts failures. An
importer writes nothing; `work` (prefkit/hub/importing/records.py) unpacks archives for it.

A vote on candidates that the run already has is an Item with only `comparisons`, whose id_a and id_b are candidate ids:
`Item(where="votes.json vote 3", comparisons=(Comparison("3f..", "a0..", "a", "person-7"),))`.
"""
