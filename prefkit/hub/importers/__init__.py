"""Other people's layouts, a file each. What an importer is, and what it yields.

    @dataclass(frozen=True)
    class MyOptions: ...                           # its fields are the flags of `prefkit import --as NAME`, `#:` lines their help

    class Mine:
        Options = MyOptions
        def __init__(self, options: MyOptions) -> None: ...
        @staticmethod
        def sniff(source: Path) -> str | None: ...  # why an existing file or folder is this layout; None: it is not
        def read(self, source: str, work: Workplace) -> Iterator[Item]: ...

    plugin = Mine

`read` opens `source` (a path, or a datasets id where the importer says so) and yields one `Item` per row, always in the
same order, holding no more than a few rows at once. A row that cannot be used is an Item with an `error`; what makes the
whole source unusable is a UsageError. The core (prefkit/hub/importing/run.py) numbers the items, checks and hashes the images,
makes ids, writes batches, leaves out what is stored, remembers where it stopped, and counts failures. An importer writes
nothing; `work` (prefkit/hub/importing/records.py) unpacks archives for it.

Verdicts on candidates that the run has already (votes) are Items with `comparisons` alone, whose id_a and id_b are
candidate ids: `Item(where="votes.json vote 3", comparisons=(Comparison("3f..", "a0..", "a", "salted-name"),))`.
"""
