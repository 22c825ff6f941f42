"""Teachers that a server runs: vLLM, SGLang or llama.cpp is asked for the log-probabilities of given token ids.

An answer is taken apart only after it has been checked against what was asked: the number of positions, the ids that
the server echoes, the number of tokens at each position, their ids, order and probabilities. What fails is an error.
One thing cannot be seen: a position with plausible probabilities that are not the model's.

Ids [5, 9, 4] and the two best tokens at each position, as the three servers say it:

    position asked about     0 (after 5)        1 (after 9)        2 (after 4)
    vLLM                     prompt_logprobs[1] prompt_logprobs[2] logprobs of one generated token
    SGLang                   input_top_logprobs[1], [2]            output_top_logprobs[0]
    llama.cpp                a request with [5] one with [5, 9]    one with [5, 9, 4]
"""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, OptionError, ServerError
from ..read import as_vocab
from ..spans.units import units_of
from ..vocab.canary import SHORT
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .cache.format import CachedRow, Ids, check_positive
from .cache.read import placed

if TYPE_CHECKING:
    from ..losses import TopK

ServerName = Literal["vllm", "sglang", "llama.cpp"]

KEY_VARIABLE = "XTOKEN_ALIGN_API_KEY"
"""The environment variable with the key that a server asks for, where none is given."""

SLACK = 1e-3
"""By how much probabilities of a position may add up to more than 1: servers add them up in other orders."""

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed (RFC 9110, RFC 6585, RFC 8470)."""

_LONGEST_PAUSE = 30.0

_OWN_LINES = 24
"""Lines of a vocabulary's own tokens in the probe, four tokens each."""

Entry = tuple[int, float]
"""A token id and its log-probability."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request.

    Attributes:
        url: where to.
        body: JSON that is posted; None to get.
        headers: HTTP headers.
        timeout: seconds for all of it.
        most: bytes that an answer may have.
    """

    url: str
    body: bytes | None
    headers: Mapping[str, str]
    timeout: float
    most: int


def send(request: Request) -> bytes:
    """Sends a request and reads its answer, through the proxy that the environment names.

    Raises:
        ServerError: the answer is larger than the request allows.
        OSError: there was no connection, an HTTP error, or no whole answer in time.
        HTTPException: the answer is no HTTP, or breaks off.
    """
    deadline = time.monotonic() + request.timeout
    asked = urllib.request.Request(request.url, data=request.body, headers=dict(request.headers))  # noqa: S310 - checked
    parts, size = [], 0
    with urllib.request.urlopen(asked, timeout=request.timeout) as answer:  # noqa: S310 - http or https by `_base`
        # One call waits `timeout` for each piece, so a server that trickles would never run into it.
        while piece := answer.read1(1 << 16):
            parts.append(piece)
            size += len(piece)
            if size > request.most:
                raise ServerError(
                    f"{request.url} answers with more than {request.most:,} bytes: ask for fewer tokens (top_k), cut "
                    "rows shorter, or set largest_answer"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer in {request.timeout:g} s")
        if answer.length:
            raise HTTPException(f"the answer breaks off {answer.length} bytes early")
    return b"".join(parts)


@dataclass(frozen=True, kw_only=True)
class ServedOptions:
    """How a server is asked.

    Attributes:
        server: which interface it has: `vllm`, `sglang` or `llama.cpp`.
        model: the model's name on the server; by default the only one that it lists.
        top_k: best tokens per position. vLLM gives 20 at most unless it was started with `--max-logprobs`.
        workers: requests at a time. With `largest_answer` it bounds the memory that answers take.
        timeout: seconds for one request.
        retries: how often a request is made again after no connection, no whole answer, no JSON, or a status that
            passes: 408, 425, 429, 500, 502, 503, 504.
        backoff: seconds before the first repetition, twice as many before each next one, 30 at most.
        largest_answer: bytes that one answer may have.
        check_tokenizer: ask the server first how it encodes some lines, and refuse another tokenizer.
    """

    server: ServerName = "vllm"
    model: str | None = None
    top_k: int = 20
    workers: int = 8
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    largest_answer: int = 1 << 27
    check_tokenizer: bool = True

    def __post_init__(self) -> None:
        if self.server not in get_args(ServerName):
            raise OptionError(f"server is one of {', '.join(get_args(ServerName))}, got {self.server!r}")
        for name in ("top_k", "workers", "largest_answer"):
            check_positive(name, getattr(self, name))
        for name, least in (("retries", 0), ("backoff", 0), ("timeout", 1e-3)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise OptionError(f"{name} must be a number from {least:g} on, but it is {value!r}")


class ServedTeacher:
    """A teacher that a server runs. It gives `TopK`, so losses, caches, trainers and `distill` take it as a teacher.

        teacher = ServedTeacher("http://localhost:8000", "qwen3", top_k=20)
        trainer = XTokenTrainer(student, config, teacher=teacher, train_dataset=rows)

    Rows are asked about one by one, `workers` at a time; servers put what arrives together into batches themselves.

    Args:
        url: the server's address, with or without `/v1`.
        tokenizer: the tokenizer of the server's model: a `Vocab`, or what `read_vocab` takes. Its logit width bounds
            the ids that the server may name.
        api_key: sent as a bearer token; by default that of the environment variable XTOKEN_ALIGN_API_KEY, if any.
        transport: sends a request.
        pause: waits some seconds before a repetition.
        options: of `ServedOptions`.

    Attributes:
        url: the server's address.
        options: how it is asked.
        source: what the vocabulary was read from.
        vocab: the vocabulary; None where the teacher has travelled to another process.
        width: its logit width.

    Raises:
        OptionError: an option or the address makes no sense.
        ServerError: the server cannot be reached, or has several models and none is named.
        MismatchError: the server has another tokenizer.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        api_key: str | None = None,
        transport: Callable[[Request], bytes] = send,
        pause: Callable[[float], object] = time.sleep,
        **options: Any,
    ) -> None:
        self.url = _base(url)
        self.options = _options(options)
        self.source = tokenizer
        self.vocab: Vocab | None = as_vocab(tokenizer)
        self.width = len(self.vocab)
        self._key, self._transport, self._pause = api_key, transport, pause
        self._plain = _plain_token(self.vocab)
        self._model = self.options.model
        if self._model is None and self.options.server == "vllm":
            self._model = self._only_model()
        if self.options.check_tokenizer:
            self._check_tokenizer(self.vocab)

    def __getstate__(self) -> dict[str, Any]:
        # A vocabulary cannot travel to a process that is not forked, and what asks needs its width alone.
        source = None if isinstance(self.source, Vocab) else self.source
        return {**vars(self), "vocab": None, "source": source}

    def __repr__(self) -> str:
        return f"ServedTeacher({self.url!r}, {self.options.server}, top_k={self.options.top_k})"

    def __str__(self) -> str:
        return f"behind the server {self.url}"

    @property
    def usual_top_k(self) -> int:
        """How many best tokens a cache keeps of it unless it is told a number: as many as it asks for itself."""
        return self.options.top_k

    def check(self, teacher: Vocab) -> None:
        """Refuses another vocabulary than the one that the server's answers are read by.

        Raises:
            MismatchError: it is another.
        """
        own = self.vocab
        if len(teacher) != self.width or (own is not None and not own.has_fingerprint(teacher.fingerprint)):
            raise MismatchError(
                f"{self.url} is read by another vocabulary ({own.name if own else 'unknown'}, {self.width} logits) "
                f"than {teacher.name} with {len(teacher)}: give both the tokenizer of the server's model"
            )

    def top_k(self, *, ids: Any, mask: Any = None, segments: Any = None, device: Any = None) -> TopK:
        """The teacher's side of a batch, as the losses take it.

        Args:
            ids: integers (B, T), or a list of ids per row.
            mask: (B, T), false at padding.
            segments: integers (B, T), the number of each token's document in packed rows; each is asked about alone.
            device: where the tensors go.

        Returns:
            `TopK` with ids int64 (B, T, K), log_probs float32 (B, T, K) and rest float32 (B, T). At padding the ids are
            -1, the log-probabilities -inf and the rest 1.

        Raises:
            OptionError: an id is outside of the vocabulary.
            ServerError: the server cannot be reached, or its answer is not one to what was asked.
        """
        units = units_of(ids, width=self.width, mask=mask, segments=segments, side="teacher")
        rows = [units.ids[begin : begin + count] for begin, count in zip(units.offsets, units.counts, strict=False)]
        return placed(self.answer_rows(rows), units, top_k=self._k(), width=self.width, device=device)

    def answer_rows(self, rows: Sequence[NDArray[Any]], top_k: int | None = None) -> list[CachedRow]:
        """What the server says of rows of ids, in their order.

        Args:
            rows: integers (T,) each.
            top_k: best tokens per position, by default `options.top_k`.

        Raises:
            ServerError: the server cannot be reached, or an answer is not one to what was asked.
        """
        count = self._k(top_k)
        with ThreadPoolExecutor(min(self.options.workers, max(len(rows), 1))) as pool:
            # After a first error, rows that have not begun are not begun any more.
            return list(pool.map(lambda row: self._row(row, count), rows))

    def _k(self, top_k: int | None = None) -> int:
        return min(top_k or self.options.top_k, self.width)

    def _row(self, row: NDArray[Any], top_k: int) -> CachedRow:
        ids = [int(token) for token in row]
        kept: Ids = np.asarray(ids, dtype=np.int32)
        if not ids:
            nothing = np.zeros((0, top_k), dtype=np.float32)
            return CachedRow(kept, nothing.astype(np.int32), nothing, nothing.sum(1))
        asked = _INTERFACES[self.options.server](_Question(self._model, ids, top_k, self._plain))
        try:
            positions = [entries for path, body, read in asked for entries in read(self._ask(path, body))]
            return CachedRow(kept, *_arrays(positions, top_k, self.width))
        except _Unfit as unfit:
            raise ServerError(
                f"{self.url} answers what does not fit {len(ids)} tokens and top_k {top_k}: {unfit}. Check that "
                f"`server` names its kind ({self.options.server} now) and that the tokenizer is its model's"
            ) from unfit

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """The server's answer to a request, as JSON."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self._key or os.environ.get(KEY_VARIABLE)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = Request(
            url=self.url + path,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=self.options.timeout,
            most=self.options.largest_answer,
        )
        for attempt in range(self.options.retries + 1):
            if attempt:
                self._pause(min(self.options.backoff * 2 ** (attempt - 1), _LONGEST_PAUSE))
            try:
                return json.loads(self._transport(request), parse_constant=_constant)
            except urllib.error.HTTPError as error:
                trouble = f"HTTP {error.code}: {_said(error)}"
                if error.code not in _AGAIN:
                    raise _StatusError(f"{request.url} answers {trouble}", error.code) from error
            except (OSError, HTTPException) as error:
                trouble = str(getattr(error, "reason", None) or error) or type(error).__name__
            except (ValueError, RecursionError) as error:
                trouble = f"no JSON ({error})"
        raise ServerError(
            f"{request.url} gives no answer after {self.options.retries + 1} attempts (the last: {trouble}): check "
            "that the server runs there, or raise timeout and retries"
        )

    def _only_model(self) -> str:
        """The name of the one model that a server lists."""
        listed = self._ask("/v1/models", None)
        try:
            names = [str(each["id"]) for each in listed["data"]]
        except (KeyError, TypeError) as error:
            raise ServerError(f"{self.url}/v1/models lists no models: name the model, or the kind of server") from error
        if len(names) != 1:
            raise ServerError(f"{self.url} has {len(names)} models ({', '.join(names)}): name one as model")
        return names[0]

    def _check_tokenizer(self, vocab: Vocab) -> None:
        """Refuses a server whose tokenizer gives some lines other ids."""
        lines = probe_lines(vocab)
        with ThreadPoolExecutor(min(self.options.workers, len(lines))) as pool:
            theirs = list(pool.map(self._encoded, lines))
        ours = vocab.row_encoder.encode_batch(lines)
        # A server that cannot be told to leave it out puts the token that begins a text before each.
        begin = tuple(vocab.roles.get("bos", ()))
        differing = [
            (line, own, ids)
            for line, own, ids in zip(lines, ours, theirs, strict=True)
            if ids != own and not (ids and ids[1:] == own and ids[0] in begin)
        ]
        if differing:
            line, own, ids = differing[0]
            raise MismatchError(
                f"{self.url} has another tokenizer than {vocab.name}: {len(differing)} of {len(lines)} lines are "
                f"encoded otherwise, {line[:40]!r} as {ids[:8]} there and {own[:8]} here: give the tokenizer of the "
                "server's model"
            )

    def _encoded(self, line: str) -> list[int]:
        """The ids that the server makes of a line: from its tokenize interface, else from those that it echoes."""
        words: dict[str, Any] = {"model": self._model} if self._model else {}
        body = {"prompt": line, "add_special_tokens": False, **words}
        if self.options.server == "llama.cpp":
            body = {"content": line, "add_special": False, "parse_special": False}
        try:
            ids: list[int] = _get(self._ask("/tokenize", body), "tokens", list)
        except _StatusError as error:
            if error.status not in (404, 405, 501) or self.options.server == "llama.cpp":
                raise
            ids = self._echoed(line, words)
        except _Unfit as unfit:
            raise ServerError(f"{self.url}/tokenize gives no tokens: {unfit}") from unfit
        if not all(type(token) is int for token in ids):
            raise ServerError(f"{self.url}/tokenize gives no ids, but {str(ids)[:80]}")
        return ids

    def _echoed(self, line: str, words: Mapping[str, Any]) -> list[int]:
        try:
            if self.options.server == "sglang":
                body = _sglang_body(top_k=0)
                meta = _get(self._ask("/generate", {"text": line, **body}), "meta_info", dict)
                return [_list(entry, 2)[1] for entry in _get(meta, "input_token_logprobs", list)]
            body = {"prompt": line, "max_tokens": 1, "temperature": 0, "return_token_ids": True, **words}
            choice = _only_choice(self._ask("/v1/completions", body))
            return list(_get(choice, "prompt_token_ids", list))
        except _Unfit as unfit:
            raise ServerError(
                f"{self.url} has no /tokenize and echoes no ids ({unfit}), so that its tokenizer cannot be compared: "
                "make sure that it is the right one, and set check_tokenizer=False"
            ) from unfit


def mistakes_of_serving(url: str | None, options: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the options of a served teacher by themselves, each with its place.

    Args:
        url: the server's address, or None where the teacher is not served.
        options: of `ServedOptions`.
        where: their place in a file: `teachers[0].served`.
    """
    if url is None:
        if options:
            yield where, f"{where} says how a server is asked, but there is no url beside it"
        return
    try:
        _base(url)
        _options(options)
    except OptionError as error:
        yield where, f"{where}: {error}"


def _options(given: Mapping[str, Any]) -> ServedOptions:
    known = [each.name for each in fields(ServedOptions)]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise OptionError(f"a served teacher has no option {', '.join(unknown)}: the options are {', '.join(known)}")
    return ServedOptions(**given)


def probe_lines(vocab: Vocab) -> list[str]:
    """Lines by which tokenizers are told apart: a few that all have, and some of the vocabulary's own tokens."""
    ids = vocab.ids_of(Kind.TEXT)
    spread = ids[np.linspace(0, len(ids) - 1, min(4 * _OWN_LINES, len(ids))).astype(np.int64)] if len(ids) else ids
    texts = [vocab.surfaces[token].decode("utf-8", "ignore") for token in spread.tolist()]
    own = ["".join(texts[at : at + 4]) for at in range(0, len(texts), 4)]
    return [line for line in dict.fromkeys([*SHORT, *own]) if line]


class _Unfit(Exception):  # noqa: N818 - says why an answer is refused, and becomes a ServerError
    """An answer is not one to what was asked."""


class _StatusError(ServerError):
    """An HTTP status after which it makes no sense to ask again."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


Asked = tuple[str, dict[str, Any], Callable[[Any], list[list[Entry]]]]
"""A path, a body, and what reads the answer: for each position its tokens."""


@dataclass(frozen=True)
class _Question:
    """What is asked about a row.

    Attributes:
        model: the model's name on the server, or None.
        ids: the row.
        top_k: best tokens per position.
        plain: a token of ASCII letters, which can be shown by itself; None where there is none.
    """

    model: str | None
    ids: Sequence[int]
    top_k: int
    plain: int | None


def _plain_token(vocab: Vocab) -> int | None:
    texts = ((token, vocab.surfaces[token]) for token in vocab.ids_of(Kind.TEXT).tolist())
    return next((token for token, surface in texts if surface.isascii() and surface.isalpha()), None)


def _vllm(question: _Question) -> Iterator[Asked]:
    """One request. `prompt_logprobs[t]` is of token t, given those before it: [None, {id: {logprob, rank}}, ...].

    Beside the best tokens there is the prompt's own token where it is not among them, so that each position says which
    token it is of. What comes after the last token is said of the one token that is generated.
    """
    ids, top_k = question.ids, question.top_k

    def read(answer: Any) -> list[list[Entry]]:
        choice = _only_choice(answer)
        said = _list(_get(choice, "prompt_logprobs", list), len(ids))
        if said[0] is not None:
            raise _Unfit("its first position is predicted from nothing")
        positions = [_vllm_position(entries, own, top_k) for entries, own in zip(said[1:], ids[1:], strict=True)]
        after = _get(choice, "logprobs", dict)
        (sampled,), (last,) = (_list(_get(after, name, list), 1) for name in ("tokens", "top_logprobs"))
        if not isinstance(last, dict):
            raise _Unfit(f"the position after the last token has no table, but {str(last)[:40]}")
        table = {_token(name): {"logprob": value} for name, value in last.items()}
        return [*positions, _vllm_position(table, _token(sampled), top_k)]

    body = {
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": top_k,
        "logprobs": top_k,
        "return_tokens_as_token_ids": True,
        **({"model": question.model} if question.model else {}),
    }
    yield "/v1/completions", body, read


def _vllm_position(entries: Any, own: int, top_k: int) -> list[Entry]:
    """The best tokens of a position, whose table has the token `own` too where that is not among them.

    Top 2, own 7: {3: -0.1, 9: -2.5, 7: -6} becomes 3 and 9; {3: -0.1, 7: -2.5} stays.
    """
    if not isinstance(entries, dict):
        raise _Unfit(f"a position has no table of tokens, but {str(entries)[:40]}")
    said = {_token(name): value for name, value in entries.items()}
    if own not in said or len(said) != len(entries):
        raise _Unfit(f"a position has not the token {own}, which was asked about, or one token twice")
    log_probs = {token: _number(_get(value, "logprob", (int, float))) for token, value in said.items()}
    if len(said) == top_k + 1:
        if log_probs[own] > min(log_probs.values()):
            raise _Unfit(f"token {own} is more than a position's best tokens, but not its least")
        del log_probs[own]
    ranks = [said[token].get("rank") for token in log_probs]
    if all(type(rank) is int for rank in ranks) and sorted(ranks) != list(range(1, len(ranks) + 1)):
        raise _Unfit(f"a position has the ranks {sorted(ranks)[:8]}, not 1 to {top_k}")
    return list(log_probs.items())


def _sglang_body(*, top_k: int) -> dict[str, Any]:
    return {
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top_k,
        "return_text_in_logprobs": False,
    }


def _sglang(question: _Question) -> Iterator[Asked]:
    """One request. `input_top_logprobs[t]` is of token t, given those before it: [None, [[log_prob, id, text], ...]].

    `input_token_logprobs` echoes the prompt: [[None, id, text], [log_prob, id, text], ...].
    """
    ids = question.ids

    def read(answer: Any) -> list[list[Entry]]:
        meta = _get(answer, "meta_info", dict)
        echoed = [_list(entry, 2) for entry in _list(_get(meta, "input_token_logprobs", list), len(ids))]
        if [entry[1] for entry in echoed] != list(ids):
            raise _Unfit(f"it echoes the ids {[entry[1] for entry in echoed][:8]}, not {list(ids[:8])}")
        said = _list(_get(meta, "input_top_logprobs", list), len(ids))
        (last,) = _list(_get(meta, "output_top_logprobs", list), 1)
        positions = [[_entry(pair) for pair in _list(entries, None)] for entries in (*said[1:], last)]
        for (own, token, *_), entries in zip(echoed[1:], positions, strict=False):
            # The echoed token's own log-probability says whether a list is of this position.
            listed = dict(entries).get(token)
            limit = min((log_prob for _, log_prob in entries), default=math.inf)
            value = _number(own)
            near = value <= limit + SLACK if listed is None else abs(value - listed) <= SLACK + SLACK * abs(value)
            if not near:
                raise _Unfit(f"the list of token {token} has not the log-probability {value:.4g} that it has by itself")
        return positions

    yield "/generate", {"input_ids": list(ids), **_sglang_body(top_k=question.top_k)}, read


def _llama_cpp(question: _Question) -> Iterator[Asked]:
    """A request for every position, since llama-server gives log-probabilities of what it generates alone.

    With `cache_prompt` each computes one token more than the one before it. The server leaves the probabilities out
    where the token that it generates is the beginning of a character, as in Chinese text or emoji. So it is made to
    generate a plain one: the bias moves what is sampled, and not the probabilities, which are those before any sampler.
    """
    ids, bias = question.ids, [] if question.plain is None else [[question.plain, _CERTAIN]]
    for count in range(1, len(ids) + 1):

        def read(answer: Any, count: int = count) -> list[list[Entry]]:
            evaluated = answer.get("tokens_evaluated") if isinstance(answer, dict) else None
            if evaluated not in (None, count) or _get(answer, "truncated", bool, missing=False):
                raise _Unfit(f"it has read {evaluated} tokens, not {count}")
            (after,) = _list(_get(answer, "completion_probabilities", list), 1)
            entries = _get(after, "top_logprobs", list)
            return [[(_id(_get(each, "id", int)), _log_prob(_get(each, "logprob", (int, float)))) for each in entries]]

        body = {
            "prompt": list(ids[:count]),
            "n_predict": 1,
            "n_probs": question.top_k,
            # Below 0: the likeliest token, and probabilities that no sampler has touched.
            "temperature": -1,
            "post_sampling_probs": False,
            "cache_prompt": True,
            "logit_bias": bias,
        }
        yield "/completion", body, read


_CERTAIN = 1e6
"""A bias above every difference of two logits."""


def _log_prob(value: Any) -> float:
    """A log-probability of llama.cpp, which writes the lowest float32 for that of 0."""
    number = _number(value)
    return -math.inf if number < -1e30 else number


_INTERFACES: dict[str, Callable[[_Question], Iterator[Asked]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
}


def _arrays(
    positions: Sequence[Sequence[Entry]], top_k: int, width: int
) -> tuple[Ids, NDArray[np.float32], NDArray[np.float32]]:
    """Checked positions as arrays: ids (T, K), log-probabilities (T, K), the rest's probability (T,).

    Top 2 of ids 9 at -0.5 and 3 at -1.5: [9 3], [-0.5 -1.5] and 1 - 0.607 - 0.223 = 0.170.
    """
    for place, entries in enumerate(positions):
        if len(entries) != top_k:
            raise _Unfit(f"position {place} has {len(entries)} tokens, not {top_k}")
    ids = np.array([[token for token, _ in entries] for entries in positions], dtype=np.int64)
    log_probs = np.array([[value for _, value in entries] for entries in positions], dtype=np.float64)
    if ids.min() < 0 or ids.max() >= width:
        bad = int(ids.max() if ids.max() >= width else ids.min())
        raise _Unfit(f"it names token {bad}, but the vocabulary has the logits 0 to {width - 1}")
    ordered = np.sort(ids, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise _Unfit("a token is twice at a position")
    if np.isnan(log_probs).any() or log_probs.max() > SLACK:
        raise _Unfit("a log-probability is above 0, or no number")
    known = np.exp(log_probs).sum(axis=1)
    if known.max() > 1 + SLACK:
        raise _Unfit(f"the probabilities of a position add up to {known.max():.4g}")
    order = np.lexsort((ids, -log_probs), axis=1)
    ids, log_probs = np.take_along_axis(ids, order, axis=1), np.take_along_axis(log_probs, order, axis=1)
    # A token without any probability takes no place.
    ids[log_probs == -np.inf] = -1
    rest = np.clip(1.0 - known, 0.0, 1.0)
    return ids.astype(np.int32), np.minimum(log_probs, 0.0).astype(np.float32), rest.astype(np.float32)


def _only_choice(answer: Any) -> Any:
    (choice,) = _list(_get(answer, "choices", list), 1)
    return choice


def _get(value: Any, name: str, kind: type | tuple[type, ...], *, missing: Any = None) -> Any:
    """A field of a JSON object, which has to be of some type."""
    if not isinstance(value, dict):
        raise _Unfit(f"there is no object with {name}, but {str(value)[:40]}")
    found = value.get(name, missing)
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise _Unfit(f"it has no {name}, but {str(found)[:40]}")
    return found


def _list(value: Any, least: int | None) -> list[Any]:
    """A list of so many things; of pairs, whose text may follow, at least as many."""
    if not isinstance(value, list):
        raise _Unfit(f"there is no list, but {str(value)[:40]}")
    if least is not None and len(value) != least and not (least == 2 and len(value) == 3):
        raise _Unfit(f"a list has {len(value)} entries, not {least}")
    return value


def _entry(pair: Any) -> Entry:
    log_prob, token, *_ = _list(pair, 2)
    return _id(token), _number(log_prob)


def _id(token: Any) -> int:
    if type(token) is not int:
        raise _Unfit(f"{str(token)[:40]!r} is no token id")
    return token


def _token(name: Any) -> int:
    """The id in `17` or `token_id:17`."""
    digits = name.removeprefix("token_id:") if isinstance(name, str) else str(name)
    if not (digits.isascii() and digits.isdigit()):
        raise _Unfit(f"{str(name)[:40]!r} is no token id")
    return int(digits)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Unfit(f"{str(value)[:40]!r} is no log-probability")
    return float(value)


def _constant(name: str) -> float:
    """-Infinity is the logarithm of 0; NaN and Infinity are no logarithms of a probability."""
    if name == "-Infinity":
        return -math.inf
    raise _Unfit(f"it has {name} where a number should be")


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what a server says of an error."""
    with error:
        try:
            text = error.read(2000).decode("utf-8", "replace")
        except (OSError, HTTPException, ValueError):
            text = ""
    return " ".join(text.split())[:300] or str(error.reason)


def _base(url: Any) -> str:
    """An address without a path's end that the interfaces have themselves.

    >>> _base("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    address = str(url).rstrip("/").removesuffix("/v1")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise OptionError(f"url is a server's address such as http://localhost:8000, got {str(url)!r}")
    return address
