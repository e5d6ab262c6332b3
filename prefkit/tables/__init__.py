"""Reads users' tables (.csv, .tsv, .txt, .jsonl, .json, .parquet) row by row, as dicts of Python values."""

from prefkit.tables.files import user_path as user_path
from prefkit.tables.read import SUFFIXES as SUFFIXES
from prefkit.tables.read import Row as Row
from prefkit.tables.read import read as read
from prefkit.tables.values import id_text as id_text
