(function_declaration name: (_) @name body: (_) @body) @function
(method_declaration
  receiver: (parameter_list (parameter_declaration type: [
    (type_identifier) @receiver
    (generic_type type: (type_identifier) @receiver)
    (pointer_type [(type_identifier) @receiver (generic_type type: (type_identifier) @receiver)])]))
  name: (_) @name body: (_) @body) @function
(type_declaration . (type_spec name: (_) @name type: [(struct_type) (interface_type)] @body) .) @class
(type_spec name: (_) @name type: [(struct_type) (interface_type)] @body) @class
(comment) @comment

(call_expression function: [
  (identifier) @call
  (selector_expression field: (field_identifier) @call)
  (type_instantiation_expression type: (type_identifier) @call)])

(statement_list (_) @statement)
