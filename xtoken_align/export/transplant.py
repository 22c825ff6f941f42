"""`transplant`: a model gets another tokenizer, with embedding and head rows made from its own by way of a mapping.

The new tokenizer's tokens are the rows of W, the model's own tokens its columns: W says how the model's own tokenizer
would spell each new token, and the new row is made from the rows of those pieces.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..cards import card
from ..errors import MismatchError, OptionError, SourceError
from ..files import whole_folder
from ..mapping.mapping import Mapping
from ..read import as_vocab, read_vocab
from ..rules.links import EXACT_RULES, NEAR_RULES, RULE_NUMBER
from ..store.load import check_fits, load
from ..visible import printable
from ..vocab.kinds import Kind
from ..vocab.roles import stop_ids
from .model_folder import load_model, write_tokenizer

if TYPE_CHECKING:
    import torch

MADE = {
    "exact": "the row of the same token, copied",
    "special": "the row of the token with the same role or name, copied",
    "near": "the row of the nearest token, copied",
    "split": "the mean of the rows of its pieces",
    "unused": "the row of the same id, copied: padding and holes of one tokenizer",
    "mean": "the mean of the model's rows and a little noise",
}
"""How a row is made -> what that means, in the order of reports."""

_WAY = {name: number for number, name in enumerate(MADE)}

NOISE = 0.02
"""Noise of rows that would else be equal, as a share of each column's standard deviation over the model's rows: enough
for two rows to differ in bfloat16, too little to give any token a logit of its own."""

_BLOCK = 4096
"""Rows that are added up at a time; a block's float32 copy is what making rows needs beside the rows themselves."""


@dataclass(frozen=True, eq=False)
class RowPlan:
    """How every new row is made from old ones.

    Attributes:
        way: uint8 (new width,), the number of the way in `MADE`.
        source: int64 (new width,), the old id whose row is copied, -1 where none is.
        apart: bool (new width,), copies that get noise, since an earlier special token has the same row.
        split: int64 (rows,), the new ids that are made of several rows.
        pieces: int64 (rows, pieces), the old ids that they are made of, first piece first.
        weights: float32 (rows, pieces), their weights, which sum to 1 in each row; 0 behind a row's last piece.
    """

    way: NDArray[np.uint8]
    source: NDArray[np.int64]
    apart: NDArray[np.bool_]
    split: NDArray[np.int64]
    pieces: NDArray[np.int64]
    weights: NDArray[np.float32]

    def counts(self) -> dict[str, int]:
        """How a row is made -> how many are."""
        return dict(zip(MADE, np.bincount(self.way, minlength=len(MADE)).tolist(), strict=True))


def plan_rows(mapping: Mapping) -> RowPlan:
    """Decides from W how each row is made.

    Links of the reverse pass say what else the model might write where it writes a token, not what the token is made
    of: they count only in a row that has no others.
    """
    matrix, width = mapping.matrix, mapping.matrix.shape[0]
    backward = matrix.rule == RULE_NUMBER["reverse"]
    forward_links = np.bincount(matrix.rows[~backward], minlength=width)
    used = ~backward | (forward_links[matrix.rows] == 0)
    rows, columns = matrix.rows[used], matrix.indices[used].astype(np.int64)
    count = np.bincount(rows, minlength=width)
    way = np.full(width, _WAY["split"], dtype=np.uint8)
    special = mapping.student.kinds >= Kind.SPECIAL
    for rules, name in ((EXACT_RULES, "exact"), (NEAR_RULES, "near")):
        way[np.isin(matrix.owner, [RULE_NUMBER[rule] for rule in rules])] = _WAY[name]
    way[special & (way == _WAY["exact"])] = _WAY["special"]
    # A row that the user wrote is near with one piece and split with more, as in reports of coverage.
    way[(matrix.owner == RULE_NUMBER["override"]) & (count == 1)] = _WAY["near"]
    way[count == 0] = _WAY["mean"]
    source = np.full(width, -1, dtype=np.int64)
    single = count[rows] == 1
    source[rows[single]] = columns[single]
    kept = np.zeros(width, dtype=np.bool_)
    if mapping.student.fingerprint == mapping.teacher.fingerprint:
        kept[_keep_own_rows(mapping, way, source)] = True
    # W's weights say how likely each piece is where the token is written, 0.9 for the first. As rows their plain mean
    # serves better, but what the user weighed stays weighed.
    by_user = matrix.owner[rows] == RULE_NUMBER["override"]
    weights_of_links = np.where(by_user, matrix.data[used], np.float32(1))
    split, pieces, weights = _padded(
        rows[~single], columns[~single], weights_of_links[~single], matrix.position[used][~single]
    )
    return RowPlan(way, source, _repeated_specials(mapping, source, kept), split, pieces, weights)


def _keep_own_rows(mapping: Mapping, way: NDArray[np.uint8], source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Under its own tokenizer a model keeps what no link tells of: padding, holes, and specials with one string.

    Returns:
        int64, the ids whose row stays.
    """
    shared = min(mapping.matrix.shape)
    kinds, surfaces, own = mapping.student.kinds[:shared], mapping.student.surfaces, mapping.teacher.surfaces
    candidates = (kinds >= Kind.SPECIAL) & (kinds == mapping.teacher.kinds[:shared])
    candidates &= mapping.matrix.owner[:shared] != RULE_NUMBER["override"]
    ids = np.array([i for i in np.flatnonzero(candidates).tolist() if surfaces[i] == own[i]], dtype=np.int64)
    way[ids[source[ids] < 0]] = _WAY["unused"]
    source[ids] = ids
    return ids


def _repeated_specials(mapping: Mapping, source: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks special tokens whose row another special token has too.

    Of those the one whose row stays is unmarked, else the namesake, else the first.

    Llama-3's `<|eot_id|>` and `<|end_of_text|>` both get the row of Qwen's `<|im_end|>`. Two equal rows have equal
    logits whatever comes before them, and equal gradients where neither is written.
    """
    ids = np.flatnonzero((mapping.student.kinds >= Kind.SPECIAL) & (mapping.student.kinds <= Kind.RESERVED))
    ids = ids[source[ids] >= 0]
    named, spelled = mapping.teacher.surfaces, mapping.student.surfaces
    other_name = np.array([named[int(source[i])] != spelled[i] for i in ids.tolist()], dtype=np.bool_)
    order = ids[np.lexsort((ids, other_name, ~kept[ids]))]
    marked = np.zeros(len(source), dtype=np.bool_)
    marked[order] = True
    marked[order[np.unique(source[order], return_index=True)[1]]] = False
    return marked


def _padded(
    rows: NDArray[np.int32], columns: NDArray[np.int64], data: NDArray[np.float32], position: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Links as a table with a line per row, in the order of the pieces, filled up with the first piece at weight 0.

    Row 5 with the links 9, 4 at the positions 1, 0 and row 7 with 3, 8, 9 at 0, 1, 2 become

        split   pieces    weights
          5     4 9 4     .91 .09 0
          7     3 8 9     .90 .09 .01
    """
    order = np.lexsort((position, rows))
    split, start, count = np.unique(rows[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(start, count)
    line = np.repeat(np.arange(len(split)), count)
    pieces = np.repeat(columns[order][start][:, None], count.max(initial=1), axis=1)
    weights = np.zeros(pieces.shape, dtype=np.float32)
    pieces[line, place] = columns[order]
    weights[line, place] = data[order]
    weights /= weights.sum(axis=1, keepdims=True)
    return split.astype(np.int64), pieces, weights


def make_rows(old: torch.Tensor, plan: RowPlan, trained: NDArray[np.int64], generator: torch.Generator) -> torch.Tensor:
    """New rows from old ones.

    Args:
        old: (old width, columns), an embedding, a head or its bias as one column.
        plan: how each row is made.
        trained: int64, old ids that stand for tokens: the mean is theirs.
        generator: a CPU generator of the noise.

    Returns:
        (new width, columns) in the dtype and on the device of `old`; sums are float32.
    """
    import torch

    device, columns = old.device, old.shape[1]
    new = torch.empty((len(plan.way), columns), dtype=old.dtype, device=device)

    def ids(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    copied = np.flatnonzero(plan.source >= 0)
    new[ids(copied)] = old[ids(plan.source[copied])]
    for start in range(0, len(plan.split), _BLOCK):
        block = slice(start, start + _BLOCK)
        pieces, weights = ids(plan.pieces[block]), ids(plan.weights[block])
        total = torch.zeros((len(pieces), columns), device=device)
        # Piece by piece, so that the sum has one order on every machine.
        for place in range(pieces.shape[1]):
            total += weights[:, place, None] * old[pieces[:, place]].float()
        new[ids(plan.split[block])] = total.to(old.dtype)
    deviation, mean = torch.std_mean(old[ids(trained)].float(), dim=0, correction=0)

    def noise(count: int) -> torch.Tensor:
        return NOISE * deviation * torch.randn((count, columns), generator=generator).to(device)

    empty, apart = np.flatnonzero(plan.way == _WAY["mean"]), np.flatnonzero(plan.apart)
    new[ids(empty)] = (mean + noise(len(empty))).to(old.dtype)
    new[ids(apart)] = (new[ids(apart)].float() + noise(len(apart))).to(old.dtype)
    return new


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Transplant:
    """A model with another tokenizer.

    Attributes:
        model: the model, of the class and dtype that it had.
        mapping: from the new tokenizer (student) to the model's own (teacher).
        name: what the model was called.
        tied: whether embedding and head are one matrix.
        plan: how each row was made.
        emptied: settings of token ids that have no counterpart in the new tokenizer, and were set to None.
        seed: of the noise.
    """

    model: Any
    mapping: Mapping
    name: str
    tied: bool
    plan: RowPlan
    emptied: tuple[str, ...]
    seed: int

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {way}" for way, count in self.rows.items() if count)
        return printable(
            f"Transplant({self.name} with the tokenizer {self.mapping.student.name}: {counts})", one_line=True
        )

    def _repr_html_(self) -> str:
        coverage = {name: count for name, count in self.rows.items() if count}
        return card(f"{self.name} with the tokenizer {self.mapping.student.name}", {**coverage, **self._facts()})

    @cached_property
    def rows(self) -> dict[str, int]:
        """How a row was made -> how many were, every way of `MADE`."""
        return self.plan.counts()

    @property
    def roles(self) -> dict[str, Any]:
        """The ids that the model's configurations name now: bos, eos, pad, and all that end a turn."""
        config = self.model.config.get_text_config()
        ids = {role: getattr(config, f"{role}_token_id", None) for role in ("bos", "eos", "pad")}
        return {**ids, "stops": stop_ids(self.mapping.student)}

    def _facts(self) -> dict[str, Any]:
        weight = self.model.get_input_embeddings().weight
        return {
            "embedding and head": "one matrix" if self.tied else "two matrices",
            "shape": f"{weight.shape[0]:,} x {weight.shape[1]:,}, {str(weight.dtype).removeprefix('torch.')}",
            "mapping": self.mapping.version,
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `transplant`."""
        return {
            "model": self.name,
            "tokenizer": self.mapping.student.name,
            "mapping": self.mapping.version,
            "shape": list(self.model.get_input_embeddings().weight.shape),
            "tied": self.tied,
            "rows": self.rows,
            "roles": self.roles,
            "emptied": list(self.emptied),
            "seed": self.seed,
        }

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | Any,
        overwrite: bool = False,
    ) -> Path:
        """Writes the model in safetensors with its configurations, the tokenizer's files and a model card.

        Args:
            folder: appears whole or not at all.
            tokenizer: the new tokenizer: a source as `read_vocab` takes it, or an object with its files.
            overwrite: whether the files of a model that is there are replaced.

        Returns:
            The folder.

        Raises:
            MismatchError: the tokenizer is not the mapping's student.
            StoreError: the folder holds something, or cannot be written.
            SourceError: the tokenizer has no files.
        """
        check_fits(self.mapping.student, as_vocab(tokenizer), "student")
        place = Path(folder)
        with whole_folder(place, overwrite=overwrite) as beside:
            self.model.save_pretrained(beside)
            write_tokenizer(tokenizer, beside, self.mapping.student)
            (beside / "README.md").write_text(self.model_card(), encoding="utf-8")
        return place

    def model_card(self) -> str:
        """The README.md of the model's folder: what was done, from which mapping, and how many rows of each kind."""
        sides = self.mapping.student, self.mapping.teacher
        student, teacher = (printable(side.name, one_line=True) for side in sides)
        name = printable(self.name, one_line=True)
        table = "\n".join(f"| {way} | {count:,} | {MADE[way]} |" for way, count in self.rows.items() if count)
        stated = {**self._facts(), "seed of the noise": self.seed}
        if self.emptied:
            stated["set to None, since the tokenizer has no such token"] = ", ".join(self.emptied)
        facts = "\n".join(f"- {fact}: {value}" for fact, value in stated.items())
        return f"""---
library_name: transformers
tags: [xtoken-align, tokenizer-transplant]
---

# {name} with the tokenizer {student}

The model {name} was given the tokenizer {student} in place of its own, {teacher}, by `xtoken-align` {__version__}.
Nothing was trained: only the embedding and the output head were made anew, from their own rows. The licences of the
model and of the tokenizer hold as before.

| rows | count | made from |
|---|---|---|
{table}

{facts}

Tokens that were split say less than they will: train the model before use, for instance by distilling it from {name} as
it was.
"""


def transplant(
    model: str | os.PathLike[str] | Any,
    mapping: Mapping | str | os.PathLike[str],
    *,
    seed: int = 0,
) -> Transplant:
    """Gives a model another tokenizer: its body stays, and embedding and head get a row for every new token.

    The mapping's teacher is the tokenizer that the model has, its student the one that it gets: W has a row for each
    token of the new tokenizer, spelled by the model's own tokens. The same mapping then distils the result, the
    student, from the model as it was, the teacher.

    Each new row is made by the first of these that fits:

    - a token that the model has under another id (exact), a special token of a role or name that it has (special), or
      one that differs in a leading space, in case or as an override says (near): its row, copied bit for bit;
    - a token that its tokenizer would split (split): the mean of its pieces' rows, in the embedding and in the head;
      of a row that the user wrote, the sum by its weights;
    - anything else (mean): the mean of all rows that stand for tokens, with a little noise by `seed`.

    Several special tokens with one row get noise too, so that training can tell them apart. A head's bias is made as
    the head is. Factors that a model applies to its embeddings or logits (Gemma's normaliser, Cohere's scale) stay as
    they are: rows are made linearly, so the factors pass through.

    Args:
        model: a model of transformers, which stays as it is (a copy is changed); or a folder, a GGUF file or a Hub id.
        mapping: from the new tokenizer to the model's own, or what `load` takes.
        seed: of the noise. The same seed gives the same bits.

    Returns:
        The model with its report; `save` writes it.

    Raises:
        SourceError: the model cannot be found or loaded.
        MismatchError: the mapping's teacher is not the model's tokenizer.
        OptionError: the model has no embedding or head of a kind that can be remade.

    Source: the pieces' mean is FVT's (Gee et al., 2022); `docs/transplant.md` has what else was measured.
    """
    if not isinstance(mapping, Mapping):
        mapping = load(mapping)
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        _check_own_tokenizer(name, mapping)
        model, name = load_model(name), _short(name)
    else:
        _check_class(model)
        name = _short(str(getattr(model, "name_or_path", "")) or type(model).__name__)
        model = copy.deepcopy(model)
    plan = plan_rows(mapping)
    tied = _replace_weights(model, mapping, plan, seed)
    emptied = _renumber(model, mapping)
    _check_loadable(model)
    return Transplant(model=model, mapping=mapping, name=name, tied=tied, plan=plan, emptied=emptied, seed=seed)


def _short(name: str) -> str:
    """A Hub id as it is, of a path its last part."""
    path = Path(name)
    return path.resolve().name if path.exists() else name.rstrip("/\\")


def _check_class(model: Any) -> None:
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        raise OptionError(
            f"expected a model of transformers, got a {type(model).__name__}: merge adapters into their model, and "
            "unwrap a model that was wrapped for training"
        )


def _check_own_tokenizer(name: str, mapping: Mapping) -> None:
    try:
        own = read_vocab(name)
    except SourceError:
        return  # a folder of weights alone: the widths are compared later
    check_fits(mapping.teacher, own, "teacher")


def _replace_weights(model: Any, mapping: Mapping, plan: RowPlan, seed: int) -> bool:
    """Puts new rows into the embedding and the head, wherever the model uses them; returns whether they are tied."""
    import torch

    embedding, head = _checked_modules(model)
    tied = head.weight is embedding.weight
    old = [embedding.weight] if tied else [embedding.weight, head.weight]
    least = int(max(plan.source.max(initial=-1), plan.pieces.max(initial=-1))) + 1
    if any(len(weight) < least for weight in old):
        raise MismatchError(
            f"the mapping's teacher {mapping.teacher.name} has ids up to {least - 1}, and the model has "
            f"{min(map(len, old))} rows: build the mapping with the model's own tokenizer as teacher"
        )
    trained = np.flatnonzero(mapping.teacher.kinds[: min(map(len, old))] <= Kind.BYTE)
    generator = torch.Generator().manual_seed(seed)
    width = len(plan.way)
    with torch.no_grad():
        for weight in old:
            rows = make_rows(weight.detach(), plan, trained, generator)
            _share(model, "weight", weight, torch.nn.Parameter(rows, requires_grad=weight.requires_grad))
        bias = getattr(head, "bias", None)
        if bias is not None:
            rows = make_rows(bias.detach()[:, None], plan, trained, generator)
            _share(model, "bias", bias, torch.nn.Parameter(rows[:, 0].contiguous(), requires_grad=bias.requires_grad))
    embedding.num_embeddings = head.out_features = width
    return tied


def _share(model: Any, name: str, before: Any, after: Any) -> None:
    """Puts a parameter wherever the model holds the one before: a tied one has several places."""
    for module in model.modules():
        if getattr(module, name, None) is before:
            setattr(module, name, after)


def _checked_modules(model: Any) -> tuple[Any, Any]:
    """The embedding and the head.

    Raises:
        OptionError: there is none, or of another kind than rows can be put into.
    """
    import torch

    from ..losses.heads import output_head

    head = output_head(model)
    embedding = model.get_input_embeddings()
    for module, kind in ((embedding, torch.nn.Embedding), (head, torch.nn.Linear)):
        if not isinstance(module, kind) or not module.weight.is_floating_point() or module.weight.is_meta:
            raise OptionError(
                f"expected a torch.nn.{kind.__name__} with floating-point weights in memory, got another "
                f"{type(module).__name__}: transplant the model before it is quantised, offloaded or given adapters"
            )
    if getattr(model.config.get_text_config(), "vocab_size_per_layer_input", None):
        raise OptionError(
            f"{type(model).__name__} has a second embedding for its layers, which no mapping can remake: transplant a "
            "model with one"
        )
    return embedding, head


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those nested in it: of the text, vision and audio parts."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _configs(value)


def _renumber(model: Any, mapping: Mapping) -> tuple[str, ...]:
    """Gives the configurations the new width and the new ids of special tokens; names those that have none."""
    width = mapping.student.sizes.logits
    text = model.config.get_text_config()
    before = text.vocab_size
    for config in _configs(model.config):
        if config is text or getattr(config, "vocab_size", None) == before:
            config.vocab_size = width
    for module in model.modules():
        if getattr(module, "vocab_size", None) == before:
            module.vocab_size = width
    renumbered = _Renumbered(mapping)
    emptied = [key for config in _configs(model.config) for key in renumbered.change(config)]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        emptied += [f"generation {key}" for key in renumbered.change(generation)]
        stops = stop_ids(mapping.student)
        if stops and not renumbered.same:
            generation.eos_token_id = stops[0] if len(stops) == 1 else stops
    pad = text.pad_token_id
    model.get_input_embeddings().padding_idx = pad if pad is not None and 0 <= pad < width else None
    return tuple(dict.fromkeys(emptied))


_ID_KEYS = ("_token_id", "_token_ids", "_token_index")
"""How settings end that hold ids of tokens."""

_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "sequence_bias")
"""Settings of generation that hold ids of any tokens."""


class _Renumbered:
    """New ids for old ones in settings.

    A token that the new tokenizer has by its role (bos, eos, pad) is that; any other is the new special token whose row
    came from it. Under its own tokenizer a model keeps the ids that its settings name.

    Attributes:
        same: whether the new tokenizer is the model's own.
    """

    def __init__(self, mapping: Mapping) -> None:
        self._roles = dict(mapping.student.roles)
        # A chat tokenizer may know no end of a text but the end of a turn.
        self._roles.setdefault("eos", tuple(stop_ids(mapping.student)))
        self.same = mapping.student.fingerprint == mapping.teacher.fingerprint
        matrix = mapping.matrix
        special = np.flatnonzero(mapping.student.kinds[matrix.rows] >= Kind.SPECIAL)[::-1]
        self._new = dict(zip(matrix.indices[special].tolist(), matrix.rows[special].tolist(), strict=True))

    def change(self, config: Any) -> list[str]:
        """Changes a configuration; returns the settings that were set to None."""
        emptied = []
        for key, value in list(vars(config).items()):
            if key in _LISTS and value:
                setattr(config, key, None)
                emptied.append(key)
            ending = next((ending for ending in _ID_KEYS if key.endswith(ending)), None)
            if ending is None:
                continue
            renewed = self._renew(key.removesuffix(ending), value)
            if renewed is None and value is not None:
                emptied.append(key)
            setattr(config, key, renewed)
        return emptied

    def _renew(self, role: str, value: Any) -> Any:
        by_role = None if self.same and value is None else next(iter(self._roles.get(role, ())), None)
        old = value if isinstance(value, list) else [value]
        translated = [self._new[token_id] for token_id in old if token_id in self._new]
        by_counterpart = (translated if isinstance(value, list) else translated[0]) if translated else None
        first, second = (by_counterpart, by_role) if self.same else (by_role, by_counterpart)
        return second if first is None else first


def _check_loadable(model: Any) -> None:
    """Refuses a model that would not load again: one with a further tensor as wide as its vocabulary.

    Raises:
        OptionError: names the tensor.
    """
    import torch

    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if name in shapes and shapes[name] != tensor.shape:
            raise OptionError(
                f"{name} has the shape {tuple(tensor.shape)}, and with the new tokenizer the model expects "
                f"{tuple(shapes[name])}: transplant cannot remake this tensor"
            )
