"""A language model on the disk: loading it, and writing a tokenizer beside it that `AutoTokenizer` reads."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, SourceError, XTokenError, XTokenWarning, refused
from ..mapping.mapping import Side
from ..read import read_vocab
from ..sources.locate import Located, locate, tokenizer_files
from ..vocab.kinds import Kind

_NAMED_TOKENS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""The roles that `tokenizer_config.json` has a key for: `bos_token` and so on."""


def load_model(name: str, dtype: str | None = None) -> Any:
    """A causal language model from a folder, a GGUF file or folder, or the Hub; code that comes with it is not run.

    Args:
        name: a path, or a Hub id with an optional `@revision`.
        dtype: of the weights, such as `float32`; None for that of the files, and float32 for those of a GGUF file.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        SourceError: it cannot be found or loaded.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("A model", "train") from error
    path = Path(name).expanduser()
    folder = str(path) if path.exists() else name
    options: dict[str, Any] = {"dtype": getattr(torch, dtype) if dtype else "auto"}
    of_gguf: dict[str, Any] = {"dtype": getattr(torch, dtype or "float32")}
    if hasattr(transformers, "GgufConfig"):
        # Where its kernels are installed, transformers would leave the weights packed, and train none of them.
        of_gguf["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if path.is_file() and path.suffix == ".gguf":
        folder, options = str(path.parent), {"gguf_file": path.name, **of_gguf}
    elif path.is_dir() and not (path / "config.json").exists() and len(files := sorted(path.glob("*.gguf"))) == 1:
        options = {"gguf_file": files[0].name, **of_gguf}
    elif not path.exists() and "@" in name:
        folder, _, revision = name.partition("@")
        options["revision"] = revision
    try:
        # Unpacking a GGUF file draws a bar that nobody can switch off.
        with redirect_stderr(io.StringIO()) if "gguf_file" in options else nullcontext():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(
            f"cannot load the model {name} ({reason}): give a folder, a GGUF file or a Hub id with a causal language "
            "model"
        ) from error
    if "gguf_file" in options:
        _forget_gguf(model)
    return model


def _forget_gguf(model: Any) -> None:
    """Its weights are plain float32 by now, but transformers refuses to save a model that it holds to be quantised."""
    model.hf_quantizer = None
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, flag, False):
            setattr(model, flag, False)


def write_tokenizer(source: Any, folder: Path, side: Side) -> None:
    """Writes a tokenizer's files into a model's folder, and reads them back to see that they are that tokenizer.

    A `tokenizer.json` is copied with what stands beside it. Other formats are converted to one by transformers; where
    the result would tokenise otherwise, the files are copied as they are, and a warning says so.

    Args:
        source: what `read_vocab` takes, but no `Vocab`, which has no files.
        folder: where to; files of the same names are replaced.
        side: what a mapping keeps of this tokenizer.

    Raises:
        SourceError: it has no files.
    """
    if not isinstance(source, (str, Path)):
        if hasattr(source, "save_pretrained"):
            source.save_pretrained(str(folder))
        elif hasattr(source, "save"):
            source.save(str(folder / "tokenizer.json"))
        else:
            raise SourceError(
                f"a {type(source).__name__} has no files to write: give the tokenizer's source, as read_vocab takes it"
            )
        _name_tokens(folder, side)
        return
    located = locate(source)
    files = tokenizer_files(located.path)
    if any(_is_tokenizer_json(file) for file in files):
        for file in files:
            shutil.copyfile(file, folder / ("tokenizer.json" if len(files) == 1 else file.name))
        _name_tokens(folder, side)
        return
    if _write_converted(located, folder, side):
        return
    for file in files:
        shutil.copyfile(file, folder / file.name)
    warnings.warn(
        f"{side.name} has no tokenizer.json, and transformers makes none that tokenises alike: {files[0].name} was "
        "copied as it is, which this library reads and AutoTokenizer may not",
        XTokenWarning,
        stacklevel=2,
    )


def _is_tokenizer_json(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    return file.name == "tokenizer.json" or (b'"added_tokens"' in head and b'"version"' in head)


def _write_converted(located: Located, folder: Path, side: Side) -> bool:
    """Writes the tokenizer in transformers' fast form; False, and nothing written, where that is another tokenizer."""
    before = set(folder.iterdir())
    try:
        # What files make transformers and `tokenizers` raise can be anything.
        with refused(f"transformers cannot convert {side.name}", SourceError):
            _converted(located, side).save_pretrained(str(folder))
        _name_tokens(folder, side)
        same = _is_same(folder, side)
    except XTokenError:
        same = False
    if not same:
        for file in set(folder.iterdir()) - before:
            file.unlink()
    return same


def _converted(located: Located, side: Side) -> Any:
    """The tokenizer in transformers' fast form."""
    from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path, preset = located.path, located.preset
    if preset is None or preset.pattern is None:
        options = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        folder = path if path.is_dir() else path.parent
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **options)
    convert: Any = TikTokenConverter
    backend = convert(str(path), pattern=preset.pattern).converted()
    added = [AddedToken(token.text, special=token.special, normalized=False) for token in preset.added]
    backend.add_tokens(added)
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, **_named(side))


def _name_tokens(folder: Path, side: Side) -> None:
    """Writes a `tokenizer_config.json` with the tokens' roles where the tokenizer came without one."""
    config = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists() and not config.exists():
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", **_named(side)}
        config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _named(side: Side) -> dict[str, str]:
    """`bos_token` and its kin."""
    ids = {role: side.roles[role][0] for role in _NAMED_TOKENS if side.roles.get(role)}
    return {f"{role}_token": side.surfaces[token_id].decode("utf-8", "replace") for role, token_id in ids.items()}


def _is_same(folder: Path, side: Side) -> bool:
    """Whether the tokenizer in a folder has the text of a mapping's side, and its special tokens at their ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XTokenWarning)
        vocab = read_vocab(folder)
    if not vocab.has_fingerprint(side.fingerprint):
        return False
    specials = (side.kinds == Kind.SPECIAL).nonzero()[0].tolist()
    return all(token_id < len(vocab) and vocab.surfaces[token_id] == side.surfaces[token_id] for token_id in specials)
