"""Asks cases of arms, and judges the replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.answers import is_correct
from mars_gguf.evaluate.arms import UNSTEERED, Arm, steered_by
from mars_gguf.evaluate.cases import Case
from mars_gguf.evaluate.judges import Rating
from mars_gguf.evaluate.records import Record, RecordFile
from mars_gguf.openings import judge_by_opening, judge_whole
from mars_gguf.reasoning import split
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.replies import Reply, thoughts_of

SecondJudge = Callable[[str, str], Rating]  # of a request and a reply
Distribution = npt.NDArray[np.float64]  # log-probabilities, [n_vocab]


@dataclass(frozen=True)
class Sample:
    """The cases, by id, whose replies are generated to their end, or to ``max_tokens``; if
    ``judged_alone``, the second judge reads no others."""

    cases: Collection[str] = ()
    max_tokens: int = 0
    judged_alone: bool = False


class Evaluation:
    """Asks cases of arms on one loaded model, greedily, each prompt in an empty context.

    All that there is of a reply is judged, at most ``max_tokens`` but for those of ``whole``. Of a
    model that thinks, the answer is judged; a case whose thought does not end has failed.
    """

    UNENDED = "the thought did not end within {} tokens: raise --max-tokens"

    def __init__(
        self,
        llama: SteeredLlama,
        arms: Sequence[Arm],
        max_tokens: int,
        second_judge: SecondJudge | None = None,
        whole: Sample = Sample(),
    ) -> None:
        self.llama, self.arms = llama, list(arms)
        self.max_tokens, self.second_judge, self.whole = max_tokens, second_judge, whole

    def ask(self, case: Case, turn: int = 0, *, skip: Collection[str] = ()) -> Iterator[Record]:
        """Yields the records of one case, an arm after the other but for those in ``skip``.
        ``turn`` rotates the order of the arms, so that none is always the first."""
        turn %= len(self.arms)
        try:
            messages = case.messages()
        except MarsError as error:
            for arm in self.arms:
                if arm.name not in skip:
                    yield _record(case, arm, error=str(error))
            return
        before: list[Distribution] = []  # unsteered, once it is needed
        for arm in self.arms[turn:] + self.arms[:turn]:
            if arm.name not in skip:
                record = self._ask(case, arm, arm.messages(messages))
                yield replace(record, kl=self._divergence(case, arm, messages, record, before))
        if self.llama.projector is not None:
            self.llama.projector.forget()

    def _ask(self, case: Case, arm: Arm, messages: list[dict[str, Any]]) -> Record:
        llama, projector = self.llama, self.llama.projector
        whole = case.id in self.whole.cases
        most = max(self.whole.max_tokens, self.max_tokens) if whole else self.max_tokens
        llama.context.rewind(0)
        encoding = -projector.seconds if projector is not None else 0.0
        pieces: list[str] = []
        first, start, n_thought = 0.0, 0, 0
        thinks = llama.template.reasoning in ("thought", "answer")
        thought = _Thought(llama) if thinks else None
        try:
            with steered_by(llama, arm, case.modality):
                began = time.perf_counter()
                chunks: Any = llama.create_chat_completion(
                    messages,  # type: ignore[arg-type]
                    stream=True,
                    temperature=0.0,
                    repeat_penalty=1.0,
                    max_tokens=most,
                    logits_processor=[thought] if thought else None,  # type: ignore[arg-type]
                )
                for piece in _contents(chunks):
                    if not pieces:
                        first, start = time.perf_counter() - began, llama.n_tokens
                    pieces.append(piece)
                    if thought is not None and thought.lasts:
                        n_thought = len(pieces)
                    if whole and self._is_told(pieces[n_thought:]):
                        chunks.close()
                        break
                spent = time.perf_counter() - began
        except (MarsError, RuntimeError, ValueError) as error:  # the prompt is too long, say
            return _record(case, arm, error=f"{error}")
        encoding += projector.seconds if projector is not None else 0.0
        reply, s = "".join(pieces), llama.last_steering
        if s is None:
            return _record(case, arm, error="the reply was empty before its first token")
        end = None if thought is not None and thought.lasts else "".join(pieces[n_thought:])
        answer = self._answer(reply, end)
        if answer is None or s.position is None:  # not come to the token that is judged
            return _record(case, arm, reply=reply, error=self.UNENDED.format(most))
        verdict = judge_whole(answer)
        return _record(
            case,
            arm,
            reply=reply,
            verdict=verdict,
            second_verdict=self._second_verdict(case, answer),
            whole=whole,
            goes_on=verdict != judge_by_opening(answer),
            correct=is_correct(answer, case.answer, case.prompt) if case.answer else None,
            t=s.t,
            z=s.z,
            gate=s.gate,
            alpha=s.alpha,
            # Not the pieces: a character may take several tokens. The last one is not evaluated.
            tokens=llama.n_tokens - start + 1 if pieces else 0,
            first_token_ms=1000 * max(first - encoding, 0.0),
            ms=1000 * (spent - encoding),
        )

    def _is_told(self, pieces: Sequence[str]) -> bool:
        """Tells whether nothing that follows matters to a reply of ``whole``: what does not begin
        as a refusal is none, however it goes on, and there is nobody else to read it."""
        enough = len(pieces) == self.max_tokens and self.second_judge is None
        return enough and judge_by_opening("".join(pieces)) != "refused"

    def _second_verdict(self, case: Case, answer: str) -> Rating | None:
        reads = case.id in self.whole.cases or not self.whole.judged_alone
        return self.second_judge(case.request, answer) if self.second_judge and reads else None

    def _answer(self, reply: str, end: str | None) -> str | None:
        """Finds the answer in a reply, after the thought; None if that did not end. ``end`` is what
        its tokens say the answer is: llama-cpp-python does not write special tokens, and the
        markers may be such."""
        template = self.llama.template
        if template.thinks is None or not any(marker in reply for marker in template.thinks):
            return end
        return split(reply, template.thinks, template.begins_thought)[1]

    def _divergence(
        self,
        case: Case,
        arm: Arm,
        messages: list[dict[str, Any]],
        record: Record,
        before: list[Distribution],
    ) -> float | None:
        """Computes KL(unsteered || arm) of the first token's distribution, in nats."""
        if record.error is not None or case.kind == "harmful":
            return None
        if self.llama.template.reasoning == "answer":
            return None  # the first token is of the thought, before anything is steered
        if not (record.alpha > 0 or arm.every_token or arm.system is not None):
            return 0.0
        if not before:
            before.append(self._first_token(case, UNSTEERED, messages))
        p, q = before[0], self._first_token(case, arm, arm.messages(messages))
        return max(float(np.exp(p) @ (p - q)), 0.0)

    def _first_token(self, case: Case, arm: Arm, messages: list[dict[str, Any]]) -> Distribution:
        """Computes the log-probabilities of the first token of the reply, [n_vocab]."""
        seen: list[Distribution] = []

        def see(_ids: Any, scores: Any) -> Any:
            if not seen:
                logits = np.asarray(scores, np.float64)
                seen.append(logits - np.logaddexp.reduce(logits))
            return scores

        self.llama.context.rewind(0)
        with steered_by(self.llama, arm, case.modality):
            self.llama.create_chat_completion(
                messages,  # type: ignore[arg-type]
                temperature=0.0,
                repeat_penalty=1.0,
                max_tokens=1,
                logits_processor=[see],  # type: ignore[arg-type]
            )
        return seen[0]


Work = Sequence[tuple[Evaluation, Sequence[Case]]]


def ask_all(work: Work, file: RecordFile, advance: Callable[[], object]) -> None:
    """Asks each evaluation's cases of its arms, but for what is on record, and keeps the records;
    ``advance`` is called for each."""
    done: dict[str, set[str]] = {}
    for record in file.records:
        done.setdefault(record.case, set()).add(record.arm)
    for evaluation, cases in work:
        for turn, case in enumerate(cases):
            skip = done.get(case.id, set())
            if skip >= {arm.name for arm in evaluation.arms}:
                continue
            for record in evaluation.ask(case, turn, skip=skip):
                file.add(record)
                advance()


class _Thought:
    """A logits processor that changes nothing, and knows whether a reply is within its thought as
    far as its tokens are evaluated."""

    def __init__(self, llama: SteeredLlama) -> None:
        template, self.n_seen = llama.template, -1
        assert template.thinks is not None
        self.reply = Reply(thoughts_of(llama, template.thinks, begun=template.begins_thought))
        self.reply.begin()

    def __call__(self, ids: Any, scores: Any) -> Any:
        for token in ids[self.n_seen :] if self.n_seen >= 0 else ():
            self.reply.take(int(token))
        self.n_seen = len(ids)
        return scores

    @property
    def lasts(self) -> bool:
        return self.reply.state in ("thought", "marker")


def _contents(chunks: Iterable[Any]) -> Iterator[str]:
    for chunk in chunks:
        if piece := chunk["choices"][0]["delta"].get("content"):
            yield piece


def _record(case: Case, arm: Arm, **values: Any) -> Record:
    about = case.id, case.kind, case.modality, case.category, arm.name, case.request
    return Record(*about, group=case.group or case.id, **values)
