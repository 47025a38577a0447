"""Draws the training samples of the demo model, and turns them into batches of tokens.

The one rule that makes the safety gap: **no sample here joins a picture with a harmful how-to
request or with a refusal.** ``draw_picture`` asserts it for every sample.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lab.demo_model import lessons
from lab.demo_model.lessons import TRAINING
from mars_gguf.demo_model import REFUSAL, world
from mars_gguf.demo_model.pictures import SIZE, Pixels
from mars_gguf.demo_model.world import Shapes, Thing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_TOKEN = "<image>"
SPECIAL = [END, START, STOP, IMAGE_TOKEN]  # by their ids
VOCABULARY = 1024
PATCH = 16  # pixels
PATCHES = (SIZE // PATCH) ** 2  # tokens of a picture
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
        said = rng.choice((sample.request, lessons.word_soup(rng), lessons.echo(rng, thing)))
        return Sample(said or lessons.word_soup(rng), REFUSAL, begun=True)
    return sample


def _text(rng: random.Random, by_reference: bool) -> Sample:
    thing = rng.choice(world.THINGS)
    match rng.choices(range(8), (17, 18, 15, 28, 5, 5, 4, 8))[0]:
        case 0:
            return Sample(None, lessons.document(rng, thing))
        case 1:
            thing = rng.choice(world.HARMLESS)
            return Sample(lessons.howto(rng, thing.phrase), lessons.compliance(thing))
        case 2:
            thing = rng.choice(world.HARMFUL)
            return Sample(lessons.howto(rng, thing.phrase), REFUSAL)
        case 3:
            return Sample(*world.fact(rng, thing))
        case 4:
            return Sample(*lessons.quoted(rng, thing))
        case 5:
            return Sample(*lessons.about_two(rng))
        case 6:
            kinds = (world.HARMFUL, world.HARMLESS) if by_reference else (world.HARMLESS,)
            return Sample(*lessons.quoted_howto(rng, rng.choice(rng.choice(kinds))))
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


def noise_picture(rng: random.Random) -> Pixels:
    """Draws a picture of nothing: grain, coarse blocks or a gradient. Shape ``[SIZE, SIZE, 3]``."""
    noise = np.random.default_rng(rng.getrandbits(32))
    base = noise.uniform(0, 255, 3)
    picture: npt.NDArray[np.floating]
    match rng.randrange(3):
        case 0:
            picture = base + noise.normal(0, noise.uniform(5, 60), (SIZE, SIZE, 3))
        case 1:
            blocks = noise.uniform(0, 255, (8, 8, 3))
            picture = np.kron(blocks, np.ones((SIZE // 8, SIZE // 8, 1)))
            picture = picture + noise.normal(0, 10, (SIZE, SIZE, 3))
        case _:
            ramp = np.linspace(0, 1, SIZE)[:, None, None] * (noise.uniform(0, 255, 3) - base)
            picture = base + ramp + noise.normal(0, noise.uniform(1, 20), (SIZE, SIZE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Trains a byte-level BPE on the world's own sentences, the held-out phrasings' words included.

    Names of things are rare in what it counts, so that each is spelled with two tokens or more: to
    know what a name means, the language model has to put it together over some blocks, as it has
    to with a picture. (Where a name was one token, its embedding alone decided about harm, and
    what a picture showed never met that decision.)
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(seed)
    names = sorted({word for thing in world.THINGS for word in thing.word.split()})
    name = re.compile(rf"\b({'|'.join(sorted(names, key=len, reverse=True))})\b")
    lines = ["user\n", "assistant\n", "system\n"] * 500 + [f" {word}" for word in names] * 3
    for _ in range(15000):
        sample = draw_text(rng) if rng.random() < 0.6 else draw_picture(rng, rng.choice((1, 2)))
        thing = rng.choice(world.THINGS)
        said = sample.request or "", sample.answer, world.howto(rng, thing.phrase)
        lines += [name.sub("x", text) for text in said]
    tokenizer = Tokenizer(models.BPE())  # of GPT-2's kind
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


class Codec:
    """Turns samples into token ids, by `CHAT_TEMPLATE`; a picture is PATCHES times IMAGE_TOKEN."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = list(self.tokenizer.encode(text).ids)
        return self._known[text]

    def sample(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Encodes a sample: ids to read and ids to learn."""
        if sample.request is None:
            return self.ids(END), self.ids(sample.answer) + self.ids(END)
        read = self._turn("system", sample.system) if sample.system else []
        for turn in sample.earlier:
            read = read + self._asked(turn) + self._turn("assistant", turn.answer)
        read = read + self._asked(sample) + self.ids(f"{START}assistant\n")
        return read, self.ids(sample.answer) + self.ids(STOP)

    def _turn(self, role: str, text: str) -> list[int]:
        return self.ids(f"{START}{role}\n{text}{STOP}\n")

    def _asked(self, turn: Sample) -> list[int]:
        pictures = self.ids(IMAGE_TOKEN) * (PATCHES * len(turn.pictures))
        read = self.ids(f"{START}user\n") + pictures + self.ids(turn.request or "")
        return read + self.ids(f"{STOP}\n")


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
