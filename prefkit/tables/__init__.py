"""Reader of users' tables: .csv, .tsv, .txt, .jsonl, .json and .parquet as dicts of Python values, row by row."""

from prefkit.tables.files import user_path as user_path
from prefkit.tables.read import SUFFIXES as SUFFIXES
from prefkit.tables.read import Row as Row
from prefkit.tables.read import read as read
from prefkit.tables.values import id_text as id_text
