"""Chat templates in the form of the public ones: the same special tokens, the same demands on
messages, nothing of tools.

They differ in what ``content`` may be. Templates for strings do three things to a list of typed
parts: fail (InternVL on Qwen2, MiniCPM-V), drop it (InternVL on Qwen3), or print it (Vicuna).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Forms = Literal["strings", "parts", "both"]


@dataclass(frozen=True)
class Chat:
    """A chat template.

    ``end`` is the token that ends a reply, ``tokens`` are its other special tokens, ``picture`` is
    what a part of type "image" becomes where parts are taken.
    """

    template: str
    forms: Forms
    end: str
    tokens: tuple[str, ...] = ()
    picture: str | None = None


def shown(content: str, picture: str, url: bool = False) -> str:
    """The piece of a template that prints ``content``: a string, or parts, of which one of type
    "image" (with ``url``, of "image_url", too) becomes ``picture``."""
    shows = (
        "part.type == 'image' or 'image' in part or 'image_url' in part"
        if url
        else "part.type == 'image'"
    )
    return (
        f"{{%- if {content} is string -%}}{{{{ {content} }}}}{{%- else -%}}"
        f"{{%- for part in {content} -%}}"
        f"{{%- if {shows} -%}}{picture}"
        f"{{%- elif 'text' in part -%}}{{{{ part.text }}}}{{%- endif -%}}"
        "{%- endfor -%}{%- endif -%}"
    )


CHATML = ("<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")

QWEN_2_VL = Chat(
    r"""
{%- set seen = namespace(pictures=0) -%}
{%- for message in messages -%}
    {%- if loop.first and message.role != 'system' -%}
        {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.content is string -%}
        {{ message.content }}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set seen.pictures = seen.pictures + 1 -%}
                {%- if add_vision_id %}{{ 'Picture ' ~ seen.pictures ~ ': ' }}{% endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{ part.text }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "both", "<|im_end|>", (*CHATML, *VISION), "".join(VISION),
)  # fmt: skip

QWEN_3_VL = Chat(
    r"""
{%- macro show(content) -%}
"""
    + shown("content", "".join(VISION), url=True)
    + r"""
{%- endmacro -%}
{%- for message in messages -%}
    {{ '<|im_start|>' + message.role + '\n' + show(message.content) + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "both", "<|im_end|>", (*CHATML, *VISION), "".join(VISION),
)  # fmt: skip

# A thought is opened always.
QWEN_3_VL_THINKING = Chat(
    QWEN_3_VL.template.replace(
        "{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}"
    ),
    "both", "<|im_end|>", (*QWEN_3_VL.tokens, "<think>", "</think>"), QWEN_3_VL.picture,
)  # fmt: skip

# Wants a question, trims, forgets earlier thoughts, opens a thought unless told not to.
QWEN_3_5 = Chat(
    r"""
{%- macro show(content, system=false) -%}
    {%- if content is string -%}
        {{ content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {%- if 'image' in part or 'image_url' in part or part.type == 'image' -%}
                {%- if system -%}
                    {{ raise_exception('No pictures in a system message.') }}
                {%- endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{ part.text }}
            {%- else -%}
                {{ raise_exception('Unexpected part.') }}
            {%- endif -%}
        {%- endfor -%}
    {%- elif content is not none and content is defined -%}
        {{ raise_exception('Unexpected content.') }}
    {%- endif -%}
{%- endmacro -%}
{%- set last = namespace(question=-1) -%}
{%- for message in messages if message.role == 'user' -%}
    {%- set last.question = loop.index0 -%}
{%- endfor -%}
{%- if last.question < 0 %}{{ raise_exception('No question.') }}{% endif -%}
{%- for message in messages -%}
    {%- set content = show(message.content, message.role == 'system') | trim -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first %}{{ raise_exception('The system message comes first.') }}{% endif -%}
        {{- '<|im_start|>system\n' + content + '<|im_end|>\n' -}}
    {%- elif message.role == 'user' -%}
        {{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' -%}
        {{ '<|im_start|>assistant\n' + content.split('</think>')[-1].lstrip('\n') }}
        {{- '<|im_end|>\n' }}
    {%- else -%}
        {{ raise_exception('Unexpected role.') }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false -%}
        {{ '<think>\n\n</think>\n\n' }}
    {%- else -%}
        {{ '<think>\n' }}
    {%- endif -%}
{%- endif -%}
""",
    "both", "<|im_end|>", (*CHATML, *VISION, "<think>", "</think>"), "".join(VISION),
)  # fmt: skip

# The system prompt goes into the first question; users and the model take turns.
GEMMA_3 = Chat(
    r"""
{{- bos_token -}}
{%- set turns, prefix = messages, '' -%}
{%- if messages[0].role == 'system' -%}
    {%- set content = messages[0].content -%}
    {%- set prefix = (content if content is string else content[0].text) + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Users and assistants must take turns.') }}
    {%- endif -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') -}}
    {%- if message.content is string -%}
        {{ message.content | trim }}
    {%- elif message.content is iterable -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif part.type == 'text' -%}
                {{ part.text | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception('Unexpected content.') }}
    {%- endif -%}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}
""",
    "both", "<end_of_turn>", ("<start_of_turn>", "<start_of_image>", "<end_of_image>"),
    "<start_of_image>",
)  # fmt: skip

# A system turn of its own; an empty thought unless told to think.
GEMMA_4 = Chat(
    r"""
{{- bos_token -}}
{%- set turns = messages -%}
{%- set thinks = enable_thinking | default(false) -%}
{%- if thinks or messages[0].role in ['system', 'developer'] -%}
    {{ '<|turn>system\n' }}
    {%- if thinks %}{{ '<|think|>\n' }}{% endif -%}
    {%- if messages[0].role in ['system', 'developer'] -%}
        {{ messages[0].content | trim }}
        {%- set turns = messages[1:] -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for message in turns -%}
    {{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {%- if message.content is string -%}
        {{ message.content | trim }}
    {%- elif message.content is sequence -%}
        {%- for part in message.content -%}
            {%- if part.type == 'text' -%}
                {{ part.text | trim }}
            {%- elif part.type == 'image' -%}
                {{ '<|image|>' }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|turn>model\n' }}
    {%- if not thinks %}{{ '<|channel>thought\n<channel|>' }}{% endif -%}
{%- endif -%}
""",
    "both", "<turn|>",
    ("<|turn>", "<|think|>", "<|image|>", "<|image>", "<image|>", "<|channel>", "<channel|>"),
    "<|image|>",
)  # fmt: skip

INTERNVL_QWEN_2 = Chat(
    r"""
{%- if messages[0].role == 'system' -%}
    {{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else -%}
    {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
    {%- if not (message.role == 'system' and loop.first) -%}
        {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "strings", "<|im_end|>", CHATML,
)  # fmt: skip

INTERNVL_QWEN_3 = Chat(
    r"""
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else '' -%}
    {%- if message.role == 'assistant' -%}
        {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false -%}
        {{ '<think>\n\n</think>\n\n' }}
    {%- endif -%}
{%- endif -%}
""",
    "strings", "<|im_end|>", (*CHATML, "<think>", "</think>"),
)  # fmt: skip

MINICPM_V = Chat(
    r"""
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "strings", "<|im_end|>", CHATML,
)  # fmt: skip

SMOLVLM = Chat(
    "<|im_start|>"
    r"""
{%- for message in messages -%}
    {{ message['role'] | capitalize }}
    {{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'text' -%}
            {{ part['text'] }}
        {%- elif part['type'] == 'image' -%}
            {{ '<image>' }}
        {%- endif -%}
    {%- endfor -%}
    {{- '<end_of_utterance>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif -%}
""",
    "parts", "<end_of_utterance>", ("<|im_start|>", "<image>"), "<image>",
)  # fmt: skip

# Pictures before text, wherever they stood.
LLAVA_HF = Chat(
    r"""
{%- for message in messages -%}
    {%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif -%}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}
        {{ '<image>\n' }}
    {%- endfor -%}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
        {%- if message['role'] == 'assistant' -%}
            {% generation %}{{ part['text'] + ' ' }}{% endgeneration %}
        {%- else -%}
            {{ part['text'] + ' ' }}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
""",
    "parts", "</s>", ("<image>",), "<image>\n",
)  # fmt: skip

VICUNA = Chat(
    r"""
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{ message.content | trim }}{{ ' ' }}
    {%- elif message.role == 'user' -%}
        USER: {{ message.content | trim }}{{ ' ' }}
    {%- elif message.role == 'assistant' -%}
        ASSISTANT: {{ message.content | trim }}{{ eos_token }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
""",
    "strings", "</s>",
)  # fmt: skip

# The system prompt goes into the last question; parts of unknown types are refused.
PIXTRAL = Chat(
    r"""
{{- bos_token -}}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Users and assistants must take turns.') }}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ '[INST]' }}
        {%- if loop.last and system is defined %}{{ system + '\n\n' }}{% endif -%}
        {%- if message['content'] is string -%}
            {{ message['content'] }}
        {%- else -%}
            {%- for part in message['content'] -%}
                {%- if part['type'] == 'text' -%}
                    {{ part['text'] }}
                {%- elif part['type'] == 'image' -%}
                    {{ '[IMG]' }}
                {%- else -%}
                    {{ raise_exception('Unexpected part.') }}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '[/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{ message['content'] + eos_token }}
    {%- else -%}
        {{ raise_exception('Unexpected role.') }}
    {%- endif -%}
{%- endfor -%}
""",
    "both", "</s>", ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"), "[IMG]",
)  # fmt: skip

LFM_2_VL = Chat(
    r"""
{{- bos_token -}}
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\n' }}
"""
    + shown("message['content']", "<image>")
    + r"""
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "both", "<|im_end|>", (*CHATML, "<image>"), "<image>",
)  # fmt: skip

LLAMA_4 = Chat(
    r"""
{{- bos_token -}}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set content = messages[0]['content'] -%}
    {%- set system = content if content is string else content[0]['text'] -%}
    {%- set turns = messages[1:] -%}
    {{- '<|header_start|>system<|header_end|>\n\n' + system | trim + '<|eot|>' -}}
{%- endif -%}
{%- for message in turns -%}
    {{ '<|header_start|>' + message['role'] + '<|header_end|>\n\n' }}
"""
    + shown("message['content']", "<|image|>")
    + r"""
    {{- '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|header_start|>assistant<|header_end|>\n\n' }}
{%- endif -%}
""",
    "both", "<|eot|>", ("<|header_start|>", "<|header_end|>", "<|image|>"), "<|image|>",
)  # fmt: skip

# A thought is opened always.
GLM_TOKENS = (
    "[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<think>", "</think>",
    "<|begin_of_image|>", "<|image|>", "<|end_of_image|>",
)  # fmt: skip

GLM_4_V = Chat(
    "[gMASK]<sop>"
    r"""
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{ '<|system|>\n' ~ message.content }}
    {%- elif message.role == 'user' -%}
        {{ '<|user|>\n' }}
"""
    + shown("message.content", "<|begin_of_image|><|image|><|end_of_image|>")
    + r"""
    {%- elif message.role == 'assistant' -%}
        {{ '<|assistant|>\n' ~ message.content }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n<think>' }}{% endif -%}
""",
    "both", "<|user|>",
    GLM_TOKENS,
    "<|begin_of_image|><|image|><|end_of_image|>",
)  # fmt: skip

KIMI_VL = Chat(
    r"""
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{ '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}
    {%- endif -%}
    {{- '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' -}}
    {%- if message['content'] is string -%}
        {{ message['content'] + '<|im_end|>' }}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
                {{ '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' }}
            {%- else -%}
                {{ part['text'] }}
            {%- endif -%}
        {%- endfor -%}
        {{- '<|im_end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif -%}
""",
    "both", "<|im_end|>",
    (
        "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>",
        "<|media_start|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>",
    ),
    "<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
)  # fmt: skip

# As GLM-4.5V: thoughts can be switched off, and then the question says so, too.
GLM_4_5_V = Chat(
    "[gMASK]<sop>"
    r"""
{%- macro show(content) -%}
"""
    + shown("content", "<|begin_of_image|><|image|><|end_of_image|>", url=True)
    + r"""
{%- endmacro -%}
{%- set quick = enable_thinking is defined and not enable_thinking -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{ '<|user|>\n' + show(message.content) }}
        {%- if quick %}{{ '/nothink' }}{% endif -%}
    {%- elif message.role == 'assistant' -%}
        {%- set said = show(message.content).split('</think>')[-1] -%}
        {{ '<|assistant|>\n<think></think>\n' + said.strip() }}
    {%- elif message.role == 'system' -%}
        {{ '<|system|>\n' + show(message.content) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|assistant|>' }}
    {%- if quick %}{{ '\n<think></think>' }}{% endif -%}
{%- endif -%}
""",
    "both", "<|user|>",
    GLM_TOKENS,
    "<|begin_of_image|><|image|><|end_of_image|>",
)  # fmt: skip

PHI_3 = Chat(
    r"""
{%- for message in messages -%}
    {%- if message['role'] == 'system' and message['content'] -%}
        {{ '<|system|>\n' + message['content'] + '<|end|>\n' }}
    {%- elif message['role'] == 'user' -%}
        {{ '<|user|>\n' + message['content'] + '<|end|>\n' }}
    {%- elif message['role'] == 'assistant' -%}
        {{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif -%}
""",
    "strings", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>"),
)  # fmt: skip

PHI_4 = Chat(
    r"""
{%- for message in messages -%}
    {%- if message['role'] in ['system', 'user', 'assistant'] -%}
        {{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif -%}
""",
    "strings", "<|im_end|>", (*CHATML, "<|im_sep|>"),
)  # fmt: skip

# Nothing says where a reply ends but the end of everything.
MINICPM = Chat(
    r"""
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{ '<用户>' + message['content'].strip() + '<AI>' }}
    {%- else -%}
        {{ message['content'].strip() }}
    {%- endif -%}
{%- endfor -%}
""",
    "strings", "</s>", ("<用户>", "<AI>"),
)  # fmt: skip

# A system prompt of its own; pictures before text.
GRANITE_VISION = Chat(
    r"""
{%- if messages[0]['role'] != 'system' -%}
    {{ '<|system|>\nA chat between a curious user and a helpful assistant.\n' }}
{%- endif -%}
{%- for message in messages -%}
    {{ '<|' + message['role'] + '|>\n' }}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}
        {{ '<image>\n' }}
    {%- endfor -%}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
        {{ part['text'] + '\n' }}
    {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}
""",
    "parts", "<|end_of_text|>", ("<|system|>", "<|user|>", "<|assistant|>", "<image>"), "<image>\n",
)  # fmt: skip

# Text alone, in strings or in parts; a system prompt of its own.
GRANITE_4 = Chat(
    r"""
{%- macro turn(role, content) -%}
    {{ '<|start_of_role|>' + role + '<|end_of_role|>' + content + '<|end_of_text|>\n' }}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
    {{ turn('system', 'You are a helpful assistant.') }}
{%- endif -%}
{%- for message in messages -%}
    {%- set seen = namespace(text='') -%}
    {%- if message.content is string -%}
        {%- set seen.text = message.content -%}
    {%- else -%}
        {%- for part in message.content if part.type == 'text' -%}
            {%- set seen.text = seen.text + part.text -%}
        {%- endfor -%}
    {%- endif -%}
    {{ turn(message.role, seen.text) }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif -%}
""",
    "both", "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>"),
)  # fmt: skip

FALCON_H1 = Chat(
    r"""
{{- bos_token -}}
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""",
    "strings", "<|im_end|>", CHATML,
)  # fmt: skip

# As Codestral Mamba. The system prompt goes into the first question.
MISTRAL = Chat(
    r"""
{{- bos_token -}}
{%- set before = namespace(text='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set before.text = message['content'] + '\n\n' -%}
    {%- elif message['role'] == 'user' -%}
        {{ '[INST] ' + before.text + message['content'] + '[/INST]' }}
        {%- set before.text = '' -%}
    {%- else -%}
        {{ ' ' + message['content'] + eos_token }}
    {%- endif -%}
{%- endfor -%}
""",
    "strings", "</s>", ("[INST]", "[/INST]"),
)  # fmt: skip
