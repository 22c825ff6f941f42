"""Teachers behind a server: what they say is what the model says, or an error."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from http.client import IncompleteRead, RemoteDisconnected
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_servers import URL, FakeServer, listening, sound, status
from tokenizers import Tokenizer
from training_world import World, make_trainer, texts

from xtoken_align import read_vocab
from xtoken_align.errors import MismatchError, OptionError, ServerError
from xtoken_align.losses import XTokenLoss
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.store.load import get_or_build
from xtoken_align.training import (
    DistillConfig,
    ServedTeacher,
    TeacherCache,
    TeacherSpec,
    distill,
    loss_bound,
    write_teacher_cache,
)
from xtoken_align.training.config_file import from_values
from xtoken_align.training.served import Request

KINDS = ["vllm", "sglang", "llama.cpp"]
ROWS = [[1, 40, 7, 300, 290, 2], [1, 100, 101, 102, 5, 250, 9, 2], [1], []]


@pytest.fixture(scope="module")
def fakes(world: World) -> dict[str, FakeServer]:
    model = world.load(world.teacher).eval()
    tokenizer = Tokenizer.from_file(str(world.teacher / "tokenizer.json"))
    return {kind: FakeServer(kind, model, tokenizer) for kind in KINDS}


@pytest.fixture(scope="module")
def vocab(world: World, fakes: dict[str, FakeServer]) -> Any:
    return read_vocab(world.teacher, logits=fakes["vllm"].model.config.vocab_size)


def served(fake: FakeServer, vocab: Any, **options: Any) -> ServedTeacher:
    """A teacher that asks a server of this process; it never sleeps."""
    given = {"server": fake.kind, "transport": fake.transport, "pause": lambda _: None, "check_tokenizer": False}
    return ServedTeacher(URL, vocab, **{**given, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 5, 333])
def test_log_probabilities_are_the_models_own(fakes: Any, vocab: Any, kind: str, top_k: int) -> None:
    teacher = served(fakes[kind], vocab, top_k=top_k)
    rows = teacher.answer_rows([np.array(row) for row in ROWS])
    for ids, row in zip(ROWS, rows, strict=True):
        assert row.ids.tolist() == ids
        assert row.top_ids.shape == row.log_probs.shape == (len(ids), min(top_k, len(vocab)))
        if not ids:
            continue
        expected = torch.tensor(fakes[kind].log_probs(tuple(ids))).topk(min(top_k, len(vocab)))
        assert np.allclose(row.log_probs, expected.values, atol=1e-6)
        own = torch.tensor(fakes[kind].log_probs(tuple(ids))).gather(1, torch.tensor(row.top_ids).long())
        assert np.allclose(row.log_probs, own, atol=1e-6)
        assert np.allclose(row.rest, 1 - expected.values.exp().sum(1), atol=1e-6)


def test_a_batch_has_what_the_rows_have_at_their_places(fakes: Any, vocab: Any) -> None:
    teacher = served(fakes["vllm"], vocab, top_k=4)
    first, second = teacher.answer_rows([np.array(row) for row in ROWS[:2]])
    ids = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.zeros(2, 9, dtype=torch.long)
    ids[0, 3:], ids[1, :8], mask[0, 3:], mask[1, :8] = torch.tensor(ROWS[0]), torch.tensor(ROWS[1]), 1, 1
    made = teacher.top_k(ids=ids, mask=mask)
    assert made.width == len(vocab)
    assert torch.equal(made.ids[0, 3:], torch.tensor(first.top_ids).long())
    assert torch.equal(made.log_probs[1, :8], torch.tensor(second.log_probs))
    assert (made.ids[0, :3] == -1).all()
    assert (made.rest[1, 8:] == 1).all()


def test_documents_of_a_packed_row_are_asked_about_one_by_one(fakes: Any, vocab: Any) -> None:
    teacher = served(fakes["sglang"], vocab, top_k=4)
    packed = teacher.top_k(ids=[[*ROWS[0], *ROWS[1]]], segments=[[0] * 6 + [1] * 8])
    alone = teacher.top_k(ids=ROWS[:2])
    assert torch.equal(packed.ids[0, :6], alone.ids[0, :6])
    assert torch.equal(packed.log_probs[0, 6:], alone.log_probs[1])


RECORDED = json.loads((Path(__file__).parents[1] / "data" / "llama_server.json").read_text(encoding="utf-8"))
"""What a llama-server said of a text in which a character is several tokens, and `transformers` of the same weights."""


def replayed(request: Request) -> bytes:
    """The recorded answer to a request."""
    body = json.loads(request.body or b"{}")
    if request.url.endswith("/tokenize"):
        assert (body["add_special"], body["parse_special"]) == (False, False)
        return json.dumps(RECORDED["tokenize"]).encode()
    count = len(body["prompt"])
    assert body["prompt"] == RECORDED["ids"][:count]
    without = {each["tokens"]: each["answer"] for each in RECORDED["without_bias"]}
    answer = without[count] if count in without and not body["logit_bias"] else RECORDED["answers"][count - 1]
    return json.dumps(answer).encode()


def test_what_a_real_llama_server_said_is_read_and_is_what_transformers_says(world: World) -> None:
    vocab = read_vocab(world.teacher, logits=RECORDED["width"])
    options: dict[str, Any] = {"server": "llama.cpp", "top_k": 5, "check_tokenizer": False, "transport": replayed}
    teacher = ServedTeacher(URL, vocab, **options)
    (row,) = teacher.answer_rows([np.array(RECORDED["ids"])])
    theirs = RECORDED["transformers"]
    assert row.top_ids.tolist() == theirs["ids"]
    assert np.allclose(row.log_probs, theirs["log_probs"], atol=5e-4)
    assert np.allclose(row.rest, 1 - np.exp(theirs["log_probs"]).sum(1), atol=5e-4)
    assert teacher._encoded(RECORDED["text"]) == RECORDED["ids"]
    # Without a plain token to generate, the server leaves out what is said where a character begins.
    assert [each["tokens"] for each in RECORDED["without_bias"]] == [8]
    teacher._plain = None
    with pytest.raises(ServerError, match="it has no completion_probabilities"):
        teacher.answer_rows([np.array(RECORDED["ids"])])


def test_llama_servers_lowest_number_is_the_logarithm_of_nothing(fakes: Any, vocab: Any) -> None:
    def transport(request: Request) -> bytes:
        answer = json.loads(fakes["llama.cpp"].transport(request))
        # Its JSON has no infinity, and the logarithm of 0 is the lowest float32.
        answer["completion_probabilities"][0]["top_logprobs"][-1]["logprob"] = -3.4028234663852886e38
        return json.dumps(answer).encode()

    teacher = served(fakes["llama.cpp"], vocab, top_k=4, transport=transport)
    made = teacher.top_k(ids=[ROW])
    assert (made.ids[..., -1] == -1).all()
    assert (made.log_probs[..., -1] == -torch.inf).all()
    assert (made.log_probs[..., :-1] > -50).all()


def test_losses_are_those_of_the_model_and_within_the_bound_of_what_is_left_out(
    world: World, fakes: Any, vocab: Any
) -> None:
    student = read_vocab(world.student, logits=world.load(world.student).config.vocab_size)
    mapping = get_or_build(student=student, teacher=vocab, store=world.store)
    batch = SpanCollator(student=student, teacher=vocab)(texts(6, seed=4))
    ids, mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
    with torch.no_grad():
        live = fakes["vllm"].model(input_ids=ids, attention_mask=mask).logits
        logits = world.load(world.student)(input_ids=batch["student_input_ids"]).logits
    least = float(logits.log_softmax(-1).min())

    def kd(kind: str, teacher: Any) -> float:
        return float(XTokenLoss(mapping, kind=kind)(logits, teacher, batch["spans"]).kd)

    for kind in ("partition-kl", "c-kl", "p-kl"):
        whole = served(fakes["vllm"], vocab, top_k=len(vocab)).top_k(ids=ids, mask=mask)
        assert kd(kind, whole) == pytest.approx(kd(kind, live), abs=1e-4)
    for server in KINDS:
        part = served(fakes[server], vocab, top_k=12).top_k(ids=ids, mask=mask)
        # The mean rest of the positions that are compared is at most their largest.
        rest = float(part.rest[mask.bool()].max())
        away = abs(kd("partition-kl", part) - kd("partition-kl", live))
        assert 0 < away <= loss_bound(rest, bins=len(vocab), least_log_prob=least)


@pytest.mark.parametrize("kind", KINDS)
def test_another_tokenizer_is_refused_before_anything_is_asked(world: World, fakes: Any, vocab: Any, kind: str) -> None:
    served(fakes[kind], vocab, check_tokenizer=True)
    other = Tokenizer.from_file(str(world.other / "tokenizer.json"))
    fake = FakeServer(kind, fakes[kind].model, other)
    with pytest.raises(
        MismatchError, match=r"has another tokenizer than teacher: \d+ of \d+ lines are encoded otherwise"
    ):
        served(fake, vocab, check_tokenizer=True)
    assert {path for path, _ in fake.asked} <= {"/tokenize", "/v1/models"}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_where_a_server_does_not_tokenize_the_ids_that_it_echoes_are_compared(
    world: World, fakes: Any, vocab: Any, kind: str
) -> None:
    sound_one = FakeServer(kind, fakes[kind].model, fakes[kind].tokenizer, tokenize=False, bos=1)
    served(sound_one, vocab, check_tokenizer=True)
    other = Tokenizer.from_file(str(world.other / "tokenizer.json"))
    with pytest.raises(MismatchError, match="has another tokenizer"):
        served(FakeServer(kind, fakes[kind].model, other, tokenize=False), vocab, check_tokenizer=True)


def test_a_server_whose_tokenizer_cannot_be_seen_is_refused_until_the_user_vouches_for_it(
    fakes: Any, vocab: Any
) -> None:
    def transport(request: Request) -> bytes:
        if request.url.endswith("/tokenize"):
            raise status(404, request)
        return b'{"data": [{"id": "the-model"}], "choices": [{"text": "x"}]}'

    with pytest.raises(ServerError, match="set check_tokenizer=False"):
        served(fakes["vllm"], vocab, transport=transport, check_tokenizer=True)


# --- Faults: a way to spoil an answer, and whether a repetition of the request may mend it.

Spoil = Callable[[random.Random, Any, str], bytes]


def _top_lists(answer: Any, kind: str) -> list[Any]:
    """The positions of an answer, where a server has one position or more in it."""
    if kind == "vllm":
        return answer["choices"][0]["prompt_logprobs"]
    return answer["meta_info"]["input_top_logprobs"]


def _dumps(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def fewer_positions(draw: random.Random, answer: Any, kind: str) -> bytes:
    lists = _top_lists(answer, kind)
    del lists[draw.randrange(len(lists))]
    return _dumps(answer)


def fewer_tokens(draw: random.Random, answer: Any, kind: str) -> bytes:
    entries = draw.choice(_top_lists(answer, kind)[1:])
    if kind == "vllm":
        best = sorted(entries, key=lambda token: entries[token]["rank"])[:4]
        del entries[draw.choice(best)]
    else:
        del entries[draw.randrange(len(entries))]
    return _dumps(answer)


def no_last_position(draw: random.Random, answer: Any, kind: str) -> bytes:
    if kind == "vllm":
        answer["choices"][0]["logprobs"] = draw.choice([None, {}, {"tokens": [], "top_logprobs": []}])
    else:
        answer["meta_info"]["output_top_logprobs"] = draw.choice([None, [], [None]])
    return _dumps(answer)


def id_out_of_range(draw: random.Random, answer: Any, kind: str) -> bytes:
    entries, wrong = draw.choice(_top_lists(answer, kind)[1:]), draw.choice([333, 10**6, 2**40, -1, "x", None])
    if kind == "vllm":
        best = sorted(entries, key=lambda token: entries[token]["rank"])[:4]
        entries[str(wrong)] = entries.pop(draw.choice(best))
    else:
        draw.choice(entries)[1] = wrong
    return _dumps(answer)


def no_number(draw: random.Random, answer: Any, kind: str) -> bytes:
    entries, wrong = (
        draw.choice(_top_lists(answer, kind)[1:]),
        draw.choice([float("nan"), float("inf"), None, "-1", 3.0, True]),
    )
    if kind == "vllm":
        best = sorted(entries, key=lambda token: entries[token]["rank"])[:4]
        entries[draw.choice(best)]["logprob"] = wrong
    else:
        draw.choice(entries)[0] = wrong
    return _dumps(answer)


def one_token_twice(draw: random.Random, answer: Any, kind: str) -> bytes:
    if kind == "vllm":
        entries = draw.choice(_top_lists(answer, kind)[1:])
        # One spelling more of an id, in place of another token.
        first, second = sorted(entries, key=lambda token: entries[token]["rank"])[:2]
        entries[f"0{first}"] = entries.pop(second)
    else:
        entries = draw.choice(_top_lists(answer, kind)[1:])
        entries[0][1] = entries[1][1]
    return _dumps(answer)


def too_much_probability(draw: random.Random, answer: Any, kind: str) -> bytes:
    entries = draw.choice(_top_lists(answer, kind)[1:])
    for entry in entries.values() if kind == "vllm" else entries:
        entry["logprob" if kind == "vllm" else 0] = -0.1
    return _dumps(answer)


def _reordered(answer: Any, kind: str, order: list[int]) -> bytes:
    """The positions behind the first in another order, each with all that is said of it."""
    lists = [_top_lists(answer, kind)]
    if kind == "sglang":
        lists.append(answer["meta_info"]["input_token_logprobs"])
    for each in lists:
        each[1:] = [each[at] for at in order]
    return _dumps(answer)


def positions_moved(draw: random.Random, answer: Any, kind: str) -> bytes:
    order = list(range(1, len(_top_lists(answer, kind))))
    by = draw.randrange(1, len(order))
    return _reordered(answer, kind, order[by:] + order[:by])


def positions_reversed(draw: random.Random, answer: Any, kind: str) -> bytes:
    return _reordered(answer, kind, list(range(len(_top_lists(answer, kind)) - 1, 0, -1)))


def two_positions_changed_places(draw: random.Random, answer: Any, kind: str) -> bytes:
    order = list(range(1, len(_top_lists(answer, kind))))
    one, other = draw.sample(range(len(order)), 2)
    order[one], order[other] = order[other], order[one]
    return _reordered(answer, kind, order)


def best_token_exchanged(draw: random.Random, answer: Any, kind: str) -> bytes:
    """A token's own log-probability no longer fits the list of its position."""
    if kind == "vllm":
        return fewer_tokens(draw, answer, kind)
    at = draw.randrange(1, len(ROWS[1]) - 1)
    answer["meta_info"]["input_token_logprobs"][at][0] = -1e-4
    return _dumps(answer)


def several_choices(draw: random.Random, answer: Any, kind: str) -> bytes:
    if kind == "vllm":
        answer["choices"] = draw.choice([[], answer["choices"] * 2, None])
        return _dumps(answer)
    return _dumps(draw.choice([[answer, answer], [], {"error": {"message": "x"}}]))


def other_json(draw: random.Random, answer: Any, kind: str) -> bytes:
    return draw.choice([b"null", b"[]", b"{}", b'"text"', b"17", b'{"error": "busy"}'])


def tokens_in_another_order(draw: random.Random, answer: Any, kind: str) -> bytes:
    """No fault: a server may name a position's tokens in any order."""
    lists = _top_lists(answer, kind)
    for at, entries in enumerate(lists[1:], 1):
        mixed = list(entries.items()) if kind == "vllm" else list(entries)
        draw.shuffle(mixed)
        lists[at] = dict(mixed) if kind == "vllm" else mixed
    return _dumps(answer)


def cut_short(draw: random.Random, answer: Any, kind: str) -> bytes:
    content = _dumps(answer)
    return content[: draw.randrange(len(content))]


def no_json(draw: random.Random, answer: Any, kind: str) -> bytes:
    return draw.choice([b"", b"<html>Bad gateway</html>", b"\xff\xfe", b"data: {}\n\n", b"{" * 5000])


REFUSED: list[Spoil] = [
    *(fewer_positions, fewer_tokens, no_last_position, id_out_of_range, no_number, one_token_twice),
    *(too_much_probability, positions_moved, positions_reversed, two_positions_changed_places, several_choices),
    *(best_token_exchanged, other_json),
]
REPEATED: list[Spoil] = [cut_short, no_json]
RAISED: list[Callable[[random.Random, Request], BaseException]] = [
    lambda draw, request: TimeoutError("timed out"),
    lambda draw, request: draw.choice([ConnectionResetError(), ConnectionRefusedError(), BrokenPipeError()]),
    lambda draw, request: draw.choice([RemoteDisconnected("no response"), IncompleteRead(b"")]),
    lambda draw, request: status(draw.choice([500, 502, 503, 504, 429, 408]), request),
]
ROW = [1, 40, 7, 300, 290, 12, 211, 99, 2]


class FaultyTransport:
    """Answers soundly, but for the first few requests about one row.

    Args:
        fake: what answers.
        way: how those are spoiled, or the error that is raised in their place.
        row: the row.
        times: how many.
        draw: chance.
    """

    def __init__(self, fake: FakeServer, way: Any, row: list[int], times: int, draw: random.Random) -> None:
        self.fake, self.way, self.row, self.left, self.draw = fake, way, row, times, draw

    def __call__(self, request: Request) -> bytes:
        content = self.fake.remembered(request)
        body = json.loads(request.body or b"{}")
        if self.row not in (body.get("prompt"), body.get("input_ids")) or not self.left:
            return content
        self.left -= 1
        if self.way in RAISED:
            raise self.way(self.draw, request)
        spoiled: bytes = self.way(self.draw, json.loads(content), self.fake.kind)
        return spoiled


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_no_fault_of_a_thousand_changes_a_result_silently(fakes: Any, vocab: Any, kind: str) -> None:
    outcomes: Counter[Any] = Counter()
    ids = [ROW, ROWS[1]]
    truth = served(fakes[kind], vocab, top_k=4).top_k(ids=ids)
    ways: list[Any] = [*REFUSED, tokens_in_another_order, *REPEATED, *RAISED]
    for seed in range(1000):
        draw = random.Random(seed)
        way = ways[seed % len(ways)]
        transport = FaultyTransport(fakes[kind], way, ids[seed % 2], draw.choice([1, 2, 99]), draw)
        teacher = served(fakes[kind], vocab, transport=transport, top_k=4, workers=1, retries=3, model="the-model")
        try:
            made = teacher.top_k(ids=ids)
        except ServerError:
            outcomes[way, "refused"] += 1
            continue
        pairs = [(getattr(made, name), getattr(truth, name)) for name in ("ids", "log_probs", "rest")]
        outcomes[way, "kept" if all(torch.equal(*pair) for pair in pairs) else "changed"] += 1
    assert not [way for way, outcome in outcomes if outcome == "changed"]
    assert not [way for way in REFUSED if outcomes[way, "kept"]]
    assert not outcomes[tokens_in_another_order, "refused"]
    # What strikes once or twice is mended by asking again, what strikes every time is an error.
    assert all(outcomes[way, "kept"] and outcomes[way, "refused"] for way in (*REPEATED, *RAISED))


def _nothing(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.close_connection = True


def _half(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def _busy(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(503, "busy")


def _html(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    sound(handler, b"<html>")


def test_faults_on_the_wire_are_mended_by_asking_again(fakes: Any, vocab: Any) -> None:
    truth = served(fakes["vllm"], vocab, top_k=4).top_k(ids=ROWS)
    pauses: list[float] = []
    with listening(fakes["vllm"]) as url:
        assert torch.equal(ServedTeacher(f"{url}/v1/", vocab, top_k=4).top_k(ids=ROWS).log_probs, truth.log_probs)
    with listening(fakes["vllm"], [_nothing, _half, _busy, _html]) as url:
        options = {"model": "the-model", "check_tokenizer": False, "retries": 5, "backoff": 0.5, "workers": 1}
        teacher = ServedTeacher(url, vocab, top_k=4, pause=pauses.append, **options)
        made = teacher.top_k(ids=ROWS)
    assert torch.equal(made.log_probs, truth.log_probs)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_a_server_that_is_slow_or_gone_or_says_too_much_is_an_error_of_one_sentence(fakes: Any, vocab: Any) -> None:
    options: dict[str, Any] = {"model": "the-model", "check_tokenizer": False, "retries": 1, "pause": lambda _: None}

    def trickle(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        # Each byte comes soon enough, but there are 100,000 of them.
        for byte in content:
            handler.wfile.write(bytes([byte]))

    def stuck(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.connection.settimeout(1)
        # The client says nothing more, and closes when it has waited enough.
        handler.rfile.read(1)

    with listening(fakes["vllm"], [stuck, stuck]) as url:
        with pytest.raises(ServerError, match=r"gives no answer after 2 attempts \(the last: timed out\)"):
            ServedTeacher(url, vocab, timeout=0.05, **options).top_k(ids=[ROW])
        with pytest.raises(ServerError, match="answers with more than 1,000 bytes"):
            ServedTeacher(url, vocab, largest_answer=1000, **options).top_k(ids=[ROW])
    with listening(fakes["vllm"], [trickle]) as url, pytest.raises(ServerError, match=r"no whole answer in 0\.2 s"):
        ServedTeacher(url, vocab, top_k=300, timeout=0.2, **{**options, "retries": 0}).top_k(ids=[ROW])
    with pytest.raises(ServerError, match="check that the server runs there"):
        ServedTeacher(url, vocab, **options).top_k(ids=[ROW])


def test_what_a_server_says_of_a_refused_request_is_passed_on_at_once(fakes: Any, vocab: Any) -> None:
    asked: list[Request] = []

    def transport(request: Request) -> bytes:
        asked.append(request)
        raise status(400, request, '{"message": "Cannot request more than 20 prompt logprobs"}')

    teacher = served(fakes["vllm"], vocab, transport=transport, model="m", api_key="secret")
    with pytest.raises(ServerError, match=r"answers HTTP 400: .*more than 20 prompt logprobs"):
        teacher.top_k(ids=[ROW])
    assert len(asked) == 1
    assert asked[0].headers["Authorization"] == "Bearer secret"


def test_rows_in_flight_are_no_more_than_the_workers(fakes: Any, vocab: Any) -> None:
    from threading import Barrier, Lock

    lock, running, most, gate = Lock(), [0], [0], Barrier(3)

    def transport(request: Request) -> bytes:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        # Three requests have to be there at once for any of them to be answered.
        gate.wait(timeout=20)
        content = fakes["vllm"].transport(request)
        with lock:
            running[0] -= 1
        return content

    teacher = served(fakes["vllm"], vocab, model="the-model", transport=transport, workers=3)
    rows = [[1, 40 + row, 7] for row in range(12)]
    made = teacher.top_k(ids=rows)
    assert most[0] == 3
    assert torch.equal(made.log_probs, served(fakes["vllm"], vocab).top_k(ids=rows).log_probs)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"server": "tgi"}, "server is one of vllm, sglang, llama.cpp, got 'tgi'"),
        ({"top_k": 0}, "top_k is a whole number above 0, got 0"),
        ({"retries": -1}, "retries must be a number from 0 on"),
        ({"timeout": 0}, "timeout must be a number from 0.001 on"),
        ({"topk": 4}, "has no option topk: the options are server, model"),
    ],
)
def test_options_that_make_no_sense_are_named(fakes: Any, vocab: Any, options: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        served(fakes["vllm"], vocab, **options)


def test_addresses_are_addresses(vocab: Any) -> None:
    with pytest.raises(OptionError, match="url is a server's address such as"):
        ServedTeacher("localhost:8000", vocab)


def test_a_server_of_several_models_needs_a_name(fakes: Any, vocab: Any) -> None:
    with pytest.raises(ServerError, match=r"has 2 models \(a, b\): name one as model"):
        served(fakes["vllm"], vocab, transport=lambda _: b'{"data": [{"id": "a"}, {"id": "b"}]}')


def test_a_cache_written_from_a_server_holds_what_one_from_the_model_holds(
    fakes: Any, vocab: Any, tmp_path: Path
) -> None:
    rows = texts(9, seed=2)
    shared: dict[str, Any] = {"teacher": vocab, "top_k": 6, "dtype": "float32"}
    write_teacher_cache(served(fakes["sglang"], vocab), rows, tmp_path / "server", **shared)
    # Padding behind the tokens, whose probability a server's answers have and a model's do not, is next to nothing.
    write_teacher_cache(fakes["sglang"].model, rows, tmp_path / "model", **shared)
    one, other = (TeacherCache(tmp_path / name, teacher=vocab) for name in ("server", "model"))
    away = [np.abs(one[row].log_probs - other[row].log_probs).max() for row in range(9)]
    assert max(away) < 0.2
    assert one.settings.top_k == other.settings.top_k == 6
    # 64, the usual number for a model, is more than a server gives unless it was told to.
    write_teacher_cache(served(fakes["vllm"], vocab, top_k=5), rows, tmp_path / "usual", teacher=vocab)
    assert TeacherCache(tmp_path / "usual").settings.top_k == 5
    with pytest.raises(OptionError, match="says its best tokens, and no hidden states: keep a top_k"):
        write_teacher_cache(served(fakes["vllm"], vocab), rows, tmp_path / "states", teacher=vocab, keep="hidden")


def test_another_vocabulary_than_the_teachers_is_refused_by_a_cache(
    world: World, fakes: Any, vocab: Any, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="is read by another vocabulary"):
        write_teacher_cache(served(fakes["vllm"], vocab), texts(3), tmp_path / "cache", teacher=world.other, top_k=4)


def test_a_student_learns_from_a_server_what_it_learns_from_the_model(
    world: World, fakes: Any, vocab: Any, tmp_path: Path
) -> None:
    teacher = served(fakes["vllm"], vocab, top_k=len(vocab))
    changes: dict[str, Any] = {"loss": {"kind": "partition-kl"}, "max_steps": 2}
    live = make_trainer(world, tmp_path / "live", **changes)
    asked = make_trainer(world, tmp_path / "asked", teacher=teacher, **changes)
    live.train()
    asked.train()
    expected = [entry["kd"] for entry in live.state.log_history if "kd" in entry]
    assert [entry["kd"] for entry in asked.state.log_history if "kd" in entry] == pytest.approx(expected, abs=1e-3)


def test_a_student_writes_and_the_server_scores_what_it_wrote(
    world: World, fakes: Any, vocab: Any, tmp_path: Path
) -> None:
    teacher = served(fakes["vllm"], vocab, top_k=8)
    trainer = make_trainer(
        world, tmp_path, loss={"kind": "partition-kl"}, teacher=teacher, lmbda=1.0, max_new_tokens=6, max_steps=2
    )
    trainer.train()
    assert [entry["kd"] > 0 for entry in trainer.state.log_history if "kd" in entry] == [True, True]


def test_losses_of_the_whole_distribution_are_refused(world: World, fakes: Any, vocab: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"the teacher is behind the server {URL}: use partition-kl, c-kl, p-kl"):
        make_trainer(world, tmp_path, loss={"kind": "uld"}, teacher=served(fakes["vllm"], vocab))


def test_a_served_teacher_is_named_by_a_dict(world: World, fakes: Any, vocab: Any) -> None:
    from xtoken_align.training.teachers import teacher_specs

    with listening(fakes["vllm"]) as url:
        given = {"url": url, "tokenizer": vocab, "top_k": 4}
        (spec, other) = teacher_specs([given, TeacherSpec(model=given, weight=2.0)])
    assert isinstance(spec.model, ServedTeacher)
    assert (spec.tokenizer, spec.model.options.top_k, other.weight) == (vocab, 4, 2.0)
    with pytest.raises(OptionError, match="tokenizer missing"):
        teacher_specs({"url": url})


def test_a_served_teacher_travels_to_the_workers_of_a_data_loader(world: World, fakes: Any) -> None:
    with listening(fakes["vllm"]) as url:
        teacher = ServedTeacher(url, world.teacher, top_k=4)
        away = pickle.loads(pickle.dumps(teacher))
        assert torch.equal(away.top_k(ids=[ROW]).ids, teacher.top_k(ids=[ROW]).ids)


def test_a_run_is_configured_with_a_server(world: World, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(12)))
    with listening(fakes["sglang"]) as url:
        values = {
            "student": {"model": str(world.student)},
            "teachers": [{"url": url, "tokenizer": str(world.teacher), "served": {"server": "sglang", "top_k": 8}}],
            "texts": [str(tmp_path / "texts.jsonl")],
            "output": str(tmp_path / "run"),
            "holdout": 2,
            "loss": {"kind": "partition-kl"},
            "training": {"max_steps": 1, "max_student_tokens": 24, "max_teacher_tokens": 24, "use_cpu": True},
        }
        config = from_values(DistillConfig, values)
        assert config.sentence.endswith(f"learns from teacher {url}")
        result = distill(config, store=world.store)
    assert result.steps == 1
    assert result.before["kd"] > 0
