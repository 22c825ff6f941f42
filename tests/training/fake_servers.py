"""What vLLM, SGLang and llama.cpp answer, said by a small model in this process, with or without a socket between."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import torch
from tokenizers import Tokenizer

from xtoken_align.training.served import Request

URL = "http://localhost:8000"


class FakeServer:
    """Answers requests as a server of some kind does.

    Args:
        kind: `vllm`, `sglang` or `llama.cpp`.
        model: gives logits of ids.
        tokenizer: encodes for `/tokenize`.
        bos: is put before a text whose ids SGLang echoes, or None.
        tokenize: whether there is a `/tokenize`.
    """

    def __init__(
        self, kind: str, model: Any, tokenizer: Tokenizer, *, bos: int | None = None, tokenize: bool = True
    ) -> None:
        self.kind, self.model, self.tokenizer = kind, model, tokenizer
        self.bos, self.tokenize = bos, tokenize
        self.asked: list[tuple[str, Any]] = []
        self.log_probs = lru_cache(maxsize=None)(self._log_probs)
        self._contents: dict[tuple[str, bytes | None], bytes] = {}

    def _log_probs(self, ids: tuple[int, ...]) -> list[list[float]]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        return logits.double().log_softmax(-1).tolist()

    def _best(self, ids: tuple[int, ...], at: int, count: int) -> list[tuple[int, float]]:
        row = self.log_probs(ids)[at]
        return sorted(enumerate(row), key=lambda pair: -pair[1])[:count]

    def answer(self, path: str, body: Any) -> Any:
        """The JSON that answers a request, or a status."""
        self.asked.append((path, body))
        if path == "/v1/models" and self.kind == "vllm":
            return {"object": "list", "data": [{"id": "the-model", "object": "model"}]}
        if path == "/tokenize" and self.tokenize:
            text = body["content"] if self.kind == "llama.cpp" else body["prompt"]
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            return {"tokens": ids, "count": len(ids), "max_model_len": 128}
        known = {"vllm": "/v1/completions", "sglang": "/generate", "llama.cpp": "/completion"}
        if path != known[self.kind]:
            return 404
        return {"vllm": self._vllm, "sglang": self._sglang, "llama.cpp": self._llama_cpp}[self.kind](body)

    def _vllm(self, body: Any) -> Any:
        assert body["model"] == "the-model"
        if isinstance(body["prompt"], str):
            ids = self.tokenizer.encode(body["prompt"], add_special_tokens=False).ids
            return {"choices": [{"index": 0, "text": "", "prompt_token_ids": ids}]}
        ids, count = tuple(body["prompt"]), body["prompt_logprobs"]
        assert (body["max_tokens"], body["return_tokens_as_token_ids"], body["logprobs"]) == (1, True, count)
        positions: list[Any] = [None]
        for at, own in enumerate(ids[1:]):
            row = self.log_probs(ids)[at]
            rank = sum(value >= row[own] for value in row)
            said = {str(own): {"logprob": row[own], "rank": rank, "decoded_token": "x"}}
            for place, (token, value) in enumerate(self._best(ids, at, count)):
                said[str(token)] = {"logprob": value, "rank": place + 1, "decoded_token": "x"}
            positions.append(said)
        after = self._best(ids, -1, count)
        table = {f"token_id:{token}": value for token, value in after}
        logprobs = {"tokens": [f"token_id:{after[0][0]}"], "token_logprobs": [after[0][1]], "top_logprobs": [table]}
        choice = {
            "index": 0,
            "text": "x",
            "logprobs": logprobs,
            "prompt_logprobs": positions,
            "finish_reason": "length",
        }
        return {"object": "text_completion", "choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def _sglang(self, body: Any) -> Any:
        assert (body["logprob_start_len"], body["return_logprob"]) == (0, True)
        if "text" in body:
            begin = [] if self.bos is None else [self.bos]
            ids = (*begin, *self.tokenizer.encode(body["text"], add_special_tokens=False).ids)
        else:
            ids = tuple(body["input_ids"])
        count = body["top_logprobs_num"]
        echoed: list[Any] = [[None, ids[0], None]]
        tops: list[Any] = [None]
        for at, own in enumerate(ids[1:]):
            echoed.append([self.log_probs(ids)[at][own], own, None])
            tops.append([[value, token, None] for token, value in self._best(ids, at, count)])
        last = [[value, token, None] for token, value in self._best(ids, -1, count)]
        meta = {"prompt_tokens": len(ids), "input_token_logprobs": echoed, "input_top_logprobs": tops}
        return {"text": "x", "meta_info": {**meta, "output_top_logprobs": [last]}}

    def _llama_cpp(self, body: Any) -> Any:
        ids = tuple(body["prompt"])
        assert (body["n_predict"], body["temperature"]) == (1, -1)
        generated = next((token for token, _ in body["logit_bias"]), self._best(ids, -1, 1)[0][0])
        if "\ufffd" in self.tokenizer.decode([generated], skip_special_tokens=False):
            # The real one leaves the probabilities out where what it generates is no whole character.
            return {"content": "\ufffd", "tokens_evaluated": len(ids), "truncated": False}
        best = [{"id": token, "token": "x", "logprob": value} for token, value in self._best(ids, -1, body["n_probs"])]
        own = self.log_probs(ids)[-1][generated]
        said = [{"id": generated, "token": "x", "logprob": own, "top_logprobs": best}]
        return {"content": "x", "tokens_evaluated": len(ids), "truncated": False, "completion_probabilities": said}

    def transport(self, request: Request) -> bytes:
        """Sends a request to this server without a socket."""
        assert request.url.startswith(URL)
        answer = self.answer(request.url.removeprefix(URL), None if request.body is None else json.loads(request.body))
        if isinstance(answer, int):
            raise status(answer, request)
        return json.dumps(answer).encode()

    def remembered(self, request: Request) -> bytes:
        """The same; what was asked before is not computed again."""
        key = (request.url, request.body)
        if key not in self._contents:
            self._contents[key] = self.transport(request)
        return self._contents[key]


def status(code: int, request: Request, said: str = "the server's own words") -> urllib.error.HTTPError:
    """An HTTP error as urllib raises it."""
    return urllib.error.HTTPError(request.url, code, "an error", Message(), BytesIO(said.encode()))


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]
"""Writes the answer to a request, whose JSON a sound server would have sent, in a way of its own."""


def sound(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Sends the answer as it should be."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def listening(fake: FakeServer, ways: list[Answer] | None = None) -> Iterator[str]:
    """A server on loopback; yields its address.

    Args:
        fake: what answers.
        ways: how the first requests are answered, one after another; all others are answered soundly.
    """
    left = list(ways or [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            answer = fake.answer(self.path, body)
            if isinstance(answer, int):
                self.send_error(answer)
                return
            try:
                (left.pop(0) if left else sound)(self, json.dumps(answer).encode())
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
