"""Which code of a codebase is tests, by its path and its name."""

import re
from pathlib import PurePosixPath

_FOLDERS = frozenset({"test", "tests", "__tests__", "spec", "specs", "e2e", "androidTest", "testdata"})
_FILE = re.compile(
    r"(?:test_.*|.*_test|conftest|tests)\.pyi?|.*_test\.go|.*[.-](?:test|tests|spec|e2e|cy)\.[cm]?[jt]sx?|.*_(?:test|spec)\.rb|test_.*\.rb"
    r"|.*_test\.exs|(?:.*Tests?|Test[A-Z_].*|Test|.*IT|.*TestCase|.*Spec)\.(?:java|kt|scala|groovy|cs|swift|php)"
    r"|(?:tests?|.*_tests?)\.rs|(?:.*[_-](?:unit)?tests?|test[_-].*|.*Tests?)\.(?:c|cc|cpp|cxx|h|hpp)|.*\.bats|.*[_-]test\.\w+"
)
_MARK = re.compile(r"#\[(?:\w+::)*(?:test|rstest|test_case)\b|@(?:Parameterized|Repeated)?Test\b")


def is_test_file(path: str) -> bool:
    """Whether a file, by its path below the codebase, is tests or test data."""
    *folders, name = PurePosixPath(path).parts or ("",)
    return not _FOLDERS.isdisjoint(folders) or _FILE.fullmatch(name) is not None


def is_test_symbol(language: str, qualified: str, head: str) -> bool:
    """Whether a function, method or class outside of test files is a test. head: its source up to its body."""
    *scope, name = qualified.split(".")
    if language == "python":
        return name.startswith("test_") if not scope else _is_test_class(scope[-1]) and name.startswith("test")
    if language == "rust" and not {"test", "tests"}.isdisjoint(scope):
        return True
    return language in ("rust", "java") and _MARK.search(head) is not None


def _is_test_class(name: str) -> bool:
    return name.startswith("Test") or name.endswith(("Test", "Tests", "TestCase"))
