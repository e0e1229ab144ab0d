"""Programming languages: their file names, and their tree-sitter grammars where there is one.

The patterns for each grammar are in queries/*.scm; definitions.py says which captures they may have.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_EXTENSIONS = {
    "python": "py pyi pyx",
    "javascript": "js jsx mjs cjs",
    "typescript": "ts mts cts",
    "tsx": "tsx",
    "go": "go",
    "rust": "rs",
    "java": "java",
    "c": "c h",
    "cpp": "cc cpp cxx c++ hh hpp hxx h++ ipp tpp inl cu cuh ino",
    "ruby": "rb rake gemspec",
    "elixir": "ex exs",
    "kotlin": "kt kts",
    "csharp": "cs",
    "fsharp": "fs fsx",
    "php": "php",
    "swift": "swift",
    "shell": "sh bash zsh ksh",
    "powershell": "ps1 psm1",
    "scala": "scala sc",
    "groovy": "groovy gradle",
    "lua": "lua",
    "sql": "sql",
    "perl": "pl pm",
    "r": "r",
    "julia": "jl",
    "dart": "dart",
    "haskell": "hs",
    "ocaml": "ml mli",
    "erlang": "erl hrl",
    "clojure": "clj cljs cljc",
    "lisp": "lisp el scm rkt",
    "objective_c": "m mm",
    "zig": "zig",
    "nim": "nim",
    "fortran": "f90 f95 f03 f08",
    "pascal": "pas",
    "ada": "adb ads",
    "solidity": "sol",
    "protobuf": "proto",
    "terraform": "tf",
    "vue": "vue",
    "svelte": "svelte",
    "assembly": "s asm",
    "verilog": "v sv",
    "vhdl": "vhd vhdl",
    "tcl": "tcl",
    "gdscript": "gd",
    "crystal": "cr",
}
_BY_EXTENSION = {extension: language for language, known in _EXTENSIONS.items() for extension in known.split()}
_BY_NAME = {"Rakefile": "ruby", "Gemfile": "ruby", "Jenkinsfile": "groovy"}
_INTERPRETERS = {
    "python": "python",
    "node": "javascript",
    "deno": "typescript",
    "ruby": "ruby",
    "elixir": "elixir",
    "sh": "shell",
    "bash": "shell",
    "zsh": "shell",
    "perl": "perl",
    "lua": "lua",
    "php": "php",
    "Rscript": "r",
}
_SHEBANG = re.compile(r"#!\s*(?:\S*/env\s+(?:-S\s+)?)?(?:\S*/)?([A-Za-z]+)")
_CPP_HEADER = re.compile(
    r"^[ \t]*(?:class\s+\w+[^;]*$|namespace\b|template\s*<|using\s+\w|(?:public|private|protected)\s*:)", re.M
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a language is parsed.

    package, function: the source of its tree-sitter grammar. queries: files of patterns; the first that matches a node
    counts. doc_signs: how a comment begins that documents the definition after it. stubs: where a class is shown
    without the bodies of its methods, a body that begins with the first of a pair becomes the second; others stay.
    placeholder: what a body becomes once its docstring, all that it held, is removed; empty: the docstring goes alone.
    clauses: whether a function may consist of several clauses, one after the other.
    """

    package: str
    queries: tuple[str, ...]
    function: str = "language"
    doc_signs: tuple[str, ...] = ("/**",)
    stubs: tuple[tuple[bytes, bytes], ...] = ((b"{", b"{}"),)
    placeholder: bytes = b""
    clauses: bool = False


GRAMMARS = {
    "python": Grammar("tree_sitter_python", ("python",), stubs=((b"", b"..."),), placeholder=b"pass"),
    "javascript": Grammar("tree_sitter_javascript", ("ecmascript", "javascript")),
    "typescript": Grammar("tree_sitter_typescript", ("ecmascript", "typescript"), "language_typescript"),
    "tsx": Grammar("tree_sitter_typescript", ("ecmascript", "typescript"), "language_tsx"),
    "go": Grammar("tree_sitter_go", ("go",), doc_signs=("//", "/*")),
    "rust": Grammar("tree_sitter_rust", ("rust",), doc_signs=("///", "/**")),
    "java": Grammar("tree_sitter_java", ("java",)),
    "c": Grammar("tree_sitter_c", ("c",), doc_signs=("//", "/*")),
    "cpp": Grammar("tree_sitter_cpp", ("cpp", "c"), doc_signs=("//", "/*")),
    "ruby": Grammar("tree_sitter_ruby", ("ruby",), doc_signs=("#",), stubs=((b"", b"nil"),)),
    "elixir": Grammar(
        "tree_sitter_elixir",
        ("elixir",),
        doc_signs=("@doc",),
        stubs=((b"do:", b"do: nil"), (b"do", b"do end")),
        clauses=True,
    ),
}


def language_of(path: str, text: str) -> str:
    """The language of a file, by its name or by the interpreter in its first line; empty if unknown."""
    name = PurePosixPath(path)
    if not name.suffix and (shebang := _SHEBANG.match(text)):
        return _INTERPRETERS.get(shebang[1], "")
    language = _BY_NAME.get(name.name) or _BY_EXTENSION.get(name.suffix[1:].lower(), "")
    if language == "c" and name.suffix == ".h" and _CPP_HEADER.search(text):
        return "cpp"
    return language


def may_be_code(path: str) -> bool:
    """Whether a file may be code, by its name: it has a known extension, or none, and then its first line will tell."""
    name = PurePosixPath(path)
    return not name.suffix or name.suffix[1:].lower() in _BY_EXTENSION
