(function_item name: (_) @name body: (_) @body) @function
(macro_definition name: (_) @name) @function
(struct_item name: (_) @name body: (_)? @body) @class
(enum_item name: (_) @name body: (_) @body) @class
(union_item name: (_) @name body: (_) @body) @class
(trait_item name: (_) @name body: (_) @body) @class
(impl_item type: [(type_identifier) @name (generic_type type: (_) @name) (_) @name]) @members
(mod_item name: (_) @name body: (_)) @module
(attribute_item) @attribute
[(line_comment) (block_comment)] @comment

(call_expression function: [
  (identifier) @call
  (scoped_identifier name: (identifier) @call)
  (field_expression field: (field_identifier) @call)
  (generic_function function: [
    (identifier) @call
    (scoped_identifier name: (identifier) @call)
    (field_expression field: (field_identifier) @call)])])
(struct_expression name: [(type_identifier) @call (scoped_type_identifier name: (type_identifier) @call)])
(macro_invocation macro: [(identifier) @call (scoped_identifier name: (identifier) @call)])
; What a macro is given is not parsed: assert_eq!(add(1, 2), 3).
(token_tree (identifier) @call . (token_tree) @_arguments (#match? @_arguments "^\\("))

(block (_) @statement)
