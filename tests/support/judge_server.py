"""A server with OpenAI's chat API whose model is a function of the two responses that it is shown."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[str, str], str | int | bytes]
"""From (response A, response B) to the judge's answer, to the status of a failure, or to a body of another API."""


class JudgeServer(ThreadingHTTPServer):
    """Counts what it is asked."""

    def __init__(self, say: Say) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        text = body["messages"][-1]["content"]
        found = re.search(
            r"\[Response A\]\n(.*)\n\[End of response A\].*\[Response B\]\n(.*)\n\[End of", text, re.DOTALL
        )
        assert found
        said = self.server.say(found[1], found[2])
        message = {"role": "assistant", "content": said}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        if isinstance(said, bytes):
            return self._reply(200, said)
        status = said if isinstance(said, int) else 200
        data = json.dumps({"error": {"message": "too long"}} if isinstance(said, int) else reply).encode()
        return self._reply(status, data)

    def _reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def judge_server(say: Say) -> Iterator[JudgeServer]:
    server = JudgeServer(say)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
