"""Training: a student learns from teachers that have other tokenizers.

Names are imported when they are first used, so `import xtoken_align.training` loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from ..errors import MissingExtraError

if TYPE_CHECKING:
    from ..spans.answers import Answer
    from ..spans.ray_data import align_ray
    from .cache.format import Truncation, loss_bound
    from .cache.ray_data import cache_teacher_ray
    from .cache.read import TeacherCache
    from .cache.write import CacheReport, write_teacher_cache
    from .config import DistillConfig, LoraConfig, StudentConfig, TeacherConfig, XTokenConfig
    from .config_file import read_config
    from .distillation import Distillation
    from .on_policy import OnPolicy
    from .result import DistillResult
    from .run import cache_teacher, distill
    from .served import ServedOptions, ServedTeacher
    from .teachers import TeacherSpec
    from .trainer import DistillationMixin, XTokenTrainer

_HOMES = {
    "Answer": ".spans.answers",
    "CacheReport": "cache.write",
    "DistillConfig": "config",
    "DistillResult": "result",
    "Distillation": "distillation",
    "DistillationMixin": "trainer",
    "LoraConfig": "config",
    "OnPolicy": "on_policy",
    "ServedOptions": "served",
    "ServedTeacher": "served",
    "StudentConfig": "config",
    "TeacherCache": "cache.read",
    "TeacherConfig": "config",
    "TeacherSpec": "teachers",
    "Truncation": "cache.format",
    "XTokenConfig": "config",
    "XTokenTrainer": "trainer",
    "align_ray": ".spans.ray_data",
    "cache_teacher_ray": "cache.ray_data",
    "cache_teacher": "run",
    "distill": "run",
    "loss_bound": "cache.format",
    "read_config": "config_file",
    "write_teacher_cache": "cache.write",
}

__all__ = [
    "Answer",
    "CacheReport",
    "DistillConfig",
    "DistillResult",
    "Distillation",
    "DistillationMixin",
    "LoraConfig",
    "OnPolicy",
    "ServedOptions",
    "ServedTeacher",
    "StudentConfig",
    "TeacherCache",
    "TeacherConfig",
    "TeacherSpec",
    "Truncation",
    "XTokenConfig",
    "XTokenTrainer",
    "align_ray",
    "cache_teacher",
    "cache_teacher_ray",
    "distill",
    "loss_bound",
    "read_config",
    "write_teacher_cache",
]


_get, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> object:
    try:
        return _get(name)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in {"torch", "transformers", "accelerate"}:
            raise MissingExtraError("Training", "train") from error
        raise
