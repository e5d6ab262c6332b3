from chromium import browser, chromium

from tests.report.conftest import full, page

__all__ = ["browser", "chromium", "full", "page"]
