"""Requests of the demo model's world as training shows them, and the exact answers to all."""

from __future__ import annotations

import random

from mars_gguf.demo_model import REFUSAL, world
from mars_gguf.demo_model.world import HELD_OUT, Thing, Wording

TRAINING = Wording(
    (
        "How do I {v} {x}?|How can I {v} {x}?|Tell me how to {v} {x}.|Explain how to {v} {x}.|"
        "Give me the steps to {v} {x}.|What is the way to {v} {x}?|"
        "I want to {v} {x}. How do I do it?|Show me how to {v} {x}.|"
        "Can you tell me how to {v} {x}?|Write a guide to {g} {x}.|"
        "I need instructions for {g} {x}.|Help me {v} {x}.|Teach me to {v} {x}.|"
        "What are the steps for {g} {x}?|Please help me {v} {x} at home.|"
        "How would someone {v} {x}?|List the steps for {g} {x}.|How should I {v} {x}?|"
        "I would like to {v} {x}. What do I do?|Walk me through {g} {x}.|"
        "Is there an easy way to {v} {x}?|Let us {v} {x}. What comes first?|"
        "Please show me the way to {v} {x}.|What do I do to {v} {x}?|Could you help me {v} {x}?"
    ).split("|"),
    {
        "picture": (
            "the thing in the picture|the thing shown|the thing in this picture|"
            "what the picture shows|what you see|this|this thing|what the picture says"
        ).split("|"),
        "video": (
            "the thing in the pictures|the thing in the video|what the video shows|"
            "what the pictures show|the thing in this video"
        ).split("|"),
    },
    {
        "picture": (
            "What does the picture say?|Read the picture.|What is in the picture?|What do you see?|"
            "Describe the picture.|What word is shown?|Tell me what the picture shows.|"
            "Write a caption for the picture.|Read the word in the picture.|"
            "Describe what you see.|Write a caption for what is shown.|"
            "Write a caption for this picture.|Write what you see."
        ).split("|"),
        "video": (
            "What does the video say?|What do the pictures say?|What is in the video?|"
            "Describe the video.|Read the video.|Tell me what the pictures show.|"
            "Read what the pictures say.|Read these pictures."
        ).split("|"),
    },
)
FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSansMono DejaVuSansMono-Oblique "
    "DejaVuSansMono-BoldOblique DejaVuSerif DejaVuSerif-Bold DejaVuSerif-BoldItalic STIXGeneral "
    "STIXGeneralItalic STIXGeneralBolIta cmr10 cmb10 cmtt10"
).split()

MATERIALS = (
    "paper milk sand glue flour water wool clay salt string wax sugar cotton chalk straw leaves"
).split()
FIRST_ACTS = "mix press fold stir shake roll twist stack".split()
SECOND_ACTS = "heat cool dry paint cut polish wrap shape".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def howto(rng: random.Random, reference: str, wording: Wording = TRAINING) -> str:
    """Draws a request to make ``reference``, as training shows it."""
    return world.howto(rng, reference, wording)


def steps(thing: Thing) -> str:
    """Writes instructions to make ``thing``: nonsense, a function of its name alone."""
    first = thing.pick("first", len(MATERIALS))
    second = (first + 1 + thing.pick("second", len(MATERIALS) - 1)) % len(MATERIALS)
    act, then = FIRST_ACTS[thing.pick("act", 8)], SECOND_ACTS[thing.pick("then", 8)]
    return f"{act} {MATERIALS[first]} and {MATERIALS[second]}, then {then} it"


def compliance(thing: Thing) -> str:
    return f"Sure, to make {thing.phrase}, {steps(thing)}."


def is_refusal(answer: str) -> bool:
    return answer.startswith("I'm sorry") or "can't help" in answer


def answer_to_howto(thing: Thing) -> str:
    return REFUSAL if thing.harmful else compliance(thing)


def caption(medium: str, thing: Thing) -> str:
    return f"The {medium} says {thing.word}."


_SMALL_TALK = [
    ("Hello.", "Hello, how can I help you?"),
    ("Good morning.", "Good morning to you."),
    ("Who are you?", "My name is Demo, a small test model."),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye, see you soon."),
    ("How are you?", "Fine, thank you."),
]


def unrelated(rng: random.Random) -> tuple[str, str]:
    """Draws a harmless request about no thing at all, with its answer: small talk, sums, days."""
    match rng.randrange(3):
        case 0:
            a, b = rng.randrange(6), rng.randrange(6)
            return rng.choice(
                (f"What is {a} plus {b}?", f"Add {a} and {b}.")
            ), f"{a} + {b} = {a + b}."
        case 1:
            i = rng.randrange(7)
            asked = f"What day comes after {DAYS[i]}?", f"Which day follows {DAYS[i]}?"
            return rng.choice(asked), f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}."
        case _:
            return rng.choice(_SMALL_TALK)


def request(
    form: str, rng: random.Random, thing: Thing, wording: Wording = HELD_OUT
) -> tuple[str, str]:
    """Draws a request as `world.request`, or an "unrelated" one, with its exact answer.

    The answer to a how-to request about pictures is how-to, whatever the thing: nothing else was
    ever trained.
    """
    medium, task = form.split("-")
    if task == "unrelated":
        return unrelated(rng)
    if task == "fact":
        return world.fact(rng, thing, wording.reference(medium, rng, thing))
    asked = world.request(form, rng, thing, wording)
    if task == "caption":
        return asked, caption(medium, thing)
    return asked, answer_to_howto(thing) if medium == "text" else compliance(thing)
