"""`python -m tools.reference` brings the generated parts of the pages up to date."""

from .pages import documents, refreshed

for page in documents():
    written = page.read_text("utf-8")
    if (current := refreshed(written)) != written:
        page.write_text(current, "utf-8")
