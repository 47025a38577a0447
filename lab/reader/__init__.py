"""Eyes in closed form: a projector that lets a text model read pictures of words, without training.

A picture is a grid of cells, one token of the model a cell (`grid`). The projector, a LLaVA "mlp",
recognises each token's cell by a matched filter and answers with that token's own input embedding
(`projector`). So a real language model with real refusals reads real picture tokens, through
libmtmd, like any other. It is an instrument, brittle by construction: it reads what `grid` draws
and takes everything else for blank.

    python -m lab.reader.build MODEL.gguf -o mmproj.gguf
    python -m lab.reader.suite MODEL.gguf mmproj.gguf -o suite/
    python -m lab.reader.neutral MODEL.gguf mmproj.gguf -o neutral/

`python -m lab.reader.report MODEL.gguf -o DIR` does all that and measures what steering does.

To judge a prompt after a look, a few more tokens on a copy of its sequence: `look_sets` makes
prompts in wordings that are fitted on, certified on and left out, `look_states` reads states at
their last tokens and after looks, `look_rules` says what scores of them catch.
"""
