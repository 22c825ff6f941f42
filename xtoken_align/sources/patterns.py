"""How text is cut before merging: split patterns by family, and GGUF's names for them.

GGUF files carry the name of their pre-tokenizer (`tokenizer.ggml.pre`) instead of its pattern. What a name means, which
families exist and who skips merges for whole words is llama.cpp's knowledge: `src/llama-vocab.cpp` of
ggml-org/llama.cpp. Where that file quotes the model's own pattern beside an adaptation to C++, the model's own stands
here. Text that no match covers stays as a piece of its own, there and here.

Left out, and so refused by name: families that llama.cpp implements in code instead of a pattern (`kimi-k2`, `afmoe`),
splits of zero width (`superbpe`), and families that merge raw UTF-8 (`gemma4`, `sarvam-moe`, `whitespace`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CJK_RUN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
PROSE_RUN = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""


# DeepSeek-LLM lists the cased letters of its time one by one; a later Unicode table would not give the same set.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM_WORDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_YOUTU_RUNS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)

_SHORT_CONTRACTIONS = "'(?i:[sdmt]|ll|ve|re)"
_LEAD = r"[^\r\n\p{L}\p{N}]"
_OTHER = r"[^\s\p{L}\p{N}]"
_LINE_SPACES = r"\s*[\r\n]|\s+(?!\S)|\s+"
_TIKTOKEN_SPACES = r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
_PHRASE = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Llama-3 and Qwen share this shape: contractions, words, digits, punctuation, spaces. They differ in how many digits
# make a piece, and Qwen3.5 counts marks as letters.
_WORDS = rf"{_LEAD}?\p{{L}}+"
_PUNCTUATION = rf" ?{_OTHER}+[\r\n]*"
_MARKED_WORDS = rf"{_LEAD}?[\p{{L}}\p{{M}}]+"
_MARKED_PUNCTUATION = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_PUNCTUATION}"
_QWEN2 = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}|{_PUNCTUATION}|{SPACES}"

# o200k and Tekken share this one: a word has one capital or is all in capitals. `HelloWORLD` is `Hello`, `WORLD`.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALISED, _CAPITALS = rf"{_LEAD}?{_UPPER}*{_LOWER}+", rf"{_LEAD}?{_UPPER}+{_LOWER}*"
_CASED_WORDS = rf"{_CAPITALISED}|{_CAPITALS}"
_CASED_WORDS_CONTRACTED = rf"{_CAPITALISED}{CONTRACTIONS}?|{_CAPITALS}{CONTRACTIONS}?"
_CASED_REST = rf" ?{_OTHER}+[\r\n/]*|{SPACES}"
_O200K = rf"{_CASED_WORDS_CONTRACTED}|\p{{N}}{{1,3}}|{_CASED_REST}"

# Jais-2 splits white space into runs of powers of two, the longest first: 512, 256, ..., 4, then 2 or 1.
_FALLING_RUNS = "|".join([rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1)] + [r"\s{1,2}(?!\S)", r"\s{1}"])

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # tiktoken's own, with its possessive quantifiers; Oniguruma reads `{1,3}+` otherwise, so it has no GGUF name.
        "cl100k": (
            rf"{_SHORT_CONTRACTIONS}|{_LEAD}?+\p{{L}}++|\p{{N}}{{1,3}}+| ?{_OTHER}++[\r\n]*+|{_TIKTOKEN_SPACES}",
        ),
        "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        "gpt2": (GPT2,),
        "digits-gpt2": (r"\p{N}", GPT2),
        "llama3": (rf"{_LLAMA3}|{SPACES}",),
        "minicpm5": (r"\p{N}{1,3}", rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_PUNCTUATION}|{SPACES}"),
        "jais2": (rf"{_LLAMA3}|\s*[\r\n]+|{_FALLING_RUNS}",),
        "qwen2": (_QWEN2,),
        "qwen35": (rf"{CONTRACTIONS}|{_MARKED_WORDS}|\p{{N}}|{_MARKED_PUNCTUATION}|{SPACES}",),
        "ufakzeka": (rf"{_WORDS}|\p{{N}}|{_PUNCTUATION}|{SPACES}",),
        "laguna": (r"[^\n]+|[\n]+", _QWEN2),
        "seed-coder": (rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}",),
        "exaone-moe": (rf"{CONTRACTIONS}|{_PHRASE}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|{_LINE_SPACES}",),
        "bailingmoe": (rf"{_SHORT_CONTRACTIONS}|{_LEAD}?+\p{{L}}+|\p{{N}}| ?{_OTHER}++[\r\n]*|{_LINE_SPACES}",),
        "o200k": (_O200K,),
        "tekken": (rf"{_CASED_WORDS}|\p{{N}}|{_CASED_REST}",),
        "tiny-aya": (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K),
        "youtu": (_YOUTU_RUNS, rf"{_CASED_WORDS_CONTRACTED}|\p{{N}}|{_CASED_REST}"),
        "deepseek-llm": (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        ),
        "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
        "deepseek-v3": (r"\p{N}{1,3}", CJK_RUN, rf"{PROSE_RUN}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"),
        "spark2.5": (
            r"\p{N}{1,3}",
            CJK_RUN,
            rf"{PROSE_RUN}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        ),
        "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
        "bloom": (_BLOOM_WORDS,),
        "viking": (_BLOOM_WORDS, r"\p{N}"),
        "chameleon": (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
    }
)
"""Family name -> the patterns that one after the other isolate their matches."""

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "default": "default",
        "gpt2": "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat a.x-4.0"
        " mellum modern-bert mpt olmo jais trillion granite-docling exaone4",
        "digits-gpt2": "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        "llama3": "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4"
        " chatglm-bpe",
        "minicpm5": "minicpm5",
        "jais2": "jais-2",
        "qwen2": "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        "qwen35": "qwen35",
        "ufakzeka": "ufakzeka",
        "laguna": "laguna",
        "seed-coder": "seed-coder",
        "exaone-moe": "exaone-moe",
        "bailingmoe": "bailingmoe bailingmoe2 llada-moe",
        "o200k": "gpt-4o llama4 kanana2 talkie minimax-m2",
        "tekken": "tekken",
        "tiny-aya": "tiny_aya cohere2moe",
        "youtu": "youtu",
        "deepseek-llm": "deepseek-llm",
        "deepseek-coder": "deepseek-coder",
        "deepseek-v3": "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        "spark2.5": "spark2_5",
        "falcon": "falcon",
        "bloom": "bloom poro-chat gpt3-finnish",
        "viking": "viking",
        "chameleon": "chameleon",
    }
)
_FAMILY = {name: family for family, names in _NAMES.items() for name in names.split()}

_MERGED_WORDS = frozenset({"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"})
"""Names of the Llama-3 pattern whose vocabularies do not take whole words."""

_WHOLE_WORDS = frozenset({"llama3", "minicpm5", "tekken", "youtu"})
"""Families whose vocabularies hold words that their merges do not reach."""

_NFC = frozenset({"qwen2", "qwen35"})
"""Names, not families: GGUF has no field for a normaliser; Qwen's own tokenizers compose text before splitting it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPreset:
    """What happens to text before merging.

    Attributes:
        patterns: regular expressions; each isolates its matches in the pieces that the one before left.
        normalizer: `NFC` or None.
        ignore_merges: whether a piece that is itself a token is taken whole, without looking at the merges.
    """

    patterns: tuple[str, ...]
    normalizer: str | None
    ignore_merges: bool


def pattern_for_pre(name: str) -> SplitPreset | None:
    """Returns what a GGUF pre-tokenizer name stands for.

    Args:
        name: the value of `tokenizer.ggml.pre`.

    Returns:
        The split, or None for a name whose split is not known here.
    """
    family = _FAMILY.get(name)
    if family is None:
        return None
    return SplitPreset(
        patterns=FAMILIES[family],
        normalizer="NFC" if name in _NFC else None,
        ignore_merges=family in _WHOLE_WORDS and name not in _MERGED_WORDS,
    )
