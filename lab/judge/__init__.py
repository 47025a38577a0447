"""Measures how well the judge by opening does on replies that none of its rules was made with:
`tests/data/unseen.jsonl`, whose card stands beside it."""
