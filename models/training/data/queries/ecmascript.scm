; What JavaScript and TypeScript have in common.
(function_declaration name: (_) @name body: (_) @body) @function
(generator_function_declaration name: (_) @name body: (_) @body) @function
(method_definition name: (_) @name body: (_) @body) @function
(class_declaration name: (_) @name body: (_) @body) @class
(class name: (_) @name body: (_) @body) @class

; Functions that get their name from where they are kept.
(lexical_declaration (variable_declarator name: (identifier) @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)])) @function
(variable_declaration (variable_declarator name: (identifier) @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)])) @function
(lexical_declaration (variable_declarator name: (identifier) @name value: (class body: (_) @body))) @class
(expression_statement (assignment_expression
  left: [(member_expression property: (_) @name) (identifier) @name]
  right: [(arrow_function body: (_) @body) (function_expression body: (_) @body)])) @function
(pair key: [(property_identifier) (string)] @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)]) @function

; Tests of Jest, Mocha, Vitest, node:test and others: it("does", () => { ... }).
(expression_statement (call_expression
  function: [(identifier) @_word (member_expression object: (identifier) @_word)]
  arguments: (arguments . [(string) (template_string)] @name
    [(arrow_function body: (_) @body) (function_expression body: (_) @body)] .))
  (#any-of? @_word "it" "test" "specify")) @test

(export_statement declaration: (_) @inner) @outer
(comment) @comment
(decorator) @attribute

(call_expression function: [(identifier) @call (member_expression property: (property_identifier) @call)])
(new_expression constructor: [(identifier) @call (member_expression property: (property_identifier) @call)])

[(statement_block (_) @statement) (program (_) @statement) (class_body (_) @statement)
 (switch_case body: (_) @statement) (switch_default body: (_) @statement)]
