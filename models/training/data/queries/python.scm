; Functions and classes; a decorated one is taken with its decorators.
(function_definition name: (_) @name body: (block) @body) @function
(class_definition name: (_) @name body: (block) @body) @class
(decorated_definition definition: (_) @inner) @outer

; What documents them.
(block . (expression_statement . (string) @docstring .)) @documented

; Calls, by the last part of the name.
(call function: [(identifier) @call (attribute attribute: (identifier) @call)])

[(block (_) @statement) (module (_) @statement)]
