from tests.report.conftest import full, page

__all__ = ["full", "page"]
