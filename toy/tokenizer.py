"""A tokenizer of one token a character, with a chat template; needs no download."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<unk>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(letters: str = "abcdefghijklmnopqrstuvwxyz .,") -> PreTrainedTokenizerFast:
    """Letters and digits; everything else is <unk>."""
    known = {token: i for i, token in enumerate((*SPECIAL, *"0123456789", *letters))}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()  # or what is decoded would have a space after every character
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE,
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
