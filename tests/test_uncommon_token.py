"""The experiment about tokens that a teacher does not have, at a size that shows nothing but that it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from experiments import scripts_of

FOLDER = Path(__file__).parents[1] / "benchmarks" / "uncommon_token"
MEASURED = {"exact", "first_digit", "later_digits", "packed", "perplexity"}


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with scripts_of(FOLDER) as modules:
        yield modules


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uncommon_token")


@pytest.fixture(scope="module")
def finished(scripts: SimpleNamespace, work: Path) -> SimpleNamespace:
    """Two arms of the quick size, trained."""
    settings = scripts.settings.QUICK
    arms = [arm for arm in scripts.run.chosen(["same", "digits"], ["no teacher", "c-kl"]) if arm.corpus == "wrong"]
    assert {arm.policy for arm in arms} == {"off", "on"}
    place = scripts.run.place_of(work, settings)
    said = list(scripts.run.train(place, settings, arms, [0], 1))
    return SimpleNamespace(settings=settings, arms=arms, place=place, said=said)


def results_of(scripts: SimpleNamespace, finished: SimpleNamespace) -> dict[str, Any]:
    gathered = scripts.run.gathered(finished.place, finished.settings, finished.arms, [0])
    return json.loads(json.dumps(gathered, allow_nan=False))


def test_equal_seeds_give_equal_texts(scripts: SimpleNamespace) -> None:
    pool, _ = scripts.texts.pools()
    assert scripts.texts.draw(pool, 50, 3, wrong=0.25) == scripts.texts.draw(pool, 50, 3, wrong=0.25)
    assert scripts.texts.draw(pool, 50, 3) != scripts.texts.draw(pool, 50, 4)


def test_a_text_says_its_answers_where_it_claims_to(scripts: SimpleNamespace) -> None:
    for text in scripts.texts.draw(scripts.texts.pools()[0], 300, 1, wrong=0.25):
        for place, (problem, said) in zip(text.places, text.sums, strict=True):
            assert text.text[:place].endswith(f"{problem.sign}{problem.b}=")
            assert text.text[place:].startswith(str(said))
            assert not text.text[place + len(str(said))].isdigit()
        assert text.prompt == text.text[: text.places[0]]


@pytest.mark.parametrize(("wrong", "least", "most"), [(0.0, 0.0, 0.0), (0.25, 0.23, 0.27)])
def test_the_asked_share_of_answers_is_wrong(scripts: SimpleNamespace, wrong: float, least: float, most: float) -> None:
    texts = scripts.texts.draw(scripts.texts.pools()[0], 3000, 5, wrong=wrong)
    assert least <= scripts.texts.wrong_share(texts) <= most


def test_no_training_text_has_a_held_out_problem(scripts: SimpleNamespace) -> None:
    train, held_out = scripts.texts.pools()
    said = {problem for text in scripts.texts.draw(train, 3000, 6, wrong=0.25) for problem, _ in text.sums}
    asked = {problem for text in scripts.texts.draw(held_out, 500, 6) for problem, _ in text.sums}
    assert not said & set(held_out.problems)
    assert asked <= set(held_out.problems)


def test_the_student_packs_numerals_and_the_first_teacher_splits_them(
    scripts: SimpleNamespace, finished: SimpleNamespace
) -> None:
    numerals = [str(number) for number in range(10, 130)]
    for tokenizer, packs in (("student", True), ("splits", False), ("words", True)):
        coded = finished.place.coder(tokenizer).tokenizer.encode_batch(numerals)
        assert all(len(one.ids) == (1 if packs else len(text)) for one, text in zip(coded, numerals, strict=True))
    assert int(scripts.measure.numerals(finished.place.coder("student")).sum()) == len(numerals)


def test_the_second_teacher_cuts_the_students_words_and_the_first_does_not(finished: SimpleNamespace) -> None:
    pieces = {
        name: [len(one.ids) for one in finished.place.coder(name).tokenizer.encode_batch([" pens", " eggs"])]
        for name in ("student", "splits", "words")
    }
    assert pieces["student"] == pieces["splits"]
    assert pieces["student"][0] == pieces["words"][1] == 1
    assert min(pieces["student"][1], pieces["words"][0]) > 1


def test_answers_are_marked_token_by_token(scripts: SimpleNamespace, finished: SimpleNamespace) -> None:
    text = scripts.texts.Text("1+11=", "12-2=10.", (), (5, 10))
    text = scripts.texts.Text(text.prompt, text.rest, ((None, 12), (None, 10)), text.places)
    for name, marked in (("student", ["12", "10"]), ("splits", ["1", "2", "1", "0"])):
        coder = finished.place.coder(name)
        ids, labels, answers = coder.batch([text])
        assert [coder.surfaces[token] for token in ids[answers].tolist()] == marked
        assert labels[0, 0] == scripts.models.IGNORED


def test_finished_arms_are_not_trained_again(scripts: SimpleNamespace, finished: SimpleNamespace) -> None:
    assert finished.said[-1].endswith("arms")
    again = scripts.run.train(finished.place, finished.settings, finished.arms, [0], 1)
    assert list(again) == []
    kept = finished.place.result(finished.arms[-1], 0)
    first = json.loads(kept.read_text(encoding="utf-8"))
    kept.unlink()
    assert list(scripts.run.train(finished.place, finished.settings, finished.arms, [0], 1)) != []
    second = json.loads(kept.read_text(encoding="utf-8"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_what_the_results_hold_is_not_trained_again(
    scripts: SimpleNamespace, finished: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results_of(scripts, finished)), encoding="utf-8")
    elsewhere = scripts.run.place_of(tmp_path / "work", finished.settings)
    elsewhere.unpack(tmp_path / "results.json")
    assert all(elsewhere.result(arm, 0).exists() for arm in finished.arms)
    other = scripts.run.place_of(tmp_path / "other", scripts.settings.FULL)
    other.unpack(tmp_path / "results.json")
    assert not any(other.result(arm, 0).exists() for arm in finished.arms)


def test_what_a_student_writes_is_scored_by_its_own_ids(scripts: SimpleNamespace, finished: SimpleNamespace) -> None:
    group = scripts.distil.Group(finished.place, finished.settings, "digits", "wrong", 0)
    student = scripts.models.load(finished.place.start(0), group.coder.size, finished.settings.start.layers)
    batch, logits = next(group.on_policy(student))
    prompts = group.coder.prompts([text.prompt for text in group.texts[0]])
    said = scripts.models.written(student, prompts, finished.settings.longest, group.coder.edges[1], 0)
    for ids, mask, prompt, own in zip(
        batch["student_input_ids"], batch["spans"].student_loss_mask.bool(), prompts, said, strict=True
    ):
        assert ids[: len(prompt) + len(own)].tolist() == [*prompt, *own]
        assert mask.nonzero().flatten().tolist() == list(range(len(prompt), len(prompt) + len(own)))
    assert logits.shape[:2] == batch["teacher_input_ids"].shape


def test_changed_settings_are_kept_elsewhere(scripts: SimpleNamespace, work: Path, finished: SimpleNamespace) -> None:
    other = scripts.run.place_of(work, scripts.settings.FULL)
    assert other.folder != finished.place.folder


def test_results_have_what_the_report_needs(scripts: SimpleNamespace, finished: SimpleNamespace) -> None:
    results = results_of(scripts, finished)
    steps = list(range(0, finished.settings.steps + 1, finished.settings.probe_every))
    assert len(results["arms"]) == len(finished.arms)
    for run in results["arms"]:
        assert set(run) == MEASURED | {
            *("pair", "corpus", "arm", "ce", "policy", "key", "seed", "steps", "mass", "noted", "seconds"),
        }
        assert run["steps"] == steps
        assert len(run["mass"]["numerals"]) == len(steps)
    for model in (*results["teachers"].values(), *results["starts"].values()):
        assert set(model) == MEASURED | {"seconds"}


def test_a_report_names_every_arm(scripts: SimpleNamespace, finished: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = results_of(scripts, finished)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    scripts.report.write_report(tmp_path)
    told = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    for row in scripts.table.Table.read(results).rows:
        assert f"| {row.name} |" in told
    for name in ("results.png", "results.svg", "small.png"):
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("chosen", [{"pair": "digits"}, {"arm": "no teacher"}])
def test_some_of_the_arms_make_a_report_too(
    chosen: dict[str, str], scripts: SimpleNamespace, finished: Any, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    results = results_of(scripts, finished)
    some = [run for run in results["arms"] if chosen.items() <= run.items()]
    assert some
    (tmp_path / "results.json").write_text(json.dumps({**results, "arms": some}), encoding="utf-8")
    scripts.report.write_report(tmp_path)
    assert (tmp_path / "small.png").stat().st_size > 2000


def test_a_difference_is_clear_only_if_all_seeds_agree(scripts: SimpleNamespace) -> None:
    def row(*exact: float) -> Any:
        return scripts.table.Row("digits", "wrong", "p-kl", "fixed", "off", tuple({"exact": value} for value in exact))

    assert scripts.table.difference(row(0.5, 0.6), row(0.4, 0.5))[1] == "above"
    assert scripts.table.difference(row(0.4, 0.5), row(0.5, 0.6))[1] == "below"
    assert scripts.table.difference(row(0.9, 0.4), row(0.4, 0.5))[1] == "level"
    assert scripts.table.difference(row(0.41, 0.51), row(0.4, 0.5))[1] == "level"


@pytest.mark.skipif(not (FOLDER / "results.json").exists(), reason="the experiment has not been run")
def test_the_written_results_are_those_that_were_measured(scripts: SimpleNamespace, tmp_path: Path) -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    told = scripts.report.markdown(scripts.table.Table.read(results))
    assert told == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    arms = scripts.run.chosen(list(results["teachers"]), None)
    assert {arm.key for arm in arms} >= {run["key"] for run in results["arms"]}
    assert len(results["arms"]) == len(arms) * len(scripts.run.SEEDS)
