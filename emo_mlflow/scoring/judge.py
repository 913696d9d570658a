"""A language model behind an OpenAI-compatible API as a scorer: asked about each text once, patiently, and never more often than allowed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.names import shown
from emo_mlflow.errors import Unscored, reason_of
from emo_mlflow.scoring.agreement import Agreement
from emo_mlflow.scoring.rubric import Address
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.types import FloatArray

KEY = "EMO_MLFLOW_JUDGE_KEY"
AT_ONCE = 4  # requests under way
KEPT_EVERY = 32  # texts after which answers are on disk
ANSWER_SECONDS = 120.0
PATIENCE = 60.0  # seconds without an answer until it is given up
FIRST_PATIENCE = 5.0  # the same before the first answer, which comes before anything is generated
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
TOKENS_A_LABEL = 24


class Judge:
    """A `protocol.Scorer` whose scores are a language model's answers; a label that an answer does not give is NaN.

    Texts go to the address that was given and nowhere else: no proxy, no redirection. Answers are kept on disk by model, rubric and text.
    """

    def __init__(self, address: Address, max_calls: int) -> None:
        self.address = address
        self._left = max_calls
        self._max_calls = max_calls
        self._lock = threading.Lock()
        self._cache = ScoreCache(cache_folder() / "judges" / f"{address.identity}.db")
        self._answered = False
        self._failed: Unscored | None = None
        self._with_schema = True
        self._calls = self._unreadable = self._from_cache = 0
        self._seconds = 0.0
        self._session = requests.Session()
        self._session.trust_env = False
        if os.environ.get(KEY):
            self._session.headers["Authorization"] = f"Bearer {os.environ[KEY]}"

    @property
    def name(self) -> str:
        """The rubric's."""
        return self.address.rubric.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """`rubric.label`."""
        return self.address.rubric.metrics

    @property
    def fingerprint(self) -> str:
        """Of the model's name and the rubric; what the server runs under that name is its own affair."""
        return self.address.identity

    @property
    def agreement(self) -> tuple[Agreement, ...]:
        """Not known before readers have labelled texts."""
        return ()

    @property
    def providers(self) -> tuple[str, ...]:
        """The server."""
        return (self.address.url,)

    @property
    def costs(self) -> Mapping[str, float]:
        """Calls, seconds, answers that could not be read, and texts whose answer was kept from before."""
        counts = {"calls": self._calls, "seconds": self._seconds, "unreadable": self._unreadable, "from_cache": self._from_cache}
        return {f"judge.{self.name}.{name}": float(value) for name, value in counts.items()}

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Distinct texts -> float32 [texts, labels].

        Raises:
            Unscored: if the server stays away or busy, refuses, or is no OpenAI-compatible API, or the limit of calls is reached; answers until then
                are kept.
        """
        began, self._failed = time.monotonic(), None
        known = self._cache.read(self.fingerprint, texts, len(self.metrics))
        self._from_cache += len(known)
        left = [text for text in texts if text not in known]
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for start in range(0, len(left), KEPT_EVERY):
                    self._ask_part(pool, left[start : start + KEPT_EVERY], known)
        finally:
            self._seconds += time.monotonic() - began
        return np.array([known[text] for text in texts], np.float32).reshape(-1, len(self.metrics))

    def _ask_part(self, pool: ThreadPoolExecutor, texts: Sequence[str], known: dict[str, FloatArray]) -> None:
        """Asks about some texts at once; answers are kept although another text has none."""
        waiting = {text: pool.submit(self._ask, text) for text in texts}
        fresh = {}
        for text, answer in waiting.items():
            try:
                fresh[text] = np.array(self.address.rubric.read(answer.result()), np.float32)
            except Unscored as error:
                self._failed = self._failed or error
        self._unreadable += sum(bool(np.isnan(row).any()) for row in fresh.values())
        self._cache.write(self.fingerprint, fresh)
        known.update(fresh)
        if self._failed:
            raise self._failed

    def _ask(self, text: str) -> str:
        """The model's answer about a text, asked for again while the server is away or busy; not once it was given up about another text."""
        start, pause = time.monotonic(), FIRST_PAUSE
        while True:
            if self._failed:
                raise self._failed
            self._count()
            reply, trouble, wait = self._post(text)
            if reply is not None:
                self._answered = True
                return reply
            wait = max(pause, wait)
            if time.monotonic() + wait - start > (PATIENCE if self._answered else FIRST_PATIENCE):
                self._failed = self._failed or Unscored(f"the judge {self.address.url} {trouble}; start it, or wait, and go on")
                continue
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _count(self) -> None:
        with self._lock:
            if self._left == 0:
                raise Unscored(f"judge_max_calls={self._max_calls} calls were made, and there are texts left: go on with a larger one")
            self._left -= 1
            self._calls += 1

    def _post(self, text: str) -> tuple[str | None, str, float]:
        """One request: the answer, or None with what is wrong and for how long to wait at least, in seconds.

        Raises:
            Unscored: if asking again does not help.
        """
        with_schema = self._with_schema
        try:
            reply = self._session.post(
                f"{self.address.url}/chat/completions", json=self._request(text, with_schema), timeout=ANSWER_SECONDS, allow_redirects=False
            )
        except requests.Timeout:
            return None, f"did not answer within {ANSWER_SECONDS:g} seconds", 0.0
        except requests.RequestException as error:
            return None, f"does not answer ({reason_of(error, 150)})", 0.0
        if reply.status_code in (408, 429) or reply.status_code >= 500:
            return None, f"answers {reply.status_code} {'(too many requests) ' if reply.status_code == 429 else ''}again and again", _wait(reply)
        if reply.status_code == 400 and with_schema:  # a server that knows no schemas is asked without one from now on
            self._with_schema = False
            return None, f"answers 400: {shown(reply.text)}", 0.0
        return self._content(reply), "", 0.0

    def _request(self, text: str, with_schema: bool) -> dict[str, Any]:
        rubric = self.address.rubric
        request = {"model": self.address.model, "messages": rubric.messages(text), "temperature": 0, "seed": 0}
        request["max_tokens"] = 16 + TOKENS_A_LABEL * len(rubric.labels)
        if with_schema:
            request["response_format"] = {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": rubric.schema}}
        return request

    def _content(self, reply: requests.Response) -> str:
        where = f"the judge {self.address.url}"
        if 300 <= reply.status_code < 400:
            raise Unscored(f"{where} redirects to {shown(reply.headers.get('Location', ''))}: give that address, if you trust it")
        try:
            found = reply.json()
        except ValueError:
            kind = "HTML" if "<html" in reply.text[:2000].lower() else shown(reply.text)
            raise Unscored(f"{where} answers {reply.status_code} with {kind}, not JSON: give an OpenAI-compatible API, as a rule .../v1") from None
        if reply.status_code != 200:
            raise Unscored(f"{where} answers {reply.status_code}: {shown(json.dumps(found))}")
        try:
            content = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise Unscored(f"{where} answers {shown(json.dumps(found))}, which is no chat completion") from None
        return content if isinstance(content, str) else ""


def _wait(reply: requests.Response) -> float:
    """What the server asks to wait, in seconds; its date form and nonsense count as nothing."""
    text = reply.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
