; The name stands inside as many declarators as the type needs; deeper ones than these are rare.
(function_definition declarator: [
    (function_declarator declarator: (identifier) @name)
    (pointer_declarator declarator: (function_declarator declarator: (identifier) @name))
    (pointer_declarator declarator: (pointer_declarator declarator: (function_declarator declarator: (identifier) @name)))]
  body: (_) @body) @function
(type_definition type: (struct_specifier body: (_) @body) declarator: (type_identifier) @name) @class
(type_definition type: (union_specifier body: (_) @body) declarator: (type_identifier) @name) @class
(type_definition type: (enum_specifier body: (_) @body) declarator: (type_identifier) @name) @class
(struct_specifier name: (type_identifier) @name body: (_) @body) @class
(union_specifier name: (type_identifier) @name body: (_) @body) @class
(enum_specifier name: (type_identifier) @name body: (_) @body) @class
(comment) @comment

(call_expression function: [(identifier) @call (field_expression field: (field_identifier) @call)])

[(compound_statement (_) @statement) (case_statement (_) @statement)]
