(method name: (_) @name body: (_)? @body) @function
(singleton_method name: (_) @name body: (_)? @body) @function
(class name: (_) @name body: (_)? @body) @class
(module name: (_) @name body: (_)? @body) @class

; Tests of RSpec, Minitest and Rails: it "does" do ... end.
(call method: (identifier) @_word arguments: (argument_list . (string) @name)
  block: [(do_block body: (_) @body) (block body: (_) @body)]
  (#any-of? @_word "it" "specify" "example" "scenario" "test")) @test
(comment) @comment

(call method: (identifier) @call)
(call receiver: (constant) @call method: (identifier) @_word (#eq? @_word "new"))

[(body_statement (_) @statement) (block_body (_) @statement) (then (_) @statement) (else (_) @statement)]
