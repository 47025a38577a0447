"""Chat templates of checkpoints: one takes the contents of messages as strings alone, one as typed
parts alone."""

from __future__ import annotations

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
PART = "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}"
STRINGS = HEAD + "{{ 'say: ' + m.content }}{% endfor %}"
PARTS = HEAD + "{% for p in m.content %}" + PART + "{% endfor %}{% endfor %}"
