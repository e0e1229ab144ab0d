; Tests of GoogleTest and Catch2: TEST(Suite, Name) { ... } and TEST_CASE("name") { ... }.
(function_definition declarator: (function_declarator declarator: (identifier) @_word parameters: (_) @name) body: (_) @body
  (#match? @_word "^(TEST|TEST_F|TEST_P|TYPED_TEST|TYPED_TEST_P)$")) @test

(function_definition declarator: [
    (function_declarator declarator: [
      (field_identifier) (qualified_identifier) (destructor_name) (operator_name) (template_function) (operator_cast)] @name)
    (pointer_declarator declarator: (function_declarator declarator: [(field_identifier) (qualified_identifier)] @name))
    (reference_declarator (function_declarator declarator: [
      (identifier) (field_identifier) (qualified_identifier) (operator_name)] @name))]
  body: (_) @body) @function
(class_specifier name: (_) @name body: (_) @body) @class
(struct_specifier name: (_) @name body: (_) @body) @class
(namespace_definition name: (_) @name) @module
(template_declaration [(function_definition) (class_specifier) (struct_specifier)] @inner) @outer

(call_expression function: [
  (qualified_identifier name: (identifier) @call)
  (qualified_identifier name: (qualified_identifier name: (identifier) @call))
  (template_function name: (identifier) @call)
  (field_expression field: (template_method name: (field_identifier) @call))])
(new_expression type: (type_identifier) @call)
