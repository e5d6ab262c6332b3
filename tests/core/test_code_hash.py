from __future__ import annotations

from prefkit.registry import code_hash


def test_the_file_is_found_by_path_from_home_and_by_module(tmp_path, monkeypatch):
    file = tmp_path / "some_plugin.py"
    file.write_text("raise RuntimeError('not imported')\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f"{file}:Name", "~/some_plugin.py:Name", "some_plugin:Name"]
    before = {code_hash(name) for name in names}
    assert len(before) == 1 and None not in before
    file.write_text("x = 1\n")
    after = {code_hash(name) for name in names}
    assert len(after) == 1 and not after & before


def test_what_comes_with_prefkit_and_what_is_not_there_has_none():
    assert code_hash("dpo", "objective") is None and code_hash("dpo") is None
    assert code_hash("/nowhere/at/all.py:Name") is None
    assert code_hash("no_such_package.module:Name") is None
