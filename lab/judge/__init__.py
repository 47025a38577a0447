"""Measures how well the judge by opening does on replies that none of its rules was made with.

    python -m lab.judge.collect smollm2 MODEL.gguf -o smollm2.jsonl
    python -m lab.judge.measure

The labelled replies are `tests/data/unseen.jsonl`; their card stands beside them.
"""
