"""The sizes of the small model and how it is trained; its special tokens and chat template."""

import dataclasses

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIAL = (BEGIN, END, *ROLES.values())
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role: expected system, user or assistant, got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The sizes of the model and how it is trained.

    Attributes:
        vocab_size, d_model, d_ff, num_layers, num_heads, num_kv_heads, head_dim, max_positions: of the model.
        tokenizer_documents: how many documents the tokenizer is trained on.
        steps, batch, length: of the training: `batch` rows of `length` tokens a step, none seen twice.
        long_share: of the steps, the last ones, whose rows are as long as `max_positions`, and fewer in proportion.
        learning_rate: its peak; a linear rise over `warmup` steps, then half a cosine down to a fiftieth.
        weight_decay: of the matrices. clip: the largest norm of the gradient.
        seed: of everything.
    """

    vocab_size: int = 1024
    d_model: int = 128
    d_ff: int = 512
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    max_positions: int = 512
    tokenizer_documents: int = 4000
    steps: int = 4000
    batch: int = 8
    length: int = 128
    long_share: float = 0.3
    learning_rate: float = 6e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def config(self) -> dict:
        """The config.json."""
        return dict(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            intermediate_size=self.d_ff,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            torch_dtype="bfloat16",
            bos_token_id=SPECIAL.index(BEGIN),
            eos_token_id=SPECIAL.index(END),
        )
