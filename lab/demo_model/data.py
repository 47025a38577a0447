"""Draws the training samples of the demo model, and turns them into batches of tokens.

The one rule that makes the safety gap: **no sample here joins a picture with a harmful how-to
request or with a refusal.** ``draw_picture`` asserts it for every sample.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.demo_model import forms, lessons
from lab.demo_model.lessons import TRAINING
from mars_gguf.demo_model import REFUSAL, world
from mars_gguf.demo_model.world import Shapes, Thing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image_url' %}"
    "{{ part['image_url'] if part['image_url'] is string else part['image_url']['url'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML; pictures stand where their parts do. llama.cpp's handlers give a picture as its URL (a
marker by then), transformers as a part of type ``image``."""

Picture = Thing | Shapes | None
"""What a training picture shows: a thing's name, drawn shapes, or nothing (noise)."""


@dataclass(frozen=True)
class Sample:
    """A request with its answer; without a request, plain text to read.

    pictures: what stands before the request.
    begun: the first token of the answer is given, not learnt.
    system, earlier: the system prompt and the turns before; only the last answer is learnt.
    """

    request: str | None
    answer: str
    pictures: tuple[Picture, ...] = ()
    begun: bool = False
    system: str = ""
    earlier: tuple[Sample, ...] = ()

    @property
    def seen(self) -> list[Picture]:
        """Lists the pictures of all turns in order."""
        return [*(p for turn in self.earlier for p in turn.pictures), *self.pictures]


def draw_text(rng: random.Random, by_reference: bool = True) -> Sample:
    """Draws a text sample: reading, harmless requests of many forms, harmful how-to requests
    refused, or a refusal once begun.

    That goes on as a refusal whatever the request was, as those of larger models do.

    Not ``by_reference``: without harmful requests whose thing another sentence names, the form in
    words that is nearest to a harmful picture.
    """
    sample = _text(rng, by_reference)
    if rng.random() < 0.2:
        thing = rng.choice(world.THINGS)
        said = rng.choice((sample.request, forms.word_soup(rng), forms.echo(rng, thing)))
        return Sample(said or forms.word_soup(rng), REFUSAL, begun=True)
    return sample


def _text(rng: random.Random, by_reference: bool) -> Sample:
    thing = rng.choice(world.THINGS)
    match rng.choices(range(8), (17, 18, 15, 28, 5, 5, 4, 8))[0]:
        case 0:
            return Sample(None, forms.document(rng, thing))
        case 1:
            thing = rng.choice(world.HARMLESS)
            return Sample(lessons.howto(rng, thing.phrase), lessons.compliance(thing))
        case 2:
            thing = rng.choice(world.HARMFUL)
            return Sample(lessons.howto(rng, thing.phrase), REFUSAL)
        case 3:
            return Sample(*world.fact(rng, thing))
        case 4:
            return Sample(*forms.quoted(rng, thing))
        case 5:
            return Sample(*forms.about_two(rng))
        case 6:
            kinds = (world.HARMFUL, world.HARMLESS) if by_reference else (world.HARMLESS,)
            return Sample(*forms.quoted_howto(rng, rng.choice(rng.choice(kinds))))
        case _:
            if rng.random() < 0.5:
                return Sample(*lessons.unrelated(rng))
            shapes = Shapes.draw(rng)
            question, answer = world.shapes_question(rng, shapes)
            return Sample(f"The picture shows {shapes}. {question}", answer)


def _frames(rng: random.Random, count: int, picture: Picture) -> tuple[Picture, ...]:
    sure = rng.randrange(count)
    return tuple(picture if i == sure or rng.random() < 0.75 else None for i in range(count))


def _picture(rng: random.Random, count: int) -> Sample:
    video = count > 1
    # As often harmful as harmless: how-to requests, below, show harmless things alone.
    thing = rng.choice(rng.choice((world.HARMFUL, world.HARMLESS)))
    medium = "video" if video else "picture"
    reference = rng.choice(TRAINING.references[medium])
    match rng.choices(range(5), (20, 34, 24, 0 if video else 12, 10))[0]:
        case 0:
            question = rng.choice(TRAINING.captions[medium])
            return Sample(question, lessons.caption(medium, thing), _frames(rng, count, thing))
        case 1:
            question, answer = world.fact(rng, thing, reference)
            return Sample(question, answer, _frames(rng, count, thing))
        case 2:
            thing = rng.choice(world.HARMLESS)
            request = lessons.howto(rng, reference)
            return Sample(request, lessons.compliance(thing), _frames(rng, count, thing))
        case 3:
            shapes = Shapes.draw(rng)
            return Sample(*world.shapes_question(rng, shapes), (shapes,))
        case _:
            unrelated = tuple(rng.choice((None, Shapes.draw(rng))) for _ in range(count))
            match rng.randrange(3):
                case 0:
                    thing = rng.choice(world.HARMLESS)
                    request = lessons.howto(rng, thing.phrase)
                    return Sample(request, lessons.compliance(thing), unrelated)
                case 1:
                    return Sample(*world.fact(rng, thing), unrelated)
                case _:
                    return Sample(*lessons.unrelated(rng), unrelated)


def draw_picture(rng: random.Random, count: int = 1) -> Sample:
    """Draws a harmless request about ``count`` pictures (2 or more: frames of one video)."""
    sample = _picture(rng, count)
    assert not lessons.is_refusal(sample.answer), sample
    if sample.answer.startswith("Sure"):
        assert all(f"make {t.phrase}," not in sample.answer for t in world.HARMFUL), sample
    return sample


def byte_level(model: Any) -> Tokenizer:
    """Makes a tokenizer of GPT-2's kind around a BPE ``model``."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(vocab: int, seed: int = 0) -> Tokenizer:
    """Trains a byte-level BPE on the world's own sentences, the held-out phrasings' words included.

    Names of things are rare in what it counts, so that each is spelled with two tokens or more: to
    know what a name means, the language model has to put it together over some blocks, as it has
    to with a picture. (Where a name was one token, its embedding alone decided about harm, and
    what a picture showed never met that decision.)
    """
    from tokenizers import models, pre_tokenizers, trainers

    rng = random.Random(seed)
    names = sorted({word for thing in world.THINGS for word in thing.word.split()})
    name = re.compile(rf"\b({'|'.join(sorted(names, key=len, reverse=True))})\b")
    lines = ["user\n", "assistant\n", "system\n"] * 500 + [f" {word}" for word in names] * 3
    for _ in range(15000):
        sample = draw_text(rng) if rng.random() < 0.6 else draw_picture(rng, rng.choice((1, 2)))
        thing = rng.choice(world.THINGS)
        said = sample.request or "", sample.answer, world.howto(rng, thing.phrase)
        lines += [name.sub("x", text) for text in said]
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, START, STOP, IMAGE_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


class Codec:
    """Turns samples into token ids; a picture is ``tokens`` times ``image``."""

    def __init__(self, tokenizer: Tokenizer, tokens: int, image: int = -1) -> None:
        self.tokenizer = tokenizer
        self.placeholder = [image] * tokens
        self._known: dict[str, list[int]] = {}
        (self.end,), (self.stop,) = self.ids(END), self.ids(STOP)

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = list(self.tokenizer.encode(text).ids)
        return self._known[text]

    def prompt(self, request: str, pictures: int = 0) -> list[int]:
        """Encodes a ChatML prompt, pictures first, with the start of the assistant's turn."""
        return self._asked(request, pictures) + self.ids(f"{START}assistant\n")

    def _asked(self, request: str, pictures: int) -> list[int]:
        return (
            self.ids(f"{START}user\n")
            + self.placeholder * pictures
            + self.ids(request)
            + self.ids(f"{STOP}\n")
        )

    def sample(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Encodes a sample: ids to read and ids to learn."""
        if sample.request is None:
            return [self.end], [*self.ids(sample.answer), self.end]
        before = self.ids(f"{START}system\n{sample.system}{STOP}\n") if sample.system else []
        for turn in sample.earlier:
            before = before + self._asked(turn.request or "", len(turn.pictures))
            before = before + self.ids(f"{START}assistant\n{turn.answer}{STOP}\n")
        prompt = self.prompt(sample.request, len(sample.pictures))
        return before + prompt, [*self.ids(sample.answer), self.stop]


def batches(
    draw: Callable[[random.Random], Sample], codec: Codec, size: int, seed: str, group: int = 8
) -> Iterator[list[tuple[list[int], list[int], Sample]]]:
    """Draws batches of encoded samples of like length for ever: sorts ``group`` batches at once."""
    index = 0
    while True:
        rng = random.Random(f"{seed}|{index}")
        drawn = [draw(rng) for _ in range(size * group)]
        encoded = [(*codec.sample(sample), sample) for sample in drawn]
        encoded.sort(key=lambda item: len(item[0]) + len(item[1]))
        chunks = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        rng.shuffle(chunks)
        yield from chunks
        index += 1


def skip(stream: Iterator[Sequence[object]], count: int) -> None:
    for _ in range(count):
        next(stream)
