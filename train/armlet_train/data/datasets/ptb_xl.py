"""PTB-XL: 21,799 twelve-lead ECGs of 10 s from 18,869 patients (Wagner et al., Scientific Data 7, 2020; PhysioNet).

As PhysioNet gives it out: ``ptbxl_database.csv`` with a row for each ECG (``patient_id``, ``strat_fold``,
``scp_codes``, and the record's file at 100 Hz and at 500 Hz, ``filename_lr`` and ``filename_hr``),
``scp_statements.csv`` with the superclass of each diagnostic code, and the records in WFDB's format below
``records100`` and ``records500``. Where both are there the 500 Hz record is taken. Signals are millivolts; they are
filtered and brought to 200 Hz, see :mod:`armlet_train.data.datasets._filters`.

An ECG's label is its diagnostic superclass: NORM, MI, STTC, CD or HYP. About a fifth of the ECGs have more than one, a
few have none; they carry no label and serve pretraining. Splits are those its authors recommend: folds 1 to 8 train, 9
validation, 10 test; all ECGs of a patient are in one fold.
"""

from __future__ import annotations

import ast
import csv
from functools import partial
from pathlib import Path

import numpy as np

from armlet_runtime.errors import DataError
from armlet_runtime.modalities import Modality
from armlet_runtime.signals import Label, Recording

from ._filters import ECG_BAND_HZ, RATE_HZ, prepare, stream
from .base import DataSet, Entry

MAINS_HZ = 50.0
"""It was recorded in Germany."""

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
ECG = Modality("ecg", LEADS, "mV", RATE_HZ)
LABELS = ("NORM", "MI", "STTC", "CD", "HYP")
SPLITS = {"train": tuple(range(1, 9)), "validation": (9,), "test": (10,)}
"""Split to ``strat_fold``."""

DATABASE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"


def entries(path: Path) -> list[Entry]:
    """A recording for each row of the database.

    Raises:
        DataError: A table or a record is missing, or a row cannot be read.
    """
    classes = _classes(path / STATEMENTS)
    split_of = {fold: split for split, folds in SPLITS.items() for fold in folds}
    recordings = []
    for line, row in _rows(path / DATABASE):
        try:
            number, fold = int(row["ecg_id"]), int(float(row["strat_fold"]))
            person = str(int(float(row["patient_id"])))
            codes = ast.literal_eval(row["scp_codes"])
            files = [path / row["filename_hr"], path / row["filename_lr"]]
            split = split_of[fold]
            names = {classes[code] for code in codes if code in classes}
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise DataError(
                f"{path / DATABASE}, line {line}: not as in PTB-XL ({type(error).__name__}: {error})"
            ) from None
        record = next((file for file in files if file.with_name(file.name + ".hea").is_file()), None)
        if record is None:
            raise DataError(f"{path / DATABASE}, line {line}: neither {files[0]}.hea nor {files[1]}.hea is there")
        label = next(iter(names)) if len(names) == 1 else None
        recordings.append(Entry(f"ptb-xl-{number:05d}", person, split, partial(_read, record, number, person, label)))
    return recordings


def _classes(file: Path) -> dict[str, str]:
    """Diagnostic code to its superclass."""
    classes = {}
    for line, row in _rows(file):
        try:
            # The first column has no name; a code that is no diagnosis has an empty field.
            code, diagnostic, name = row[""], row["diagnostic"], row["diagnostic_class"]
        except KeyError as error:
            raise DataError(f"{file}, line {line}: there is no column {error}") from None
        if diagnostic and float(diagnostic) == 1:
            if name not in LABELS:
                raise DataError(f"{file}, line {line}: '{name}' is not one of {', '.join(LABELS)}")
            classes[code] = name
    return classes


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its last line."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened, strict=True)
            return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"there is no {file}; give the folder that holds PTB-XL's tables") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def _read(record: Path, number: int, person: str, label: str | None) -> Recording:
    from wfdb import rdrecord

    try:
        read = rdrecord(str(record))
        values, rate = np.asarray(read.p_signal, np.float64), float(read.fs)
        leads, units = [name.upper() for name in read.sig_name], set(read.units)
    except Exception as error:  # the reader fails in many ways; each means the same here
        raise DataError(f"{record}.hea and .dat cannot be read ({type(error).__name__}: {error})") from None
    if sorted(leads) != sorted(LEADS) or units != {"mV"}:
        raise DataError(
            f"{record}.hea has leads {', '.join(leads)} in {', '.join(sorted(units))}, not PTB-XL's twelve in mV"
        )
    try:
        prepared = prepare(values[:, [leads.index(lead) for lead in LEADS]], rate, ECG_BAND_HZ, MAINS_HZ)
    except DataError as error:
        raise DataError(f"{record}: {error}") from None
    end_ns = round(len(values) / rate * 1e9)
    labels = [] if label is None else [Label(0, end_ns, label)]
    meta = {"source": "PTB-XL", "record_hz": f"{rate:g}"}
    return Recording(f"ptb-xl-{number:05d}", person, meta, {"ecg": stream(ECG, prepared)}, labels)


DATA_SET = DataSet(
    "ptb-xl",
    "PTB-XL: 12-lead ECGs of 10 s, five diagnostic superclasses, 21,799 ECGs of 18,869 patients",
    (ECG,),
    LABELS,
    entries,
    bring=f"get PTB-XL 1.0.3 from PhysioNet ({DATABASE}, {STATEMENTS}, records500 or records100)",
)
