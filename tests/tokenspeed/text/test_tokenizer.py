"""Checkpoint folders as they are published: their tokens, their BOS, their chat templates, and what is refused."""

import datetime
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tokenspeed.text.tokenizer import Tokenizer, TokenizerError

STORIES = Path(__file__).resolve().parents[4] / "shared/checkpoints/stories260K"
SPECIAL = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]
CORPUS = ["the cat sat on the mat and the dog sat on the cat", "a user said that the assistant sat"]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": " the cat? "}]

# Shaped like Llama 3's and Mistral's.
LLAMA3 = """{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + \
'<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def backend() -> tokenizers.Tokenizer:
    """A byte-level BPE; the tests that change it copy it first."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture
def save(backend, tmp_path):
    """Writes a checkpoint folder: save(bos=whether the post-processor adds it, **tokenizer_config)."""

    def write(bos: bool = False, **config) -> Path:
        copy = tokenizers.Tokenizer.from_str(backend.to_str())
        if bos:
            copy.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", copy.token_to_id("<s>"))]
            )
        copy.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | config))
        return tmp_path

    return write


@pytest.fixture
def chat(save):
    """Makes a tokenizer with a chat template."""
    return lambda template, **config: Tokenizer.from_folder(save(chat_template=template, **config))


def one_line(call, *expected: str) -> None:
    """Checks that `call` raises a TokenizerError of one line, in which all of `expected` occur."""
    with pytest.raises(TokenizerError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_text_survives_the_round_trip(save):
    tokenizer = Tokenizer.from_folder(save())
    for text in ["the cat sat", " leading and trailing ", "日本語 é 😀", "tabs\tand\nlines", ""]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the cat sat")) < len("the cat sat")  # it merges


def test_names_of_tokens(save):
    tokenizer = Tokenizer.from_folder(save(eos_token={"__type": "AddedToken", "content": "</s>"}, bos_token=None))
    assert (tokenizer.bos_token, tokenizer.bos_id) == (None, None)
    assert (tokenizer.eos_token, tokenizer.eos_id) == ("</s>", SPECIAL.index("</s>"))
    space = tokenizer.encode(" ")[0]
    assert tokenizer.pieces([tokenizer.eos_id, space], skip_special_tokens=False) == ["</s>", "Ġ"]
    assert tokenizer.pieces([tokenizer.eos_id, space]) == ["Ġ"]


def test_ids_beyond_the_vocabulary_give_nothing(save):
    tokenizer = Tokenizer.from_folder(save())
    beyond = tokenizer.vocab_size
    assert len(tokenizer.pieces([beyond - 1, beyond], skip_special_tokens=False)) == 1
    assert tokenizer.decode([beyond, *tokenizer.encode("cat"), beyond]) == "cat"


def test_special_tokens_are_skipped_or_shown(save):
    tokenizer = Tokenizer.from_folder(save())
    ids = [tokenizer.bos_id, *tokenizer.encode("cat"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "cat"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>cat</s>"
    assert tokenizer.pieces(ids) == tokenizer.pieces(ids, skip_special_tokens=False)[1:-1]


def test_the_map_of_special_tokens_fills_in_for_the_configuration(save):
    folder = save(bos_token=None)
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "<|eot_id|>"}')
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("add_bos_token", [None, False, True])
def test_bos_comes_once(save, processor, add_bos_token):
    tokenizer = Tokenizer.from_folder(save(bos=processor, add_bos_token=add_bos_token))
    bos = tokenizer.bos_id
    plain = tokenizer.encode("the cat", add_special_tokens=False)
    assert bos not in plain
    wanted = [bos] if processor or add_bos_token else []
    assert tokenizer.encode("the cat") == wanted + plain
    assert tokenizer.encode("") == wanted
    assert tokenizer.encode("<s>the cat") == [bos, *plain]
    assert tokenizer.encode("<s>the cat", add_special_tokens=False) == [bos, *plain]
    assert tokenizer.encode("<s><s>the cat") == [bos, bos, *plain]  # as it is written


def test_truncation_and_padding_of_the_file_are_not_followed(save):
    folder = save()
    file = folder / "tokenizer.json"
    changed = tokenizers.Tokenizer.from_file(str(file))
    changed.enable_truncation(3)
    changed.enable_padding(length=64)
    changed.save(str(file))
    ids = Tokenizer.from_folder(folder).encode("a user said that the assistant sat")
    assert Tokenizer.from_folder(folder).decode(ids, False) == "a user said that the assistant sat"


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.from_folder(tmp_path) is None
    one_line(lambda: Tokenizer.from_folder(tmp_path / "absent"), "absent", "folder")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.pkl", "tokenizer_state.pickle"])
def test_other_formats_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    one_line(lambda: Tokenizer.from_folder(tmp_path), name, "expected", "tokenizer.json")


def test_tokenizer_json_wins_over_tokenizer_model(save):
    folder = save()
    (folder / "tokenizer.model").write_bytes(b"")
    assert Tokenizer.from_folder(folder) is not None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":\n\n 1'])
def test_broken_files_are_named(save, name, content):
    folder = save()
    (folder / name).write_bytes(content)
    one_line(lambda: Tokenizer.from_folder(folder), name, "expected")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"bos_token": 1}, "bos_token"),
        ({"eos_token": {"text": "</s>"}}, "eos_token"),
        ({"eos_token": "<nowhere>"}, "<nowhere>"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
        ({"add_bos_token": True, "bos_token": None}, "add_bos_token"),
        ({"add_eos_token": 1}, "add_eos_token: expected true or false"),
        ({"split_special_tokens": "no"}, "split_special_tokens: expected true or false"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder: expected an object"),
        ({"added_tokens_decoder": {"0": {"content": "</s>"}}}, "added_tokens_decoder.0: expected a token"),
        ({"added_tokens_decoder": {"400": {"content": "<new>"}}}, "added_tokens_decoder.400: expected a token"),
        ({"added_tokens_decoder": {"0": None}}, "added_tokens_decoder.0: expected a token"),
        ({"additional_special_tokens": ["<s>", "<new>"]}, "additional_special_tokens: expected tokens"),
        ({"additional_special_tokens": "<s>"}, "additional_special_tokens: expected a list"),
        ({"extra_special_tokens": {"image_token": {"content": "<image>"}}}, "extra_special_tokens: expected tokens"),
        ({"bos_token": {"content": [0] * 10**5}}, "bos_token: expected a string"),
        ({"chat_template": 1}, "chat_template"),
        ({"chat_template": [{"name": "default"}]}, "chat_template"),
        ({"chat_template": ["default"]}, "chat_template"),
    ],
)
def test_broken_fields_are_named(save, config, field):
    folder = save(**config)
    one_line(lambda: Tokenizer.from_folder(folder), field, "expected")


@pytest.mark.parametrize("field", ["add_eos_token", "split_special_tokens", "auto_map"])
def test_what_changes_the_ids_is_refused_by_name(save, field):
    one_line(lambda: Tokenizer.from_folder(save(**{field: True})), f"tokenizer_config.json: {field}: ", "not supported")


def test_an_eos_that_the_post_processor_adds_is_followed(save):
    folder = save(add_eos_token=True)
    changed = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    changed.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).encode("the cat")[-1] == 1


def test_fields_that_change_nothing_pass(save):
    inert = dict(add_eos_token=False, auto_map=None, split_special_tokens=False, legacy=True, padding_side="left",
                 model_max_length=10**30, tokenizer_class="LlamaTokenizerFast", use_default_system_prompt=False,
                 added_tokens_decoder={"1": {"content": "</s>", "special": True}}, sp_model_kwargs={},
                 additional_special_tokens=["[INST]", {"content": "<s>"}], extra_special_tokens={})  # fmt: skip
    plain = Tokenizer.from_folder(save()).encode("the cat")
    assert Tokenizer.from_folder(save(**inert)).encode("the cat") == plain


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_nested_too_deeply(save, name):
    folder = save()
    (folder / name).write_text('{"model": ' + "[" * 100_000)
    one_line(lambda: Tokenizer.from_folder(folder), f"{name}: expected")


BROKEN = dict(
    post_processor=dict(
        type="TemplateProcessing", pair=[], special_tokens={},
        single=[{"SpecialToken": {"id": "<none>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    ),
    normalizer=dict(type="Precompiled", precompiled_charsmap="AAAA"),
    model=dict(type="WordLevel", vocab={"<s>": 0, "</s>": 1}, unk_token="none"),
    pre_tokenizer=dict(type="FixedLength", length=0),
)  # fmt: skip


@pytest.mark.parametrize("part", BROKEN)
def test_what_the_library_fails_on_is_one_line(save, part):
    """Also where its Rust code panics, which is no Exception."""
    folder = save()
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: BROKEN[part]}))
    one_line(lambda: Tokenizer.from_folder(folder).encode("the cat"), "tokenizer.json: ")


def test_bad_arguments(save):
    tokenizer = Tokenizer.from_folder(save())
    one_line(lambda: tokenizer.encode(1), "text", "expected")
    one_line(lambda: tokenizer.encode("\ud800"), "text", "expected")
    one_line(lambda: tokenizer.decode([-1]), "ids", "expected")
    one_line(lambda: tokenizer.decode(["the"]), "ids", "expected")
    one_line(lambda: tokenizer.pieces([2**32]), "ids", "expected")
    one_line(lambda: tokenizer.pieces([-1]), "ids", "expected")


def test_chat_in_the_manner_of_llama_3(chat):
    tokenizer = chat(LLAMA3)
    turns = (
        "<s><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nthe cat?<|eot_id|>"
    )
    assert tokenizer.render_chat(CHAT, add_generation_prompt=False) == turns
    prompt = tokenizer.render_chat(CHAT)
    assert prompt == turns + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert tokenizer.decode(tokenizer.encode(prompt), skip_special_tokens=False) == prompt


@pytest.mark.parametrize("config", [{}, {"bos": True}, {"add_bos_token": True}])
def test_a_rendered_chat_has_one_bos(chat, config):
    tokenizer = chat(LLAMA3, **config)
    assert tokenizer.encode(tokenizer.render_chat(CHAT)).count(tokenizer.bos_id) == 1


def test_chat_in_the_manner_of_mistral(chat):
    tokenizer = chat(MISTRAL)
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert tokenizer.render_chat(talk) == "<s>[INST] a [/INST]b</s>[INST] c [/INST]"
    one_line(lambda: tokenizer.render_chat(talk[1:]), "chat_template", "roles must alternate user/assistant")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% set x = '{0.__class__}'.format(messages) %}{{ x }}",
        "{% for i in range(999999999) %}{% endfor %}",
    ],
)
def test_templates_stay_in_the_sandbox(chat, template):
    tokenizer = chat(template)
    one_line(lambda: tokenizer.render_chat(CHAT), "chat_template")
    assert CHAT[-1]["role"] == "user"


@pytest.mark.parametrize("template", ["{% if %}", "{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{% include 'x' %}"])
def test_errors_of_a_template(chat, template):
    tokenizer = chat(template)
    one_line(lambda: tokenizer.render_chat(CHAT), "chat_template")


def test_what_templates_are_given(chat):
    tokenizer = chat(
        "{% for m in messages %}{% if loop.index0 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
        "|{{ bos_token }}{{ eos_token }}{{ pad_token }}|{{ tools | tojson }}|{{ tools | tojson(indent=1) }}|{{ mood }}"
    )
    assert tokenizer.render_chat(CHAT) == "system|<s></s>|null|null|"
    tools = [{"b": "<é&'>", "a": 1}]
    wanted = """system|<s></s>|[{"b": "<é&'>", "a": 1}]|[\n {\n  "b": "<é&'>",\n  "a": 1\n }\n]|calm"""
    assert tokenizer.render_chat(CHAT, tools=tools, mood="calm") == wanted
    assert tokenizer.render_chat(CHAT, bos_token="B").startswith("system|B</s>|")


def test_blocks_leave_no_white_space(chat):
    tokenizer = chat("{% if true %}\n  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\n{% endif %}")
    assert tokenizer.render_chat(CHAT) == "system\nuser\n"


def test_templates_know_the_date(chat):
    # The year alone, and both years if it turns meanwhile.
    years = {str(datetime.datetime.now().year)}
    rendered = chat("{{ strftime_now('%Y') }}").render_chat(CHAT)
    assert rendered in years | {str(datetime.datetime.now().year)}


def test_templates_by_name_and_by_file(chat, tmp_path):
    tokenizer = chat([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])
    assert tokenizer.render_chat(CHAT) == "plain"
    assert tokenizer.render_chat(CHAT, tools=[]) == "tools"
    (tmp_path / "chat_template.jinja").write_text("of the file: é", encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).render_chat(CHAT) == "of the file: é"


def test_a_template_is_missing(chat):
    one_line(lambda: chat(None).render_chat(CHAT), "chat_template", "expected")
    one_line(lambda: chat([{"name": "rag", "template": ""}]).render_chat(CHAT), "default", "rag")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([CHAT[0], {"role": 1, "content": ""}], "messages[1].role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ],
)
def test_messages_are_checked(save, messages, field):
    tokenizer = Tokenizer.from_folder(save(chat_template="x"))
    one_line(lambda: tokenizer.render_chat(messages), f"{field}: expected")


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"needs the checkpoint {STORIES.name}, which is not in the repository")
def test_a_real_checkpoint():
    tokenizer = Tokenizer.from_folder(STORIES)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    story = "Once upon a time, there was a little girl named Lily. 日本 😀"
    ids = tokenizer.encode(story)
    assert ids[0] == tokenizer.bos_id and tokenizer.bos_id not in ids[1:]
    assert len(ids) < len(story)
    assert tokenizer.decode(ids) == story
    assert tokenizer.pieces(ids)[0].startswith("▁")
