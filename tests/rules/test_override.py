"""The user's own rows: what a file may say, what it may not, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab

from xtoken_align import Mapping, build
from xtoken_align.errors import OverrideError
from xtoken_align.rules.override import Override, parse_overrides, read_overrides
from xtoken_align.vocab.kinds import Kind

STUDENT = make_vocab(
    [
        *("ab", "12", " a"),
        (b"<s>", Kind.SPECIAL),
        (b"<unused0>", Kind.RESERVED),
        (b"", Kind.HOLE),
        (b"8", Kind.BYTE),
        "😀",
    ],
    name="pupil",
    raw=["ab", "12", "Ġa", "<s>", "<unused0>", "", "<0x38>", "ðŁĺĢ"],
)
TEACHER = make_vocab(
    ["a", "b", "1", "2", " ", (b"<bos>", Kind.SPECIAL), (b"", Kind.PADDING)],
    name="master",
    raw=["a", "b", "1", "2", "Ġ", "<bos>", "[PAD6]"],
)


def built(entries: list[Any], **options: Any) -> Mapping:
    return build(student=STUDENT, teacher=TEACHER, overrides=entries, **options)


def row(mapping: Mapping, token_id: int) -> list[tuple[int, float]]:
    return [(link.teacher_id, round(link.weight, 4)) for link in mapping.row(token_id).links]


def refused(entries: Any, **options: Any) -> str:
    with pytest.raises(OverrideError) as caught:
        built(entries, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_override_owns_its_row_before_every_other_rule() -> None:
    mapping = built([{"student": "12", "teacher": ["a"]}])
    assert mapping.row(1).rule == "override"
    assert row(mapping, 1) == [(0, 1.0)]


def test_weights_default_to_decay_over_all_the_pieces_given() -> None:
    mapping = built([{"student": "ab", "teacher": ["b", "a", "1", "2", " "]}], top_k=2)
    assert row(mapping, 0) == [(1, 0.9), (0, 0.09), (2, 0.009), (3, 0.0009), (4, 0.0001)]


def test_weights_are_taken_as_given_and_normalised() -> None:
    assert row(built([{"student": "ab", "teacher": ["a", "b"], "weights": [1, 3]}]), 0) == [(0, 0.25), (1, 0.75)]


def test_a_single_teacher_token_needs_no_list() -> None:
    assert row(built([{"student": "ab", "teacher": "b"}]), 0) == [(1, 1.0)]


def test_a_teacher_token_named_twice_gets_both_weights_at_its_first_position() -> None:
    links = built([{"student": "ab", "teacher": ["b", "a", "b"], "weights": [1, 1, 2]}]).row(0).links
    assert [(link.teacher_id, link.weight, link.position) for link in links] == [(1, 0.75, 0), (0, 0.25, 1)]


def test_decay_0_keeps_the_first_piece_of_an_override_alone() -> None:
    mapping = built([{"student": "ab", "teacher": ["b", "a"]}], decay=0)
    assert row(mapping, 0) == [(1, 1.0)]
    assert mapping.decompositions("student")[0] == [1, 0]


def test_a_weight_of_0_makes_no_link_and_no_piece() -> None:
    mapping = built([{"student": "ab", "teacher": ["b", "a"], "weights": [0, 2]}])
    assert row(mapping, 0) == [(0, 1.0)]
    assert mapping.row(0).links[0].position == 0
    assert mapping.decompositions("student")[0] == [0]


@pytest.mark.parametrize("weights", [[1e-300, 1], [1, 1e-300], [5e-324, 1e308], [1e308, 1e308], [1e-320, 1e-320]])
def test_weights_of_any_size_give_a_row_that_can_be_kept(weights: list[float], tmp_path: Path) -> None:
    mapping = built([{"student": "ab", "teacher": ["a", "b"], "weights": weights}])
    assert mapping.matrix.data.min() > 0
    assert sum(link.weight for link in mapping.row(0).links) == pytest.approx(1)
    from xtoken_align import load

    loaded = load(mapping.save(tmp_path / "mapping.npz"))
    assert loaded.row(0) == mapping.row(0)
    assert loaded.decompositions("student")[0] == mapping.decompositions("student")[0]


def test_a_string_is_a_surface_first_and_a_raw_string_second() -> None:
    student = make_vocab(["b", "a"], raw=["a", "zz"])
    teacher = make_vocab(["x"], name="teacher")
    assert built_row(student, teacher, "a") == 1
    assert built_row(student, teacher, "zz") == 1


def built_row(student: Any, teacher: Any, ref: str) -> int:
    mapping = build(
        student=student, teacher=teacher, overrides=[{"student": ref, "teacher": ["x"]}], rules=["override"]
    )
    return int(np.flatnonzero(mapping.matrix.owner)[0])


def test_raw_strings_reach_special_byte_and_reserved_tokens() -> None:
    mapping = built(
        [
            {"student": "<s>", "teacher": ["<bos>"]},
            {"student": "<0x38>", "teacher": ["1"]},
            {"student": "<unused0>", "teacher": ["2"]},
        ]
    )
    assert [row(mapping, token_id) for token_id in (3, 6, 4)] == [[(5, 1.0)], [(2, 1.0)], [(3, 1.0)]]


def test_ids_reach_any_token() -> None:
    assert row(built([{"student": {"id": 3}, "teacher": [{"id": 5}, {"id": 0}], "weights": [1, 1]}]), 3) == [
        (5, 0.5),
        (0, 0.5),
    ]


def test_the_lowest_of_equal_surfaces_is_meant() -> None:
    student = make_vocab(["q", "q"])
    assert built_row(student, make_vocab(["x"], name="teacher"), "q") == 0


def test_an_overridden_token_has_the_pieces_that_the_user_says() -> None:
    mapping = built([{"student": "12", "teacher": ["b", "a"]}])
    assert mapping.decompositions("student")[1] == [1, 0]
    assert mapping.first_pieces("student")[1] == 1
    assert 1 in mapping.lossy_rows


def test_an_override_that_spells_its_token_is_not_lossy() -> None:
    mapping = built([{"student": "12", "teacher": ["1", "2"], "weights": [1, 1]}])
    assert mapping.coverage().lossy == build(student=STUDENT, teacher=TEACHER).coverage().lossy


def test_overrides_run_even_where_the_rules_named_leave_them_out() -> None:
    assert built([{"student": "ab", "teacher": ["a"]}], rules=["exact"]).coverage().rules["override"] == 1


def test_an_override_is_near_with_one_link_and_split_with_more() -> None:
    entries = [{"student": "12", "teacher": ["1", "2"]}, {"student": "ab", "teacher": ["a"]}]
    classes = built(entries, rules=["exact"]).coverage().classes
    assert (classes["digits_2"].split, classes["ascii_word"].near) == (1, 1)


def test_yaml_and_json_files_say_the_same(tmp_path: Path) -> None:
    entries = [
        {"student": "😀", "teacher": [{"id": 1}, "a"], "weights": [0.5, 0.5]},
        {"student": "ab", "teacher": ["b"]},
    ]
    files = {
        "escaped.json": json.dumps(entries),
        "plain.json": json.dumps(entries, ensure_ascii=False, indent="\t"),
        "flow.yaml": yaml.safe_dump(entries, allow_unicode=True),
        "bom.yaml": "\ufeff" + yaml.safe_dump(entries, allow_unicode=True),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = [read_overrides(tmp_path / name) for name in files]
    assert read[0][0] == Override("😀", (1, "a"), (0.5, 0.5))
    assert all(other == read[0] for other in read[1:])


def test_a_path_and_its_entries_build_the_same_mapping(tmp_path: Path) -> None:
    entries = [{"student": "ab", "teacher": ["b"], "weights": [2]}]
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    by_path = build(student=STUDENT, teacher=TEACHER, overrides=file)
    assert by_path.content_hash == built(entries).content_hash == built([*parse_overrides(entries)]).content_hash


def test_an_empty_list_overrides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    file.write_text("[]", encoding="utf-8")
    assert read_overrides(file) == ()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"student": "nope", "teacher": ["a"]}], "the student pupil has no token 'nope'"),
        ([{"student": "ab", "teacher": ["a", "nope"]}], "the teacher master has no token 'nope'"),
        ([{"student": "ab", "teacher": ["a", "nope"], "weights": [1, 0]}], "the teacher master has no token 'nope'"),
        ([{"student": "", "teacher": ["a"]}], "no token ''"),
        ([{"student": "ab", "teacher": ["[PAD6]"]}], "no token '[PAD6]'"),
        ([{"student": {"id": 8}, "teacher": ["a"]}], "pupil has no id 8: its ids run from 0 to 7"),
        ([{"student": {"id": -1}, "teacher": ["a"]}], "has no id -1"),
        ([{"student": {"id": 5}, "teacher": ["a"]}], "no token with the id 5"),
        ([{"student": "ab", "teacher": [{"id": 6}]}], "no token with the id 6"),
        ([{"student": "ab", "teacher": ["a"]}, {"student": {"id": 0}, "teacher": ["b"]}], "overridden twice"),
    ],
)
def test_unknown_tokens_and_duplicates_are_refused_by_name(entries: list[Any], says: str) -> None:
    assert says in refused(entries)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (None, "holds nothing"),
        ({"student": "ab", "teacher": ["a"]}, "holds one object"),
        ("ab", "holds a single value"),
        ([["ab", "a"]], "entry 1 of"),
        ([{"student": "ab"}], "entry 1 of"),
        ([{"teacher": ["a"]}], "entry 1 of"),
        ([{"student": "ab", "teacher": ["a"], "wieghts": [1]}], "wieghts"),
        ([{"student": "ab", "teacher": []}], "no teacher token"),
        ([{"student": "ab", "teacher": ["a"]}, {"student": 201, "teacher": ["a"]}], "entry 2 of"),
        ([{"student": True, "teacher": ["a"]}], "True"),
        ([{"student": {"id": "1"}, "teacher": ["a"]}], "{id: N}"),
        ([{"student": {"id": True}, "teacher": ["a"]}], "{id: N}"),
        ([{"student": "ab", "teacher": [None]}], "None"),
        ([{"student": "ab", "teacher": [["a"]]}], "['a']"),
        ([{"student": "ab", "teacher": ["a"], "weights": 1}], "expected a list of numbers"),
        ([{"student": "ab", "teacher": ["a"], "weights": ["1"]}], "expected a list of numbers"),
        ([{"student": "ab", "teacher": ["a"], "weights": [True]}], "expected a list of numbers"),
        ([{"student": "ab", "teacher": ["a", "b"], "weights": [1]}], "1 weights for 2 teacher tokens"),
        ([{"student": "ab", "teacher": ["a"], "weights": []}], "0 weights for 1 teacher tokens"),
        ([{"student": "ab", "teacher": ["a"], "weights": [0]}], "one above 0"),
        ([{"student": "ab", "teacher": ["a"], "weights": [-1]}], "at least 0"),
        ([{"student": "ab", "teacher": ["a"], "weights": [float("nan")]}], "finite"),
        ([{"student": "ab", "teacher": ["a"], "weights": [float("inf")]}], "finite"),
        ([{"student": "ab", "teacher": ["a"], "weights": [10**400]}], "finite"),
    ],
)
def test_entries_of_another_shape_are_refused_with_their_number(entries: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(OverrideError) as caught:
        parse_overrides(entries, "rows.yaml")
    assert says in str(caught.value)
    assert str(caught.value).count("rows.yaml") == 1


def test_all_mistakes_are_told_at_once() -> None:
    shapes = [{"student": 201, "teacher": ["a"]}, {"student": "ab", "teacher": ["a"]}, "ab"]
    with pytest.raises(
        OverrideError, match=r"2 mistakes in overrides:\n  entry 1 of rows.yaml.*\n  entry 3 of rows.yaml"
    ):
        parse_overrides(shapes, "rows.yaml")
    unknown = [{"student": "nope", "teacher": ["a", "none"]}, {"student": "neither", "teacher": ["a"]}]
    with pytest.raises(OverrideError, match=r"3 mistakes in overrides:\n.*'nope'.*\n.*'none'.*\n.*'neither'"):
        built(unknown)
    with pytest.raises(OverrideError, match=r"25 mistakes in overrides:(\n  .*){20}\n  and 5 more$"):
        parse_overrides(["ab"] * 25)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "a: [",
        "- 2001-99-99",
        "[" * 5000,
        "- !!python/object:os.system x",
        "- &a [*b]",
        "\x00",
        "- ? {a: b}\n  : c",
    ],
)
def test_text_that_is_neither_yaml_nor_json_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(OverrideError) as caught:
        read_overrides(file)
    assert "rows.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_unfold_into_billions_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    file = tmp_path / "rows.yaml"
    file.write_text("\n".join(["-", *(f"  {line}" for line in lines)]), encoding="utf-8")
    with pytest.raises(OverrideError) as caught:
        read_overrides(file)
    assert len(str(caught.value)) < 1000


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(OverrideError, match="cannot read the override file"):
            read_overrides(path)
    (tmp_path / "latin.yaml").write_bytes(b"- \xe4")
    with pytest.raises(OverrideError, match="not UTF-8"):
        read_overrides(tmp_path / "latin.yaml")


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (float("nan"), 1.0), (-1.0, 2.0)])
def test_overrides_made_in_python_are_checked_too(weights: tuple[float, ...]) -> None:
    with pytest.raises(OverrideError):
        Override("ab", ("a", "b"), weights)
    with pytest.raises(OverrideError):
        Override("ab", ())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["student", "teacher", "weights", "id", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
@settings(max_examples=100)
def test_whatever_a_file_holds_is_parsed_or_refused(entries: Any) -> None:
    try:
        parsed = parse_overrides(entries)
    except OverrideError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert parse_overrides([entry.to_dict() for entry in parsed]) == parsed
