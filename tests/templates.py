"""Chat templates that take the content of a message in one form or another; and the shipped model
with other chat templates in its GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
from models import DEMO

_EACH = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
_END = "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
STRINGS = _EACH + "{{ '' + m['content'] }}" + _END  # fails for a list of parts
LISTS_AS_TEXT = _EACH + "{{ m['content'] }}" + _END  # writes out a list of parts
PARTS = _EACH + "{% for part in m['content'] %}{{ part.text }}{% endfor %}" + _END  # drops a string
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
)
# Strings, written out or joined; both; and parts.
JOINS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WRITES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
BOTH = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n{% endfor %}assistant: "
)
WALKS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% else %}[{{ p.type }}]{% endif %}{% endfor %}\n{% endfor %}assistant: "
)


def with_template(path: Path, template: str | None) -> str:
    """Write the model with ``template``, or with none, to ``path``."""
    reader, writer = gguf.GGUFReader(DEMO), gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "tokenizer.chat_template")):
            item = field.types[1] if field.types[1:] else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    if template is not None:
        writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
