"""Prompt tuples: what each split holds out, exceptions, balance, and the limits of words alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest

from prefkit.errors import UsageError


@pytest.fixture(scope="module")
def made(science):
    return list(science.tuples.tuples())


def words(text):
    return set(text.lower().split())


def test_every_split_holds_out_one_thing(science, made):
    train = [one for one in made if one.split == "train"]
    seen = {"subject": {(t.law, t.subject) for t in train}, "pair": {(t.law, t.subject, t.condition) for t in train}}
    known, prompts = set().union(*(words(t.implicit) for t in train)), {t.implicit for t in train}
    assert {t.split for t in made} == {"train", *science.tuples.HELD_OUT}
    for one in made:
        subject, pair = (one.law, one.subject), (one.law, one.subject, one.condition)
        if one.split == "train":
            continue
        assert one.implicit not in prompts
        assert (subject in seen["subject"]) == (one.split != "subject")
        assert (pair in seen["pair"]) == (one.split in ("wording", "word"))
        new = words(one.implicit) - words(one.subject) - known
        assert bool(new) == (one.split == "word"), one.implicit
    assert len({t.implicit for t in made}) == len(made)


def test_every_condition_is_trained_and_has_eight_held_out_phrases_of_both_kinds(science, made):
    phrases = defaultdict(set)
    for one in made:
        phrases[one.law, one.condition, one.split].add(one.implicit.partition(one.subject)[2])
    for name, law in science.laws.LAWS.items():
        for condition in law.conditions:
            assert phrases[name, condition, "train"]
            for split in ("wording", "word"):
                assert len(phrases[name, condition, split]) >= 8, (name, condition, split)


def test_the_property_of_a_held_out_subject_can_be_learned_from_another_subject(science):
    for name, law in science.laws.LAWS.items():
        held_out = science.tuples.held_out_subjects(name)
        assert held_out
        for kind, subjects in law.kinds.items():
            trained = {trait for subject, trait in subjects.items() if subject not in held_out}
            assert trained >= {subjects[subject] for subject in subjects if subject in held_out}, (name, kind)


def test_about_half_of_the_subjects_are_exceptions(science):
    laws = [law for law in science.laws.LAWS.values() if law.exceptions]
    assert {law.name for law in laws} == {"ripeness", "season", "rust", "melting", "light", "watering", "circuit"}
    for law in laws:
        share = sum(kind in law.exceptions for kind in law.kind_of.values()) / len(law.kind_of)
        assert 0.4 <= share <= 0.6, law.name


def test_no_picture_is_right_because_of_its_look(science):
    for name in science.laws.LAWS:
        for look, share in science.blind.balance(name).items():
            assert 0.35 <= share <= 0.65, (name, look)


def test_words_alone_do_not_suffice_where_a_law_has_exceptions(science):
    for name in ("rust", "melting", "light", "circuit", "absorption"):
        found = [picture for one, _, picture in science.blind.guesses(name) if one.split == "subject"]
        assert sum(found) / len(found) < 0.7, name
    found = [picture for one, _, picture in science.blind.guesses("flame") if one.split == "subject"]
    assert sum(found) / len(found) > 0.95  # the bag of words learns a law that needs no knowledge of the subject


def test_the_truth_of_some_prompts(made):
    truth = {(t.subject, t.condition, t.law): (t.look, t.wrong) for t in made}
    assert truth["anchor", "wet", "rust"] == ("rusty", ("clean",))
    assert truth["crown", "wet", "rust"] == ("clean", ("rusty",))
    assert truth["spruce", "winter", "season"] == ("green", ("bare",))
    assert truth["oak", "winter", "season"] == ("bare", ("green",))
    assert truth["cactus", "drought", "watering"] == ("upright", ("withered",))
    assert truth["candle", "off", "circuit"] == ("lit", ("dark",))
    assert truth["anchor", "mercury", "buoyancy"] == ("floats", ("sinks",))
    assert truth["ice cube", "alcohol", "buoyancy"] == ("sinks", ("floats",))
    assert truth["frog", "green", "absorption"] == ("bright", ("dark",))
    assert all(len(t.wrong) == 2 for t in made if t.law in ("flame", "layers", "diffusion"))


def test_prompts_are_english_phrases(science, made):
    for one in made:
        assert not Counter(one.implicit.split())["a"] or not any(
            f" a {vowel}" in f" {one.implicit}" for vowel in "aeio"
        ), one.implicit
        assert one.explicit not in one.superficial and "COLOUR" not in one.explicit and "SETTING" not in one.explicit
    assert science.words.described("ripeness", "cherries", "green", form=1) == "cherries that are green"
    assert science.words.noun("orange") == "an orange"


def test_the_tables_and_pictures_of_one_law(science, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(science.tuples, "PROMPTS", dict.fromkeys(science.tuples.PROMPTS, (1, 0)))
    assert science.tuples.main([str(tmp_path / "w"), "--laws", "layers", "--images"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "w" / "tuples.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (tmp_path / "w" / "requests.jsonl").read_text().splitlines()]
    assert [row["implicit_prompt"] for row in rows] == [row["prompt"] for row in asked]
    for row in rows:
        assert len(row["superficial_prompt"]) == len(row["superficial_image"]) == 2
        assert all((tmp_path / "w" / path).is_file() for path in (row["explicit_image"], *row["superficial_image"]))
    capsys.readouterr()
    assert science.tuples.main([str(tmp_path / "w"), "--laws", "layers"]) == 2
    assert "exists. Name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(("laws", "message"), [(",", "No law given. Laws: ripeness"), ("rust,gravity", "'gravity'")])
def test_unknown_and_missing_laws(science, tmp_path, capsys, laws, message):
    assert science.tuples.main([str(tmp_path / "w"), "--laws", laws]) == 2
    assert message in capsys.readouterr().err
    assert science.blind.main(["--laws", laws]) == 2
    assert not (tmp_path / "w").exists()


def test_scenes_that_the_world_does_not_have(science):
    Scene = science.looks.Scene
    for scene, message in (
        (Scene("gravity", "apple", "falls"), "Unknown law 'gravity'"),
        (Scene("rust", "oak", "rusty"), "'oak' does not exist in the law rust"),
        (Scene("rust", "gear", "bare"), "'bare' does not exist"),
        (Scene("buoyancy", "log", "floats"), "'' does not exist in the law buoyancy. Possible: 'alcohol'"),
    ):
        with pytest.raises(UsageError, match=message):
            science.looks.render(scene, 0)
