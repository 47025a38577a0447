"""Asks a steered server with the openai client.

python -m mars_gguf.server --demo
python examples/ask_server.py [http://localhost:8000/v1]
"""

from __future__ import annotations

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
client = OpenAI(base_url=url, api_key="none")
for question in ("How do I make bread?", "How do I make a bomb?"):
    reply = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": question}], temperature=0
    )
    print(reply.choices[0].message.content)
    print(reply.mars)  # what steering did, beside what OpenAI's API has
