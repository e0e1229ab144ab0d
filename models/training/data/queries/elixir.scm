; Everything is a call here: def add(a, b) do ... end.
(call target: (identifier) @_word
  (arguments . [
    (call target: (identifier) @name)
    (identifier) @name
    (binary_operator left: (call target: (identifier) @name) operator: "when")
    (binary_operator left: (identifier) @name operator: "when")]
    (keywords)? @body)
  (do_block)? @body
  (#any-of? @_word "def" "defp" "defmacro" "defmacrop" "defguard" "defguardp")) @function
(call target: (identifier) @_word (arguments . (alias) @name) (do_block) @body
  (#any-of? @_word "defmodule" "defprotocol" "defimpl")) @class
(call target: (identifier) @_word (arguments . (string) @name) (do_block) @body (#any-of? @_word "test" "property")) @test

(unary_operator operand: (call target: (identifier) @_word (arguments . [(string) (sigil)]))
  (#any-of? @_word "doc" "typedoc")) @comment
(do_block . (unary_operator operand: (call target: (identifier) @_word (arguments . [(string) (sigil)]))
  (#eq? @_word "moduledoc")) @docstring) @documented
(unary_operator operand: (call target: (identifier) @_word)
  (#any-of? @_word "spec" "impl" "since" "deprecated" "tag")) @attribute

(call target: [(identifier) @call (dot right: (identifier) @call)])

[(do_block (_) @statement) (else_block (_) @statement) (body (_) @statement)]
