"""What quantisation and checking need to know about data: reading data sets and turning them into model inputs.

From a notebook: `samples_from_rows(read_rows("evaluation.jsonl", limit=512), ModelInputs(task, inputs, assets))`.
"""

from calibration.builtin import builtin_text
from calibration.dataset import dataset_type, read_rows
from calibration.errors import DataError
from calibration.inputs import InputSpec
from calibration.rows import Rows
from calibration.samples import Samples
from calibration.synthetic import synthetic_samples
from calibration.tasks import ModelInputs, builtin_samples, random_samples, samples_from_rows
from calibration.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "DataError",
    "InputSpec",
    "ModelInputs",
    "Rows",
    "Samples",
    "TextTokenizer",
    "builtin_samples",
    "builtin_text",
    "dataset_type",
    "load_tokenizer",
    "random_samples",
    "read_rows",
    "samples_from_rows",
    "synthetic_samples",
]
