"""Reports on a run: counts for the terminal, report.html, and contact sheets for accepting or rejecting images."""

from prefkit.report.contact import contact_sheet
from prefkit.report.page import write_report
from prefkit.store.summary import status

__all__ = ["contact_sheet", "status", "write_report"]
