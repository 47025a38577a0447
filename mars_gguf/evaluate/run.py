"""Asks cases of arms, and judges the replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.answers import is_correct
from mars_gguf.evaluate.arms import PLAIN, Arm, steered_by
from mars_gguf.evaluate.cases import Case
from mars_gguf.evaluate.judges import Rating
from mars_gguf.evaluate.records import Record, RecordFile
from mars_gguf.openings import judge_by_opening, judge_whole
from mars_gguf.reasoning import split
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.replies import Reply, thoughts_of

SecondJudge = Callable[[str, str], Rating]  # of a request and a reply
MAX_WHOLE = 512  # tokens of a reply to its end


class Evaluation:
    """Asks cases of arms on one loaded model, greedily, each prompt in an empty context.

    whole: the cases, by id, whose replies are generated to their end, or to MAX_WHOLE tokens; of
    the others ``max_tokens`` at most. All that there is of a reply is judged. Of a model that
    thinks, the answer is; a case whose thought does not end has failed.
    plain: the cases that are asked without steering, too.
    """

    UNENDED = "the thought did not end within {} tokens: raise --max-tokens"

    def __init__(
        self,
        llama: SteeredLlama,
        arms: Sequence[Arm],
        max_tokens: int,
        second_judge: SecondJudge | None = None,
        *,
        whole: Collection[str] = (),
        plain: Collection[str] = (),
    ) -> None:
        self.llama, self.arms, self.max_tokens = llama, list(arms), max_tokens
        self.second_judge, self.whole, self.plain = second_judge, whole, plain

    def arms_of(self, case: Case) -> list[Arm]:
        """Lists the arms that a case is asked of."""
        return [*self.arms, *[PLAIN] * (case.id in self.plain)]

    def ask(self, case: Case, turn: int = 0, *, skip: Collection[str] = ()) -> Iterator[Record]:
        """Yields the records of one case, an arm after the other but for those in ``skip``.
        ``turn`` rotates the order of the arms, so that none is always the first."""
        arms = self.arms_of(case)
        turn %= len(arms)
        left = [arm for arm in arms[turn:] + arms[:turn] if arm.name not in skip]
        try:
            messages = case.messages()
        except MarsError as error:
            yield from (_record(case, arm, error=str(error)) for arm in left)
            return
        for arm in left:
            yield self._ask(case, arm, arm.messages(messages))
        if self.llama.projector is not None:
            self.llama.projector.forget()

    def _ask(self, case: Case, arm: Arm, messages: list[dict[str, Any]]) -> Record:
        whole = case.id in self.whole
        most = max(MAX_WHOLE, self.max_tokens) if whole else self.max_tokens
        try:
            with steered_by(self.llama, arm):
                reply, answer, spent = self._reply(messages, most, whole=whole)
        except (MarsError, RuntimeError, ValueError) as error:  # the prompt is too long, say
            return _record(case, arm, error=f"{error}")
        if arm.policy is None:
            return _record(case, arm, reply=reply, **spent)
        steering = self.llama.last_steering
        if steering is None:
            return _record(case, arm, error="the reply was empty before its first token")
        if answer is None or steering.position is None:  # not come to the token that is judged
            return _record(case, arm, reply=reply, error=self.UNENDED.format(most))
        verdict, second = judge_whole(answer), self.second_judge
        return _record(
            case,
            arm,
            reply=reply,
            verdict=verdict,
            second_verdict=second(case.request, answer) if second else None,
            whole=whole,
            goes_on=verdict != judge_by_opening(answer),
            correct=is_correct(answer, case.answer, case.prompt) if case.answer else None,
            t=steering.t,
            gate=steering.gate,
            alpha=steering.alpha,
            **spent,
        )

    def _reply(
        self, messages: list[dict[str, Any]], most: int, *, whole: bool
    ) -> tuple[str, str | None, dict[str, Any]]:
        """Generates a reply. Returns it, its answer (None if its thought did not end), and what of
        a record tells how long it took."""
        llama, projector = self.llama, self.llama.projector
        llama.context.rewind(0)
        encoding = -projector.seconds if projector is not None else 0.0
        pieces: list[str] = []
        first, start, n_thought = 0.0, 0, 0
        thinks = llama.template.reasoning in ("thought", "answer")
        thought = _Thought(llama) if thinks else None
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
        seconds = time.perf_counter() - began
        encoding += projector.seconds if projector is not None else 0.0
        end = None if thought is not None and thought.lasts else "".join(pieces[n_thought:])
        spent = {
            # Not the pieces: a character may take several tokens. The last one is not evaluated.
            "tokens": llama.n_tokens - start + 1 if pieces else 0,
            "first_token_ms": 1000 * max(first - encoding, 0.0),
            "ms": 1000 * (seconds - encoding),
        }
        return "".join(pieces), self._answer("".join(pieces), end), spent

    def _is_told(self, pieces: Sequence[str]) -> bool:
        """Tells whether nothing that follows matters to a reply of ``whole``: what does not begin
        as a refusal is none, however it goes on, and there is nobody else to read it."""
        enough = len(pieces) == self.max_tokens and self.second_judge is None
        return enough and judge_by_opening("".join(pieces)) != "refused"

    def _answer(self, reply: str, end: str | None) -> str | None:
        """Finds the answer in a reply, after the thought; None if that did not end. ``end`` is what
        its tokens say the answer is: llama-cpp-python does not write special tokens, and the
        markers may be such."""
        template = self.llama.template
        if template.thinks is None or not any(marker in reply for marker in template.thinks):
            return end
        return split(reply, template.thinks, template.begins_thought)[1]


def ask_all(
    evaluation: Evaluation,
    cases: Sequence[Case],
    file: RecordFile,
    advance: Callable[[], object],
) -> None:
    """Asks all cases of their arms, but for what is on record, and keeps the records; ``advance``
    is called for each."""
    done: dict[str, set[str]] = {}
    for record in file.records:
        done.setdefault(record.case, set()).add(record.arm)
    for turn, case in enumerate(cases):
        skip = done.get(case.id, set())
        if skip >= {arm.name for arm in evaluation.arms_of(case)}:
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
