"""Reports of a run: counts for the terminal, one static page, and contact sheets for decisions."""

from prefkit.report.contact import contact_sheet
from prefkit.report.page import write_report
from prefkit.store.summary import status

__all__ = ["contact_sheet", "status", "write_report"]
