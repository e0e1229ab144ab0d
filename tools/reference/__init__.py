"""The generated parts of the documentation: tables made from the code, between markers in the pages of docs/."""
